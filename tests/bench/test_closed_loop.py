"""Suite closed-loop: tuning, claims and noise by hand, workers that change nothing, a small version of the claim."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import numpy as np
import pytest

from cosched.bench import closed_loop
from cosched.bench.closed_loop import (
    LOADS,
    TUNING,
    LoopJob,
    Recordings,
    both_sets,
    by_name,
    run_job,
    run_jobs,
    tuned,
)
from cosched.bench.loop_figures import bench_rows, broken, claims, met, noise
from cosched.bench.model import Scope
from cosched.core.policy import POLICIES
from cosched.core.policy import policy as parse_policy
from cosched.core.settings import Settings
from cosched.replay.outcome import policy_result
from cosched.replay.replayer import Replayer
from cosched.report.model import SweepRow
from cosched.resources import config_file
from cosched.site import Site, load_site
from telemetry.messages import LlmSession

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
    first, *_, last = TUNING["predicted"]
    rows = [
        row(spec, load, 1, 20 if spec == best else 10)
        for load, best in ((1.0, first), (2.0, last))
        for specs in TUNING.values()
        for spec in specs
    ]
    found = tuned(rows)
    assert (found[1.0, "predicted"], found[2.0, "predicted"]) == (first, last)


def test_met_is_the_mean_of_the_seeds_ratios() -> None:
    rows = [row("joint", 1.0, 1, 10, offered=20), row("joint", 1.0, 2, 90, offered=100), row("pf", 1.0, 1, 1)]
    assert met(rows, 1.0, "joint") == pytest.approx((0.5 + 0.9) / 2)


def test_noise_is_two_standard_errors_of_the_paired_differences() -> None:
    rows = [row("joint", 1.0, s, j) for s, j in ((1, 50), (2, 60), (3, 40))]
    rows += [row("greedy", 1.0, s, 10) for s in (1, 2, 3)]
    rows += [row("greedy-residual", 1.0, s, g) for s, g in ((3, 39), (1, 48), (2, 60))]
    greedy = ("greedy", "greedy-residual")
    difference = np.array([0.02, 0.0, 0.01])
    expected = 2 * float(np.std(difference, ddof=1)) / np.sqrt(3)
    assert noise(rows, 1.0, "joint", greedy) == pytest.approx(expected)


def test_one_seed_says_nothing_about_noise() -> None:
    rows = [row(p, 1.0, 1, 5) for p in ("joint", "greedy", "engine")]
    assert noise(rows, 1.0, "joint", ("greedy", "engine")) == np.inf


def shown(joint: int, *, seeds: tuple[int, ...] = (1, 2)) -> list[SweepRow]:
    """Make every load's rows: joint, greedy at 50, greedy-residual at 55, each tuned rival at 40."""
    rows = []
    for load in LOADS:
        for seed in seeds:
            rows += [row("joint", load, seed, joint), row("greedy", load, seed, 50)]
            rows += [row("greedy-residual", load, seed, 55), *(row(p, load, seed, 40) for p in TUNING)]
    return rows


def changed(rows: list[SweepRow], load: float, **fields: float) -> list[SweepRow]:
    """Rows with joint's figures changed at one load."""
    return [msgspec.structs.replace(r, **fields) if (r.policy, r.load) == ("joint", load) else r for r in rows]


def meets(r: SweepRow, tasks: int) -> SweepRow:
    return msgspec.structs.replace(r, met=tasks, value=float(tasks))


def test_claims_compare_with_the_best_of_each_load() -> None:
    over, behind, kept = claims("s", shown(66))
    assert all(claim.text.startswith("s: ") for claim in (over, behind, kept))
    assert (over.asked, behind.asked, kept.asked) == (1.0, 0.0, 0.95)
    assert over.reached == pytest.approx(66 / 55)
    assert behind.reached == pytest.approx(0.11)
    assert kept.reached == 1.0  # nothing was promised, so nothing was broken


def test_a_loss_at_one_load_shows_in_every_claim() -> None:
    over, behind, _ = claims("s", changed(shown(66), LOADS[0], met=33, value=33.0))
    assert over.reached == pytest.approx((33 / 55 + 66 / 55 * (len(LOADS) - 1)) / len(LOADS))
    assert behind.reached == pytest.approx(-0.22)


def test_a_rival_who_is_best_at_one_load_only_is_compared_with_there() -> None:
    rows = [meets(r, 88) if (r.policy, r.load) == ("engine", LOADS[-1]) else r for r in shown(66)]
    over, behind, _ = claims("s", rows)
    assert over.reached == pytest.approx((66 / 88 + 66 / 55 * (len(LOADS) - 1)) / len(LOADS))
    assert behind.reached == pytest.approx(-0.22)


def test_a_loss_within_the_noise_is_no_loss() -> None:
    rows = [meets(r, 50 if r.seed == 1 else 58) if r.policy == "joint" else r for r in shown(0)]
    _, behind, _ = claims("s", rows)  # 0.05 behind and 0.03 ahead of greedy-residual's 0.55
    assert behind.reached == pytest.approx(-0.01 + 2 * float(np.std([-0.05, 0.03], ddof=1)) / np.sqrt(2))
    assert behind.reached > 0


def test_promises_kept_are_those_of_the_load_that_kept_fewest() -> None:
    rows = changed(shown(66), LOADS[0], promised=50, broken=1)
    rows = changed(rows, LOADS[1], promised=40, broken=4)
    *_, kept = claims("s", rows)
    assert kept.reached == pytest.approx(0.9)
    assert broken(rows, LOADS[0], "joint") == pytest.approx(0.02)


def test_broken_is_a_part_of_all_promises_of_a_load() -> None:
    """Seeds with many promises count for more; a policy that promises nothing breaks nothing."""
    rows = [
        msgspec.structs.replace(row("joint", 1.0, 1, 5), promised=90, broken=0),
        msgspec.structs.replace(row("joint", 1.0, 2, 5), promised=10, broken=5),
        msgspec.structs.replace(row("joint", 2.0, 1, 5), promised=10, broken=10),
        row("engine", 1.0, 1, 5),
    ]
    assert broken(rows, 1.0, "joint") == pytest.approx(0.05)
    assert broken(rows, 1.0, "engine") == 0.0


def test_both_sets_are_apart_from_each_other_and_from_tuning() -> None:
    seeds = both_sets(5)
    assert seeds == (100, 101, 102, 103, 104, 500, 501, 502, 503, 504)
    assert max(seeds) < closed_loop.TUNING_SEED


def test_every_spec_that_is_tuned_is_a_policy() -> None:
    for name, specs in TUNING.items():
        assert {parse_policy(spec).name for spec in specs} == set(specs)
        assert {parse_policy(spec).solver for spec in specs} == {POLICIES[name].solver}
        assert len(set(specs)) == len(specs)


def test_where_weights_differ_claims_are_of_the_weight() -> None:
    """Joint meets fewer tasks and more of their weight."""
    rows = [msgspec.structs.replace(r, offered_value=300.0) for r in shown(50)]
    rows = [msgspec.structs.replace(r, value=220.0) if r.policy == "joint" else r for r in rows]
    rows = [msgspec.structs.replace(r, value=110.0) if r.policy == "greedy-residual" else r for r in rows]
    over, behind, _ = claims("s", rows)
    assert over.reached == pytest.approx(2.0)
    assert behind.reached == pytest.approx(110 / 300)


def test_tuning_is_by_weight_where_weights_differ() -> None:
    rows = [row(spec, 1.0, 1, 10) for specs in TUNING.values() for spec in specs]
    last = TUNING["predicted"][-1]
    heavier = [msgspec.structs.replace(r, value=11.0) if r.policy == last else r for r in rows]
    assert tuned(heavier)[1.0, "predicted"] == last


def test_figures_split_what_was_met_by_whether_it_was_promised() -> None:
    some = msgspec.structs.replace(row("joint", 1.0, 100, 50), promised=45, broken=5, tokens_met=900, duration_s=60.0)
    some = msgspec.structs.replace(some, feasible_alone=80)
    found = {(r.subject, r.figure): r for r in bench_rows("closed-loop", "s", [some])}
    of = {figure: r.value for (subject, figure), r in found.items() if subject == "joint"}
    assert (of["promised_kept_percent"], of["promised_broken_percent"], of["met_unpromised_percent"]) == (40, 5, 10)
    assert (of["met_ratio"], of["met_ratio_set1"]) == (0.5, 0.5)
    assert "met_ratio_set2" not in of, "no seed of the second set"
    assert "value_ratio" not in of, "weights are alike"
    assert of["broken_of_promised_percent"] == pytest.approx(100 / 9)
    assert (of["tokens_met_per_s"], of["met_per_s"]) == (15, pytest.approx(50 / 60))
    assert found["all", "infeasible_alone_percent"].value == pytest.approx(20)
    assert found["joint", "met_ratio"].bound == 1.0


def test_where_weights_differ_the_bound_is_on_the_value() -> None:
    some = msgspec.structs.replace(row("joint", 1.0, 100, 50), value=150.0, offered_value=300.0, hindsight_bound=240.0)
    found = {r.figure: r for r in bench_rows("closed-loop", "s", [some]) if r.subject == "joint"}
    assert (found["value_ratio"].value, found["value_ratio"].bound) == (0.5, 0.8)
    assert found["met_ratio"].bound is None


def test_rivals_of_a_site_fit_it() -> None:
    names = {n: closed_loop.tuning_for(closed_loop.site_of_mix(n, "drawn")).keys() for n in ("balanced", "metro")}
    assert names["balanced"] == TUNING.keys()
    assert names["metro"] == {*TUNING, "predicted-pools", "weight-floor"}
    plain = closed_loop.by_name([row(spec, 1.0, 1, 1) for spec in closed_loop.POOLS["predicted-pools"]])
    assert {r.policy for r in plain} == {"predicted-pools"}, "beside `predicted`, not in its place"


def test_in_the_private_mix_all_sessions_are_private_and_weights_differ(recordings: Recordings) -> None:
    site = closed_loop.site_of_mix("cell-bound", "private")
    book = closed_loop.book_of(recordings, site, 5.0, 20.0, 1)
    offers = [offer for _, offer in book.offers] + list(book.local)
    assert all(offer.work.private for offer in offers if isinstance(offer.work, LlmSession))
    assert {offer.weight for offer in offers} == {1.0, 5.0}
    assert site.name != "cell-bound", "its rows are no other site's"


@pytest.mark.parametrize(
    "scope", [Scope(mix="all"), Scope(loads=(0.0,)), Scope(loads=(np.nan,)), Scope(sites=("nowhere",))]
)
def test_what_there_is_not_is_refused_before_anything_is_run(scope: Scope) -> None:
    with pytest.raises(closed_loop.BadInput):
        closed_loop.run(seeds=1, progress=lambda _: None, scope=scope)


def test_the_command_is_what_was_called() -> None:
    scope = Scope(sites=("metro", "balanced"), loads=(0.3, 2.0), mix="private")
    assert closed_loop.command("closed-loop", 2, scope) == (
        "cosched bench closed-loop --seeds 2 --site metro --site balanced --load 0.3 --load 2 --mix private"
    )
    assert closed_loop.command("closed-loop", 5, Scope()) == "cosched bench closed-loop --seeds 5"


def test_rows_carry_promises_and_tokens(recordings: Recordings, site: Site) -> None:
    book = closed_loop.book_of(recordings, site, 3.0, 6.0, 5)
    (r,) = one_worker(recordings, [LoopJob(site, 1.0, 3.0, 5, 6.0, ("joint",))])
    s = policy_result(book, Replayer(book, parse_policy("joint"), Settings()).run(), r.hindsight_bound).summary
    assert (r.promised, r.broken, r.tokens_met) == (s.promised, s.broken, s.tokens_met)
    assert 0 <= r.broken <= r.promised <= r.admitted
    assert r.offered_value == sum(offer.weight for _, offer in book.offers)
    assert r.met <= r.feasible_alone <= r.offered
    assert r.duration_s == 6.0
    assert r.promised > 0
    assert r.tokens_met > 0


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
def test_joint_is_not_behind_the_decoupled_policies_at_their_best(small: list[SweepRow]) -> None:
    """Two minutes of the bench's two hours, at the highest load; it has the figures. Deterministic: no flicker.

    On one cell and one node with equal weights there is nothing to gain: all plan with the same queue and steps.
    """
    joint = mean_met(small, "joint")
    assert joint >= 0.97 * max(mean_met(small, p) for p in RIVALS)
    assert joint >= 0.9 * mean_met(small, "greedy-residual")
    assert mean_met(small, "pf") < min(mean_met(small, p) for p in RIVALS)


@pytest.mark.slow
def test_nobody_beats_the_bound_on_recorded_channels(small: list[SweepRow]) -> None:
    for r in small:
        assert r.value <= r.hindsight_bound + 1e-6
        assert r.met <= r.admitted <= r.offered


def test_the_best_plan_found_stands_beside_the_policies(site: Site, recordings: Recordings) -> None:
    """It is between them and the bound, and no rival: claims leave it out."""
    job = LoopJob(site, 2.0, 6.0, 100, 6.0, ("joint", "predicted:step_s=0.05", closed_loop.CLAIRVOYANT))
    rows = run_jobs(recordings, [job])
    *others, best = rows
    assert best.policy == closed_loop.CLAIRVOYANT
    assert max(r.value for r in others) <= best.value <= best.hindsight_bound + 1e-6
    assert claims(site.name, by_name(rows)) == claims(site.name, by_name(others))
