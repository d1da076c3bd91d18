"""Suite `network`: predicted against measured TTFT and TPOT of split sessions over a shaped network, and promises kept.

A UE and an edge host run as processes in network namespaces of their own; `tc` gives the UE's uplink its rate. First
some sessions calibrate the profile (cosched/profiles/calibration.py), then RATES x SPLITS x BITS are predicted and
measured; at last a daemon beside the host grants leases, and each session's uplink is shaped to the bandwidth granted.
Needs root, iproute2 and the [llm] extra.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from cosched.api.client import Client
from cosched.bench.model import BenchRow, ModelClaim, Result, spread
from cosched.bench.netns import why_not
from cosched.bench.network_jobs import MODEL, Job, JobAsked, Leased, Measured
from cosched.bench.network_setup import EFFICIENCY_BPS_HZ, UE, Setting, daemon, setting
from cosched.errors import BadInput
from cosched.workloads import llm
from cosched.workloads.base import Floats, PointTable, learn, pipelined_s
from telemetry.messages import LlmSession, TaskOffer, TaskTiming

SUITE: Final = "network"
RATES_BPS: Final = (3e6, 8e6, 20e6)
SPLITS: Final = (1, 3, 5)
BITS: Final = (16, 8)
REPEATS: Final = 3  # of each, for the median
CALIBRATING: Final = ((2, 16), (4, 8))  # splits and bits
CALIBRATIONS: Final = 6  # of each
PROMPT_TOKENS: Final = 96
TOKENS: Final = 24
UNSHAPED_BPS: Final = 1e9
REQUESTS: Final = 20
EASE: Final = (1.3, 3.0)  # deadlines of requests, as multiples of what takes the whole cell
LONG_S: Final = 600.0
PERCENT: Final = 100.0
MOST_ERROR: Final = 0.15
MOST_KEPT: Final = 0.95
PHASE_NAMES: Final = ("TTFT", "TPOT")


def run(*, seeds: int, progress: Callable[[float], None]) -> Result:
    """Errors of prediction per rate, split and precision; promises kept. `seeds`: of the deadlines asked for."""
    if reason := why_not():
        raise BadInput(f"suite {SUITE}: {reason}")
    try:
        from cosched.runtime import measure
    except ImportError:
        raise BadInput(f"suite {SUITE} runs real layers: install the extra: pip install 'cosched[llm]'") from None
    tflops, gb_s = measure.one_core()
    with tempfile.TemporaryDirectory(prefix="cosched-network-") as folder, setting(Path(folder), tflops, gb_s) as at:
        calibrate(at)
        progress(0.2)
        rows = predictions(at, lambda part: progress(0.2 + 0.5 * part))
        errors = np.array([row.value for row in rows if row.figure == "error_percent"]) / PERCENT
        kept = promises(at, seeds, lambda part: progress(0.7 + 0.3 * part))
    claims = [
        ModelClaim(text=f"predictions of TTFT and TPOT: median within {MOST_ERROR:.0%}",
              reached=float((errors <= MOST_ERROR).mean()), asked=0.5),
        ModelClaim(
            text="promised deadlines kept, uplinks at the bandwidth granted", reached=kept.value, asked=MOST_KEPT
        ),
    ]  # fmt: skip
    return Result(rows=[*rows, kept], claims=claims, sweeps=[])


def table_of(at: Setting) -> PointTable:
    """Operating points of the session that is measured, with what has been learned."""
    work = LlmSession(
        model=MODEL, context_tokens=0, new_tokens=PROMPT_TOKENS, max_output_tokens=TOKENS,
        ttft_s=LONG_S, tpot_s=LONG_S, private=True,
    )  # fmt: skip
    offer = TaskOffer(at_ns=0, source=SUITE, seq=0, task="t", ue=UE, work=work)
    return llm.all_points(offer, at.plant.profiles.context_of(0, 0, at.calibration.factors))


def _job(split: int, bits: int) -> Job:
    return Job(task="t", split=split, bits=bits, prompt_tokens=PROMPT_TOKENS, tokens=TOKENS)


def calibrate(at: Setting) -> None:
    """Let some sessions on an unshaped uplink correct the profile."""
    plain = table_of(at)
    for (split, bits), _ in itertools.product(CALIBRATING, range(CALIBRATIONS)):
        measured = at.run(_job(split, bits), UNSHAPED_BPS)
        timing = TaskTiming(
            at_ns=0, source=SUITE, seq=0, task="t", point=f"k={split}/{bits}bit/edge0",
            device_prefill_s=measured.device_prefill_s, device_token_s=measured.device_token_s,
            node_prefill_s=measured.node_prefill_s, node_token_s=measured.node_token_s,
        )  # fmt: skip
        learn(at.calibration, plain, (), timing)


def predicted_s(table: PointTable, j: int, rate_bps: float) -> Floats:
    """(2,) TTFT and TPOT at row j with the whole of an uplink and of the node."""
    found: Floats = table.fixed_s[j] + table.ul_bits[j] / rate_bps + table.node_s[j]
    stages_s = (float(table.device_s[j, 0]), float(table.ul_bits[j, 0]) / rate_bps, float(table.node_s[j, 0]))
    found[0] -= sum(stages_s) - pipelined_s(table.chunks, stages_s)
    return found


def predictions(at: Setting, progress: Callable[[float], None]) -> list[BenchRow]:
    """Errors, and the median of what was measured, per rate, split and precision."""
    table = table_of(at)
    cases = list(itertools.product(RATES_BPS, SPLITS, BITS))
    rows: list[BenchRow] = []
    for done, (rate_bps, split, bits) in enumerate(cases, start=1):
        j = table.point_ids.index(f"k={split}/{bits}bit/edge0")
        runs = [at.run(_job(split, bits), rate_bps) for _ in range(REPEATS)]
        took_s = [statistics.median(column) for column in zip(*((r.ttft_s, r.tpot_s) for r in runs), strict=True)]
        case = f"{rate_bps / 1e6:g} Mbit/s point=k={split}/{bits}bit"
        expected_s = predicted_s(table, j, rate_bps).tolist()
        for phase, planned_s, seconds in zip(PHASE_NAMES, expected_s, took_s, strict=True):
            error = PERCENT * abs(planned_s / seconds - 1)
            figures = (("error_percent", error), ("predicted_ms", 1e3 * planned_s), ("measured_ms", 1e3 * seconds))
            rows += [_row(case, phase, figure, value) for figure, value in figures]
        progress(done / len(cases))
    return rows


def _row(case: str, subject: str, figure: str, value: float) -> BenchRow:
    return BenchRow(
        suite=SUITE, case=case, subject=subject, figure=figure, p50=value, p99=value, n=REPEATS, value=value
    )


def promises(at: Setting, seed: int, progress: Callable[[float], None]) -> BenchRow:
    """Share of the admitted requests whose deadlines held, each uplink shaped to what its lease grants."""
    rng = np.random.default_rng(seed)
    cell_bps = at.plant.site.cells[0].ul_bandwidth_hz * EFFICIENCY_BPS_HZ
    table = table_of(at)
    shortest = np.min([predicted_s(table, j, cell_bps) for j in range(table.n_points) if table.node[j] >= 0], axis=0)
    kept: list[float] = []
    with daemon(at):
        for number in range(REQUESTS):
            ttft_s, tpot_s = (shortest * rng.uniform(*EASE, 2)).tolist()
            asked = JobAsked(f"t{number}", UE, PROMPT_TOKENS, TOKENS, ttft_s, tpot_s)
            lease, took = _request(at, asked)
            if lease.point:
                kept.append(float(took.ttft_s <= ttft_s and took.tpot_s <= tpot_s))
            progress((number + 1) / REQUESTS)
    if not kept:
        raise BadInput(f"suite {SUITE}: the daemon admitted none of {REQUESTS} requests")
    p50, p99, mean = spread(kept)
    return BenchRow(
        suite=SUITE, case="promises", subject="daemon", figure="kept", p50=p50, p99=p99, n=len(kept), value=mean
    )


def _request(at: Setting, asked: JobAsked) -> tuple[Leased, Measured]:
    """Have a request decided and carried out; its uplink follows its lease."""
    at.tell(asked)
    lease = at.hear(Leased)
    ended = threading.Event()
    if lease.point and lease.bandwidth_hz:
        at.ue.shape(lease.bandwidth_hz * EFFICIENCY_BPS_HZ)
    shaper = threading.Thread(target=_follow, args=(at, asked.task, lease.bandwidth_hz, ended))
    shaper.start()
    at.tell(None)
    took = at.hear(Measured)
    ended.set()
    shaper.join()
    return lease, took


def _follow(at: Setting, task: str, granted_hz: float, ended: threading.Event) -> None:
    """Shape the uplink anew whenever the lease grants something else."""
    with Client(at.home.control) as client:
        while not ended.is_set():
            for lease in client.follow(task, timeout_s=0.05):
                if lease.bandwidth_hz and lease.bandwidth_hz != granted_hz:
                    granted_hz = lease.bandwidth_hz
                    at.ue.shape(granted_hz * EFFICIENCY_BPS_HZ)
                if ended.is_set():
                    return
