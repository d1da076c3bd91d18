"""The live engine: one core with all that surrounds it but sockets. Each method is one thing that happens.

Every event is recorded before it is handled. What a plan accepts is on disk before anybody hears of it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
import structlog

from cosched import __version__
from cosched.api.messages import Lease
from cosched.config.wiring import Plant, profiles_sha256
from cosched.core import events
from cosched.core.commands import Command, Decision, Dispatch, Plan, Solve
from cosched.core.core import Core
from cosched.core.decisions import decision_message
from cosched.core.layers import NodeLayers
from cosched.core.policy import Policy, as_promised, policy
from cosched.core.reasons import Reason
from cosched.core.snapshot import Snapshot, TaskRow
from cosched.daemon import journal
from cosched.daemon.board import Board
from cosched.daemon.capture import Capture
from cosched.daemon.holders import Held
from cosched.daemon.progress import Tracker
from cosched.daemon.stats import Window
from cosched.daemon.store import Kept, Store, StoreFailed
from cosched.errors import hold
from cosched.profiles.calibration import Factors
from solvers import check
from solvers.problem import Problem
from solvers.solution import Solution
from telemetry.messages import (
    CellReport,
    DecisionMessage,
    Message,
    NodeReport,
    TaskOffer,
    TaskProgress,
    TaskTiming,
    UeReport,
    UeReportBatch,
)
from telemetry.wire import TOPIC_OF

NS: Final = 1e-9
ACCEPTED: Final = (Reason.ADMITTED, Reason.UNPROMISED)
NOT_STORED: Final = "not_stored"
WRONG_BY: Final = 1e-6  # of a share, a deadline, a value: far beyond what a right answer is off by
AWAKE_PERIODS: Final = 3.0  # between two ticks, beyond which the daemon itself has stood still

Reply = Callable[[Lease | None, str], None]  # the decision, or in one line why there is none

log = structlog.get_logger()


@dataclass(slots=True)
class Waiting:
    """A submit without a decision yet."""

    offer: TaskOffer
    replies: list[Reply]


@dataclass(slots=True)
class Engine:
    """Feeds one core and carries out its commands.

    clock: monotonic ns. solve: begins a solve, `solved` is called with its answer. on_plan: told of every plan.
    """

    plant: Plant
    core: Core
    store: Store
    capture: Capture
    board: Board
    clock: Callable[[], int]
    solve: Callable[[Solve], None]
    alarm: Callable[[str, str], None]
    on_plan: Callable[[Plan], None] = lambda _: None
    on_offer: Callable[[TaskOffer], None] = lambda _: None
    trackers: Held[Tracker] = field(default_factory=Held)
    waiting: Held[Waiting] = field(default_factory=Held)
    counts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    plan: Plan | None = None
    reported_s: dict[str, float] = field(default_factory=dict)  # UE -> arrival of its latest report
    last_sample_s: float = -1.0  # arrival of the latest valid radio sample of anybody
    plan_ms: Window = field(
        default_factory=Window
    )  # a plan reads the telemetry (tick or arrival) -> its decisions are out
    solve_ms: Window = field(default_factory=Window)
    submit_ms: Window = field(default_factory=Window)  # a submit is read -> its decision is sent
    _drops: list[str] = field(default_factory=list)  # ended, and still stored
    _ends: list[tuple[TaskOffer, str]] = field(default_factory=list)  # ended, and nobody has been told
    _beat_s: float = -1.0  # instant of the latest tick, at first of the start
    _factors: Factors = ()  # of the calibration, that are stored
    _asked: tuple[int, str, int] = (0, "", 0)  # the open Solve, its policy, and when it was asked
    _read_ns: int = 0  # when what the latest answer answers was asked
    _fed_ns: int = 0  # instant of the latest event that was stamped here

    # --- what happens -------------------------------------------------------------------------------------------

    def restore(self, snapshot: Snapshot) -> None:
        """Begin with what is stored; tasks that the site has no place for any more are let go, with a warning."""
        self._beat_s = self.clock() * NS
        lost = self.core.restore(snapshot)
        self._factors = self.core.state.calibration.factors
        self.alarm("calibration", "; ".join(self.core.state.calibration.drifted))
        for task in lost:
            log.warning("task lost: the site has no place for it any more", task=task)
        self._drops.extend(lost)
        self.counts["restored"] += len(self.core.state.tasks)
        for held in self.core.state.tasks.values():
            self._take_up(held.offer)
            decision = Decision(held.offer.task, Reason.ADMITTED, held.point, held.table, 0.0, cell=held.cell)
            self.board.restored(held.offer, decision)

    def adopt(self, plant: Plant, core: Core) -> None:
        """Go on with another core, which holds the tasks of this one, perhaps on another site."""
        self.plant, self.core = plant, core
        self.board.adopt(plant.site, core.state.tasks)

    def reports(self, reports: Sequence[UeReport], at_ns: int) -> None:
        """Take plausible UE reports that came one after the other, as of one instant."""
        at_ns = max(at_ns, self._fed_ns)
        event = events.Reported(tuple(reports))
        self.capture.add("ran.ue", event, at_ns, reports[-1].at_ns)
        for report in reports:
            self._heard(report.ue, report.ul_efficiency_bps_hz is not None, at_ns)
        self.core.handle(event, at_ns * NS)

    def report(self, message: Message, at_ns: int) -> None:
        """Take any other plausible message; an end that came with it has moved the core's time on."""
        at_ns = max(at_ns, self._fed_ns)
        if isinstance(message, UeReportBatch | CellReport | NodeReport | TaskTiming):
            self.capture.add(_topic(message), message, at_ns, message.at_ns)
            if isinstance(message, UeReportBatch):
                for ue, value in zip(message.ue, message.ul_efficiency_bps_hz, strict=True):
                    self._heard(ue, value is not None, at_ns)
            self.core.handle(message, at_ns * NS)
            if isinstance(message, TaskTiming):
                if (timed := self.trackers.get(message.task)) is not None:
                    timed.hear(at_ns * NS)
                self._calibrated()
        elif isinstance(message, TaskProgress) and (tracker := self.trackers.get(message.task)) is not None:
            tracker.tell(message, at_ns * NS)
            if message.finished:
                self.end(message.task, Reason.FINISHED)
                self.flush()

    def _calibrated(self) -> None:
        """Keep factors that have changed, and say what is far off its profile."""
        calibration = self.core.state.calibration
        if calibration.factors is self._factors:
            return
        self._factors = calibration.factors
        self.alarm("calibration", "; ".join(calibration.drifted))
        try:
            self.store.set_calibration(calibration.rows())
        except StoreFailed as error:
            self.alarm("state", str(error))

    def offer(self, submits: Sequence[Waiting]) -> None:
        """Have tasks decided that came at one instant. Their operating points must be known to be well-formed."""
        self.waiting.update((w.offer.task, w) for w in submits)
        self.counts["offered"] += len(submits)
        for submit in submits:
            self.on_offer(submit.offer)
        self._feed(events.Offered(tuple(w.offer for w in submits)))

    def end(self, task: str, reason: str) -> bool:
        """End a running task; False when there is none of that id. It is told once it is on disk: with `flush`."""
        tracker = self.trackers.pop(task, None)
        if tracker is None:
            return False
        self._feed(events.Finished(task, reason))
        self._ends.append((tracker.offer, reason))
        self._drops.append(task)
        self._count(reason, task)
        return True

    def flush(self) -> None:
        """Put on disk what has ended, and tell of it."""
        self._store(())

    def beat(self) -> None:
        """Note a tick. While the daemon itself stood still, nobody was silent: that time counts as no silence."""
        now_s = self.clock() * NS
        stood_s = now_s - self._beat_s - AWAKE_PERIODS * self.core.settings.period_s
        if self._beat_s >= 0 and stood_s > 0:
            self.counts["standstills"] += 1
            for ue, at_s in self.reported_s.items():
                self.reported_s[ue] = min(now_s, at_s + stood_s)
            for tracker in self.trackers.values():
                tracker.heard_s = min(now_s, tracker.heard_s + stood_s)
            if self.last_sample_s >= 0:
                self.last_sample_s = min(now_s, self.last_sample_s + stood_s)
        self._beat_s = now_s

    def tick(self, stale_ue_s: float, silent_s: float = math.inf) -> None:
        """End what is over, stale, or not cared for by anybody for `silent_s`; then plan again."""
        self.beat()
        self._rotate()
        self.capture.flush()
        self._watch_ues()
        now_s = self.clock() * NS
        for task, tracker in list(self.trackers.items()):
            if tracker.is_over(now_s):
                self.end(task, Reason.FINISHED)
            elif now_s - self.reported_s.get(tracker.offer.ue, now_s) > stale_ue_s:
                self.end(task, Reason.STALE)
            elif now_s - tracker.heard_s > silent_s:
                self.end(task, Reason.SILENT)
        running = self.core.state.tasks
        told = (t.progress(now_s, running[n].table, running[n].point) for n, t in self.trackers.items() if n in running)
        progressed = events.Progressed(tuple(p for p in told if p is not None))
        if progressed.tasks:
            self._feed(progressed)
        self._feed(events.Tick())
        if self._drops and self.core.is_quiet:
            self.flush()  # or else with the plan

    def _watch_ues(self) -> None:
        """Say that UEs are forgotten, before they are; keep no more of them here than the core does."""
        known = self.core.state.known
        self.counts["ues_forgotten"] = known.forgotten
        self.alarm("ues", f"near the {known.most} UEs that may be known at once" if known.is_crowded else "")
        if len(self.reported_s) > known.most:
            living = {tracker.offer.ue for tracker in self.trackers.values()} | self.core.state.cell_of_ue.keys()
            for ue in self.reported_s.keys() - living:  # of foreign cells, too
                del self.reported_s[ue]

    def solved(self, request: int, solution: Solution | None, why: str) -> None:
        """Take the answer to a Solve; one that nobody waits for, or not any more, is counted and left."""
        asked, asked_policy, read_ns = self._asked
        awaited = self.core.asked(request)
        if request != asked or awaited is None:
            self.counts["solves_superseded"] += 1
            return
        if solution is not None and (why := _wrong(*awaited, solution)):
            log.error("a wrong answer of a solver", request=request, policy=asked_policy, why=why)
            self.counts["solves_wrong"] += 1
            solution = None
        self._read_ns = read_ns
        self.solve_ms.add((self.clock() - self._read_ns) * 1e-6)
        self.counts["solves"] += 1
        if solution is None:
            self.counts["solves_failed"] += 1
            self.alarm("solver", why)
            self._feed(events.Solved(request, failed=why))
        else:
            if asked_policy == self.core.policy.name:
                self.alarm("solver", "")
            self._feed(events.Solved(request, solution=solution))
        self._rotate()

    def switch(self, name: str) -> None:
        """Plan by another policy from here on. Raises BadInput for one that there is not."""
        if policy(name).name != self.core.policy.name:
            self._feed(events.Switched(name))

    def bar(self, nodes: tuple[str, ...]) -> None:
        """Plan without these nodes, and with all others again; whoever is on them is planned elsewhere at once."""
        self._feed(events.Barred(nodes))

    def placed(self, nodes: tuple[NodeLayers, ...]) -> None:
        """Plan by what these nodes hold; whoever runs on layers that are gone is planned elsewhere at once."""
        self._feed(events.Placed(nodes))

    def shrink(self, short_bytes: Mapping[str, float]) -> None:
        """Plan with so much less memory on these nodes, and with what the site says on all others."""
        self._feed(events.Shrunk(dict(short_bytes)))

    def begin_capture(self) -> None:
        """Begin a new capture file. The core must be quiet."""
        self.capture.begin(self.clock(), lambda: head(self.plant, self.core))
        self.alarm("capture", self.capture.alarm)

    def give_up(self, why: str) -> None:
        """Answer those that wait that there will be no decision."""
        for waiting in self.waiting.values():
            for reply in waiting.replies:
                reply(None, why)
        self.waiting.clear()

    def validate(self) -> None:
        """Hold the books against the core's, at any time between two events. Raises Broken."""
        now_s, core, board = self.clock() * NS, self.core, self.board
        for books in (core, board, self.trackers, self.waiting):
            books.validate()
        living, running, waited = set(self.trackers), set(core.state.tasks), set(self.waiting)
        asked, dropped = {t.offer.task for t in core.newcomers}, {d.task for d in core.dropped}
        ending = {offer.task for offer, _ in self._ends}
        hold(running <= living, "the core runs what nobody follows:", sorted(running - living))
        hold(living - running <= dropped, "followed, and not run:", sorted(living - running - dropped))
        hold(ending <= set(self._drops), "an end that is not to be stored:", sorted(ending - set(self._drops)))
        hold(living <= board.held.keys(), "no lease of", sorted(living - board.held.keys()))
        hold(board.held.keys() - living <= ending, "leases of the ended:", sorted(board.held.keys() - living - ending))
        hold(asked <= waited, "asked for, and nobody waits:", sorted(asked - waited))
        hold(waited <= asked | dropped, "waited for, and not asked:", sorted(waited - asked - dropped))
        hold(not living & waited, "lives, and waits:", sorted(living & waited))
        hold(all(w.replies for w in self.waiting.values()), "somebody waits whom nobody answers")
        hold(all(n >= 0 for n in self.counts.values()), "a count below 0:", dict(self.counts))
        hold(self.core.generation >= (self.plan.generation if self.plan else 0), "the plan in force is still to come")
        for at_s in (*self.reported_s.values(), self.last_sample_s):
            hold(-math.inf < at_s <= now_s + NS, "a report is of the future:", at_s, "s")
        for tracker in self.trackers.values():
            tracker.validate(now_s)

    def _rotate(self) -> None:
        if self.capture.is_due(self.clock()) and self.core.is_quiet:
            self.begin_capture()

    # --- what follows -------------------------------------------------------------------------------------------

    def _feed(self, event: events.Event) -> None:
        """Record an event and have the core handle it."""
        at_ns = self._fed_ns = self.clock()
        record = events.Answered(event.request, event.failed) if isinstance(event, events.Solved) else event
        self.capture.add(journal.TOPIC_OF[type(record)], record, at_ns)
        self._do(self.core.handle(event, at_ns * NS))

    def _do(self, commands: Sequence[Command]) -> None:
        for command in commands:  # first what somebody else works on while the rest is done here
            if isinstance(command, Solve):
                self._asked = (command.request, command.policy.name, self.clock())
                self.solve(command)
        for command in commands:
            if isinstance(command, Dispatch):
                self._dispatch(command.plan)

    def _dispatch(self, plan: Plan) -> None:
        rows = {name: i for i, name in enumerate(plan.tasks)}
        messages = [decision_message(self.plant.site, plan, d, rows.get(d.task)) for d in plan.decisions]
        self.plan = plan
        refused = self._store(plan.decisions)
        for decision, message in zip(plan.decisions, messages, strict=True):
            self._decided(decision, message, plan, rows.get(decision.task), refused)
        self._record(plan, messages)
        self.board.renew(plan)
        self.plan_ms.add((self.clock() - self._read_ns) * 1e-6)
        self.on_plan(plan)
        self.core.prepare()

    def _record(self, plan: Plan, messages: Sequence[DecisionMessage]) -> None:
        at_ns = round(plan.at_s / NS)
        self.capture.add("plan", journal.plan_made(plan), at_ns)
        for message in messages:
            self.capture.add("decision", message, at_ns)

    def _decided(self, decision: Decision, message: DecisionMessage, plan: Plan, row: int | None, refused: str) -> None:
        """Tell whoever waits for it, and everybody else, of one decision."""
        task = decision.task
        waiting = self.waiting.pop(task, None)
        tracker = self.trackers.get(task)
        if waiting is not None and decision.reason in ACCEPTED:
            if refused:
                self._take_back(waiting, refused)
                return
            tracker = self._take_up(waiting.offer)
        offer = waiting.offer if waiting is not None else tracker.offer if tracker is not None else None
        if offer is None:  # it ended while the solver worked
            return
        lease = self.board.decided(offer, decision, message, plan, row)
        self._count(decision.reason, task)
        if decision.point < 0:
            self.trackers.pop(task, None)
        if waiting is not None:
            for reply in waiting.replies:
                reply(lease, "")
            self.submit_ms.add((self.clock() - waiting.offer.at_ns) * 1e-6)

    def _take_up(self, offer: TaskOffer) -> Tracker:
        self.reported_s.setdefault(offer.ue, self.clock() * NS)
        tracker = self.trackers.setdefault(offer.task, Tracker(offer, self.core.settings.deadline_margin))
        tracker.hear(self.clock() * NS)
        return tracker

    def _take_back(self, waiting: Waiting, why: str) -> None:
        """An admission that could not be stored has never been."""
        self.counts[NOT_STORED] += 1
        self._feed(events.Finished(waiting.offer.task, NOT_STORED))
        for reply in waiting.replies:
            reply(None, why)

    def _store(self, decisions: Sequence[Decision]) -> str:
        """Put what was decided on disk; return why that failed, "" when it is there."""
        state = self.core.state
        changed = [d.task for d in decisions if d.point >= 0 and d.task in state.tasks]
        drops = [*self._drops, *(d.task for d in decisions if d.point < 0 and d.task in self.trackers)]
        refused = ""
        try:
            self.store.commit([self._kept(task) for task in changed], drops, self.core.generation)
            self._drops = []
        except StoreFailed as error:
            self._drops, refused = drops, str(error)
        self.alarm("state", refused)
        self._tell_ends()
        return refused

    def _tell_ends(self) -> None:
        ends, self._ends = self._ends, []
        for offer, reason in ends:
            self.board.end(offer, reason, self.core.generation, self.clock())

    def _kept(self, name: str) -> Kept:
        task, state = self.core.state.tasks[name], self.core.state
        cells = state.site.cells
        row = TaskRow(
            offer=task.offer,
            cell=cells[task.cell].id,
            table_cell=cells[task.table_cell].id,
            point=task.table.point_ids[task.point],
            factors=task.factors,
        )
        return Kept(row=row, channel=state.channel.row(task.offer.ue))

    def _heard(self, ue: str, valid: bool, at_ns: int) -> None:
        self.reported_s[ue] = at_ns * NS
        if valid:
            self.last_sample_s = at_ns * NS

    def _count(self, reason: str, task: str) -> None:
        self.reasons[str(reason)] += 1
        log.info("decided", task=task, reason=str(reason))


def _wrong(problem: Problem, asked: Policy, solution: Solution) -> str:
    """What is wrong with a solver's answer, "" = nothing: what is no plan for the problem never goes out."""
    kinds = {"chosen": "i", "share": "f", "promised": "b", "prices": "f", "step_s": "f", "period_s": "f"}
    if odd := [name for name, kind in kinds.items() if getattr(solution, name).dtype.kind != kind]:
        return f"a wrong answer: {odd[0]} is of another type"
    found = check.verify(as_promised(problem, asked), solution, dual=False, tolerance=WRONG_BY)
    return f"a wrong answer: {found[0]}" if found else ""


def head(plant: Plant, core: Core) -> journal.Config:
    """Return the head of a capture that begins now."""
    return journal.Config(
        v=journal.VERSION,
        version=__version__,
        profiles_sha256=profiles_sha256(),
        site_toml=plant.toml,
        policy=core.policy.name,
        ue_devices=dict(plant.ue_devices),
        core=msgspec.to_builtins(core.settings),
        snapshot=core.snapshot(),
    )


def _topic(message: UeReportBatch | CellReport | NodeReport | TaskTiming) -> str:
    kind = next(k for k in type(message).__mro__ if k in TOPIC_OF)
    return TOPIC_OF[kind].decode()
