"""Greeting new subscribers: each hears what it asked for; whoever asks again and again has all told once in a while."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from daemon_cases import SESSION

from cosched.config.wiring import site_text
from cosched.core.commands import Decision
from cosched.daemon.board import Board, HeldLease
from cosched.daemon.greeter import REST, TASKS, Greeter
from cosched.site import parse_site
from cosched.workloads.base import PointTable
from telemetry.bus import DecisionSocket, Follower, Pump
from telemetry.messages import TaskOffer

LIVING = [f"t{i}" for i in range(300)]
ENDED = [f"old{i}" for i in range(20)]


def offer(task: str) -> TaskOffer:
    return TaskOffer(at_ns=0, source="s", seq=0, task=task, ue="ue0", work=SESSION)


def a_board(send: Callable[[bytes, bytes], None]) -> Board:
    """A board with tasks that hold a lease, and some that have ended."""
    board = Board(parse_site(*site_text("balanced")), lambda *_: None)
    table = object.__new__(PointTable)  # nothing looks into it here
    for task in LIVING:
        lease = board.end(offer(task), "released", 1, 0)
        board.held[task] = HeldLease(offer(task), Decision(task, "admitted", 0, table, 1.0), lease)
    board._ended.clear()
    for task in ENDED:
        board.end(offer(task), "released", 1, 0)
    board._publish = send
    return board


@pytest.mark.parametrize("seed", range(20))
def test_topics_are_beginnings_of_names(seed: int) -> None:
    """Against the plain definition: every living task whose topic begins so, and one that ended by its whole name."""
    rng = random.Random(seed)  # noqa: S311
    board = a_board(lambda *_: None)
    pool = ["", "d", "decision/", "status", "decision/t", "decision/t1", "decision/t29", "decision/x", "decision/old1",
            "decision/old", "other/t1", *(f"decision/{t}" for t in LIVING)]  # fmt: skip
    topics = {one.encode() for one in rng.sample(pool, rng.randint(1, 8))}
    wanted = {task for task in LIVING if any(f"decision/{task}".encode().startswith(topic) for topic in topics)}
    wanted |= {task for task in ENDED if f"decision/{task}".encode() in topics}
    found = board.asked_for(topics)
    assert len(found) == len(set(found))
    assert set(found) == wanted


def test_each_hears_what_it_asked_for_and_a_toggler_costs_little(tmp_path: Path) -> None:
    told: Counter[bytes] = Counter()
    endpoint = f"ipc://{tmp_path}/d"

    async def main() -> None:
        decisions = DecisionSocket()
        decisions.bind([endpoint])

        def send(topic: bytes, payload: bytes) -> None:
            told[topic] += 1
            decisions.send(topic, payload)

        greeter = Greeter(decisions, a_board(send), time.monotonic_ns)
        pump = Pump(asyncio.get_running_loop(), decisions, greeter.drain)
        greeter.again = pump.again
        one, every = Follower(endpoint, [b"decision/t7"]), Follower(endpoint, [b"decision/"])
        heard: dict[Follower, set[bytes]] = {one: set(), every: set()}
        until_s = time.monotonic() + 30
        while len(heard[every]) < len(LIVING) or not heard[one]:
            await asyncio.sleep(0.005)
            for follower, names in heard.items():
                names.update(topic for topic, _ in follower.drain())
            assert time.monotonic() < until_s
        assert heard[one] <= {f"decision/t7{x}".encode() for x in ("", *range(10))}
        told.clear()
        began = time.monotonic()
        togglers = []
        for _ in range(100):  # a hundred, each to all
            togglers.append(Follower(endpoint, [b"decision/"]))
            await asyncio.sleep(0.002)
        await asyncio.sleep(0.5)
        rounds = told[b"decision/t7"]
        assert 1 <= rounds <= 100 / 2, f"{rounds} rounds in {time.monotonic() - began:.2f} s"
        greeter.stop()
        pump.stop()
        for bus in (one, every, *togglers, decisions):
            bus.close()

    asyncio.run(main())


def test_portions_and_rests() -> None:
    """A portion at a time; after a round a rest of several times what it took, by the clock that is handed in."""
    decisions, now = DecisionSocket(), [0]

    def clock() -> int:
        now[0] += 1_000_000  # each look costs a millisecond
        return now[0]

    told: list[bytes] = []
    greeter = Greeter(decisions, a_board(lambda topic, _: told.append(topic)), clock)
    greeter._topics = {b"decision/"}
    assert greeter.drain()
    assert len(told) == TASKS
    while greeter.drain():
        pass
    assert len(told) == len(LIVING)
    rest_until_ns = greeter._rest_until_ns
    assert rest_until_ns >= now[0] + REST * 1_000_000
    greeter.drain()
    assert greeter._rest_until_ns == rest_until_ns, "a look at nothing ends no rest"
    decisions.close()
