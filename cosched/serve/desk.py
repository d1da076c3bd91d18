"""Admission: a request becomes a task, at once or as soon as there is room, as long as its first token can be in time.

    submit -> a lease               admitted
           -> no room               it waits; the one with the least slack is offered first, with the TTFT that is left
           -> any other reason      refused

What waits is offered again when a request of ours has ended, and every `retry_s`, since others end too. How long
waiting makes sense is for the daemon to say: with too little TTFT left it finds no operating point, which ends it.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

import msgspec

from cosched.api.messages import Lease, SubmitArgs
from cosched.core.reasons import Reason
from cosched.serve.clients import AskedPromise
from cosched.serve.daemon import DaemonLink
from cosched.serve.faults import WAITABLE, ServeFault, limited, refused
from cosched.serve.feed import LeaseFeed
from cosched.serve.settings import ServeLimits
from telemetry.messages import LlmSession

ROUND: Final = 4  # that are offered again in one go: behind those that find no room, a smaller one may
ENDING_S: Final = 2.0  # for the daemon to say that a finished task has ended; then it is released
LEAST_TTFT_S: Final = 1e-3


@dataclass(slots=True)
class Admitted:
    """A task with its lease. `finished` is set by whoever has told the daemon that it is over."""

    asked: SubmitArgs
    lease: Lease
    feed: LeaseFeed
    waited_s: float = 0.0
    finished: bool = False


@dataclass(order=True, slots=True)
class Queued:
    """A request that waits for room. due_s: when its first token is due; `found`: what it waits for."""

    due_s: float
    number: int
    work: LlmSession = field(compare=False)
    promise: AskedPromise = field(compare=False)
    found: asyncio.Future[Admitted] = field(compare=False)
    refusal: Lease | None = field(compare=False, default=None)  # the latest

    @property
    def fault(self) -> ServeFault:
        """Return why it was not let in."""
        return (
            limited("busy", "all that may run here at a time do", 1.0)
            if self.refusal is None
            else refused(self.refusal)
        )


class Desk:
    """Takes requests in. prefix: what its tasks' ids begin with. `run` goes on beside, as long as it is used."""

    def __init__(
        self, daemon: DaemonLink, limits: ServeLimits, prefix: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._daemon, self._limits, self._prefix, self._clock = daemon, limits, prefix, clock
        self._numbers = itertools.count(1)
        self._queue: list[Queued] = []
        self._room, self._wanted = asyncio.Event(), asyncio.Event()
        self.running = 0

    @property
    def waiting(self) -> int:
        """Requests that wait for room."""
        return len(self._queue)

    @asynccontextmanager
    async def admitted(self, work: LlmSession, promise: AskedPromise, arrived_s: float) -> AsyncIterator[Admitted]:
        """Hold a lease while a request is served. Raises ServeFault.

        arrived_s: on the clock, when the request came; its TTFT counts from there.
        """
        due_s = arrived_s + promise.ttft_s
        admitted = await self._enter(work, promise, due_s)
        admitted.waited_s = self._clock() - arrived_s
        try:
            yield admitted
        finally:
            self._let_go(admitted)

    async def _enter(self, work: LlmSession, promise: AskedPromise, due_s: float) -> Admitted:
        refusal: Lease | None = None
        if self.running < self._limits.running and not (self._queue and self._queue[0].due_s <= due_s):
            found = await self._offer(work, promise, due_s)
            if isinstance(found, Admitted):
                return found
            refusal = found
        queued = Queued(due_s, next(self._numbers), work, promise, asyncio.get_running_loop().create_future(), refusal)
        if not self._limits.waiting:
            raise queued.fault
        if len(self._queue) >= self._limits.waiting:
            raise limited("queue_full", f"{len(self._queue)} requests wait for room already: no more", 1.0)
        heapq.heappush(self._queue, queued)
        self._wanted.set()
        try:
            return await queued.found
        except asyncio.CancelledError:
            if queued.found.done() and not queued.found.cancelled() and queued.found.exception() is None:
                self._let_go(queued.found.result())
            raise
        finally:
            self._forget(queued)

    async def _offer(self, work: LlmSession, promise: AskedPromise, due_s: float) -> Admitted | Lease:
        """Submit with the TTFT that is left; return the refusal where there is no room. Raises ServeFault."""
        left_s = max(LEAST_TTFT_S, due_s - self._clock())
        task = (
            f"{self._prefix}{next(self._numbers)}"  # another one each time: what is told of a refused one may come late
        )
        asked = SubmitArgs(
            task=task, ue=promise.ue, work=msgspec.structs.replace(work, ttft_s=left_s), weight=promise.weight,
            fallback=promise.fallback,
        )  # fmt: skip
        feed = self._daemon.feeds.open(task)
        self.running += 1  # before the daemon has answered: others ask meanwhile
        lease: Lease | None = None
        try:
            lease = await self._daemon.submit(asked)
        finally:
            if lease is None or not lease.point:
                self.running -= 1
                self._daemon.feeds.close(task)
        if lease.point:
            return Admitted(asked, lease, feed)
        if lease.reason not in WAITABLE:
            raise refused(lease)
        return lease

    def _let_go(self, admitted: Admitted) -> None:
        self.running -= 1
        self._daemon.spawn(lambda: self._leave(admitted))

    async def _leave(self, admitted: Admitted) -> None:
        """Give the lease back. What has finished has told the daemon so; that it arrived is waited for, not trusted."""
        if admitted.finished:
            with suppress(TimeoutError):
                async with asyncio.timeout(ENDING_S):
                    await admitted.feed.ended.wait()
        if not admitted.feed.ended.is_set():
            await self._daemon.release(admitted.asked.task)
        self._daemon.feeds.close(admitted.asked.task)
        self._room.set()

    async def run(self) -> None:
        """Offer what waits again and again, until cancelled."""
        while True:
            await self._wanted.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._limits.retry_s):
                    await self._room.wait()
            self._room.clear()
            await self._round()
            if not self._queue:
                self._wanted.clear()

    async def _round(self) -> None:
        """Refuse those for whom it is too late; offer the most urgent of the others."""
        now_s = self._clock()
        for queued in [one for one in self._queue if one.due_s <= now_s]:
            self._fail(queued, queued.fault)
        for queued in heapq.nsmallest(ROUND, self._queue):
            if self.running >= self._limits.running:
                return
            try:
                found = await self._offer(queued.work, queued.promise, queued.due_s)
            except ServeFault as fault:  # too little time is left: what it waited for is the reason
                self._fail(queued, queued.fault if fault.code == Reason.REJECTED_NO_POINT else fault)
                continue
            if not isinstance(found, Admitted):
                queued.refusal = found
            elif queued.found.done():  # whoever waited has gone meanwhile
                self._let_go(found)
            else:
                queued.found.set_result(found)
                self._forget(queued)

    def _fail(self, queued: Queued, fault: ServeFault) -> None:
        if not queued.found.done():
            queued.found.set_exception(fault)
        self._forget(queued)

    def _forget(self, queued: Queued) -> None:
        with suppress(ValueError):
            self._queue.remove(queued)
            heapq.heapify(self._queue)
