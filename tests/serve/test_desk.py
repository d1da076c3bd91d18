"""Waiting for room: by slack, as long as the TTFT leaves, in a queue of bounded length. The daemon here is a script."""

from __future__ import annotations

import asyncio
import tomllib
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import pytest

from cosched.api.messages import Lease, SubmitArgs
from cosched.core.reasons import Reason
from cosched.resources import config_dir
from cosched.serve.clients import AskedPromise
from cosched.serve.desk import Desk
from cosched.serve.faults import ServeFault
from cosched.serve.feed import LeaseFeeds
from cosched.serve.settings import ServeLimits
from telemetry.messages import LlmSession

WORK = LlmSession(model="m", context_tokens=0, new_tokens=5, max_output_tokens=5, ttft_s=1.0, tpot_s=1.0)


def lease_of(task: str, reason: str = Reason.ADMITTED) -> Lease:
    point = "k=0/edge0" if reason == Reason.ADMITTED else ""
    return Lease(at_ns=0, source="d", seq=0, task=task, plan=1, reason=reason, point=point)


class ScriptedDaemon:
    """Has room for so many tasks; refuses who has less than `least_s` of TTFT left."""

    def __init__(self, room: int, least_s: float = 0.0) -> None:
        self.feeds, self.room, self.least_s = LeaseFeeds(), room, least_s
        self.held: list[str] = []
        self.asked: list[SubmitArgs] = []
        self.released: list[str] = []
        self.answers = asyncio.Event()
        self.answers.set()
        self.tasks: set[asyncio.Task[None]] = set()

    async def submit(self, asked: SubmitArgs) -> Lease:
        self.asked.append(asked)
        await self.answers.wait()
        if asked.work.ttft_s < self.least_s:  # type: ignore[union-attr]
            return lease_of(asked.task, Reason.REJECTED_NO_POINT)
        if len(self.held) >= self.room:
            return lease_of(asked.task, Reason.REJECTED_NO_CAPACITY)
        self.held.append(asked.task)
        return lease_of(asked.task)

    async def release(self, task: str) -> None:
        self.released.append(task)
        if task in self.held:
            self.held.remove(task)

    def spawn(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = asyncio.ensure_future(work())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


def limits(**other: float) -> ServeLimits:
    told = tomllib.loads((config_dir() / "serve.toml").read_text())["limits"]
    return msgspec.convert({**told, "retry_s": 0.01, **other}, ServeLimits)


def promise(ttft_s: float) -> AskedPromise:
    return AskedPromise(client="", ue="u", ttft_s=ttft_s, tpot_s=1.0, private=False, weight=1.0, fallback="keep")


class Queue:
    """A desk with requests that stay until they are told to go."""

    def __init__(self, daemon: ScriptedDaemon, **other: float) -> None:
        self.daemon = daemon
        self.desk = Desk(daemon, limits(**other), "t-")  # type: ignore[arg-type]  # the script stands for it
        daemon.spawn(self.desk.run)
        self.order: list[str] = []
        self.leave: dict[str, asyncio.Event] = {}
        self.running: dict[str, asyncio.Task[None]] = {}

    async def come(self, name: str, ttft_s: float) -> None:
        """Have a request come in, and its first word with the daemon be over."""
        before = len(self.daemon.asked)
        self.leave[name] = asyncio.Event()
        self.running[name] = asyncio.ensure_future(self._stay(name, ttft_s))
        await when(lambda: len(self.daemon.asked) > before or self.desk.waiting > 0 or self.running[name].done())

    async def _stay(self, name: str, ttft_s: float) -> None:
        loop = asyncio.get_running_loop()
        async with self.desk.admitted(WORK, promise(ttft_s), loop.time()):
            self.order.append(name)
            await self.leave[name].wait()


async def when(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  # many things are waited for, none of which tells
            await asyncio.sleep(0.002)


def play(work: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await work

    asyncio.run(bounded())


def test_who_has_least_slack_is_let_in_first():
    async def scene() -> None:
        queue = Queue(ScriptedDaemon(room=1))
        await queue.come("first", 60)
        for name, ttft_s in (("patient", 50), ("urgent", 20), ("middle", 35)):
            await queue.come(name, ttft_s)
        await when(lambda: queue.desk.waiting == 3)
        for number, name in enumerate(("first", "urgent", "middle", "patient"), 1):
            await when(lambda number=number: len(queue.order) == number)
            queue.leave[name].set()
        await asyncio.gather(*queue.running.values())
        assert queue.order == ["first", "urgent", "middle", "patient"]
        await when(lambda: not queue.daemon.held and not len(queue.daemon.feeds))
        assert queue.desk.running == queue.desk.waiting == 0
        assert len({asked.task for asked in queue.daemon.asked}) == len(queue.daemon.asked)
        left = [asked.work.ttft_s for asked in queue.daemon.asked if asked.task.startswith("t-")]  # type: ignore[union-attr]
        assert all(0 < ttft_s <= 60 for ttft_s in left)

    play(scene())


def test_it_ends_when_too_little_is_left_and_says_what_was_lacking():
    async def scene() -> None:
        queue = Queue(ScriptedDaemon(room=1, least_s=0.1))
        await queue.come("first", 60)
        await queue.come("late", 0.3)
        with pytest.raises(ServeFault) as caught:
            await queue.running["late"]
        assert (caught.value.status, caught.value.code) == (429, Reason.REJECTED_NO_CAPACITY)
        await queue.come("hopeless", 0.05)
        with pytest.raises(ServeFault) as caught:
            await queue.running["hopeless"]
        assert caught.value.code == Reason.REJECTED_NO_POINT
        assert not caught.value.again
        queue.leave["first"].set()
        await queue.running["first"]

    play(scene())


def test_the_queue_is_bounded_and_may_be_left_out():
    async def scene() -> None:
        queue = Queue(ScriptedDaemon(room=1), waiting=1)
        await queue.come("first", 60)
        await queue.come("second", 60)
        await when(lambda: queue.desk.waiting == 1)
        await queue.come("third", 60)
        with pytest.raises(ServeFault) as caught:
            await queue.running["third"]
        assert caught.value.code == "queue_full"
        for name in ("first", "second"):
            queue.leave[name].set()
        await asyncio.gather(queue.running["first"], queue.running["second"])
        none = Queue(ScriptedDaemon(room=0), waiting=0)
        await none.come("only", 60)
        with pytest.raises(ServeFault) as caught:
            await none.running["only"]
        assert caught.value.code == Reason.REJECTED_NO_CAPACITY

    play(scene())


@pytest.mark.parametrize("waits_in_queue", [False, True])
def test_who_goes_while_the_daemon_thinks_leaves_nothing(waits_in_queue: bool):
    async def scene() -> None:
        daemon = ScriptedDaemon(room=1)
        queue = Queue(daemon)
        if waits_in_queue:
            await queue.come("first", 60)
        await queue.come("gone", 60)
        if waits_in_queue:
            await when(lambda: queue.desk.waiting == 1)
        daemon.answers.clear()
        asked = len(daemon.asked)
        if waits_in_queue:
            queue.leave["first"].set()
            await when(lambda: len(daemon.asked) > asked)
        queue.running["gone"].cancel()
        await asyncio.gather(queue.running["gone"], return_exceptions=True)
        daemon.answers.set()
        await when(lambda: not daemon.held and not queue.desk.running and not len(daemon.feeds))

    play(scene())


def test_no_more_run_at_a_time_than_may():
    async def scene() -> None:
        queue = Queue(ScriptedDaemon(room=100), running=2)
        for name in "abc":
            await queue.come(name, 60)
        await when(lambda: queue.desk.waiting == 1)
        assert queue.order == ["a", "b"]
        queue.leave["a"].set()
        await when(lambda: queue.order == ["a", "b", "c"])
        for name in "bc":
            queue.leave[name].set()
        await asyncio.gather(*queue.running.values())

    play(scene())


def test_what_has_finished_is_released_only_where_the_daemon_does_not_say_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("cosched.serve.desk.ENDING_S", 0.05)

    async def scene() -> None:
        daemon = ScriptedDaemon(room=10)
        queue = Queue(daemon)
        loop = asyncio.get_running_loop()
        async with queue.desk.admitted(WORK, promise(60), loop.time()) as admitted:
            admitted.finished = True
            daemon.feeds.put(
                [(b"decision/" + admitted.asked.task.encode(), msgspec.json.encode(lease_of("t", "finished")))]
            )
        await when(lambda: not len(daemon.feeds))
        assert not daemon.released
        async with queue.desk.admitted(WORK, promise(60), loop.time()) as admitted:
            admitted.finished = True
        await when(lambda: daemon.released == [admitted.asked.task])

    play(scene())
