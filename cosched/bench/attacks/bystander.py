"""Somebody who only wants to be served: reports, submits and holds leases, and measures what becomes of them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from cosched.api import messages as api
from telemetry.bus import Curve, Dealer, Follower, Publisher
from telemetry.messages import LlmSession, TaskProgress, UeReport
from telemetry.wire import encode

UES: Final = 8
HELD: Final = 4  # sessions that go on all the time
SUBMITS_HZ: Final = 20.0
REPORTS_HZ: Final = 10.0
PROGRESS_HZ: Final = 1.0
LOST_S: Final = 30.0  # a submit without an answer
LONG: Final = LlmSession(
    model="llama-3-8b", context_tokens=200, new_tokens=32, max_output_tokens=30_000, ttft_s=5.0, tpot_s=0.1
)
SHORT: Final = LlmSession(
    model="llama-3-8b", context_tokens=100, new_tokens=16, max_output_tokens=8, ttft_s=2.0, tpot_s=0.2
)


@dataclass(frozen=True)
class Ends:
    """Endpoints and keys of a bystander: `radio` publishes, `client` asks."""

    telemetry: str
    control: str
    decisions: str
    radio: Curve | None = None
    client: Curve | None = None


@dataclass
class Seen:
    """What a phase was like. submit_ms: of each submit; lapse_ms: of each held lease, from its end to the next."""

    submit_ms: list[float] = field(default_factory=list)
    lapse_ms: list[float] = field(default_factory=list)
    lost: int = 0  # submits without an answer, and held sessions that ended

    @property
    def longest_lapse_ms(self) -> float:
        """Longest time without a valid lease."""
        return max(self.lapse_ms, default=0.0)


class Bystander:
    """`run` does all of it for a while; between two calls nothing is sent."""

    def __init__(self, ends: Ends, cell: str) -> None:
        self._cell = cell
        self._publisher = Publisher(ends.telemetry, ends.radio)
        self._dealer = Dealer(ends.control, ends.client)
        self._follower = Follower(ends.decisions, [b"decision/held"], ends.client)
        self._numbers = itertools.count(1)
        self._left_s: dict[int, float] = {}
        self._until_s: dict[str, float] = {}  # held session -> instant at which its lease ends
        self._seq = 0
        self._done = 0
        self.seen = Seen()

    def close(self) -> None:
        """Close all sockets."""
        for socket in (self._publisher, self._dealer, self._follower):
            socket.close()

    def hold(self, patience_s: float) -> None:
        """Submit the sessions that go on. Raises TimeoutError when they are not admitted."""
        end_s = time.monotonic() + patience_s
        while time.monotonic() < end_s:
            self._report()
            for n in range(HELD):
                self._ask("submit", f"held{n}", f"by{n}", LONG)
            time.sleep(0.2)
            results = [msgspec.msgpack.decode(a) for a in self._dealer.drain()]
            self._left_s.clear()
            if sum(bool(r.get("ok")) and bool(r["result"].get("point")) for r in results) >= HELD:
                return
        raise TimeoutError(f"the held sessions were not admitted: {results[-1:] if results else 'no answer'}")

    def run(self, seconds: float, watch: Callable[[], None]) -> Seen:
        """Be there for a while; `watch` is called ten times a second."""
        self.seen = Seen()
        self._until_s.clear()
        began_s = time.monotonic()
        reports, submits, progresses = 0, 0, 0
        while (now_s := time.monotonic() - began_s) < seconds:
            if now_s >= reports / REPORTS_HZ:
                self._report()
                watch()
                reports += 1
            if now_s >= progresses / PROGRESS_HZ:
                self._progress()
                progresses += 1
            if now_s >= submits / SUBMITS_HZ:
                self._submit(submits)
                submits += 1
            self._dealer.wait(0.002)
            self._hear()
        self._finish()
        return self.seen

    def _finish(self) -> None:
        """Wait for the last answers."""
        end_s = time.monotonic() + LOST_S
        while self._left_s and time.monotonic() < end_s:
            self._report()
            self._dealer.wait(0.05)
            self._hear()
        self.seen.lost += len(self._left_s)
        self._left_s.clear()
        now_s = time.monotonic()
        self.seen.lapse_ms += [1e3 * max(0.0, now_s - until_s) for until_s in self._until_s.values()]

    def _report(self) -> None:
        for n in range(UES):
            report = UeReport(
                at_ns=time.monotonic_ns(), source=f"by/{n}", seq=self._seq, ue=f"by{n}", cell=self._cell,
                ul_efficiency_bps_hz=3.0,
            )  # fmt: skip
            self._publisher.send(*encode(report))
        self._seq += 1

    def _progress(self) -> None:
        self._done += 1
        for n in range(HELD):
            report = TaskProgress(
                at_ns=time.monotonic_ns(), source="by", seq=self._done * HELD + n, task=f"held{n}",
                done=10 * self._done, decoding_s=float(self._done),
            )  # fmt: skip
            self._publisher.send(*encode(report))

    def _submit(self, n: int) -> None:
        number = self._ask("submit", f"by{n}-{time.monotonic_ns()}", f"by{n % UES}", SHORT)
        self._left_s[number] = time.monotonic()

    def _ask(self, verb: str, task: str, ue: str, work: LlmSession) -> int:
        number = next(self._numbers)
        args: dict[str, Any] = {"task": task, "ue": ue, "work": msgspec.to_builtins(work)}
        self._dealer.send(msgspec.msgpack.encode({"verb": verb, "id": number, "args": args}))
        return number

    def _hear(self) -> None:
        now_s = time.monotonic()
        for data in self._dealer.drain():
            answer = msgspec.msgpack.decode(data)
            left_s = self._left_s.pop(answer["id"], None)
            if left_s is None:
                continue
            self.seen.submit_ms.append(1e3 * (now_s - left_s))
            if answer["ok"]:
                args = {"task": answer["result"]["task"]}
                self._dealer.send(msgspec.msgpack.encode({"verb": "release", "id": 0, "args": args}))
        for _, data in self._follower.drain():
            lease = msgspec.json.decode(data, type=api.Lease)
            until_s = self._until_s.get(lease.task)
            if until_s is not None:
                self.seen.lapse_ms.append(1e3 * max(0.0, now_s - until_s))
            if lease.point:
                self._until_s[lease.task] = now_s + 1e-3 * lease.valid_for_ms
            else:
                self._until_s.pop(lease.task, None)
                self.seen.lost += 1
