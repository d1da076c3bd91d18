"""Requests that fail for reasons nobody foresaw, answers that cannot be encoded: the client is told, all goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from daemon_cases import a_status

from cosched.api import messages as api
from cosched.daemon.control import FORGOTTEN_S, MOST_WAITING, Control
from telemetry.bus import BusRequest


@dataclass
class Clock:
    now_ns: int = 10**12
    clock: Callable[[], int] = field(init=False)

    def __post_init__(self) -> None:
        self.clock = lambda: self.now_ns


@dataclass
class Daemon:
    """What the verbs of these tests need of a daemon; each fails, or answers, as it is told."""

    engine: Clock = field(default_factory=Clock)
    found: Callable[[], object] = a_status
    alarms: dict[str, str] = field(default_factory=dict)

    def may_call(self, *_: object) -> str:
        return ""

    may_act = may_call

    def status(self) -> object:
        return self.found()

    async def whatif(self, _: object) -> object:
        return self.found()

    def alarm(self, subject: str, text: str) -> None:
        self.alarms[subject] = text


def broken() -> object:
    return 1 // 0


@dataclass
class Bench:
    """A control object whose answers are kept by the number of their request."""

    daemon: Daemon = field(default_factory=Daemon)
    answers: dict[object, api.Response] = field(default_factory=dict)
    work: list[Coroutine[Any, Any, None]] = field(default_factory=list)
    now_s: float = 0.0

    def __post_init__(self) -> None:
        self.control = Control(self.daemon, self._keep, self.work.append, 100, 1000)  # type: ignore[arg-type]

    def _keep(self, _: tuple[bytes, ...], data: bytes) -> None:
        codec: Any = msgspec.json if data[:1] == b"{" else msgspec.msgpack
        answer = codec.decode(data, type=api.Response)
        self.answers[answer.id] = answer

    def ask(self, number: int, verb: str, *, as_json: bool = False, peer: bytes = b"p") -> None:
        codec: Any = msgspec.json if as_json else msgspec.msgpack
        self.control.queue(BusRequest((peer,), codec.encode({"verb": verb, "id": number}), ""), 0.0)

    def run(self) -> None:
        self.requests()
        for coroutine in self.work:
            asyncio.run(coroutine)  # type: ignore[arg-type]
        self.work.clear()

    def requests(self) -> None:
        """Carry out what waits, as time goes on."""
        while more := self.control.work(self.now_s):
            self.now_s += more

    def fault(self, number: int) -> str:
        error = self.answers[number].error
        return "" if isinstance(error, msgspec.UnsetType) else error.code


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("verb", ["status", "whatif"])
@pytest.mark.parametrize("found", [broken, object])
def test_a_request_that_fails_is_answered_counted_and_an_alarm(
    verb: str, as_json: bool, found: Callable[[], object]
) -> None:
    bench = Bench()
    bench.daemon.found = found
    bench.ask(1, verb, as_json=as_json)
    bench.run()
    assert bench.fault(1) == "internal"
    assert bench.control.counts["internal"] == 1
    assert "requests failed" in bench.daemon.alarms["request"]
    bench.daemon.found = a_status
    bench.ask(2, verb, as_json=as_json)
    bench.run()
    assert bench.answers[2].ok
    bench.daemon.engine.now_ns += round(1e9 * (FORGOTTEN_S - 1))
    bench.control.watch(bench.daemon.engine.now_ns * 1e-9)
    assert bench.daemon.alarms["request"]
    bench.daemon.engine.now_ns += 10**10
    bench.control.watch(bench.daemon.engine.now_ns * 1e-9)
    assert bench.daemon.alarms["request"] == "", "after a while it is no alarm any more"


def test_a_client_with_too_many_requests_is_told_so_and_others_are_served_first() -> None:
    bench = Bench()
    for n in range(1, MOST_WAITING + 10):
        bench.ask(n, "status")
    assert {bench.fault(n) for n in range(MOST_WAITING + 1, MOST_WAITING + 10)} == {"busy"}
    bench.ask(0, "status", peer=b"other")
    while 0 not in bench.answers:
        bench.control.work(bench.now_s)
    assert len(bench.answers) < MOST_WAITING, "its turn comes before those that were there"
    bench.run()
    assert sum(answer.ok for answer in bench.answers.values()) == MOST_WAITING + 1


def test_what_takes_longer_is_bounded_for_each_client() -> None:
    bench = Bench()
    for n in range(1, 40):
        bench.ask(n, "whatif")
    bench.requests()
    refused = [n for n in range(1, 40) if n in bench.answers and bench.fault(n) == "busy"]
    assert refused == list(range(18, 40)), "one is under way and sixteen wait"
    (job,) = bench.work
    job.close()
