"""What the core knows: the site's load, the channel, and the tasks that run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cosched.core.channel import ChannelEstimates
from cosched.core.events import Progress
from cosched.core.settings import Settings
from cosched.site import Site
from cosched.workloads.base import Floats, Ints, PointTable
from telemetry.messages import CellReport, LlmSession, NodeReport, TaskOffer, UeReport, VideoClip


@dataclass(slots=True)
class Task:
    """An admitted task, or one that waits for its first decision (`point` = -1)."""

    offer: TaskOffer
    table: PointTable
    ue: int  # row of the channel estimates
    cell: int
    point: int = -1
    progress: Progress | None = None

    @property
    def phase(self) -> int:
        """0 until the first token is out, 1 while decoding; video is always 0."""
        return self.progress.phase if self.progress is not None else 0

    @property
    def is_llm(self) -> bool:
        """Whether it is an LLM session."""
        return isinstance(self.offer.work, LlmSession)

    def candidates(self) -> Ints:
        """Rows of its table that it may hold from now on.

        A newcomer may take any. A session keeps its split and node (moving them means moving its KV cache: for
        failures and drains, not for the channel), but may change the precision of its activations from one token
        to the next; a video may be split anew at every frame, on the node that it has.
        """
        if self.point < 0:
            return np.arange(self.table.n_points)
        same = self.table.node == self.table.node[self.point]
        if self.is_llm:
            same &= self.table.split == self.table.split[self.point]
            if self.phase == 0:  # the prefill is under way in the form that it was admitted in
                same &= np.arange(self.table.n_points) == self.point
        return np.flatnonzero(same)

    def is_lost(self, now_s: float, efficiency_hz: float) -> str:
        """Reason code when no plan can keep the task's promise any more, "" otherwise.

        efficiency_hz: bit/s when the task holds its whole cell.
        """
        work, progress = self.offer.work, self.progress
        if progress is None or self.point < 0:
            return ""
        if isinstance(work, VideoClip):
            return "frames_missed" if progress.late > (1 - work.target_ratio) * work.frames + 1e-9 else ""
        if progress.phase == 0:
            return "ttft_missed" if now_s > self.offer.at_ns * 1e-9 + work.ttft_s else ""
        left = work.max_output_tokens - progress.done
        t, j = self.table, self.point
        fastest_s = t.fixed_s[j, 1] + t.ul_bits[j, 1] / efficiency_hz + t.node_s[j, 1]
        least_s = progress.last_s - progress.first_s + left * fastest_s
        return "tpot_missed" if least_s > work.tpot_s * (work.max_output_tokens - 1) + 1e-9 else ""


class State:
    """Mutable state of one core; only cosched/core/core.py changes it."""

    def __init__(self, site: Site, settings: Settings) -> None:
        self.site = site
        self.channel = ChannelEstimates(settings)
        self.tasks: dict[str, Task] = {}  # admitted, in order of admission
        self.cell_of_ue: dict[str, int] = {}
        self.cell_index = {c.id: i for i, c in enumerate(site.cells)}
        self.node_index = {n.id: i for i, n in enumerate(site.nodes)}
        n_cells, n_nodes = len(site.cells), len(site.nodes)
        self.background: Floats = np.array(
            [c.background_fraction for c in site.cells] + [n.background_fraction for n in site.nodes] + [0.0] * n_nodes
        )
        self.prices: Floats = np.zeros(n_cells + 2 * n_nodes)
        self.variance: Floats = np.zeros(n_cells + 2 * n_nodes)  # of the use of each resource, as planned last
        self.version = 0  # grows when the set of tasks, a phase or a point changes

    def observe(self, at_s: float, report: UeReport | CellReport | NodeReport) -> None:
        """Take a report in. Cells and nodes that the site does not have are somebody else's."""
        if isinstance(report, UeReport):
            cell = self.cell_index.get(report.cell)
            if cell is None:
                return
            if self.cell_of_ue.get(report.ue, cell) != cell:
                self._handover(report.ue, cell)
            self.cell_of_ue[report.ue] = cell
            if report.ul_efficiency_bps_hz is not None:
                self.channel.update(report.ue, at_s, report.ul_efficiency_bps_hz)
        elif isinstance(report, CellReport):
            if report.cell in self.cell_index:
                self.background[self.cell_index[report.cell]] = report.background_ul_fraction
        elif report.node in self.node_index:
            row = len(self.site.cells) + self.node_index[report.node]
            self.background[row] = report.background_fraction if report.up else 1.0

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
        if task.phase != progress.phase:
            self.version += 1
        task.progress = progress

    def remove(self, name: str) -> None:
        """Forget a task."""
        if self.tasks.pop(name, None) is not None:
            self.version += 1
