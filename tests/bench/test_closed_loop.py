"""Suite closed-loop: tuning, claims and noise by hand, workers that change nothing, a small version of the claim."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from cosched.bench import closed_loop
from cosched.bench.closed_loop import LOADS, TUNING, LoopJob, Recordings, claims, met, noise, run_job, run_jobs, tuned
from cosched.core.policy import DECOUPLED, GREEDY
from cosched.report.model import SweepRow
from cosched.resources import config_file
from cosched.site import Site, load_site

SMALL_LOADS = (2.0,)
SMALL_SEEDS = (100, 101)
SMALL_S = 60.0
RIVALS = ("pf-admit:overbook=3", "pf-util:rho=0.9,overbook=3", "compute-only:overbook=2", "compute-only:overbook=3")


@pytest.fixture(scope="module")
def site() -> Site:
    return load_site(config_file("sites", "node-bound.toml"))


@pytest.fixture(scope="module")
def recordings(shared_data: Path) -> Recordings:
    return closed_loop.read_recordings(shared_data)


def row(policy: str, load: float, seed: int, met_tasks: int, offered: int = 100) -> SweepRow:
    return SweepRow(
        site="s", load=load, seed=seed, policy=policy, offered=offered, admitted=offered, met=met_tasks,
        value=float(met_tasks), hindsight_bound=float(offered),
    )  # fmt: skip


def test_tuning_takes_the_best_over_all_seeds_of_a_load() -> None:
    rows = [row(spec, 1.0, seed, 10) for specs in TUNING.values() for spec in specs for seed in (1, 2)]
    last = TUNING["pf-admit"][-1]
    better = [r if r.policy != last else row(last, 1.0, r.seed, 30 if r.seed == 1 else 0) for r in rows]
    assert tuned(better)[1.0, "pf-admit"] == last  # 30 + 0 is more than 10 + 10


def test_ties_go_to_the_first() -> None:
    rows = [row(spec, load, 1, 10) for specs in TUNING.values() for spec in specs for load in (0.5, 2.0)]
    assert tuned(rows) == {(load, name): specs[0] for load in (0.5, 2.0) for name, specs in TUNING.items()}


def test_each_load_is_tuned_on_its_own() -> None:
    first, *_, last = TUNING["pf-util"]
    rows = [
        row(spec, load, 1, 20 if spec == best else 10)
        for load, best in ((1.0, first), (2.0, last))
        for specs in TUNING.values()
        for spec in specs
    ]
    found = tuned(rows)
    assert (found[1.0, "pf-util"], found[2.0, "pf-util"]) == (first, last)


def test_met_is_the_mean_of_the_seeds_ratios() -> None:
    rows = [row("joint", 1.0, 1, 10, offered=20), row("joint", 1.0, 2, 90, offered=100), row("pf", 1.0, 1, 1)]
    assert met(rows, 1.0, "joint") == pytest.approx((0.5 + 0.9) / 2)


def test_noise_is_two_standard_errors_of_the_paired_differences() -> None:
    rows = [row("joint", 1.0, s, j) for s, j in ((1, 50), (2, 60), (3, 40))]
    rows += [row("greedy", 1.0, s, 10) for s in (1, 2, 3)]
    rows += [row("greedy-residual", 1.0, s, g) for s, g in ((3, 39), (1, 48), (2, 60))]
    difference = np.array([0.02, 0.0, 0.01])
    expected = 2 * float(np.std(difference, ddof=1)) / np.sqrt(3)
    assert noise(rows, 1.0, "joint", GREEDY) == pytest.approx(expected)


def test_one_seed_says_nothing_about_noise() -> None:
    rows = [row(p, 1.0, 1, 5) for p in ("joint", *GREEDY)]
    assert noise(rows, 1.0, "joint", GREEDY) == np.inf


def test_claims_compare_with_the_best_of_each_load() -> None:
    rows = []
    for load in LOADS:
        for seed in (1, 2):
            rows += [
                row("joint", load, seed, 60),
                row("greedy", load, seed, 50),
                row("greedy-residual", load, seed, 55),
            ]
            rows += [row(p, load, seed, 50 if p == "pf-util" else 10) for p in DECOUPLED]
    over, behind = claims(rows)
    assert over.reached == pytest.approx(1.2)
    assert behind.reached == pytest.approx(0.05)
    worse = [row("joint", r.load, r.seed, 40) if r.policy == "joint" and r.load == LOADS[0] else r for r in rows]
    over, behind = claims(worse)
    assert over.reached == pytest.approx(1.2)  # loads below 1 are no part of it
    assert behind.reached == pytest.approx(-0.15)


def one_worker(recordings: Recordings, jobs: list[LoopJob]) -> list[SweepRow]:
    closed_loop._start(recordings)
    return [r for job in jobs for r in run_job(job)]


def test_rows_are_the_same_whatever_the_number_of_workers(
    recordings: Recordings, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [LoopJob(site, 1.0, 2.0, seed, 6.0, ("joint", "pf-util")) for seed in (5, 6, 7)]
    here = one_worker(recordings, jobs)
    assert [(r.seed, r.policy) for r in here] == [(s, p) for s in (5, 6, 7) for p in ("joint", "pf-util")]
    told: list[float] = []
    for cores in ({0}, {0, 1}):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _pid, cores=cores: cores)
        assert run_jobs(recordings, jobs, told.append) == here
    assert told == pytest.approx([1 / 3, 2 / 3, 1.0] * 2)


def test_a_folder_without_recordings_is_told_what_belongs_there(tmp_path: Path) -> None:
    with pytest.raises(closed_loop.BadInput, match="COSCHED_RECORDINGS"):
        closed_loop.read_recordings(tmp_path)


@pytest.fixture(scope="module")
def small(recordings: Recordings, site: Site) -> list[SweepRow]:
    rate = closed_loop.rate_at_load_1(recordings, site)
    policies = ("joint", "greedy-residual", "pf", *RIVALS)
    jobs = [LoopJob(site, load, load * rate, seed, SMALL_S, policies) for load in SMALL_LOADS for seed in SMALL_SEEDS]
    return run_jobs(recordings, jobs)


def mean_met(rows: list[SweepRow], policy: str) -> float:
    return float(np.mean([met(rows, load, policy) for load in SMALL_LOADS]))


@pytest.mark.slow
def test_joint_meets_more_than_every_decoupled_policy(small: list[SweepRow]) -> None:
    """Two minutes of the bench's two hours, at the highest load; it has the figures. Deterministic: no flicker."""
    joint = mean_met(small, "joint")
    assert joint >= 1.05 * max(mean_met(small, p) for p in RIVALS)
    assert joint >= 0.9 * mean_met(small, "greedy-residual")
    assert mean_met(small, "pf") < min(mean_met(small, p) for p in RIVALS)


@pytest.mark.slow
def test_nobody_beats_the_bound_on_recorded_channels(small: list[SweepRow]) -> None:
    for r in small:
        assert r.value <= r.hindsight_bound + 1e-6
        assert r.met <= r.admitted <= r.offered
