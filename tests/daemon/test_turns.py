"""Turns: whoever has used up his part comes after the others, queues are bounded, nothing is lost that was taken."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cosched.daemon.jobs import Jobs
from cosched.daemon.turns import BURST_S, PART, REMEMBERED, Turns


def turns(most: int = 100, most_bytes: int = 1000, all_bytes: int = 2000) -> Turns[int]:
    return Turns(most, most_bytes, all_bytes)


def test_what_one_peer_sends_comes_out_in_its_order() -> None:
    queue = turns()
    for n in range(5):
        assert queue.put("a", n, 1, 0.0)
    assert [queue.take(0.0) for _ in range(6)] == [*(("a", n) for n in range(5)), None]


def test_peers_alternate_whatever_the_length_of_their_queues() -> None:
    queue = turns()
    for n in range(50):
        queue.put("flood", n, 1, 0.0)
    queue.put("other", 0, 1, 0.0)
    first = [queue.take(0.0) for _ in range(2)]
    assert ("other", 0) in first


def test_a_peer_that_has_had_its_part_comes_after_all_others_and_is_served_when_nobody_waits() -> None:
    queue = turns()
    queue.put("flood", 0, 1, 0.0)
    queue.take(0.0)
    queue.charge("flood", BURST_S + 0.01)
    for n in range(3):
        queue.put("flood", n, 1, 0.0)
        queue.put("other", n, 1, 0.0)
    assert [queue.take(0.0) for _ in range(3)] == [("other", n) for n in range(3)]
    assert queue.take(0.0) == ("flood", 0), "work is not held back while nobody else waits"


def test_who_has_used_up_his_part_rests_while_others_do_not() -> None:
    queue = Turns[int](100, 1000, 2000, rest=4.0)
    for n in range(3):
        queue.put("flood", n, 1, 0.0)
    assert queue.take(0.0) == ("flood", 0)
    queue.charge("flood", BURST_S + 0.01, 0.0)
    assert queue.take(0.01) is None
    assert queue.pause_s(0.01) == pytest.approx(4 * (BURST_S + 0.01) - 0.01)
    queue.put("other", 0, 1, 0.01)
    assert queue.pause_s(0.01) == 0.0
    assert queue.take(0.01) == ("other", 0)
    assert queue.take(4 * (BURST_S + 0.01)) == ("flood", 1)


def test_a_part_is_won_back_with_time() -> None:
    queue = turns()
    queue.put("a", 0, 1, 0.0)
    queue.take(0.0)
    queue.charge("a", BURST_S + 0.1 * PART)
    assert queue.has_overdrawn("a", 0.09)
    assert not queue.has_overdrawn("a", 0.11)


def test_queues_are_bounded_by_items_and_bytes_of_a_peer_and_of_all() -> None:
    queue = turns(most=3, most_bytes=100, all_bytes=150)
    assert [queue.put("a", n, 10, 0.0) for n in range(5)] == [True, True, True, False, False]
    assert [queue.put("b", n, 60, 0.0) for n in range(2)] == [True, False], "more than its bytes"
    assert queue.put("c", 0, 60, 0.0), "whoever has nothing waiting is never shut out by others"
    assert not queue.put("c", 1, 1, 0.0), "but all together have their bound"
    assert queue.n_bytes == 150
    while queue.take(0.0) is not None:
        pass
    assert (len(queue), queue.n_bytes) == (0, 0)


def test_what_is_put_back_comes_next_of_its_peer() -> None:
    queue = turns()
    for n in range(3):
        queue.put("a", n, 1, 0.0)
    assert queue.take(0.0) == ("a", 0)
    queue.put_back("a", 10, 0, 0.0)
    assert [queue.take(0.0) for _ in range(3)] == [("a", 10), ("a", 1), ("a", 2)]


def test_a_held_peer_waits_until_it_is_released() -> None:
    queue = turns()
    queue.put("a", 0, 1, 0.0)
    queue.put("a", 1, 1, 0.0)
    assert queue.take(0.0) == ("a", 0)
    queue.hold("a")
    queue.put("a", 2, 1, 0.0)
    queue.put("b", 0, 1, 0.0)
    assert [queue.take(0.0) for _ in range(2)] == [("b", 0), None]
    queue.release("a")
    assert [queue.take(0.0) for _ in range(3)] == [("a", 1), ("a", 2), None]


def test_names_that_were_seen_do_not_pile_up() -> None:
    queue = turns()
    for n in range(REMEMBERED + 500):
        queue.put(f"peer{n}", n, 1, 0.0)
        queue.take(0.0)
    assert len(queue._peers) <= REMEMBERED + 1


Act = st.tuples(st.sampled_from("pptch"), st.sampled_from("abc"), st.integers(0, 60))


@settings(max_examples=200, deadline=None)
@given(st.lists(Act, max_size=80))
def test_nothing_taken_in_is_lost_or_doubled(acts: list[tuple[str, str, int]]) -> None:
    queue = turns(most=8, most_bytes=200, all_bytes=300)
    given_, taken, held = [], [], set()
    for n, (act, name, size) in enumerate(acts):
        now_s = 0.01 * n
        if act == "p" and queue.put(name, n, size, now_s):
            given_.append((name, n))
        elif act == "t" and (item := queue.take(now_s)) is not None:
            assert item[0] not in held
            taken.append(item)
        elif act == "c":
            queue.charge(name, 0.001 * size, now_s)
        elif act == "h" and name in held:
            held.discard(name)
            queue.release(name)
        elif act == "h":
            held.add(name)
            queue.hold(name)
        assert len(queue) == len(given_) - len(taken)
    for name in held:
        queue.release(name)
    while (item := queue.take(99.0)) is not None:
        taken.append(item)
    assert sorted(taken) == sorted(given_)
    for name in "abc":
        assert [n for who, n in taken if who == name] == [n for who, n in given_ if who == name]


def test_jobs_are_few_at_a_time_and_one_of_a_client() -> None:
    async def play() -> None:
        running: list[str] = []
        most: list[int] = []
        gates: dict[str, asyncio.Event] = {}
        tasks: set[asyncio.Task[None]] = set()

        def spawn(work: Coroutine[Any, Any, None]) -> None:
            tasks.add(asyncio.ensure_future(work))

        jobs = Jobs(2, 3, spawn)

        def work(name: str) -> Callable[[], Coroutine[Any, Any, None]]:
            gates[name] = asyncio.Event()

            async def run() -> None:
                running.append(name)
                most.append(len(running))
                await gates[name].wait()
                running.remove(name)

            return run

        assert [jobs.put("a", work(f"a{n}")) for n in range(5)] == [True] * 4 + [False], "one runs, three wait"
        assert jobs.put("b", work("b0"))
        assert jobs.put("c", work("c0"))
        await asyncio.sleep(0)
        assert sorted(running) == ["a0", "b0"]
        gates["a0"].set()
        for _ in range(5):
            await asyncio.sleep(0)
        assert sorted(running) == ["b0", "c0"], "a has had its turn"
        for gate in gates.values():
            gate.set()
        for _ in range(6):  # whoever ends lets the next begin
            await asyncio.gather(*tasks)
        assert max(most) == 2
        assert not running

    asyncio.run(play())
