"""Bid prices: what a session takes from those who will want the same capacity while it lasts (docs/model.md).

A session that is let in holds its resources for seconds; the prices of those who are here now know nothing of who comes
next. So recent arrivals stand for the next ones: the dual prices of a fluid programme, in which every arrival of the
last minute may be served once with all the work of its life, say what a second of each resource is worth (Agrawal,
Wang & Ye 2014). A newcomer that is worth less than the work of its cheapest point, at these prices, is refused, but
only as far as a resource is planned full: capacity is not kept idle for tasks that may not come.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from cosched.core.columns import unbeaten
from cosched.core.planner import Planned
from cosched.core.settings import Settings
from cosched.errors import hold
from cosched.profiles.calibration import Factors
from cosched.site import Site
from cosched.workloads.base import Bools, Floats, PointTable
from solvers.joint import dual_bound
from solvers.problem import Problem
from telemetry.messages import LlmSession, TaskOffer

MOST_ARRIVALS = 500  # remembered; more would say nothing new and cost milliseconds
LEAST_ARRIVALS = 5  # below, nothing is known of who comes
LEAST_SPAN_S = 5.0
LEAST_PART = 1e-3  # of the price that mean points would pay: a price to start from is never less
LONG_STEP_S = (
    0.06  # of a node: what decoders share is counted at steps of this length. At short ones nearly all are refused
)
MARGIN = 0.9  # of the cost: who is worth just about what he takes is let in if there is room


@dataclass(frozen=True, slots=True)
class Arrival:
    """A task that asked to come in: operating points, cell and channel as they were then."""

    at_s: float
    offer: TaskOffer
    table: PointTable
    cell: int
    efficiency_bps_hz: float
    factors: Factors = ()  # that the operating points were worked out with


class _Fluid(NamedTuple):
    """What of an arrival the programme looks at: points (n,) that no other one of its points beats."""

    value: Floats  # (n,)
    seconds: Floats  # (n, R) of every resource in the task's life
    mean_s: Floats  # (R,) of all its points, beaten or not: the search for prices starts there
    shared_s: Floats  # (R,) of a step of each node: the greatest that a point shares with others


class BidPrices:
    """Value of a second of each uplink and node, learned from recent arrivals."""

    def __init__(self, site: Site, settings: Settings) -> None:
        self._site = site
        self._settings = settings
        self._due_s = 0.0
        self.arrivals: deque[Arrival] = deque()  # one that was refused may ask again under its old name
        self._fluid: deque[_Fluid] = deque()  # the points of each
        self.price = np.zeros(len(site.cells) + len(site.nodes))  # (R,) value per second at full share

    @property
    def due_s(self) -> float:
        """When the prices are worked out next."""
        return self._due_s

    def restore(self, arrivals: Sequence[Arrival], price: Floats, due_s: float) -> None:
        """Take over what another core has learned."""
        for arrival in arrivals:
            self.note(arrival)
        self.price, self._due_s = price, due_s

    def note(self, arrival: Arrival) -> None:
        """Remember who asked, let in or not."""
        self.arrivals.append(arrival)
        seconds, alone_s = life_work(self._site, arrival, self._settings.expected_output)
        table = arrival.table
        good = (table.fixed_s + alone_s / self._settings.bid_share <= table.deadline_s).all(axis=1)
        value, seconds = arrival.offer.weight * table.quality[good], seconds[good]
        mean_s = seconds.mean(axis=0) if good.any() else np.zeros_like(self.price)
        keep = unbeaten(value, seconds)
        shared_s = np.zeros_like(self.price)
        away = _remote(table)
        np.maximum.at(shared_s, len(self._site.cells) + table.node[away], table.steps[away, 0])
        self._fluid.append(_Fluid(value[keep], seconds[keep], mean_s, shared_s))
        if len(self.arrivals) > MOST_ARRIVALS:
            self._forget()

    def _forget(self) -> None:
        self.arrivals.popleft()
        self._fluid.popleft()

    def refresh(self, now_s: float, background: Floats) -> None:
        """Work the prices out anew when they are due. background (R or more,): what others take of each resource."""
        if now_s < self._due_s:
            return
        self._due_s = now_s + self._settings.bid_period_s
        while self.arrivals and self.arrivals[0].at_s < now_s - self._settings.bid_window_s:
            self._forget()
        if len(self.arrivals) < LEAST_ARRIVALS:
            self.price = np.zeros_like(self.price)
            return
        # Until the window is full its length is how long there has been anything to see
        span_s = max(now_s - self.arrivals[0].at_s, LEAST_SPAN_S) * self._settings.bid_fill
        shared_s = np.max([row.shared_s for row in self._fluid], axis=0)
        taken = background[: len(self.price)] + shared_s / LONG_STEP_S
        problem = self._programme(span_s, np.minimum(taken, 1.0))
        _, prices = dual_bound(problem, warm=self._start(problem, span_s))
        self.price = prices / span_s

    def _start(self, problem: Problem, span_s: float) -> Floats:
        """Prices (R,) to search from: the last ones, and where there are none those at which mean points would fit.

        As `dual_bound` itself begins (solvers/price/dual.py), but counting beaten points too: where the dual has many
        minima, the start chooses among them.
        """
        room = np.maximum(1.0 - problem.background, 0.0)
        mean = np.sum([row.mean_s for row in self._fluid], axis=0) / span_s
        flat: Floats = np.square(np.divide(mean, room, out=np.zeros_like(mean), where=room > 0.0))
        warm = self.price * span_s
        worth, flat_worth = float(warm @ room), float(flat @ room)
        if worth <= 0.0 or flat_worth <= 0.0:
            return flat
        least = LEAST_PART * (worth / flat_worth) * flat
        return np.asarray(np.where(flat > 0.0, np.maximum(warm, least), 0.0), dtype=np.float64)

    def _programme(self, span_s: float, background: Floats) -> Problem:
        """Every arrival served once, its whole work as a rigid part of what the resources do in span_s."""
        rows = list(self._fluid)
        first = np.concatenate([[0], np.cumsum([len(row.value) for row in rows])])
        n_points, n_resources = int(first[-1]), len(self.price)
        shape = (n_points, n_resources)
        none = np.zeros(0, dtype=np.int64)
        return Problem(
            resource_ids=tuple(f"r{r}" for r in range(n_resources)), kinds=("other",) * n_resources,
            background=background, coupling_from=none, coupling_to=none, coupling_per_share=np.zeros(0),
            task_ids=tuple(a.offer.task for a in self.arrivals), first=first, point_ids=("",) * n_points,
            value=np.concatenate([row.value for row in rows]), slack=np.full((n_points, 2), np.inf),
            slot=np.tile(np.arange(n_resources), (n_points, 1)), work=np.zeros((n_points, 2, n_resources)),
            floor=np.zeros(shape), cap=np.ones(shape), activity=np.ones(shape),
            rigid=np.concatenate([row.seconds for row in rows]) / span_s,
            held=np.full(len(rows), -1), order=np.arange(len(rows)), channel=np.ones(len(rows)),
        )  # fmt: skip

    def screen(self, problem: Problem, planned: Planned, use: Floats) -> Problem:
        """Return the problem in which newcomers that are worth less than they take have points of no value.

        use (R or more,): what the plan in force counts of each resource.
        """
        layout, low, high = planned.layout, self._settings.bid_low, self._settings.bid_high
        price = self.price * np.clip((use[: len(self.price)] - low) / (high - low), 0.0, 1.0)
        newcomers = [i for i in np.flatnonzero(layout.held < 0) if layout.tasks[i].point < 0]  # who runs, was let in
        if not price.any() or not newcomers:
            return problem
        value = problem.value.copy()
        for i in newcomers:
            task = layout.tasks[i]
            arrival = Arrival(0.0, task.offer, task.table, task.cell, float(planned.efficiency[i]))
            seconds, _ = life_work(self._site, arrival, self._settings.expected_output)
            cost = np.multiply(seconds, price, out=np.zeros_like(seconds), where=price > 0).sum(axis=1)
            if (task.offer.weight * task.table.quality < MARGIN * cost).all():
                value[layout.first[i] : layout.first[i + 1]] = 0.0
        return replace(problem, value=value)

    def validate(self) -> None:
        """Hold the prices and the arrivals that they are learned from against each other. Raises Broken."""
        n_cells, n_resources = len(self._site.cells), len(self._site.cells) + len(self._site.nodes)
        hold(len(self.arrivals) <= MOST_ARRIVALS, "so many arrivals are remembered:", len(self.arrivals))
        hold(len(self._fluid) == len(self.arrivals), "arrivals are remembered without their points")
        at_s = [arrival.at_s for arrival in self.arrivals]
        hold(at_s == sorted(at_s), "arrivals are not in the order in which they came")
        for arrival in self.arrivals:
            hold(
                0 <= arrival.cell < n_cells, "arrival", arrival.offer.task, "came in cell", arrival.cell, "of", n_cells
            )
            hold(arrival.efficiency_bps_hz >= 0, "arrival", arrival.offer.task, "had a channel below 0")
        hold(self.price.shape == (n_resources,), "bid prices are not one a resource:", self.price)
        hold((np.isfinite(self.price) & (self.price >= 0)).all(), "a bid price is no number from 0 on:", self.price)


def is_screened(problem: Problem, weighed: Problem, points: slice) -> bool:
    """Whether a newcomer's points have lost their value to bid prices."""
    return bool((weighed.value[points] <= 0).all() and (problem.value[points] > 0).any())


def life_work(site: Site, arrival: Arrival, expected_output: float) -> tuple[Floats, Floats]:
    """Seconds (J, R) of every uplink and node that each point takes in the task's life; (J, 2) those of one unit."""
    table, work = arrival.table, arrival.offer.work
    n_cells, remote = len(site.cells), _remote(table)
    times = (
        np.array([1.0, expected_output * work.max_output_tokens])
        if isinstance(work, LlmSession)
        else np.array([float(work.frames), 0.0])
    )
    bps = arrival.efficiency_bps_hz * site.cells[arrival.cell].ul_bandwidth_hz
    node_s = table.node_s.copy()
    node_s[:, 1] += table.steps[:, 1]  # what all in a step share is no token's: _background counts it
    with np.errstate(divide="ignore"):  # on a channel that carries nothing, what is to be sent takes for ever
        on_air = np.divide(table.ul_bits, bps, out=np.zeros_like(table.ul_bits), where=table.ul_bits > 0)
    seconds = np.zeros((table.n_points, n_cells + len(site.nodes)))
    seconds[:, arrival.cell] = (on_air * times).sum(axis=1)
    seconds[remote, n_cells + table.node[remote]] = (node_s * times).sum(axis=1)[remote]
    return seconds, on_air + table.least_s


def _remote(table: PointTable) -> Bools:
    return np.asarray(table.node >= 0)
