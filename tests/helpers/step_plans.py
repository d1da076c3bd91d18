"""All plans of a small problem with steps, from the definition in docs/model.md, section 10; no code of the solvers.

One cell, two nodes, two slots a point. A choice of points fits when shares exist with which it does. Given what a task
has of the cell, the least it needs of its node follows, a convex function; how the cell is best divided between the
tasks of a node has one unknown, the price of the node in units of the cell, so it is a bisection. Shares of the cell
are looked for on a grid and between two neighbours of it: what fits here really fits.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from solvers.problem import Floats, Problem
from solvers.solution import Solution

GRID = 1500  # shares of the cell that are tried
HALVINGS = 60
ROUNDING_S = 1e-12  # periods are such that somebody can just ride
CELL = 0


@dataclass(frozen=True)
class Way:
    """What a point is at the lengths of a plan."""

    j: int
    task: int
    node: int
    model: int
    pace_s: float
    streams: bool
    read_s: float
    rides: bool
    demand: float  # of the node, for its own parts of steps
    cell: Floats  # (GRID,) shares of the cell, from the least that may do
    need: Floats  # (GRID,) least share of the node, given these; inf where none will do
    value: float


class Enumeration:
    """Plans of a problem at the lengths (R,) and periods (R,) that a solution names, in seconds."""

    def __init__(self, problem: Problem, named: Solution) -> None:
        self._p, self._period = problem, named.period_s
        self._room = 1.0 - problem.background
        owner = np.repeat(np.arange(problem.n_tasks), np.diff(problem.first)).tolist()
        self.ways = [self._way(j, owner[j], named) for j in range(problem.n_points)]
        self._held = {int(j) for j in problem.held if j >= 0}

    def _way(self, j: int, task: int, named: Solution) -> Way:
        p, s = self._p, self._p.steps
        assert s is not None
        node = int(p.slot[j, 1])
        step_s, period_s = float(named.step_s[node]), float(self._period[node])
        decodes, streams = bool(s.shared_s[j] > 0), bool(s.streams[j])
        slack = p.slack[j].copy()
        if np.isfinite(step_s):
            slack -= s.wait[j] * max(step_s, float(s.shared_s[j] + s.own_s[j]))
        elif decodes:
            slack[1] = -np.inf
        after = slack[1] - period_s / 2 if np.isfinite(period_s) else -np.inf  # of a token that waits for the next read
        waits = streams or after >= 4 * p.work[j, 1].sum() - ROUNDING_S
        rides = decodes and s.pace_s[j] >= period_s and waits
        if rides and not streams:
            slack[1] = after
        cell = self._shares(j, slack)
        return Way(
            j=j, task=task, node=node, model=int(s.group[j]), pace_s=float(s.pace_s[j]), streams=streams,
            read_s=float(s.shared_s[j]), rides=bool(rides), demand=float(s.demand[j]) if decodes else 0.0,
            cell=cell, need=self._need(j, slack, cell), value=float(p.value[j]),
        )  # fmt: skip

    def _shares(self, j: int, slack: Floats) -> Floats:
        """(GRID,) shares of the cell from the least at which the way to the node alone is in time, dense there."""
        air = self._p.work[j, :, 0]
        least = np.where(slack > 0, air / np.where(slack > 0, slack, 1.0), np.where(air > 0, 1.0, 0.0)).max()
        least = min(max(float(least) * (1 + 1e-12), float(self._p.floor[j, 0])), 1.0)
        return np.minimum(least + np.concatenate([[0.0], np.geomspace(1e-7, 1.0, GRID - 1)]), 1.0)

    def _need(self, j: int, slack: Floats, cell: Floats) -> Floats:
        p = self._p
        need = np.full(GRID, p.floor[j, 1])
        for q in range(2):
            left = slack[q] - np.where(
                cell > 0, p.work[j, q, 0] / np.maximum(cell, 1e-300), 0.0
            )  # inf where the phase does not exist
            with np.errstate(divide="ignore", invalid="ignore"):
                need = np.maximum(need, np.where(left > 0, p.work[j, q, 1] / left, np.inf if p.work[j, q, 1] else 0.0))
            need[left < 0] = np.inf
        need[(need > p.cap[j, 1]) | (cell < p.floor[j, 0]) | (cell > p.cap[j, 0])] = np.inf
        return need

    def choices(self) -> Iterator[tuple[float, tuple[Way, ...]]]:
        """(value, points) of every choice of at most one point a task, most valuable first."""
        per_task = [[None, *(w for w in self.ways if w.task == i)] for i in range(self._p.n_tasks)]
        some = [tuple(w for w in choice if w is not None) for choice in itertools.product(*per_task)]
        yield from sorted(((sum(w.value for w in c), c) for c in some), key=lambda pair: -pair[0])

    def fits(self, chosen: Sequence[Way], *, as_read: bool) -> bool:
        """Whether shares exist. as_read: reads are those that the chosen cause, else what a bound has to count."""
        devices = self._p.devices
        if devices is not None:
            ues = devices.ue[[w.task for w in chosen]]
            used = np.bincount(ues, weights=devices.use[[w.j for w in chosen]]) if chosen else np.zeros(1)
            if (used > 1).any():
                return False
        cell = 0.0
        for node in sorted({w.node for w in self.ways}):
            here = [w for w in chosen if w.node == node]
            taken = self._reads(here, node) if as_read else self._counted(here, node)
            cell += self._least_of_cell(here, float(self._room[node]) - taken - sum(w.demand for w in here))
        return cell <= self._room[CELL]

    def _least_of_cell(self, here: Sequence[Way], room: float) -> float:
        """Least sum of shares of the cell with which these tasks need no more than `room` of their node."""
        if not here:
            return 0.0
        cells, need = np.stack([w.cell for w in here]), np.stack([w.need for w in here])
        rows = np.arange(len(here))

        def at(price: float) -> tuple[float, float]:
            best = np.argmin(cells + price * need, axis=1)
            return float(cells[rows, best].sum()), float(need[rows, best].sum())

        low, high = -30.0, 30.0
        if not at(np.exp(high))[1] <= room:
            return float(np.inf)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if at(np.exp(middle))[1] <= room else (middle, high)
        (most, short), (cell, need) = at(np.exp(low)), at(np.exp(high))
        if not (np.isfinite(short) and short > room > need):
            return cell
        return most + (cell - most) * (short - room) / (short - need)  # shares between the two, which need no more

    def _reads(self, here: Sequence[Way], node: int) -> float:
        """Reads that these cause: for all who ride, model by model, or for those who cannot wait, whichever is more."""
        period, shared = float(self._period[node]), 0.0
        decoders = [w for w in here if w.read_s > 0]
        for model in {w.model for w in decoders}:
            along = [w for w in decoders if w.model == model and (w.rides or w.streams)]
            if along:
                often = min(period if w.rides else w.pace_s for w in along)
                shared += max(w.read_s for w in along) / often
        return max(shared, _for_themselves(decoders))

    def _counted(self, here: Sequence[Way], node: int) -> float:
        """Reads of who runs, chosen or not, and what each of the chosen who come pays beyond."""
        period = float(self._period[node])
        decoders = [w for w in self.ways if w.node == node and w.read_s > 0]
        runs = [w for w in decoders if w.j in self._held]
        come = [w for w in decoders if w.j not in self._held and not self._is_no_more(w, runs)]
        several = len({w.task for w in come}) > 1
        for_all = [*runs, *(w for w in come if several and w.rides)]
        base = max(_read_s(for_all) / period, _for_themselves(runs))
        return base + sum(self._pays(w, for_all, runs, base, several) for w in here if w in come)

    def _is_no_more(self, way: Way, runs: Sequence[Way]) -> bool:
        """Whether a task that runs burdens its node with this point as it does now."""
        now = next((w for w in runs if w.task == way.task), None)
        same = ("model", "pace_s", "streams", "rides")
        return now is not None and all(getattr(now, n) == getattr(way, n) for n in same) and way.read_s <= now.read_s

    def _pays(self, w: Way, for_all: Sequence[Way], runs: Sequence[Way], base: float, several: bool) -> float:
        if not (w.rides or w.streams):
            own = w.read_s / w.pace_s
            return own if several else max(0.0, _for_themselves(runs) + own - base)
        period = float(self._period[w.node])
        if several and not w.rides:  # what is read already may end with those who move
            mine = [o for o in for_all if o.model == w.model]
            return _read_s([*mine, w]) / w.pace_s - _read_s(mine) / period
        others = _read_s([o for o in for_all if o.model != w.model]) / period
        with_him = _read_s([*(o for o in for_all if o.model == w.model), w]) / (period if w.rides else w.pace_s)
        return max(0.0, others + with_him - base)


def _read_s(ways: Sequence[Way]) -> float:
    """Seconds of one read for all of these: of each model its most layers."""
    return sum(max(w.read_s for w in ways if w.model == model) for model in {w.model for w in ways})


def _for_themselves(ways: Sequence[Way]) -> float:
    return sum(w.read_s / w.pace_s for w in ways if not (w.rides or w.streams))
