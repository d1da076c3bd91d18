"""Suite regret: its arithmetic by hand, and what it claims."""

from __future__ import annotations

import pytest

from cosched.bench.regret import (
    BEST_RIVAL,
    BOUND,
    CLAIRVOYANT,
    LOOSE,
    TOLD,
    RegretRow,
    bench_rows,
    claims,
    shares,
)


def row(seed: int, joint: float, best: float, channel: float, everything: float) -> RegretRow:
    told = dict.fromkeys(TOLD, joint) | {"channel known": channel, "all known": everything}
    reached = {"joint": joint, BEST_RIVAL: joint, **told, CLAIRVOYANT: best, BOUND: 0.8, LOOSE: 0.9}
    return RegretRow("s", 1.0, seed, reached)


def test_shares_add_up_to_the_whole() -> None:
    part = shares(row(1, 0.5, 0.6, 0.52, 0.53).reached)
    assert part["channel known"] == pytest.approx(0.2)
    assert part["lengths known"] == part["arrivals known"] == 0.0
    assert part["all known"] + part["decided at arrival"] == pytest.approx(1.0)
    assert set(shares(row(1, 0.5, 0.5, 0.5, 0.5).reached).values()) == {0.0}


def test_shares_are_of_means_over_seeds() -> None:
    rows = bench_rows([row(1, 0.5, 0.6, 0.5, 0.5), row(2, 0.5, 0.52, 0.54, 0.54)])
    found = {(r.subject, r.figure): r.value for r in rows}
    assert found["channel known", "share_percent"] == pytest.approx(100 * 0.02 / 0.06)
    assert found[CLAIRVOYANT, "met_ratio"] == pytest.approx(0.56)


def test_who_is_above_the_bound_is_found() -> None:
    assert all(c.holds for c in claims([row(1, 0.5, 0.6, 0.52, 0.53)]))
    assert [c.holds for c in claims([row(1, 0.5, 0.81, 0.5, 0.5)])] == [False, True]
    assert [c.holds for c in claims([row(1, 0.5, 0.49, 0.5, 0.5)])] == [True, False]
