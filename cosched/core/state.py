"""What the core knows: the site's load, the channel, and the tasks that run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from cosched.core import columns as col
from cosched.core.channel import ChannelEstimates
from cosched.core.events import Progress, Reported
from cosched.core.known import KnownUes
from cosched.core.layers import ANYWHERE, NodeLayers, Where, where
from cosched.core.moving import Moves, moves_of
from cosched.core.reasons import Reason
from cosched.core.settings import Settings
from cosched.errors import hold
from cosched.profiles.calibration import Calibration, Factors
from cosched.site import Site
from cosched.workloads.base import LOCAL, Floats, Ints, PointTable, learn
from telemetry.messages import (
    CellReport,
    LlmSession,
    NodeReport,
    TaskOffer,
    TaskTiming,
    UeReport,
    UeReportBatch,
    VideoClip,
)


class Block(NamedTuple):
    """The candidate points of one task as columns (n points)."""

    ids: tuple[str, ...]
    points: Floats  # (n, col.N_POINT)
    task: Floats  # (col.N_TASK,)
    moves: Moves | None = None  # of a session that cannot, or should not, stay where it is


@dataclass(slots=True)
class Task:
    """An admitted task, or one that waits for its first decision (`point` = -1)."""

    offer: TaskOffer
    table: PointTable
    ue: int  # row of the channel estimates
    cell: int
    point: int = -1
    progress: Progress | None = None
    table_cell: int = -1  # that its table was made for: where it was offered
    factors: Factors = ()  # that its table was made with: a session keeps what it was promised by
    asks: int = 0  # solves that it was in as a newcomer
    row: int = field(default=-1, init=False)  # of State.progress
    _block: tuple[int, int, int, Where, Block] | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def phase(self) -> int:
        """0 until the first token is out, 1 while decoding; video is always 0."""
        return self.progress.phase if self.progress is not None else 0

    @property
    def is_llm(self) -> bool:
        """Whether it is an LLM session."""
        return isinstance(self.offer.work, LlmSession)

    @property
    def model(self) -> str:
        """Whose layers it runs, "" = no model's."""
        return self.offer.work.model if isinstance(self.offer.work, LlmSession) else ""

    def is_stranded(self, places: Where) -> bool:
        """Whether it runs where it may not be any more: its node is gone, or the layers that it runs on are."""
        return self.point >= 0 and places.is_lost(*self._place())

    def lacks_layers(self, places: Where) -> bool:
        """Whether it could be on a node that is there, if that only held the layers."""
        there = ~np.isin(self.table.node, [*places.barred, LOCAL])
        return bool((there & ~places.open(self.table, self.model)).any())

    def _place(self) -> tuple[int, int, str]:
        """Node, split and model that it runs at."""
        return int(self.table.node[self.point]), int(self.table.split[self.point]), self.model

    def candidates(self, places: Where = ANYWHERE) -> Ints:
        """Rows of its table that it may hold from now on.

        A newcomer, and who cannot stay, may take any that is open. A session keeps its split and node (moving them
        means moving its KV cache: for failures and drains, not for the channel, or where its layers are to go), but may
        change the precision of its activations from one token to the next; a video may be split anew at every frame, on
        the node that it has.
        """
        if self.point < 0 or self.is_stranded(places):
            return np.flatnonzero(places.open(self.table, self.model))
        same = self.table.node == self.table.node[self.point]
        if self.is_llm:
            same &= self.table.split == self.table.split[self.point]
            if self.phase == 0:  # the prefill is under way in the form that it was admitted in
                same &= np.arange(self.table.n_points) == self.point
            elif places.is_to_go(*self._place()):
                same |= places.open(self.table, self.model)
        return np.flatnonzero(same)

    def block(self, places: Where, models: Sequence[str] = ()) -> Block:
        """Its candidates, gathered anew when its point, its cell, what it does next or its node's fate has changed."""
        phase = -1 if self.progress is None else self.progress.phase
        held = self._block
        if held is not None and held[0] == self.point and held[1] == self.cell and held[2] == phase:
            if held[3] is places:
                return held[4]
            if self._stays_in(held[3], places):
                self._block = (*held[:3], places, held[4])
                return held[4]
        block = self._gathered(places, models)
        self._block = (self.point, self.cell, phase, places, block)
        return block

    def _stays_in(self, *places: Where) -> bool:
        """Whether it stays where it runs in each of these: then no other place matters to it."""
        if self.point < 0:
            return False
        place = self._place()
        return not any(one.is_lost(*place) or one.is_to_go(*place) for one in places)

    def _gathered(self, places: Where, models: Sequence[str]) -> Block:
        table, rows = self.table, self.candidates(places)
        is_new = self.point < 0 or self.is_stranded(places)
        kind = self._next(is_new=is_new)
        points = np.empty((len(rows), col.N_POINT))
        pairs = (
            (col.BITS, table.ul_bits),
            (col.NODE_S, table.node_s),
            (col.FIXED_S, table.fixed_s),
            (col.SHARED_S, table.steps),
            (col.DEVICE_S, table.device_s),
        )
        for first, column in pairs:
            points[:, first : first + 2] = column[rows]
        if kind == col.DECODING:
            points[:, [col.BITS, col.NODE_S]] = 0.0  # of the prefill, which is over
        points[:, col.QUALITY], points[:, col.BYTES] = table.quality[rows], table.node_bytes[rows]
        points[:, col.NODE], points[:, col.ROW] = table.node[rows], rows
        points[:, col.DEVICE_USE] = table.device_use[rows]
        held = -1 if is_new else int(np.flatnonzero(rows == self.point)[0])
        model = models.index(self.model) if self.model in models else 0
        own = (self.offer.at_ns * 1e-9, self.offer.weight, kind, len(rows), held, self.cell, self.ue, model)
        task = np.array([*table.deadline_s, *table.rate_hz, *own], dtype=np.float64)
        return Block(tuple(table.point_ids[r] for r in rows), points, task, self._moves(places, rows))

    def _moves(self, places: Where, rows: Ints) -> Moves | None:
        work, stranded = self.offer.work, self.is_stranded(places)
        if self.point < 0 or not isinstance(work, LlmSession) or not (stranded or places.is_to_go(*self._place())):
            return None
        return moves_of(self.table, rows, self.point, work, self.progress, stranded=stranded)

    def _next(self, *, is_new: bool) -> int:
        """What kind of work it does next. is_new: on no node so far, or on none that is left."""
        if not self.is_llm:
            return col.FRAMES
        if self.phase == 1:
            return col.DECODING
        return col.WAITING if is_new or self.progress is None else col.PREFILLING

    def is_lost(self, now_s: float, efficiency_hz: float) -> str:
        """Reason code when no plan can keep the task's promise any more, "" otherwise.

        efficiency_hz: bit/s when the task holds its whole cell.
        """
        work, progress = self.offer.work, self.progress
        if progress is None or self.point < 0:
            return ""
        if isinstance(work, VideoClip):
            return Reason.FRAMES_MISSED if progress.late > (1 - work.target_ratio) * work.frames + 1e-9 else ""
        if progress.phase == 0:
            return Reason.TTFT_MISSED if now_s > self.offer.at_ns * 1e-9 + work.ttft_s else ""
        left = work.max_output_tokens - progress.done
        t, j = self.table, self.point
        fastest_s = t.fixed_s[j, 1] + t.ul_bits[j, 1] / efficiency_hz + t.least_s[j, 1]
        least_s = progress.last_s - progress.first_s + left * fastest_s
        return Reason.TPOT_MISSED if least_s > work.tpot_s * (work.max_output_tokens - 1) + 1e-9 else ""

    def validate(self, state: State) -> None:
        """Hold a task that runs against the state that it is in. Raises Broken."""
        name, table, n_cells = self.offer.task, self.table, len(state.site.cells)
        hold(0 <= self.point < table.n_points, "task", name, "runs at point", self.point, "of", table.n_points)
        hold(LOCAL <= table.node[self.point] < len(state.site.nodes), "task", name, "runs on no node of the site")
        hold(0 <= self.cell < n_cells, "task", name, "is in cell", self.cell, "of", n_cells)
        hold(0 <= self.table_cell < n_cells, "task", name, "was offered in cell", self.table_cell, "of", n_cells)
        hold(self.ue == state.channel.index(self.offer.ue) >= 0, "task", name, "has no channel of its UE")
        hold(state.cell_of_ue.get(self.offer.ue, self.cell) == self.cell, "task", name, "is not where its UE is")
        told = self.progress
        hold(told is None or told.task == name, "task", name, "has the progress of another")


class State:
    """Mutable state of one core; only cosched/core/core.py changes it."""

    def __init__(self, site: Site, settings: Settings) -> None:
        self.site = site
        self.channel = ChannelEstimates(settings)
        self.calibration = Calibration(settings.calibration_most)
        self.tasks: dict[str, Task] = {}  # admitted, in order of admission
        self.cell_of_ue: dict[str, int] = {}
        self.known = KnownUes(settings.max_ues)
        self.cell_index = {c.id: i for i, c in enumerate(site.cells)}
        self.node_index = {n.id: i for i, n in enumerate(site.nodes)}
        self.models = tuple(m.id for m in site.models)
        self.places = ANYWHERE
        self.layers: tuple[NodeLayers, ...] = ()  # as told last
        self.short_bytes: dict[str, float] = {}  # node -> memory that it lacks of what the site says
        n_cells, n_nodes = len(site.cells), len(site.nodes)
        self.background: Floats = np.array(
            [c.background_fraction for c in site.cells] + [n.background_fraction for n in site.nodes] + [0.0] * n_nodes
        )
        self.prices: Floats = np.zeros(n_cells + 2 * n_nodes)
        self.variance: Floats = np.zeros(n_cells + 2 * n_nodes)  # of the use of each resource, as planned last
        self.version = 0  # grows when the set of tasks, a phase or a point changes
        self.progress: Floats = np.zeros((1, col.N_PROGRESS))  # a row per running task, in no order: Task.row
        self._free_rows = [0]

    def observe(self, at_s: float, report: Reported | UeReport | UeReportBatch | CellReport | NodeReport) -> None:
        """Take a report in, or several. Cells and nodes that the site does not have are somebody else's."""
        if isinstance(report, Reported):
            self._observe_many(at_s, [(r.ue, r.cell, r.ul_efficiency_bps_hz) for r in report.reports])
        elif isinstance(report, UeReportBatch):
            self._observe_many(at_s, zip(report.ue, report.cell, report.ul_efficiency_bps_hz, strict=True))
        elif isinstance(report, UeReport):
            cell = self.cell_index.get(report.cell)
            if cell is None:
                return
            if self.cell_of_ue.get(report.ue, cell) != cell:
                self._handover(report.ue, cell)
            self.cell_of_ue[report.ue] = cell
            self.known.heard(report.ue, at_s)
            if report.ul_efficiency_bps_hz is not None:
                self.channel.update(report.ue, at_s, report.ul_efficiency_bps_hz)
        elif isinstance(report, CellReport):
            if report.cell in self.cell_index:
                self.background[self.cell_index[report.cell]] = report.background_ul_fraction
        elif report.node in self.node_index:
            row = len(self.site.cells) + self.node_index[report.node]
            self.background[row] = report.background_fraction if report.up else 1.0

    def _observe_many(self, at_s: float, rows: Iterable[tuple[str, str, float | None]]) -> None:
        """Take (UE, cell, efficiency) of one instant in, as if they had come one by one."""
        samples: dict[str, float] = {}
        for ue, cell_id, value in rows:
            cell = self.cell_index.get(cell_id)
            if cell is None:
                continue
            before = self.cell_of_ue.get(ue)
            if before != cell:
                if before is not None:
                    self._handover(ue, cell)
                self.cell_of_ue[ue] = cell
            self.known.heard(ue, at_s)
            if value is None:
                continue
            if ue in samples:  # the same UE twice: one after the other
                self.channel.update_many(tuple(samples), at_s, np.array(list(samples.values())))
                samples = {}
            samples[ue] = value
        self.channel.update_many(tuple(samples), at_s, np.array(list(samples.values())))

    def thin_out(self, now_s: float, needed: Iterable[Task]) -> None:
        """Forget UEs where there are too many, none that runs a task or waits with one."""
        keep = {task.offer.ue for task in (*self.tasks.values(), *needed)}
        for ue in self.known.forget(now_s, keep):
            del self.cell_of_ue[ue]
            self.channel.forget(ue)

    def bar(self, nodes: Iterable[str]) -> None:
        """Let no task be on these nodes, and on all others again. Those that the site does not have are ignored."""
        self._be_at(frozenset(self.node_index[n] for n in nodes if n in self.node_index), self.layers)

    def shrink(self, short_bytes: Mapping[str, float]) -> None:
        """Take in which nodes have less memory than the site says, by how much; all others have what it says."""
        self.short_bytes = dict(short_bytes)
        self.version += 1

    def place(self, layers: tuple[NodeLayers, ...]) -> None:
        """Take in what nodes hold; of a node that is not named nothing is known."""
        self._be_at(self.places.barred, layers)

    def _be_at(self, barred: frozenset[int], layers: tuple[NodeLayers, ...]) -> None:
        self.layers = layers
        self.places = where([n.id for n in self.site.nodes], barred, layers)
        self.version += 1

    def _handover(self, ue: str, cell: int) -> None:
        for task in self.tasks.values():
            if task.offer.ue == ue:
                task.cell = cell
        self.version += 1

    def progressed(self, progress: Progress) -> None:
        """Take in how far a task is; unknown tasks (already released) are ignored."""
        task = self.tasks.get(progress.task)
        if task is None:
            return
        if task.progress is None or task.phase != progress.phase:
            self.version += 1
        task.progress = progress
        self._note(task)

    def progress_rows(self) -> Ints:
        """(N,) row of `progress` of each task."""
        for task in self.tasks.values():
            if task.row < 0:  # admitted since
                self._note(task)
        return np.array([task.row for task in self.tasks.values()], dtype=np.int64)

    def _note(self, task: Task) -> None:
        if task.row < 0:
            if not self._free_rows:
                self._free_rows = list(range(len(self.progress), 2 * len(self.progress)))
                self.progress = np.concatenate([self.progress, np.zeros_like(self.progress)])
            task.row = self._free_rows.pop()
        if (p := task.progress) is not None:
            self.progress[task.row] = (p.done, p.first_s, p.last_s, p.ul_bits_left, p.node_s_left, p.fixed_s_left)

    def timed(self, timing: TaskTiming) -> None:
        """Hold what a session measured against its profile; a session that is not known, or was not there, is not."""
        task = self.tasks.get(timing.task)
        if task is not None:
            learn(self.calibration, task.table, task.factors, timing)

    def remove(self, name: str) -> None:
        """Forget a task."""
        task = self.tasks.pop(name, None)
        if task is not None:
            if task.row >= 0:
                self._free_rows.append(task.row)
                task.row = -1
            self.version += 1

    def validate(self) -> None:
        """Hold the tasks and what is known of UEs, cells and nodes against each other. Raises Broken."""
        for name, task in self.tasks.items():
            hold(task.offer.task == name, "task", task.offer.task, "is filed as", name)
            task.validate(self)
        n_cells, n_nodes = len(self.site.cells), len(self.site.nodes)
        for ue, cell in self.cell_of_ue.items():
            hold(0 <= cell < n_cells, "UE", ue, "is in cell", cell, "of", n_cells)
        hold(self.known.rows().keys() == self.cell_of_ue.keys(), "UEs are heard of and in no cell, or the other way")
        for name in ("background", "prices", "variance"):
            array = getattr(self, name)
            hold(array.shape == (n_cells + 2 * n_nodes,), name, "is not one number a resource:", array)
            hold((np.isfinite(array) & (array >= 0)).all(), name, "is not a number from 0 on:", array)
        hold(all(0 <= n < n_nodes for n in self.places.barred), "a node is barred that the site does not have")
        hold(all(b >= 0 for b in self.short_bytes.values()), "a node lacks less than no memory:", self.short_bytes)
        self._validate_rows()
        self.known.validate()
        self.channel.validate()
        self.calibration.validate()

    def _validate_rows(self) -> None:
        """Hold the rows of progress against who has them."""
        rows = [task.row for task in self.tasks.values() if task.row >= 0]
        hold(len(set(rows)) == len(rows), "two tasks share a row of progress")
        hold(not set(rows) & set(self._free_rows), "a row of progress is in use and free")
        hold(len(rows) + len(self._free_rows) == len(self.progress), "rows of progress are lost")
        for name, task in self.tasks.items():
            done = self.progress[task.row, col.DONE] if task.progress is not None and task.row >= 0 else None
            hold(done is None or done == task.progress.done, "task", name, "is not as far as its row of progress")  # type: ignore[union-attr]
