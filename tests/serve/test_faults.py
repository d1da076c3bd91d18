"""What is beside the usual: layers that run here, a node that dies in the middle, a daemon that is killed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import openai
import pytest
import runtime_cases
import serve_cases as cases
from daemon_cases import PATIENCE_S, until

from cosched.runtime.chain import Hop, Links, Route
from cosched.runtime.chat import PlainChat
from cosched.runtime.generation import Generation
from cosched.runtime.host import LayerHost
from cosched.runtime.parts import Part

TURNS = [{"role": "user", "content": "Hi"}]


@dataclass
class Another:
    """One more front end on the same daemon, with a host of its own, and two layers here."""

    client: openai.OpenAI
    host: LayerHost


@pytest.fixture(scope="module")
def another(stand: cases.Stand) -> Iterator[Another]:
    with runtime_cases.host_threads(stand.source, 1) as (host,):
        config = cases.configured(stand.folder, stand.place, host, model="layers = 2")
        with cases.front_end(stand.folder, config) as (_, url):
            client = openai.OpenAI(base_url=url, api_key="none", timeout=PATIENCE_S, max_retries=0)
            until(lambda: is_reached(client))
            yield Another(client, host)


def is_reached(client: openai.OpenAI) -> bool:
    try:
        client.chat.completions.create(model="llama", messages=TURNS, max_tokens=1)  # type: ignore[call-overload]
    except openai.InternalServerError:
        return False
    return True


def along(source: runtime_cases.ModelSource, host: LayerHost, split: int, n: int) -> str:
    """What the same route gives from this process."""
    links, part = Links(), Part(source)
    prompt = list(PlainChat().text(TURNS).encode())
    run = Generation(part, "again", prompt, Route(split, (Hop(host.endpoint, runtime_cases.LAYERS),)), links)
    found = bytes(run.stream(n)).decode("utf-8", "replace")
    run.close()
    links.close()
    return found


def test_a_private_request_runs_its_first_layers_here(stand: cases.Stand, another: Another):
    answer = another.client.chat.completions.with_raw_response.create(
        model="llama", messages=TURNS, temperature=0, max_tokens=12,  # type: ignore[arg-type]
        extra_headers={"x-cosched-private": "true", "x-cosched-ue": "home"},
    )  # fmt: skip
    split = int(answer.headers["x-cosched-split"])
    assert split in {1, 2}
    assert answer.parse().choices[0].message.content == along(stand.source, another.host, split, 12)
    until(lambda: not stand.client.list().total and not another.host.report().sessions)


def test_a_node_that_dies_ends_the_stream_with_its_reason(stand: cases.Stand, another: Another):
    stream = another.client.chat.completions.create(  # type: ignore[call-overload]
        model="llama", messages=TURNS, max_tokens=3000, stream=True, extra_body={"ignore_eos": True},
        extra_headers={"x-slo-tpot-ms": "500"},
    )  # fmt: skip
    next(iter(stream))
    another.host.stop()
    with pytest.raises(openai.APIError, match="ends after"):
        for _ in stream:
            pass
    with pytest.raises(openai.InternalServerError) as caught:
        another.client.chat.completions.create(model="llama", messages=TURNS, max_tokens=1)  # type: ignore[call-overload]
    assert (caught.value.status_code, caught.value.code) == (503, "node_lost")
    assert caught.value.response.headers["retry-after"]
    until(lambda: not stand.client.list().total)


def test_a_stream_outlives_the_daemon_and_who_comes_is_told(stand: cases.Stand):
    """Its fallback is `keep`: it goes on as it is; others get 503 until a daemon is there again."""
    client = openai.OpenAI(base_url=stand.url, api_key="none", timeout=PATIENCE_S, max_retries=0)
    stream = client.chat.completions.create(  # type: ignore[call-overload]
        model="llama", messages=TURNS, max_tokens=400, stream=True, temperature=0, extra_body={"ignore_eos": True},
    )  # fmt: skip
    pieces = [next(iter(stream)).choices[0].delta.content]
    stand.daemon.process.kill()
    stand.daemon.process.wait()
    pieces += [chunk.choices[0].delta.content or "" for chunk in stream]
    prompt = list(PlainChat().text(TURNS).encode())
    tokens = runtime_cases.reference_steps(stand.source, 400, prompt)
    assert "".join(pieces) == bytes(int(one.argmax()) for one in tokens).decode("utf-8", "replace")
    assert stand.get("/health")[0] == 200
    status, why = stand.get("/ready")
    assert (status, "UNREACHABLE" in why) == (503, True)
    stand.restart_daemon()
    until(lambda: stand.get("/ready")[0] == 200)
    until(lambda: is_reached(client))
    until(stand.is_free)
