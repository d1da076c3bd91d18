"""Plays a recorded trace into a running daemon: as its radio, its users, and the runtimes that serve them.

Reports go out over the telemetry bus, stamped with now. Tasks are submitted through the control API, and those that
are admitted are taken to run as fast as their leases predict; that is reported over the bus. Played `speed` times as
fast, reports and tasks come that many times as often, and a task has that many times fewer tokens or frames, so that
as many run at once as in the recording. Deadlines are in the work and stay what they are.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from cosched.api.async_client import AsyncClient
from cosched.api.messages import Lease, Status
from telemetry import wire
from telemetry.bus import Publisher
from telemetry.messages import (
    CellReport,
    LinkReport,
    Message,
    NodeReport,
    TaskOffer,
    TaskProgress,
    UeReport,
    UeReportBatch,
    VideoClip,
)

NS: Final = 1e-9
HELLO_S: Final = 0.1  # between two tries to be heard: a PUB socket drops what nobody has subscribed to yet
REPORT_S: Final = 0.25  # between two reports of how far the running tasks are
SOURCE: Final = "player"

Report = UeReport | UeReportBatch | CellReport | NodeReport | LinkReport


@dataclass(slots=True)
class Running:
    """A task that is served as its latest lease predicts. `units`: tokens or frames after which it is over."""

    offer: TaskOffer
    units: int
    lease: Lease
    begun_s: float
    seen_s: float
    done: float = 0.0
    late: float = 0.0  # frames
    since_first_s: float = 0.0
    decoding_s: float = 0.0  # from the first token to the latest

    def advance(self, now_s: float) -> TaskProgress | None:
        """Go on to `now_s`; return the report of it, None before the first token or frame."""
        elapsed_s, self.seen_s = now_s - self.seen_s, now_s
        if isinstance(self.offer.work, VideoClip):
            self._frames(elapsed_s * self.offer.work.fps)
        elif self.done >= 1:
            self._tokens(elapsed_s)
        elif (first_s := self._predicted_s(0)) is not None and now_s - self.begun_s >= first_s:
            self.done = 1.0
        if self.done + self.late < 1:
            return None
        return TaskProgress(
            at_ns=0, source=SOURCE, seq=0, task=self.offer.task, done=int(self.done), late=int(self.late),
            decoding_s=self.decoding_s, finished=self.done + self.late >= self.units,
        )  # fmt: skip

    def _frames(self, frames: float) -> None:
        slack_s = self.lease.slack_s[0] if self.lease.slack_s else None
        if slack_s is not None and slack_s >= 0:
            self.done += frames
        else:
            self.late += frames

    def _tokens(self, elapsed_s: float) -> None:
        self.since_first_s += elapsed_s
        if step_s := self._predicted_s(1):
            before, self.done = int(self.done), self.done + elapsed_s / step_s
            if int(self.done) > before:
                self.decoding_s = self.since_first_s - self.done % 1 * step_s

    def _predicted_s(self, phase: int) -> float | None:
        return self.lease.predicted_s[phase] if phase < len(self.lease.predicted_s) else None


@dataclass(slots=True)
class Player:
    """One play of a trace.

    offers: what is submitted; units: task -> its real number of tokens or frames. `told` is handed every answer to a
    submit. Used once, in an event loop.
    """

    messages: Sequence[Message]
    offers: Sequence[TaskOffer]
    units: Mapping[str, int]
    speed: float
    publisher: Publisher
    daemon: AsyncClient
    told: Callable[[Lease], None] = lambda _: None
    clock: Callable[[], int] = time.monotonic_ns
    _sent: Counter[str] = field(default_factory=Counter)  # by source
    _running: dict[str, Running] = field(default_factory=dict)

    async def tune_in(self) -> Status:
        """Repeat the trace's first report until the daemon has heard it and decides; return its status then."""
        first = next(m for m in self.messages if isinstance(m, Report))
        while True:
            self._publish(first)
            found = await self.daemon.status()
            if found.mode != "STARTING" and found.ingest.reports:
                return found
            await asyncio.sleep(HELLO_S)

    async def play(self) -> None:
        """Play the trace to its end, when tasks may still run. Raises what the client raises."""
        try:
            async with asyncio.TaskGroup() as beside:
                serving = [beside.create_task(self._follow()), beside.create_task(self._serve())]
                async with asyncio.TaskGroup() as submits:
                    await self._send(submits)
                for work in serving:
                    work.cancel()
        except ExceptionGroup as group:
            raise first_error(group) from None

    async def _send(self, submits: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        reports = [m for m in self.messages if isinstance(m, Report)]
        for message in sorted([*reports, *self.offers], key=lambda m: m.at_ns):
            await asyncio.sleep(begun_s + message.at_ns * NS / self.speed - loop.time())
            if isinstance(message, TaskOffer):
                submits.create_task(self._submit(message))
            else:
                self._publish(message)

    async def _submit(self, offer: TaskOffer) -> None:
        lease = await self.daemon.submit(offer.task, offer.ue, offer.work, weight=offer.weight, fallback=offer.fallback)
        self.told(lease)
        if lease.point:
            units, now_s = max(1, round(self.units[offer.task] / self.speed)), self.clock() * NS
            self._running[offer.task] = Running(offer, units, lease, begun_s=now_s, seen_s=now_s)

    async def _follow(self) -> None:
        """Hear what becomes of the leases."""
        async for lease in self.daemon.follow():
            if lease.task in self._running and lease.point:
                self._running[lease.task].lease = lease
            else:
                self._running.pop(lease.task, None)

    async def _serve(self) -> None:
        while True:
            await asyncio.sleep(REPORT_S)
            for report in [running.advance(self.clock() * NS) for running in self._running.values()]:
                if report is not None:
                    self._publish(report)
                    if report.finished:
                        del self._running[report.task]

    def _publish(self, message: Report | TaskProgress) -> None:
        stamped = msgspec.structs.replace(message, at_ns=self.clock(), seq=self._sent[message.source])
        self._sent[message.source] += 1
        self.publisher.send(*wire.encode(stamped))


def first_error(group: ExceptionGroup[Exception]) -> Exception:
    """Return the first error of a group, or of a group in it."""
    error = group.exceptions[0]
    return first_error(error) if isinstance(error, ExceptionGroup) else error
