"""A UE, an edge host and a daemon in network namespaces: what crosses the air, and leases that are followed.

How good predictions are is measured by `cosched bench network`: time on a shared machine is no test.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra [llm] is not installed")

from cosched.bench import network
from cosched.bench.netns import why_not
from cosched.bench.network_jobs import Job, JobAsked, Leased, Measured
from cosched.bench.network_setup import CONFIG, UE, Setting, daemon, setting

WHY_NOT = why_not()
pytestmark = [pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT), pytest.mark.slow]
SMALL = CONFIG | {
    "hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 512,
}  # fmt: skip
RATE_BPS = 2e6


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    with setting(tmp_path_factory.mktemp("network"), 0.02, 4.0, SMALL) as found:
        yield found


@pytest.mark.parametrize("bits", [16, 8])
def test_as_many_bytes_leave_the_ue_as_are_planned_with(at: Setting, bits: int) -> None:
    table = network.table_of(at)
    bits_on_air = table.ul_bits[table.point_ids.index(f"k=2/{bits}bit/edge0")]
    for tokens in (1, network.TOKENS):
        job = Job(task="t", split=2, bits=bits, prompt_tokens=network.PROMPT_TOKENS, tokens=tokens)
        measured = at.run(job, network.UNSHAPED_BPS)
        planned = (bits_on_air[0] + (tokens - 1) * bits_on_air[1]) / 8
        assert measured.sent_bytes == pytest.approx(planned, rel=0.07), tokens


def test_a_shaped_uplink_is_what_a_prefill_waits_for(at: Setting) -> None:
    job = Job(task="t", split=2, bits=16, prompt_tokens=network.PROMPT_TOKENS, tokens=4)
    measured = at.run(job, RATE_BPS)
    payload_bits = 8 * 2 * 256 * network.PROMPT_TOKENS
    assert measured.ttft_s > 0.95 * payload_bits / RATE_BPS
    assert measured.tpot_s > 0.95 * 8 * 2 * 256 / RATE_BPS
    for seconds in (measured.device_prefill_s, measured.device_token_s, measured.node_prefill_s, measured.node_token_s):
        assert seconds is not None
        assert 0 < seconds < measured.ttft_s


def test_a_lease_is_asked_for_followed_and_measured(at: Setting) -> None:
    with daemon(at) as client:
        asked = JobAsked("asked", UE, network.PROMPT_TOKENS, network.TOKENS, 20.0, 2.0)
        at.tell(asked)
        lease = at.hear(Leased)
        assert lease.reason == "admitted"
        assert all(p is not None and 0 < p < d for p, d in zip(lease.predicted_s, (20.0, 2.0), strict=True))
        ended = threading.Event()
        heard: list[str] = []
        watching = threading.Thread(target=lambda: heard.extend(_reasons(at, ended)))
        watching.start()
        at.tell(None)
        took = at.hear(Measured)
        assert np.isfinite(took.ttft_s)
        assert took.ttft_s > 0
        ended.set()
        watching.join()
        assert heard
        assert {"admitted"} == set(heard[:1])
        network_done = client.show("asked").lease.reason
        assert network_done in {"finished", "admitted"}


def _reasons(at: Setting, ended: threading.Event) -> Iterator[str]:
    from cosched.api.client import Client

    with Client(at.home.control) as client:
        while not ended.is_set():
            for lease in client.follow("asked", timeout_s=0.1):
                yield lease.reason
                if ended.is_set():
                    return
