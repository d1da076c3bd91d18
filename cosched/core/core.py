"""The core: events in, commands out; no clock, socket, thread, log or random number.

A core plans for one policy. It never waits for a solver: Solve is a command, Solved an event, and what arrives in
between waits for the next Solve. Newcomers do not wait for a tick's: their Solve takes its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from cosched.core.bids import Arrival, BidPrices
from cosched.core.commands import Command, Decision, Dispatch, Plan, Solve
from cosched.core.congestion import weighed
from cosched.core.decide import Asked, make_plan, settle
from cosched.core.events import (
    Barred,
    Event,
    Finished,
    Offered,
    Placed,
    Progressed,
    Shrunk,
    Solved,
    Switched,
    Telemetry,
    Tick,
)
from cosched.core.planner import Layout, Planned, add_newcomers, make_layout, plan_problem, resource_ids
from cosched.core.policy import Policy, fallback, policy
from cosched.core.settings import Settings
from cosched.core.snapshot import BidRow, Load, Snapshot, TaskRow
from cosched.core.state import State, Task
from cosched.errors import CoschedError, hold
from cosched.profiles.calibration import Factors
from cosched.site import Site
from cosched.workloads.base import Floats, PointTable
from solvers import statistical as effective
from solvers.problem import Problem
from telemetry.messages import TaskOffer, TaskTiming

LEAST_BYTES = 1.0  # of memory for sessions: none fits in
LEAST_VARIANCE = 0.01  # of a resource's use: where the tangent is taken while nothing is planned yet


class StaleEvent(CoschedError):
    """An event's stamp lies before one already handled, or answers a request that is not open."""


class Core:
    """State machine of one policy on one site.

    points: offer, index of its UE's serving cell, corrections of profiled times -> PointTable (cosched/workloads);
    node_bytes (nodes,): memory for sessions on each node.
    """

    def __init__(
        self,
        site: Site,
        policy: Policy,
        settings: Settings,
        points: Callable[[TaskOffer, int, Factors], PointTable],
        node_bytes: Floats,
    ) -> None:
        self.state = State(site, settings)
        self.policy = policy
        self.settings = settings
        self._points = points
        self._node_bytes = node_bytes
        self._now_s = -np.inf
        self._request = 0
        self._generation = 0
        self._open: tuple[int, Asked, Policy] | None = None
        self._waiting: list[Task] = []
        self._use: Floats = np.zeros_like(self.state.prices)  # what the plan in force counts
        self._bids = BidPrices(site, settings)
        self._dropped: list[Decision] = []
        self._layout: tuple[int, Layout] | None = None
        self._handlers: dict[type, Callable[..., list[Command]]] = {
            Offered: self._offered,
            Progressed: self._progressed,
            Finished: self._finished,
            Tick: self._tick,
            Solved: self._solved,
            Switched: self._switched,
            Barred: self._barred,
            Placed: self._placed,
            Shrunk: self._shrunk,
        }

    def handle(self, event: Event, at_s: float) -> list[Command]:
        """Take in one event as of an instant; return what is to be done.

        Raises StaleEvent, and changes nothing, on a step back in time.
        """
        if at_s < self._now_s:
            raise StaleEvent(f"{type(event).__name__} at {at_s} s, but it is already {self._now_s} s")
        self._now_s = at_s
        return self._handlers.get(type(event), self._telemetry)(event)

    def _telemetry(self, event: Telemetry) -> list[Command]:
        if isinstance(event, TaskTiming):
            self.state.timed(event)
        else:
            self.state.observe(self._now_s, event)
            if self.state.known.is_due:
                self._thin_out(self._now_s)
        return []

    def _thin_out(self, now_s: float) -> None:
        asked = self._open[1].planned.layout.tasks if self._open is not None else ()
        self.state.thin_out(now_s, (*self._waiting, *asked))

    def _progressed(self, event: Progressed) -> list[Command]:
        for progress in event.tasks:
            self.state.progressed(progress)
        return []

    def _finished(self, event: Finished) -> list[Command]:
        self.state.remove(event.task)
        self._dropped = [d for d in self._dropped if d.task != event.task]  # another may come under its id
        return []

    def _offered(self, event: Offered) -> list[Command]:
        efficiency = self.state.channel.planned(self._now_s, self.settings.session_risk_sd)
        factors = self.state.calibration.factors
        for offer in event.offers:
            ue = self.state.channel.index(offer.ue)
            cell = self.state.cell_of_ue.get(offer.ue, -1)
            if ue < 0 or cell < 0:  # cell: it was in one that a reload took away
                self._dropped.append(Decision(offer.task, "rejected_no_channel", -1, EMPTY, 0.0))
                continue
            task = Task(offer, self._points(offer, cell, factors), ue, cell, table_cell=cell, factors=factors)
            self._bids.note(Arrival(self._now_s, offer, task.table, cell, float(efficiency[ue]), factors))
            self._waiting.append(task)
        if self._waiting and self._is_superseded():
            self._open = None
        return self._solve()

    def _is_superseded(self) -> bool:
        """Whether nobody waits for the open solve, a tick's: the next one plans all that it does, and newcomers."""
        if self._open is None:
            return False
        _, asked, asked_policy = self._open
        return asked_policy is self.policy and bool((asked.planned.layout.held >= 0).all())

    def _switched(self, event: Switched) -> list[Command]:
        self.policy = policy(event.policy)
        return []

    def _barred(self, event: Barred) -> list[Command]:
        """Plan at once: whoever is on a node that is gone waits for a new place."""
        self.state.bar(event.nodes)
        return self._plan_anew()

    def _placed(self, event: Placed) -> list[Command]:
        """The same for whoever is on layers that are gone; for all else the next tick is soon enough.

        Nodes that load tell of every layer: planning at each would never let a solve come to its end.
        """
        self.state.place(event.nodes)
        return self._plan_anew() if self._is_anybody_stranded() else []

    def _is_anybody_stranded(self) -> bool:
        return any(task.is_stranded(self.state.places) for task in self.state.tasks.values())

    def _shrunk(self, event: Shrunk) -> list[Command]:
        """The same for whoever has no room there any more."""
        self.state.shrink(event.short_bytes)
        return self._plan_anew()

    @property
    def _session_bytes(self) -> Floats:
        """(nodes,) memory for sessions, as far as it is there."""
        short = np.array([self.state.short_bytes.get(n.id, 0.0) for n in self.state.site.nodes])
        return np.asarray(np.maximum(self._node_bytes - short, LEAST_BYTES))

    def _plan_anew(self) -> list[Command]:
        """Plan at once. An open solve is given up only for another one: else its answer would be nobody's."""
        if not self.state.tasks and not self._waiting:
            return []
        if self._is_superseded():
            self._open = None
        return self._solve()

    def _tick(self, _: Tick) -> list[Command]:
        if self.policy.drops_lost:
            self._drop_lost(self._now_s)
        if self.state.known.holds_silent(self._now_s):
            self._thin_out(self._now_s)
        if not self.state.tasks and not self._waiting and not self._dropped:
            return []
        return self._solve()

    def _drop_lost(self, now_s: float) -> None:
        estimates = self.state.channel.planned(now_s, 0.0)
        for name, task in list(self.state.tasks.items()):
            bits_per_s = estimates[task.ue] * self.state.site.cells[task.cell].ul_bandwidth_hz
            if reason := task.is_lost(now_s, bits_per_s):
                self.state.remove(name)
                self._dropped.append(Decision(name, reason, -1, task.table, float(estimates[task.ue])))

    def _solve(self) -> list[Command]:
        if self._open is not None:
            return []
        newcomers, self._waiting = _one_of_each_ue(self._waiting)
        for task in newcomers:
            task.asks += 1
            task.cell = self.state.cell_of_ue.get(task.offer.ue, task.cell)  # it may have gone on while it waited
        n_cells, n_nodes = len(self.state.site.cells), len(self.state.site.nodes)
        planned = plan_problem(
            self.state,
            self._layout_for(newcomers),
            self._now_s,
            self.settings,
            busy=self._use[n_cells : n_cells + n_nodes],
        )
        problem = planned.problem
        if self.policy.statistical:
            variance = np.maximum(self.state.variance, LEAST_VARIANCE)
            problem = effective.restrict(problem, planned.mean_use, z=self.settings.z, variance0=variance)
        if self.policy.weighs_load:
            problem = weighed(problem, planned, self._use, self.settings)
        if self.policy.bids:
            self._bids.refresh(self._now_s, self.state.background)
            problem = self._bids.screen(problem, planned, self._use)
        state = self.state
        asked = Asked(planned, problem, self.policy.statistical, state.version, state.short_bytes)
        return [self._ask(asked, self.policy)]

    def _ask(self, asked: Asked, by: Policy) -> Solve:
        self._request += 1
        self._open = (self._request, asked, by)
        return Solve(self._request, asked.problem, by, self.state.prices)

    def _layout_for(self, newcomers: Sequence[Task]) -> Layout:
        if self._layout is None or self._layout[0] != self.state.version:
            self._layout = (self.state.version, make_layout(self.state, (), self.settings, self._session_bytes))
        running = self._layout[1]
        if not newcomers:
            return running
        return add_newcomers(running, newcomers, self.state, self.settings, self._session_bytes)

    def prepare(self) -> None:
        """Do now, while nobody waits, what the next Solve would do first. Changes nothing that is decided."""
        self._layout_for(())

    def _solved(self, event: Solved) -> list[Command]:
        asked, asked_policy = self._answered(event)
        if event.solution is None:
            return self._solve_simpler(asked, asked_policy)
        asked = asked.at(event.solution.step_s, event.solution.period_s)
        now = settle(self.state, asked, event.solution, self._session_bytes)
        self._generation += 1
        plan = make_plan(
            self.state,
            asked,
            now,
            generation=self._generation,
            at_s=self._now_s,
            settings=self.settings,
            goal=asked_policy.goal(self.settings.objective),
        )
        self._adopt(asked.planned, plan)
        self.state.prices, self.state.variance, self._use = plan.prices, plan.variance, plan.planned_use
        if self._dropped:
            plan = _with_decisions(plan, (*self._dropped, *plan.decisions))
            self._dropped = []
        self._waiting = [*now.again(asked.planned.layout), *self._waiting]
        is_due = bool(self._waiting) or (bool(now.left_out.any()) and self._is_anybody_stranded())
        return [Dispatch(plan), *(self._solve() if is_due else [])]

    def _solve_simpler(self, asked: Asked, failed: Policy) -> list[Command]:
        """Ask a simpler policy the same: a submit is answered, and nobody who is served loses his lease over it."""
        simpler = fallback(failed)
        if asked.statistical and not simpler.statistical:  # it gives away whole shares, so it counts whole shares
            asked = replace(asked, problem=asked.planned.problem, statistical=False)
        return [self._ask(asked, simpler)]

    def _answered(self, event: Solved) -> tuple[Asked, Policy]:
        """Close the open request. Raises StaleEvent and changes nothing when another one is meant."""
        if self._open is None or self._open[0] != event.request:
            raise StaleEvent(f"{type(event).__name__} answers request {event.request}, which is not open")
        _, asked, asked_policy = self._open
        self._open = None
        return asked, asked_policy

    def _adopt(self, planned: Planned, plan: Plan) -> None:
        """Make the plan's changes the state's."""
        newcomers = {t.offer.task: t for t in planned.layout.tasks if t.point < 0}
        for decision in plan.decisions:
            if decision.point < 0:
                self.state.remove(decision.task)  # it ran on a node that is gone; newcomers are not there yet
                continue
            if decision.task in newcomers:
                self.state.tasks[decision.task] = newcomers[decision.task]
            if decision.task in self.state.tasks:  # it may have finished while the solver worked
                self.state.tasks[decision.task].point = decision.point
            self.state.version += 1

    @property
    def generation(self) -> int:
        """Of the latest plan, of this core or of the one that it goes on from."""
        return self._generation

    def asked(self, request: int) -> tuple[Problem, Policy] | None:
        """Return what was asked with a request that waits for its answer, None when nobody waits for that."""
        if self._open is None or self._open[0] != request:
            return None
        return self._open[1].problem, self._open[2]

    @property
    def bids(self) -> BidPrices:
        """What recent arrivals say of those to come."""
        return self._bids

    @property
    def is_quiet(self) -> bool:
        """Whether no solve is open and nothing waits for one: a snapshot then holds all there is."""
        return self._open is None and not self._waiting and not self._dropped

    @property
    def newcomers(self) -> list[Task]:
        """All that wait for their first decision, asked for or not."""
        asked = self._open[1].planned.layout.tasks if self._open is not None else ()
        return [*(t for t in asked if t.point < 0), *self._waiting]

    @property
    def dropped(self) -> tuple[Decision, ...]:
        """What is decided and told of with the next plan."""
        return tuple(self._dropped)

    def validate(self) -> None:
        """Hold what waits and what is asked against the state, and that against itself. Raises Broken."""
        self.state.validate()
        self._bids.validate()
        running, fresh = self.state.tasks, self.newcomers
        names = [t.offer.task for t in fresh]
        hold(len(set(names)) == len(names), "a newcomer waits twice:", sorted(names))
        hold(not running.keys() & set(names), "newcomers that run:", sorted(running.keys() & set(names)))
        hold(all(t.point == -1 for t in fresh), "a newcomer has a point already:", sorted(names))
        hold(not {d.task for d in self._dropped} & running.keys(), "who has ended for good runs:", sorted(running))
        ues = {t.offer.ue for t in (*running.values(), *fresh)}
        most = self.settings.max_ues + len(ues)
        hold(len(self.state.known) <= most, "more UEs than may be known:", len(self.state.known), "of", most)
        hold(len(self.state.channel) <= most, "more channels than UEs that may be known:", len(self.state.channel))
        hold(self._use.shape == self.state.prices.shape, "the planned use is not one number a resource:", self._use)
        hold(np.isfinite(self._use).all(), "a planned use is no number:", self._use)
        hold(self._open is None or self._open[0] == self._request, "the open request is not the latest")
        hold(self._layout is None or self._layout[0] <= self.state.version, "the layout is of a state still to come")

    def snapshot(self) -> Snapshot:
        """State in force; what waits for an open solve is not in it."""
        state = self.state
        cells = [c.id for c in state.site.cells]
        n_nodes = len(state.site.nodes)
        bid = np.concatenate([self._bids.price, np.zeros(n_nodes)])
        loads = zip(state.background, state.prices, state.variance, self._use, bid, strict=True)
        return Snapshot(
            at_s=self._now_s,
            generation=self._generation,
            request=self._request,
            channel=state.channel.rows(),
            cell_of_ue={ue: cells[cell] for ue, cell in state.cell_of_ue.items()},
            heard_s=state.known.rows(),
            ues_due=state.known.due,
            ues_forgotten=state.known.forgotten,
            loads={name: Load(background=float(b), price=float(p), variance=float(v), use=float(u), bid=float(w))
                   for name, (b, p, v, u, w) in zip(resource_ids(state.site), loads, strict=True)},
            bids=tuple(
                BidRow(
                    at_s=a.at_s, offer=a.offer, cell=cells[a.cell], efficiency_bps_hz=a.efficiency_bps_hz,
                    factors=a.factors,
                )
                for a in self._bids.arrivals
            ),
            bids_due_s=self._bids.due_s,
            calibration=state.calibration.rows(),
            barred=tuple(n.id for i, n in enumerate(state.site.nodes) if i in state.places.barred),
            layers=state.layers,
            short_bytes=state.short_bytes,
            tasks=tuple(
                TaskRow(
                    offer=t.offer, cell=cells[t.cell], table_cell=cells[t.table_cell],
                    point=t.table.point_ids[t.point], progress=t.progress, factors=t.factors,
                )
                for t in state.tasks.values()
            ),
        )  # fmt: skip

    def restore(self, snapshot: Snapshot) -> tuple[str, ...]:
        """Take over another core's state; return the tasks that this site has no place for, which are left out.

        Raises StaleEvent when this core has already seen something later.
        """
        if snapshot.at_s < self._now_s:
            raise StaleEvent(f"a snapshot of {snapshot.at_s} s, but it is already {self._now_s} s")
        self._now_s, self._generation, self._request = snapshot.at_s, snapshot.generation, snapshot.request
        state = self.state
        state.channel.restore(snapshot.channel)
        index = state.cell_index
        state.cell_of_ue = {ue: index[cell] for ue, cell in snapshot.cell_of_ue.items() if cell in index}
        heard = {ue: seen for ue, seen in snapshot.heard_s.items() if ue in state.cell_of_ue}  # in their order
        heard |= {ue: (snapshot.at_s, snapshot.at_s) for ue in state.cell_of_ue if ue not in heard}
        state.known.restore(heard, snapshot.ues_due, snapshot.ues_forgotten)
        for i, name in enumerate(resource_ids(state.site)):
            if (load := snapshot.loads.get(name)) is not None:
                state.background[i], state.prices[i] = load.background, load.price
                state.variance[i], self._use[i] = load.variance, load.use
        state.calibration.restore(snapshot.calibration)
        state.bar(snapshot.barred)
        state.place(snapshot.layers)
        state.shrink(snapshot.short_bytes)
        self._restore_bids(snapshot)
        lost = [row.offer.task for row in snapshot.tasks if not self._take_over(row)]
        state.version += 1
        return tuple(lost)

    def _restore_bids(self, snapshot: Snapshot) -> None:
        index, site = self.state.cell_index, self.state.site
        rows = [row for row in snapshot.bids if row.cell in index]
        names = resource_ids(site)[: len(site.cells) + len(site.nodes)]
        price = np.array([snapshot.loads[name].bid if name in snapshot.loads else 0.0 for name in names])
        arrivals = [
            Arrival(
                r.at_s,
                r.offer,
                self._points(r.offer, index[r.cell], r.factors),
                index[r.cell],
                r.efficiency_bps_hz,
                r.factors,
            )
            for r in rows
        ]
        self._bids.restore(arrivals, price, snapshot.bids_due_s)

    def _take_over(self, row: TaskRow) -> bool:
        index, offer = self.state.cell_index, row.offer
        ue = self.state.channel.index(offer.ue)
        if ue < 0 or row.cell not in index or row.table_cell not in index:
            return False
        cell = self.state.cell_of_ue.get(offer.ue, index[row.cell])  # stored tasks are as of when they were accepted
        table = self._points(offer, index[row.table_cell], row.factors)
        if row.point not in table.point_ids:
            return False
        task = Task(
            offer,
            table,
            ue,
            cell,
            table.point_ids.index(row.point),
            row.progress,
            index[row.table_cell],
            row.factors,
        )
        self.state.tasks[offer.task] = task
        return True


def _one_of_each_ue(waiting: Sequence[Task]) -> tuple[list[Task], list[Task]]:
    """Return the first newcomer of each UE and the others: what is left of its device depends on what he takes."""
    first: dict[int, Task] = {}
    for task in waiting:
        first.setdefault(task.ue, task)
    now = [task for task in waiting if first[task.ue] is task]
    return now, [task for task in waiting if first[task.ue] is not task]


def _with_decisions(plan: Plan, decisions: tuple[Decision, ...]) -> Plan:
    return replace(plan, decisions=decisions)


EMPTY = PointTable(
    point_ids=(),
    split=np.zeros(0, dtype=np.int64),
    precision_bits=np.zeros(0, dtype=np.int64),
    node=np.zeros(0, dtype=np.int64),
    quality=np.zeros(0),
    fixed_s=np.zeros((0, 2)),
    device_s=np.zeros((0, 2)),
    ul_bits=np.zeros((0, 2)),
    node_s=np.zeros((0, 2)),
    node_bytes=np.zeros(0),
    device_energy_j=np.zeros((0, 2)),
    deadline_s=np.full(2, np.inf),
    rate_hz=np.zeros(2),
)
