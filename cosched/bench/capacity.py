"""Capacity: the greatest load at which 95 % of the tasks hold their deadlines, from the rows of a sweep.

Of three sets of tasks: those offered; of these, those that could be met alone, with cell and node to themselves at the
best channel of their life (who could not is missed at any load); those admitted. Between two loads that were tried the
part that is met is taken as linear, all seeds together; the load is that at which it falls below 95 % for the first
time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from cosched.bench.model import CapacityRow
from cosched.report.model import SweepRow

ENOUGH: Final = 0.95
OF: Final[dict[str, Callable[[SweepRow], int]]] = {
    "offered": lambda row: row.offered,
    "feasible alone": lambda row: row.feasible_alone,
    "admitted": lambda row: row.admitted,
}


def capacities(rows: Sequence[SweepRow]) -> list[CapacityRow]:
    """Of each site and policy (plain names), for each set of tasks; in the order of the rows."""
    keys = dict.fromkeys((row.site, row.policy) for row in rows)
    return [
        _capacity([r for r in rows if (r.site, r.policy) == (site, policy)], site, policy, of)
        for site, policy in keys
        for of in OF
    ]


def _capacity(rows: Sequence[SweepRow], site: str, policy: str, of: str) -> CapacityRow:
    loads = sorted({row.load for row in rows})
    at = [[row for row in rows if row.load == load] for load in loads]
    limit, load = greatest_load(loads, [_part(some, OF[of]) for some in at])
    return CapacityRow(
        site=site,
        policy=policy,
        of=of,
        limit=limit,
        load=load,
        met_per_s=float(np.interp(load, loads, [_per_s(some, sum(r.met for r in some)) for some in at])),
        tokens_per_s=float(np.interp(load, loads, [_per_s(some, sum(r.tokens_met for r in some)) for some in at])),
    )


def greatest_load(loads: Sequence[float], part: Sequence[float]) -> tuple[str, float]:
    """(limit, load) up to which the part that is met is enough: see CapacityRow. loads: ascending, one or more."""
    if part[0] < ENOUGH:
        return "<", loads[0]
    for (low, above), (high, below) in zip(
        zip(loads, part, strict=True), zip(loads[1:], part[1:], strict=True), strict=False
    ):
        if below < ENOUGH:
            return "", low + (high - low) * (above - ENOUGH) / (above - below)
    return ">", loads[-1]


def _part(rows: Sequence[SweepRow], of: Callable[[SweepRow], int]) -> float:
    """Of all seeds; where there is nobody to meet, all are met."""
    return sum(row.met for row in rows) / count if (count := sum(of(row) for row in rows)) else 1.0


def _per_s(rows: Sequence[SweepRow], count: int) -> float:
    seconds = sum(row.duration_s for row in rows)
    return count / seconds if seconds > 0 else 0.0
