"""Start-time fair queueing: shares follow weights, nothing idles, nobody gains by having been away."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cosched.runtime.fair import REMEMBERED, FairQueue, FairTurns


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.floats(0.25, 8), st.floats(0.5, 4)), min_size=2, max_size=6))
def test_backlogged_sessions_get_work_in_proportion_to_their_weights(kinds: list[tuple[float, float]]) -> None:
    """Goyal et al., theorem 1: |W_a / w_a - W_b / w_b| <= l_a / w_a + l_b / w_b while both wait."""
    queue: FairQueue[int] = FairQueue()
    for i, (weight, cost) in enumerate(kinds):
        for _ in range(200):
            queue.push(str(i), i, cost, weight)
    done = [0.0] * len(kinds)
    for _ in range(150):
        i = queue.pop()
        done[i] += kinds[i][1]
        for a, (wa, la) in enumerate(kinds):
            for b, (wb, lb) in enumerate(kinds):
                assert abs(done[a] / wa - done[b] / wb) <= la / wa + lb / wb + 1e-9


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.1, 9), st.floats(0.1, 9)), max_size=60))
def test_everything_is_served_once_and_each_session_in_order(items: list[tuple[str, float, float]]) -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue()
    for n, (session, cost, weight) in enumerate(items):
        queue.push(session, (session, n), cost, weight)
    served = [queue.pop() for _ in range(len(queue))]
    assert sorted(n for _, n in served) == list(range(len(items)))
    for session in "abc":
        numbers = [n for s, n in served if s == session]
        assert numbers == sorted(numbers)
        assert queue.waiting(session) == 0
    with pytest.raises(IndexError):
        queue.pop()


def test_a_session_that_was_idle_claims_nothing_for_it() -> None:
    queue: FairQueue[str] = FairQueue()
    for _ in range(50):
        queue.push("busy", "busy", 1.0, 1.0)
        queue.pop()
    for _ in range(4):
        queue.push("busy", "busy", 1.0, 1.0)
        queue.push("late", "late", 1.0, 1.0)
    assert sorted(queue.pop() for _ in range(4)) == ["busy", "busy", "late", "late"]


def test_what_has_ended_is_forgotten() -> None:
    """Names come from outside: however many come and go, little is kept."""
    queue: FairQueue[int] = FairQueue()
    turns: FairTurns[int] = FairTurns()
    for i in range(3 * REMEMBERED):
        for _ in range(2):  # never empty, and virtual time stands still: every flow begins at the same instant
            queue.push(i, i, 1.0, 1.0)
            turns.push(i, i, i, 1.0, 1.0)
        queue.pop()
        turns.pop()
    while len(queue):
        queue.pop()
        turns.pop()
    assert queue.remembered <= REMEMBERED
    assert turns.remembered <= REMEMBERED
    assert not queue._lines
    assert not turns._flows


def test_many_sessions_of_one_flow_get_no_more_than_one() -> None:
    turns: FairTurns[str] = FairTurns()
    for _ in range(40):
        for i in range(20):
            turns.push("many", i, "many", 1.0, 1.0)
        turns.push("one", 0, "one", 1.0, 1.0)
    served = [turns.pop() for _ in range(80)]
    assert served.count("one") == 40


def test_long_items_of_one_flow_do_not_keep_short_ones_of_another_waiting() -> None:
    """A prefill in chunks of 64 beside a session that decodes, a token after the other: at most one chunk between."""
    turns: FairTurns[str] = FairTurns()
    for _ in range(100):
        turns.push("prefill", 0, "prefill", 64.0, 1.0)
    between = 0
    for _ in range(50):
        turns.push("decode", 0, "decode", 1.0, 1.0)
        while turns.pop() != "decode":
            between += 1
    assert between <= 50


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.floats(0.25, 8), st.floats(0.5, 4)), min_size=2, max_size=6))
def test_flows_get_work_in_proportion_to_their_weights(kinds: list[tuple[float, float]]) -> None:
    turns: FairTurns[int] = FairTurns()
    for i, (weight, cost) in enumerate(kinds):
        for n in range(200):
            turns.push(i, n % 3, i, cost, weight)
    done = [0.0] * len(kinds)
    for _ in range(150):
        i = turns.pop()
        done[i] += kinds[i][1]
        for a, (wa, la) in enumerate(kinds):
            for b, (wb, lb) in enumerate(kinds):
                assert abs(done[a] / wa - done[b] / wb) <= la / wa + lb / wb + 1e-9
