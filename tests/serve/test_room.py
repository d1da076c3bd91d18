"""A full node: who comes waits for room as long as its TTFT leaves. The daemon, its plan and the memory are real."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import openai
import pytest
import serve_cases as cases
from daemon_cases import PATIENCE_S, until

LONG = 3000  # tokens of a stream; the site's node has memory for the KV caches of 21 of them
FULL = 21


@pytest.fixture
def filled(stand: cases.Stand) -> Iterator[list[socket.socket]]:
    """Streams that fill the node's memory as the plan counts it."""
    until(stand.is_free)
    with contextlib.ExitStack() as stack:
        streams = []
        for _ in range(FULL):
            connection = stack.enter_context(stand.connect())
            connection.sendall(
                cases.ask(
                    "/v1/chat/completions", cases.chat(max_tokens=LONG, ignore_eos=True), **{"x-slo-tpot-ms": "900"}
                )
            )
            streams.append(connection)
        until(lambda: stand.client.list().total == FULL)
        yield streams
    until(stand.is_free)


def one(stand: cases.Stand, ttft_ms: str) -> str | None:
    client = openai.OpenAI(base_url=stand.url, api_key="none", timeout=PATIENCE_S, max_retries=0)
    answer = client.chat.completions.create(
        model="llama", messages=[{"role": "user", "content": "x"}], max_tokens=3600, stop=list("ABCDEFGHIJKLMNOP"),
        temperature=0.0, extra_headers={"x-slo-ttft-ms": ttft_ms, "x-slo-tpot-ms": "900"},
    )  # fmt: skip
    return answer.choices[0].finish_reason


def test_who_finds_no_room_waits_for_it(stand: cases.Stand, filled: list[socket.socket]):
    ended: list[str | None] = []
    thread = threading.Thread(target=lambda: ended.append(one(stand, "50000")))
    thread.start()
    until(lambda: stand.counted("cosched_serve_requests_waiting") == 1)
    filled[0].close()
    filled[1].close()
    thread.join(PATIENCE_S)
    assert ended in (["stop"], ["length"])
    assert stand.counted("cosched_serve_requests_waiting") == 0


def test_who_cannot_wait_is_refused_with_what_was_lacking(stand: cases.Stand, filled: list[socket.socket]):
    with pytest.raises(openai.RateLimitError) as caught:
        one(stand, "400")
    assert caught.value.code == "rejected_no_capacity"
    assert caught.value.response.headers["retry-after"] == "1"
    assert stand.client.list().total == FULL == len(filled)
