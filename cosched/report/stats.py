"""The arithmetic behind tables and charts: ratios over seeds, distributions, classes of users, thinned timelines."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from cosched.core.policy import DECOUPLED, GREEDY
from cosched.report.model import PolicyResult, ReplayResult, Sweep, SweepRow, TaskFate
from cosched.report.palette import JOINT, members

Floats = npt.NDArray[np.float64]
CHANNEL_CLASSES = ("bad", "middle", "good")


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Mean and standard deviation over seeds (0 for a single seed; n - 1 in the denominator otherwise)."""

    mean: float
    sd: float
    n: int


def spread(samples: Iterable[float]) -> Spread | None:
    """Mean and spread of the finite samples; None where there is none."""
    kept = np.array([s for s in samples if math.isfinite(s)], dtype=np.float64)
    if not kept.size:
        return None
    sd = float(kept.std(ddof=1)) if kept.size > 1 else 0.0
    return Spread(mean=float(kept.mean()), sd=sd, n=int(kept.size))


def ratio(over: float, under: float) -> float | None:
    """`over / under`; None where it says nothing (zero or non-finite denominator, non-finite numerator)."""
    if not (math.isfinite(over) and math.isfinite(under)) or under == 0:
        return None
    return over / under


# --- one trace ---------------------------------------------------------------------------------------------------


def lead_policy(result: ReplayResult) -> str | None:
    """Return the policy that the report is about: joint, else the one that met most; None where there is none."""
    joint = members(result.policies, [JOINT])
    if joint:
        return joint[0]
    return max(result.policies, key=lambda p: (result.policies[p].summary.met, p), default=None)


def best_of(result: ReplayResult, families: Sequence[str], *, besides: str | None) -> str | None:
    """Return which policy of `families` met the most tasks (first named wins a tie); None where none was run."""
    run = [c for c in members(result.policies, families) if c != besides]
    return max(run, key=lambda c: (result.policies[c].summary.met, -run.index(c)), default=None)


def headline(result: ReplayResult) -> str:
    """One-sentence result: what the lead policy met, against the best decoupled policy and the hindsight bound."""
    lead = lead_policy(result)
    if lead is None:
        return "No policy was run."
    summary = result.policies[lead].summary
    if summary.offered == 0:
        return "No task needed the network in this trace, so there is nothing to compare."
    parts = [f"{lead} met {100 * summary.met_ratio:.0f} % of {summary.offered} tasks"]
    decoupled = best_of(result, DECOUPLED, besides=lead)
    if decoupled is not None:
        gain = ratio(summary.met, result.policies[decoupled].summary.met)
        against = f"the best decoupled policy ({decoupled})"
        parts.append(f"{gain:.2f} x {against}" if gain is not None else f"while {against} met none")
    share = ratio(summary.value, summary.hindsight_bound)
    if share is not None:
        parts.append(f"{100 * share:.0f} % of the hindsight bound")
    return ", ".join(parts) + "."


def met_share(fates: Iterable[TaskFate]) -> tuple[int, int]:
    """(met, all) of some fates."""
    outcomes = [fate.outcome == "met" for fate in fates]
    return sum(outcomes), len(outcomes)


def channel_classes(reference: Sequence[TaskFate]) -> dict[str, str]:
    """Task id -> "bad", "middle" or "good": terciles of the reference run's uplink efficiency at the decision.

    One run classifies for all, so that a class holds the same tasks under every policy. Tasks without an estimate
    (not finite, or 0) are in no class; empty when terciles cannot be told apart.
    """
    known = [f for f in reference if math.isfinite(f.ul_efficiency_bps_hz) and f.ul_efficiency_bps_hz > 0]
    if not known:
        return {}
    low, high = np.quantile([f.ul_efficiency_bps_hz for f in known], [1 / 3, 2 / 3])
    if low >= high:
        return {}
    thirds = np.searchsorted([low, high], [f.ul_efficiency_bps_hz for f in known])
    return {f.task: CHANNEL_CLASSES[int(third)] for f, third in zip(known, thirds, strict=True)}


def lateness_ecdf(fates: Sequence[TaskFate], points: int = 300) -> tuple[Floats, Floats]:
    """Empirical distribution of latency / deadline over ALL offered tasks, thinned to about `points` steps.

    Returns (x, y), y = share of offered tasks with lateness <= x; rejected and unfinished tasks count in the
    denominator only, so y at x = 1 is the share served in time.
    """
    late = np.sort([f.lateness for f in fates if f.latency_s and math.isfinite(f.lateness)])
    if not late.size:
        return np.empty(0), np.empty(0)
    keep = np.unique(np.linspace(0, late.size - 1, min(points, late.size)).round().astype(np.int64))
    keep = np.union1d(keep, np.searchsorted(late, 1.0, side="right") - 1).clip(0)  # the step at the deadline stays
    return late[keep], (keep + 1) / len(fates)


def worst_misses(run: PolicyResult, count: int = 10) -> list[TaskFate]:
    """Return the tasks that were let in and failed, latest first (then by weight, then by id)."""
    missed = [fate for fate in run.fates if fate.outcome == "missed"]
    return sorted(missed, key=lambda f: (-f.lateness, -f.weight, f.task))[:count]


def count_reasons(run: PolicyResult) -> dict[str, int]:
    """Reason code -> number of offered tasks that were not met for it, most frequent first."""
    counts: dict[str, int] = defaultdict(int)
    for fate in run.fates:
        if fate.outcome != "met":
            counts[fate.reason] += 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def thin(series: Sequence[float], points: int, *, peak: bool = False) -> Floats:
    """Thin (T,) samples to at most `points` bins of (nearly) equal length: the mean of each, or its peak."""
    values = np.asarray(series, dtype=np.float64)
    if values.size <= points:
        return values
    edges = np.linspace(0, values.size, points + 1).astype(np.int64)
    if peak:
        return np.maximum.reduceat(values, edges[:-1])
    return np.add.reduceat(values, edges[:-1]) / np.diff(edges)


# --- a sweep -----------------------------------------------------------------------------------------------------


def sites(sweep: Sweep) -> list[str]:
    """Return the sites of a sweep, in order of first appearance."""
    return list(dict.fromkeys(row.site for row in sweep.rows))


def loads(rows: Sequence[SweepRow]) -> list[float]:
    """Return the offered loads, ascending."""
    return sorted({row.load for row in rows})


def policies(rows: Sequence[SweepRow]) -> list[str]:
    """Return the policies, in order of first appearance."""
    return list(dict.fromkeys(row.policy for row in rows))


def of_site(sweep: Sweep, site: str) -> list[SweepRow]:
    """Return the rows of one site."""
    return [row for row in sweep.rows if row.site == site]


def met_ratio(row: SweepRow) -> float:
    """Share of the offered tasks that were met; NaN where none was offered."""
    return row.met / row.offered if row.offered else math.nan


def value_ratio(row: SweepRow) -> float:
    """Value per offered task; NaN where none was offered."""
    return row.value / row.offered if row.offered else math.nan


def is_weighted(rows: Sequence[SweepRow]) -> bool:
    """Say whether value differs from the count of tasks met: the hindsight bound is then not a bound on that count."""
    return any(not math.isclose(row.value, row.met, abs_tol=1e-6) for row in rows)


def over_load(rows: Sequence[SweepRow], policy: str, of: Callable[[SweepRow], float]) -> dict[float, Spread]:
    """Load -> mean and spread over seeds of one policy's figure; loads without a sample are left out."""
    samples: dict[float, list[float]] = defaultdict(list)
    for row in rows:
        if row.policy == policy:
            samples[row.load].append(of(row))
    spreads = {load: spread(samples[load]) for load in sorted(samples)}
    return {load: s for load, s in spreads.items() if s is not None}


def bound_over_load(rows: Sequence[SweepRow]) -> dict[float, Spread]:
    """Load -> hindsight bound per offered task; of one seed's several rows the lowest counts (each is a bound)."""
    per_seed: dict[tuple[float, int], float] = {}
    for row in rows:
        if row.offered:
            key = (row.load, row.seed)
            per_seed[key] = min(per_seed.get(key, math.inf), row.hindsight_bound / row.offered)
    samples: dict[float, list[float]] = defaultdict(list)
    for (load, _), bound in per_seed.items():
        samples[load].append(bound)
    spreads = {load: spread(samples[load]) for load in sorted(samples)}
    return {load: s for load, s in spreads.items() if s is not None}


class Gain(msgspec.Struct, frozen=True, kw_only=True):
    """A ratio of tasks met, joint over the best of some policies, and which that was."""

    against: str
    ratio: Spread


def gain_at(rows: Sequence[SweepRow], load: float, against: Sequence[str]) -> Gain | None:
    """Ratio of tasks met at one load, seed by seed: joint over whichever of `against` met most on average there.

    `against` are families: variants of a policy (pf-util:rho=0.9) count with it. None where one side was not run, or
    met nothing in every seed.
    """
    met = {(r.policy, r.seed): met_ratio(r) for r in rows if r.load == load}
    best = _best_on_average(met, members(policies(rows), against))
    if best is None:
        return None
    seeds = sorted(seed for policy, seed in met if policy == JOINT and (best, seed) in met)
    ratios = [ratio(met[JOINT, seed], met[best, seed]) for seed in seeds]
    over_seeds = spread(r for r in ratios if r is not None)
    return None if over_seeds is None else Gain(against=best, ratio=over_seeds)


def _best_on_average(met: Mapping[tuple[str, int], float], against: Sequence[str]) -> str | None:
    mean = {p: spread(m for (policy, _), m in met.items() if policy == p) for p in against}
    run = {p: s.mean for p, s in mean.items() if s is not None}
    return max(run, key=lambda p: (run[p], -against.index(p)), default=None)


def in_range(rows: Sequence[SweepRow], low: float = 1.0, high: float = 2.0) -> list[float]:
    """Return the offered loads over which the requirement averages: from `low` to `high`, both included."""
    return [load for load in loads(rows) if low <= load <= high]


def mean_over_loads(rows: Sequence[SweepRow], at: Sequence[float], of: Callable[[SweepRow], float]) -> Spread | None:
    """Mean of one policy's figure over the loads `at`, per seed, then mean and spread over the seeds."""
    samples: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        if row.load in at:
            samples[row.seed].append(of(row))
    means = [spread(samples[seed]) for seed in sorted(samples)]
    return spread(s.mean for s in means if s is not None)


def mean_gain(rows: Sequence[SweepRow], at: Sequence[float], against: Sequence[str]) -> Spread | None:
    """Gain of joint averaged over the loads `at`, per seed, then mean and spread over the seeds.

    The opponent is, at each load anew, the one of `against` that met most there: the strongest reading.
    """
    best = {load: gain.against for load in at if (gain := gain_at(rows, load, against)) is not None}
    met = {(r.policy, r.seed, r.load): met_ratio(r) for r in rows}
    means = []
    for seed in sorted({row.seed for row in rows}):
        pairs = [(met.get((JOINT, seed, a), math.nan), met.get((best[a], seed, a), math.nan)) for a in best]
        ratios = [r for r in (ratio(over, under) for over, under in pairs) if r is not None]
        if ratios:
            means.append(sum(ratios) / len(ratios))
    return spread(means)


AGAINST: Mapping[str, Sequence[str]] = {"best decoupled": DECOUPLED, "better greedy": GREEDY}
