"""Replay: feeds a recorded trace to a core and carries out its commands in the fluid execution model."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from cosched.core.commands import Command, Decision, Dispatch, Plan, Solve
from cosched.core.core import Core
from cosched.core.events import Finished, Offered, Progressed, Solved, Tick
from cosched.core.policy import Policy, as_promised
from cosched.core.reasons import Reason
from cosched.core.settings import Settings
from cosched.errors import CoschedError
from cosched.fluid.nodes import N_FIGURE
from cosched.fluid.world import ChannelTruth, Served, World, units_of
from cosched.replay.foresight import NOTHING, ComingChannel, Foresight, channel_report, price_arrivals
from cosched.site import Site
from cosched.workloads.base import Floats, PointTable
from solvers import check, registry
from solvers.solution import Solution
from telemetry.messages import CellReport, Message, NodeReport, TaskOffer, TaskTruth, UeReport, UeReportBatch

Report = UeReport | CellReport | NodeReport
NS = 1e-9
GRACE_S = 180.0  # after the last arrival; what then still runs is counted as not finished


class BrokenPlan(CoschedError):
    """A solver returned a plan that independent verification refuses: a defect, never bad input."""


@dataclass(frozen=True, slots=True)
class Workbook:
    """A trace, read once for all policies: what arrives when, and what the channel really did."""

    site: Site
    reports: tuple[tuple[float, Report], ...]  # (instant, report), in order
    offers: tuple[tuple[float, TaskOffer], ...]  # such as need the network, in order
    local: tuple[TaskOffer, ...]  # such as their device serves alone in time
    units: Mapping[str, int]  # task -> its real number of tokens or frames
    tables: Mapping[str, PointTable]
    truth: ChannelTruth
    ue_rows: Mapping[str, int]
    node_bytes: Floats
    cell_of_ue: Mapping[str, str]
    tx_power_w: Mapping[str, float]  # per task, of its device
    node_power_w: Floats  # (nodes,) while busy
    duration_s: float
    warnings: tuple[str, ...] = ()
    planned: Mapping[str, PointTable] = field(default_factory=dict)  # with other numbers than are true
    unplanned_step_s: float = np.inf  # length of steps where a plan names none though somebody decodes


@dataclass(slots=True)
class Sample:
    """One period's figures, for the timeline."""

    at_s: float
    active: int
    gap: float
    planned: Floats
    used: Floats
    prices: Floats


@dataclass(slots=True)
class Run:
    """What one policy's run left behind."""

    policy: Policy
    admitted: dict[str, Decision] = field(default_factory=dict)
    held: dict[str, Decision] = field(default_factory=dict)  # the latest point of each
    refused: dict[str, Decision] = field(default_factory=dict)
    dropped: dict[str, Decision] = field(default_factory=dict)
    served: dict[str, Served] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    decide_s: list[float] = field(default_factory=list)
    switches: int = 0
    used: Floats = field(default_factory=lambda: np.zeros(0))
    figures: Floats = field(default_factory=lambda: np.zeros((0, N_FIGURE)))  # of nodes' steps (cosched/fluid/nodes.py)
    end_s: float = 0.0
    decisions_sha256: str = ""


class Replayer:
    """One policy on one trace.

    verify: have every decision checked by independent code (a defect raises); watch: is
    handed every plan; foresight: what of the future the policy is told, nothing unless asked for.
    """

    def __init__(
        self,
        book: Workbook,
        policy: Policy,
        settings: Settings,
        *,
        verify: bool = True,
        watch: Callable[[Plan], None] | None = None,
        foresight: Foresight = NOTHING,
    ) -> None:
        self._book = book
        self._policy = policy
        self._settings = settings = foresight.settings(settings)
        self._foresight = foresight
        self._coming = ComingChannel(book.truth, book.duration_s + GRACE_S)
        self._prices_due_s = 0.0
        self._verify = verify
        self._watch = watch
        planned = {**book.tables, **book.planned}
        self._core = Core(book.site, policy, settings, lambda offer, *_: planned[offer.task], book.node_bytes)
        self._world = World(book.site, book.truth, book.unplanned_step_s)
        only = foresight.only
        self._asked = tuple(
            (at_s, foresight.offer(o, book.units[o.task])) for at_s, o in book.offers if only is None or o.task in only
        )
        self._offers = {o.task: o for _, o in self._asked}
        self._run = Run(policy)
        self._digest = hashlib.sha256()
        self._plan: Plan | None = None
        self._last_used = np.zeros(len(book.site.cells) + len(book.site.nodes))

    def run(self, progress: Callable[[float], None] | None = None) -> Run:
        """Replay the whole trace. progress(fraction) is called now and then. Raises BrokenPlan."""
        report_at = offer_at = tick = 0
        reports, offers = self._book.reports, self._asked
        period = self._settings.period_s
        end_s = self._book.duration_s + GRACE_S
        while True:
            next_tick = tick * period
            next_offer = offers[offer_at][0] if offer_at < len(offers) else np.inf
            now = min(next_tick, next_offer)
            if now > end_s or (now > self._book.duration_s and offer_at == len(offers) and not self._world.running):
                break
            while report_at < len(reports) and reports[report_at][0] <= now:
                report_at = self._report(report_at)
            self._advance(now)
            if next_offer <= now:
                last = offer_at
                while last < len(offers) and offers[last][0] <= now:
                    last += 1
                some = tuple(o for _, o in offers[offer_at:last])
                offer_at = last
                self._foretell(some, offer_at, now)
                self._decide(Offered(some), now)
            if next_tick <= now:
                self._foretell((), offer_at, now)
                self._tick(now)
                tick += 1
                if progress is not None and tick % 50 == 0:
                    progress(min(1.0, now / max(self._book.duration_s, period)))
        return self._finish()

    def _foretell(self, offers: Sequence[TaskOffer], offer_at: int, now_s: float) -> None:
        """Tell the policy what it may foresee, before it decides on `offers`; offer_at: who asks next."""
        core, known = self._core, self._foresight
        if known.channel and (told := channel_report(core, self._coming, self._book.ue_rows, offers, now_s)):
            core.handle(told, now_s)
        if known.arrivals and self._policy.bids and now_s >= self._prices_due_s:
            self._prices_due_s = now_s + self._settings.bid_period_s
            price_arrivals(core, self._asked[offer_at:], self._book.tables, now_s)

    def _report(self, at: int) -> int:
        """Hand one report to the core; a handover and other people's load hold for the world from its instant on."""
        at_s, report = self._book.reports[at]
        if not isinstance(report, UeReport):
            self._advance(at_s)
            self._load_changed(report)
        elif self._hands_over(report):
            self._advance(at_s)
            self._world.handover(self._book.ue_rows[report.ue], self._core.state.cell_index[report.cell])
        self._do(self._core.handle(report, at_s))
        return at + 1

    def _hands_over(self, report: UeReport) -> bool:
        """Whether the UE, one that may have tasks, was in another cell of the site until now."""
        state = self._core.state
        before, cell = state.cell_of_ue.get(report.ue), state.cell_index.get(report.cell)
        return report.ue in self._book.ue_rows and before is not None and cell is not None and before != cell

    def _load_changed(self, report: CellReport | NodeReport) -> None:
        """Take other people's load off what is served."""
        state = self._core.state
        if isinstance(report, CellReport) and report.cell in state.cell_index:
            self._world.free_cell[state.cell_index[report.cell]] = 1.0 - report.background_ul_fraction
        elif isinstance(report, NodeReport) and report.node in state.node_index:
            free = 1.0 - report.background_fraction if report.up else 0.0
            self._world.free_node[state.node_index[report.node]] = free

    def _advance(self, now: float) -> None:
        for name, served in self._world.advance(now):
            self._run.served[name] = served
            self._do(self._core.handle(Finished(name), now))

    def _tick(self, now: float) -> None:
        self._core.handle(Progressed(self._world.progress()), now)
        self._decide(Tick(), now)
        self._sample(now)

    def _decide(self, event: Offered | Tick, now_s: float) -> None:
        started = time.perf_counter()
        commands = self._core.handle(event, now_s)
        self._do(commands)
        if commands:
            self._run.decide_s.append(time.perf_counter() - started)

    def _do(self, commands: Sequence[Command]) -> None:
        for command in commands:
            if isinstance(command, Solve):
                self._solve(command)
            elif isinstance(command, Dispatch):
                self._dispatch(command.plan)

    def _solve(self, command: Solve) -> None:
        policy = command.policy
        solution = registry.solve(policy.solver, command.problem, warm=command.warm, options=policy.options)
        if self._verify:
            self._refuse_broken(command, solution)
        self._run.gaps.append(solution.certificate.gap)
        self._do(self._core.handle(Solved(command.request, solution=solution), self._world.now_s))

    def _refuse_broken(self, command: Solve, solution: Solution) -> None:
        """Have the plan checked by code that shares nothing with the solvers. Raises BrokenPlan."""
        faults = check.verify(as_promised(command.problem, command.policy), solution, dual=False)
        if faults:
            at = f"policy {self._policy.name} at {self._world.now_s:.3f} s"
            raise BrokenPlan(f"{at}: {len(faults)} faults, the first: {faults[0]}")

    def _dispatch(self, plan: Plan) -> None:
        run, world = self._run, self._world
        for decision in plan.decisions:
            if decision.reason in (Reason.ADMITTED, Reason.UNPROMISED):
                run.admitted[decision.task] = run.held[decision.task] = decision
                self._start(decision)
            elif decision.reason == Reason.MOVED:
                run.held[decision.task] = decision
                run.switches += 1
            elif decision.task in run.admitted:
                run.dropped[decision.task] = decision
                if world.has(decision.task):
                    run.served[decision.task] = world.remove(decision.task)
            else:
                run.refused[decision.task] = decision
        world.apply(plan)
        self._plan = plan
        if self._watch is not None:
            self._watch(plan)
        self._hash(plan)

    def _start(self, decision: Decision) -> None:
        offer = self._offers[decision.task]
        cell = self._core.state.tasks[offer.task].cell
        table, ue, units = self._book.tables[offer.task], self._book.ue_rows[offer.ue], self._book.units[offer.task]
        self._world.start(offer, table, decision.point, cell, ue, units)

    def _hash(self, plan: Plan) -> None:
        """Every decision, in order: who, which point, how many PRBs and how much of the node."""
        digest = self._digest
        digest.update(f"{plan.generation} {plan.at_s:.9f} {','.join(plan.tasks)}".encode())
        digest.update(plan.point.astype("<i8").tobytes())
        digest.update(np.round(plan.share, 9).astype("<f8").tobytes())
        digest.update(np.round(plan.prbs, 6).astype("<f8").tobytes())
        for d in plan.decisions:
            digest.update(f"{d.task} {d.reason} {d.point} {d.binding}".encode())

    def _sample(self, now: float) -> None:
        world, plan = self._world, self._plan
        used = np.concatenate([world.used_cell, world.used_node])
        n_resources = len(self._core.state.background)
        self._run.samples.append(
            Sample(
                at_s=now,
                active=world.running,
                gap=self._run.gaps[-1] if self._run.gaps else 0.0,
                planned=plan.planned_use if plan is not None else np.zeros(n_resources),
                used=(used - self._last_used) / self._settings.period_s,
                prices=plan.prices if plan is not None else np.zeros(n_resources),
            )
        )
        self._last_used = used

    def _finish(self) -> Run:
        run, world = self._run, self._world
        for progress in world.progress():
            run.served[progress.task] = world.remove(progress.task)
        run.used = np.concatenate([world.used_cell, world.used_node])
        run.figures = world.figures
        run.end_s = world.now_s
        run.decisions_sha256 = self._digest.hexdigest()
        return run


def explode(messages: Sequence[Message]) -> list[tuple[float, Report]]:
    """Return reports with their instants in seconds; batches become single reports."""
    out: list[tuple[float, Report]] = []
    for m in messages:
        if isinstance(m, UeReport | CellReport | NodeReport):
            out.append((m.at_ns * NS, m))
        elif isinstance(m, UeReportBatch):
            out.extend(
                (
                    m.at_ns * NS,
                    UeReport(at_ns=m.at_ns, source=m.source, seq=m.seq, ue=ue, cell=cell, ul_efficiency_bps_hz=value),
                )
                for ue, cell, value in zip(m.ue, m.cell, m.ul_efficiency_bps_hz, strict=True)
            )
    return out


def channel_truth(
    reports: Sequence[tuple[float, Report]],
) -> tuple[ChannelTruth, dict[str, int]]:
    """Return what the channel really did, and the row of each UE.

    Between two reports of a UE it is what the later one measured. An idle UE keeps its last valid value. UEs without
    any valid sample are left out.
    """
    rows: dict[str, int] = {}
    initial: list[float] = []
    last_at: list[float] = []
    changes: list[tuple[float, int, float]] = []
    for at_s, report in reports:
        if not isinstance(report, UeReport) or report.ul_efficiency_bps_hz is None:
            if isinstance(report, UeReport) and report.ue in rows:
                last_at[rows[report.ue]] = at_s
            continue
        value = report.ul_efficiency_bps_hz
        row = rows.get(report.ue)
        if row is None:
            rows[report.ue] = len(initial)
            initial.append(value)
            last_at.append(at_s)
            continue
        changes.append((last_at[row], row, value))
        last_at[row] = at_s
    changes.sort(key=lambda c: (c[0], c[1]))
    truth = ChannelTruth(
        at_s=np.array([c[0] for c in changes]),
        ue=np.array([c[1] for c in changes], dtype=np.int64),
        efficiency_bps_hz=np.array([c[2] for c in changes]),
        initial_bps_hz=np.array(initial),
    )
    return truth, rows


def truths_of(messages: Sequence[Message]) -> dict[str, int]:
    """Real number of output tokens per task."""
    return {m.task: m.output_tokens for m in messages if isinstance(m, TaskTruth)}


__all__ = ["BrokenPlan", "Replayer", "Run", "Sample", "Workbook", "channel_truth", "explode", "truths_of", "units_of"]
