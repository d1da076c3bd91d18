"""Suite bid-prices: claims by hand, and a small version of its figures."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from cosched.bench import closed_loop
from cosched.bench.bid_prices import HIGH_LOAD, LOADS, SITE, WEIGHTS, claims, value
from cosched.bench.closed_loop import LoopJob
from cosched.core.policy import GREEDY
from cosched.report.model import SweepRow
from cosched.resources import config_file
from cosched.site import load_site


def row(policy: str, load: float, seed: int, reached: float, bound: float = 100.0) -> SweepRow:
    return SweepRow(
        site="s", load=load, seed=seed, policy=policy, offered=50, admitted=50, met=20, value=reached,
        hindsight_bound=bound,
    )  # fmt: skip


def rows_with(joint: dict[float, tuple[float, float]]) -> list[SweepRow]:
    """Two seeds: joint 60 and 64 but where given; greedy 50 and 50, greedy-residual 52 and 54."""
    rows = []
    for load in LOADS:
        for seed, (reached, other) in enumerate(zip(joint.get(load, (60.0, 64.0)), (52.0, 54.0), strict=True)):
            rows += [row("joint", load, seed, reached), row("greedy", load, seed, 50.0)]
            rows += [row("greedy-residual", load, seed, other)]
    return rows


def test_claims_by_hand() -> None:
    mean, least, margin, share = claims(rows_with({2.0: (90.0, 90.0), 0.3: (50.0, 51.0)}))
    high = [load for load in LOADS if load >= HIGH_LOAD]
    assert mean.reached == pytest.approx(((len(high) - 1) * 1.24 + 1.8) / len(high))
    assert least.reached == pytest.approx(1.24)
    difference = np.array([50.0 - 52.0, 51.0 - 54.0])  # to the better of the two greedy policies, seed by seed
    assert margin.reached == pytest.approx(difference.mean() + 2 * difference.std(ddof=1) / np.sqrt(2))
    assert share.reached == pytest.approx(101.0 / 200.0)
    assert not margin.holds
    assert mean.holds


def test_value_counts_all_seeds() -> None:
    assert value(rows_with({}), 1.0, "joint") == pytest.approx(124.0)


@pytest.mark.slow
def test_bid_prices_serve_the_more_valuable_when_there_is_too_much(shared_data: Path) -> None:
    """A part of the bench's hour, at the highest load. Deterministic, so that it cannot flicker.

    Since nodes serve in steps and prefills wait in a queue all that plan with them meet more, and the gain is smaller.
    """
    recordings = closed_loop.read_recordings(shared_data)
    site = load_site(config_file("sites", f"{SITE}.toml"))
    site = msgspec.structs.replace(site, mix=msgspec.structs.replace(site.mix, weights=WEIGHTS))
    rate = closed_loop.rate_at_load_1(recordings, site)
    jobs = [LoopJob(site, 2.0, 2.0 * rate, seed, 60.0, ("joint", *GREEDY)) for seed in (100, 101)]
    rows = closed_loop.run_jobs(recordings, jobs)
    assert value(rows, 2.0, "joint") >= 1.02 * max(value(rows, 2.0, p) for p in GREEDY)
    assert all(r.value <= r.hindsight_bound + 1e-6 for r in rows)
