"""Figures of closed-loop runs: what is claimed of them, and the rows that a table shows.

Where weights differ a claim is on the weight of the tasks that were met, else that is their number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from cosched.bench.model import BenchRow, ModelClaim, spread
from cosched.report import stats
from cosched.report.model import SweepRow

CLAIRVOYANT: Final = "clairvoyant"  # no policy: the best plan that a search finds, all known; when asked for
SECOND_SET: Final = 500  # seeds from here on are a second set, to see what the first is worth


def value_ratio(row: SweepRow) -> float:
    """Weight of the tasks met over that of all offered; the fraction of tasks met where weights are alike."""
    return row.value / (row.offered_value or row.offered)


# Figure -> of one run. Percentages are of the offered tasks unless the name says otherwise.
FIGURES: Final[dict[str, Callable[[SweepRow], float]]] = {
    "met_ratio": lambda r: r.met / r.offered,
    "value_ratio": value_ratio,
    "promised_kept_percent": lambda r: 100 * (r.promised - r.broken) / r.offered,
    "promised_broken_percent": lambda r: 100 * r.broken / r.offered,
    "met_unpromised_percent": lambda r: 100 * (r.met - r.promised + r.broken) / r.offered,
    "missed_of_admitted_percent": lambda r: 100 * (1 - r.met / max(r.admitted, 1)),
    "broken_of_promised_percent": lambda r: 100 * r.broken / max(r.promised, 1),
    "met_per_s": lambda r: r.met / r.duration_s if r.duration_s else 0.0,
    "tokens_met_per_s": lambda r: r.tokens_met / r.duration_s if r.duration_s else 0.0,
}
WEIGHTED: Final = "value_ratio"  # is shown where weights differ
MANY_SEEDS: Final = "met_ratio"  # is shown for each set of seeds, too


def claims(site: str, rows: Sequence[SweepRow]) -> list[ModelClaim]:
    """What the README states of one site's rows (plain policy names)."""
    rivals = [p for p in dict.fromkeys(r.policy for r in rows) if p not in ("joint", CLAIRVOYANT)]
    loads = sorted({r.load for r in rows})
    mine = {load: reached(rows, load, "joint") for load in loads}
    best = {load: max(reached(rows, load, p) for p in rivals) for load in loads}
    over = [mine[load] / max(best[load], 1e-9) for load in loads]
    behind = [mine[load] - best[load] + noise(rows, load, "joint", rivals) for load in loads]
    kept = [1.0 - broken(rows, load, "joint") for load in loads]
    return [
        ModelClaim(text=f"{site}: joint over the best rival, mean over loads", reached=float(np.mean(over)), asked=1.0),
        ModelClaim(
            text=f"{site}: joint less the best rival plus the noise, least over loads", reached=min(behind), asked=0.0
        ),
        ModelClaim(text=f"{site}: promises that joint keeps, least over loads", reached=min(kept), asked=0.95),
    ]


def broken(rows: Sequence[SweepRow], load: float, policy: str) -> float:
    """Part of what was promised that was not met, all seeds together; 0 where nothing is promised."""
    some = [r for r in rows if r.load == load and r.policy == policy]
    return sum(r.broken for r in some) / max(1, sum(r.promised for r in some))


def met(rows: Sequence[SweepRow], load: float, policy: str) -> float:
    """Mean over seeds of the fraction of tasks met."""
    return float(np.mean([r.met / r.offered for r in rows if r.load == load and r.policy == policy]))


def reached(rows: Sequence[SweepRow], load: float, policy: str) -> float:
    """Mean over seeds of the weighted fraction of tasks met."""
    return float(np.mean([value_ratio(r) for r in rows if r.load == load and r.policy == policy]))


def noise(rows: Sequence[SweepRow], load: float, policy: str, others: Sequence[str]) -> float:
    """Two standard errors of the mean over seeds of the difference to the better of `others`, seed by seed paired."""
    best = max(others, key=lambda p: reached(rows, load, p))
    of = {
        name: {r.seed: value_ratio(r) for r in rows if r.load == load and r.policy == name} for name in (policy, best)
    }
    difference = np.array([of[policy][seed] - of[best][seed] for seed in sorted(of[policy])])
    return float(2 * difference.std(ddof=1) / np.sqrt(len(difference))) if len(difference) > 1 else np.inf


def bench_rows(suite: str, site: str, rows: Sequence[SweepRow]) -> list[BenchRow]:
    """Per load and policy (with the spec that tuning chose): FIGURES, with the bound that each is held by."""
    mine = [r for r in rows if r.site == site]
    out = []
    for load in sorted({r.load for r in mine}):
        some = [r for r in mine if r.load == load]
        for policy in dict.fromkeys(r.policy for r in some):
            out += _of_policy(suite, f"{site} load={load:g}", policy, [r for r in some if r.policy == policy])
        out += _of_all(suite, f"{site} load={load:g}", some)
    return out if stats.is_weighted(mine) else [row for row in out if row.figure != WEIGHTED]


def _of_policy(suite: str, case: str, policy: str, rows: Sequence[SweepRow]) -> list[BenchRow]:
    out = [_row(suite, case, policy, figure, [of(r) for r in rows], rows) for figure, of in FIGURES.items()]
    first, second = ([r for r in rows if (r.seed >= SECOND_SET) == is_second] for is_second in (False, True))
    for name, some in (("set1", first), ("set2", second)):
        if some:
            values = [FIGURES[MANY_SEEDS](r) for r in some]
            out.append(_row(suite, case, policy, f"{MANY_SEEDS}_{name}", values, some))
    return out


def _of_all(suite: str, case: str, rows: Sequence[SweepRow]) -> list[BenchRow]:
    """What is no policy's: the part of the offered tasks that nobody could meet, alone on cell and node."""
    seeds = {r.seed: 100 * (1 - r.feasible_alone / r.offered) for r in rows}
    return [_row(suite, case, "all", "infeasible_alone_percent", list(seeds.values()), rows)]


def _row(
    suite: str, case: str, subject: str, figure: str, values: Sequence[float], rows: Sequence[SweepRow]
) -> BenchRow:
    """A row; the hindsight bound, which is on the value, where the figure is the value's part (or, unweighted, met)."""
    p50, p99, mean = spread(values)
    bound = None
    if figure == WEIGHTED or (figure == "met_ratio" and not stats.is_weighted(rows)):
        bound = float(np.mean([r.hindsight_bound / (r.offered_value or r.offered) for r in rows]))
    return BenchRow(
        suite=suite, case=case, subject=subject, figure=figure, p50=p50, p99=p99, n=len(values), value=mean, bound=bound
    )
