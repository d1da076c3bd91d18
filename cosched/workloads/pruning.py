"""Fewer points, same optimum: leave out what cannot hold a deadline and what another point beats everywhere.

Points that are cheapest at no prices (inside the lower envelope) are NOT left out. Where only shares are priced the
cost (sqrt(l1 a1) + sqrt(l2 a2))^2 / tau of a point on the line between two others is quasi-concave along the line,
so an inner point is never the cheapest; but mean use is priced as well (docs/model.md), and a sum of a quasi-concave
and a linear function can have its minimum inside. Sessions also change precision at a split they are bound to.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from cosched.workloads.base import LOCAL, Bools, Floats, Ints, PointTable


def take(table: PointTable, rows: Ints) -> PointTable:
    """Return the table with these rows only, in this order."""
    columns = {
        field.name: getattr(table, field.name)[rows]
        for field in dataclasses.fields(table)
        if field.name not in ("point_ids", "deadline_s", "rate_hz", "chunks", "owners", "guess")
        and getattr(table, field.name) is not None
    }
    return dataclasses.replace(table, point_ids=tuple(table.point_ids[j] for j in rows), **columns)


def holds_deadlines(table: PointTable) -> Bools:
    """(J,) whether a point holds every deadline with all shared resources infinitely fast."""
    least_s = table.fixed_s.copy()
    least_s[:, 1] += table.steps.sum(axis=1)  # a step is no share: nobody's token is out before its own part is done
    return np.asarray((least_s <= table.deadline_s).all(axis=1), dtype=bool)


def undominated(table: PointTable) -> Bools:
    """(J,) False where another point at the same node is no worse in every column; of equal points the first stays."""
    columns = _costs(table)  # (J, C)
    keep = np.ones(table.n_points, dtype=bool)
    for node in np.unique(table.node):
        rows = np.flatnonzero(table.node == node)
        keep[rows] = ~_beaten(columns[rows])
    return keep


def prune(table: PointTable) -> PointTable:
    """Leave out points that hold no deadline and dominated ones: any solver's best value is the same without them."""
    rows = np.flatnonzero(holds_deadlines(table))
    table = table if len(rows) == table.n_points else take(table, rows)
    rows = np.flatnonzero(undominated(table))
    return table if len(rows) == table.n_points else take(table, rows)


def local_feasible(table: PointTable) -> bool:
    """Whether the UE's device alone holds every deadline."""
    return bool(((table.node == LOCAL) & holds_deadlines(table)).any())


def _costs(table: PointTable) -> Floats:
    """(J, C) everything of a point that a plan can be worse for."""
    phased = (table.fixed_s, table.ul_bits, table.node_s, table.steps, table.device_energy_j)
    single = (-table.quality, table.node_bytes)
    return np.concatenate([*phased, *(c[:, None] for c in single)], axis=1)


def _beaten(costs: Floats) -> Bools:
    """(J,) whether some other row is <= in all columns, and < in one or earlier in the table."""
    no_worse = np.ones((len(costs), len(costs)), dtype=bool)  # [a, b]: a <= b in all columns
    for column in costs.T:
        no_worse &= column[:, None] <= column[None, :]
    beats = no_worse & ~(no_worse.T & np.tri(len(costs), dtype=bool))  # equal rows: only the earlier beats the later
    return np.asarray(beats.any(axis=0), dtype=bool)
