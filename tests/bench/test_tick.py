"""The suite `tick`: what it measures is there, on snapshots of the kind that it says."""

from __future__ import annotations

import numpy as np
import pytest

from cosched.bench import tick


def test_both_kinds_of_snapshot_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tick, "TASKS", (24,))
    monkeypatch.setattr(tick, "ROUNDS", 2)
    told: list[float] = []
    found = tick.run(seeds=2, progress=told.append)
    assert told == [0.5, 1.0]
    cases = {(row.case, row.subject): row for row in found.rows}
    assert {case for case, _ in cases} == {"24 open", "24 running"}
    assert {what for _, what in cases} == {tick.TABLES, "tangent", tick.SOLVE, "points gathered anew"}
    for row in found.rows:
        assert row.n == 4  # two seeds, two rounds that count
        assert 0 <= row.p50 <= row.p99
    assert [claim.text.partition(":")[0] for claim in found.claims] == ["24 open", "24 running"]


@pytest.mark.parametrize("is_running", [False, True])
def test_a_snapshot_changes_as_it_should(*, is_running: bool) -> None:
    snapshot = tick.TickCase(24, np.random.default_rng(2), is_running=is_running)
    before = snapshot.state.channel.planned(snapshot.now_s, 0.0).copy()
    layout = snapshot.layout()
    assert len(layout.tasks) == 24
    assert (layout.held >= 0).all() if is_running else (layout.held < 0).all()
    if not is_running:
        assert set(np.bincount(layout.owner)) <= set(range(1, tick.POINTS + 1))
        assert np.bincount(layout.owner).max() == tick.POINTS
    snapshot.observe()
    known = before > 0  # there are rows for more
    moved = snapshot.state.channel.planned(snapshot.now_s, 0.0)[known] / before[known]
    assert 0.005 < np.abs(moved - 1).mean() < 0.1  # 0.3 of each sample: the running mean's weight
    snapshot.lose_one()
    assert snapshot.layout().names == layout.names[1:]
