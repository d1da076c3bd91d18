"""What one node was asked, has acknowledged and reports: says what to send next, and when the node is unfit. Pure.

A report is held against the table of the very generation that it says to have applied, so a node that is one order
behind is not taken for one that drops changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from cosched.cluster.messages import LayersOrder, Order, Report, ReportOutcome, Session, runs, single

REMEMBERED: Final = 64  # tables of past generations; a node that is further behind applies nothing
NAMED: Final = 3  # tasks, in a line for people

Table = Mapping[str, Session]


@dataclass(slots=True)
class NodeFollower:
    """Follows one node. patience: reports in a row that may show less than was acknowledged."""

    patience: int
    most_retries: int
    layers: tuple[LayersOrder, ...] = ()  # that it is to hold
    room_bytes: float = 0.0  # for their weights
    wanted: Table = field(default_factory=dict)
    generation: int = 0  # of `wanted`
    step_s: float = 0.0  # planned length of its steps, 0: nobody decodes
    sent_step_s: float = 0.0
    sent: Table = field(default_factory=dict)
    sent_layers: tuple[LayersOrder, ...] = ()
    asked: int = 0
    acknowledged: int = 0
    applied: int = 0
    retries: int = 0
    _whole: bool = True  # the next order says everything
    _tables: dict[int, Table] = field(default_factory=dict)
    _short: int = 0  # reports in a row that showed less

    def plan(self, generation: int, wanted: Table, step_s: float = 0.0) -> None:
        """Take the newest plan; one that was never sent is forgotten."""
        self.generation, self.wanted, self.step_s = generation, wanted, step_s

    def fresh(self) -> None:
        """A new process is there: it knows nothing."""
        self.sent, self._tables, self._whole = {}, {}, True
        self.asked = self.acknowledged = self.applied = 0
        self._short = 0

    def repeat(self) -> None:
        """It is not known whether the last order arrived: the next one says everything."""
        self._whole = True

    def order(self, epoch: int, who: str) -> Order | None:
        """What is to be sent now; None when the node has been told everything. Counts as sent."""
        if self._whole:
            order = Order(
                epoch=epoch, generation=self.generation, who=who, whole=True,
                hold=tuple(self.wanted.values()), load=self.layers, room_bytes=self.room_bytes,
                step_s=self.step_s,
            )  # fmt: skip
        else:
            hold = tuple(s for task, s in self.wanted.items() if self.sent.get(task) != s)
            end = tuple(task for task in self.sent if task not in self.wanted)
            load, unload = self._changed_layers()
            if not hold and not end and not load and not unload and self.step_s == self.sent_step_s:
                return None
            order = Order(
                epoch=epoch, generation=self.generation, who=who, hold=hold, end=end, load=load, unload=unload,
                room_bytes=self.room_bytes, step_s=self.step_s,
            )  # fmt: skip
        self.sent_step_s = self.step_s
        self.sent, self.sent_layers, self.asked, self._whole = self.wanted, self.layers, self.generation, False
        return order

    def _changed_layers(self) -> tuple[tuple[LayersOrder, ...], tuple[LayersOrder, ...]]:
        """Layers to load and to give back since the last order."""
        before, now = single(self.sent_layers), single(self.layers)
        load = runs({layer: size for layer, size in now.items() if layer not in before})
        return load, runs({layer: size for layer, size in before.items() if layer not in now})

    def took(self, generation: int) -> None:
        """The node has acknowledged an order."""
        self.acknowledged = generation
        self._tables[generation] = self.sent
        while len(self._tables) > REMEMBERED:
            del self._tables[next(iter(self._tables))]

    def reported(self, report: Report) -> ReportOutcome:
        """Hold a report against what was asked; after `patience` short ones in a row everything is sent again."""
        moved, self.applied = report.generation != self.applied, report.generation
        why = self._difference(report, moved=moved)
        if not why:
            for generation in [g for g in self._tables if g < report.generation]:
                del self._tables[generation]
            self._short = 0
            self.retries = 0 if report.generation == self.acknowledged else self.retries
            return ReportOutcome()
        self._short += 1
        if self._short <= self.patience:
            return ReportOutcome()
        self._short = 0
        if self.retries >= self.most_retries:
            return ReportOutcome(unfit=True, why=why)
        self.retries += 1
        self._whole = True
        return ReportOutcome(retry=True, why=why)

    def _difference(self, report: Report, *, moved: bool) -> str:
        """What is not as it was asked, "" when all is, or is on its way."""
        if report.failed:
            return report.failed
        table = self._tables.get(report.generation)
        if table is None or (report.generation < self.acknowledged and not moved):
            return f"plan {self.acknowledged} is acknowledged, and {report.generation} is in force"
        weights = {task: session.weight for task, session in table.items()}
        if report.sessions != weights:
            wrong = sorted(t for t in {*weights, *report.sessions} if weights.get(t) != report.sessions.get(t))
            some = ", ".join(wrong[:NAMED]) + (" ..." if len(wrong) > NAMED else "")
            return f"plan {report.generation}: not as acknowledged for {len(wrong)} sessions ({some})"
        astray = {*single(report.layers)} ^ {*single(self.sent_layers)}
        if not report.loading and astray:
            model, layer = min(astray)
            return f"{len(astray)} layers are not as acknowledged (layer {layer} of {model}, for one)"
        return ""
