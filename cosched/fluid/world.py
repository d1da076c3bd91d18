"""The fluid execution model: rows of running tasks, served by the compiled loop in advance.py.

What it assumes: a UE's device works on one thing at a time; an uplink is shared in proportion to the plan's weights,
and what one does not use flows to the others; a node serves in steps, none longer than planned; a video frame that is
not done at its deadline is dropped; the channel between two reports of a UE is what the later one measured, so a
decision never sees the value that it will be served with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from cosched.core.commands import Plan
from cosched.core.events import Progress
from cosched.fluid import rows as fl
from cosched.fluid.advance import advance, start_unit
from cosched.fluid.nodes import N_FIGURE
from cosched.site import Site
from cosched.workloads.base import Floats, Ints, PointTable
from telemetry.messages import LlmSession, TaskOffer, VideoClip

LEAST_WEIGHT: Final = 1e-6  # nobody's share is nothing: a starved task is served when all others are idle
FIRST_ROWS: Final = 64


@dataclass(frozen=True, slots=True)
class ChannelTruth:
    """Uplink efficiency as it really was: (K,) instants in order, UE rows, values in bit/s/Hz; and at the start."""

    at_s: Floats
    ue: Ints
    efficiency_bps_hz: Floats
    initial_bps_hz: Floats  # (U,)


@dataclass(frozen=True, slots=True)
class Served:
    """What one task got."""

    kind: int
    arrival_s: float
    first_s: float  # instant of the first token, nan if it never came
    last_s: float
    done: int  # tokens, or frames in time
    late: int
    finished: bool
    latency_sum_s: float  # over frames in time
    device_busy_s: float
    air_busy_s: float
    node_busy_s: float  # at full share


class World:
    """Runs tasks under plans. Times in seconds from the start of the trace.

    unplanned_step_s: length of a node's steps where a plan names none; inf: nobody decodes there then.
    """

    def __init__(self, site: Site, truth: ChannelTruth, unplanned_step_s: float = np.inf) -> None:
        self._truth = truth
        self._cursor = 0
        self._efficiency = truth.initial_bps_hz.copy()
        self._f: Floats = np.zeros((FIRST_ROWS, fl.N_FLOAT))
        self._n: Ints = np.zeros((FIRST_ROWS, fl.N_INT), dtype=np.int64)
        self._row: dict[str, int] = {}
        self._name: dict[int, str] = {}
        self._table: dict[str, PointTable] = {}
        self._bandwidth_hz = np.array([c.ul_bandwidth_hz for c in site.cells])
        self.free_cell = np.array([1.0 - c.background_fraction for c in site.cells])
        self.free_node = np.array([1.0 - n.background_fraction for n in site.nodes])
        self.used_cell = np.zeros(len(site.cells))  # seconds that somebody was on the air
        self.used_node = np.zeros(len(site.nodes))  # seconds of work at full share
        self._step_end = np.zeros(len(site.nodes))
        self._unplanned_step_s = unplanned_step_s
        self._step_s = np.full(len(site.nodes), unplanned_step_s)  # planned
        self.figures: Floats = np.zeros((len(site.nodes), N_FIGURE))  # columns: cosched/fluid/nodes.py
        self._models = [m.id for m in site.models]
        self.now_s = 0.0
        self._log = self._new_log()

    def _new_log(self) -> tuple[Floats, Ints, Ints]:
        size = 2 * len(self._f)
        return np.zeros(size), np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)

    @property
    def running(self) -> int:
        """Tasks in service."""
        return len(self._row)

    def start(self, offer: TaskOffer, table: PointTable, point: int, cell: int, ue: int, units: int) -> None:
        """Begin a task now: `units` is its number of tokens or frames, which only the world knows.

        table: what its points really take; a plan may have taken them for something else.
        """
        i = self._free_row()
        self._row[offer.task], self._name[i], self._table[offer.task] = i, offer.task, table
        f, n = self._f[i], self._n[i]
        f[:], n[:] = 0.0, 0
        f[fl.CAP_UL], f[fl.W_UL] = 1.0, LEAST_WEIGHT
        f[fl.ARRIVAL] = f[fl.RELEASE] = self.now_s
        f[fl.FIRST] = np.nan
        n[fl.CELL], n[fl.UE], n[fl.LEFT] = cell, ue, units
        if isinstance(offer.work, VideoClip):
            n[fl.KIND] = fl.VIDEO
            f[fl.PERIOD], f[fl.DEADLINE] = 1.0 / offer.work.fps, offer.work.deadline_s
        else:
            f[fl.PERIOD], f[fl.DEADLINE] = offer.work.tpot_s, offer.work.ttft_s
            n[fl.MODEL] = self._models.index(offer.work.model) if offer.work.model in self._models else 0
        self._load_point(i, table, point)
        start_unit(self._f, self._n, i, self.now_s)

    def _load_point(self, i: int, table: PointTable, point: int) -> None:
        f = self._f[i]
        f[fl.DEVICE_S : fl.DEVICE_S + 2] = table.device_s[point]
        f[fl.BITS : fl.BITS + 2] = table.ul_bits[point]
        f[fl.FIXED_S : fl.FIXED_S + 2] = table.fixed_s[point] - table.device_s[point]
        f[fl.NODE_S : fl.NODE_S + 2] = table.node_s[point]
        f[fl.SHARED_S], f[fl.OWN_S] = table.steps[point]
        self._n[i, fl.NODE] = max(int(table.node[point]), 0)

    def _free_row(self) -> int:
        for i in range(len(self._f)):
            if i not in self._name:
                return i
        i = len(self._f)
        self._f = np.concatenate([self._f, np.zeros_like(self._f)])
        self._n = np.concatenate([self._n, np.zeros_like(self._n)])
        self._log = self._new_log()
        return i

    def apply(self, plan: Plan) -> None:
        """Put a plan's weights into force; moved tasks take their new point from their next unit of work on."""
        for decision in plan.decisions:
            if decision.reason == "moved" and decision.task in self._row:
                self._load_point(self._row[decision.task], self._table[decision.task], decision.point)
        known = [k for k, name in enumerate(plan.tasks) if name in self._row]
        rows = np.array([self._row[plan.tasks[k]] for k in known], dtype=np.int64)
        self._f[rows, fl.W_UL] = np.maximum(plan.prbs[known], LEAST_WEIGHT)
        self._n[rows, fl.RANK] = ~plan.promised[known]
        self._step_s = np.where(np.isinf(plan.step_s), self._unplanned_step_s, plan.step_s)

    def advance(self, until_s: float) -> list[tuple[str, Served]]:
        """Serve until `until_s`; return the tasks that came to their end, in order of time."""
        truth = self._truth
        self._cursor, n_log = advance(
            self._f,
            self._n,
            self._efficiency,
            (truth.at_s, truth.ue, truth.efficiency_bps_hz),
            self._cursor,
            (self._bandwidth_hz, self.free_cell, self.used_cell),
            (self.free_node, self.used_node),
            (self._step_end, self._step_s, self.figures),
            self.now_s,
            until_s,
            self._log,
        )
        self.now_s = max(self.now_s, until_s)
        ended = [
            int(i) for i, c in zip(self._log[1][:n_log], self._log[2][:n_log], strict=True) if c == fl.EVENT_FINISHED
        ]
        return [(self._name[i], self.remove(self._name[i], finished=True)) for i in ended]

    def remove(self, name: str, *, finished: bool = False) -> Served:
        """Stop serving a task; return what it got. Raises KeyError when it does not run."""
        i = self._row.pop(name)
        del self._name[i], self._table[name]
        f, n = self._f[i], self._n[i]
        n[fl.STAGE] = fl.OUT
        return Served(
            kind=int(n[fl.KIND]), arrival_s=float(f[fl.ARRIVAL]), first_s=float(f[fl.FIRST]),
            last_s=float(f[fl.LAST]), done=int(n[fl.DONE]), late=int(n[fl.LATE]), finished=finished,
            latency_sum_s=float(f[fl.LATENCY_SUM]), device_busy_s=float(f[fl.DEVICE_BUSY]),
            air_busy_s=float(f[fl.AIR_BUSY]), node_busy_s=float(f[fl.NODE_BUSY]),
        )  # fmt: skip

    def handover(self, ue: int, cell: int) -> None:
        """From now on this UE's tasks are on the air in another cell."""
        for i in self._name:
            if self._n[i, fl.UE] == ue:
                self._n[i, fl.CELL] = cell

    def has(self, name: str) -> bool:
        """Whether the task is in service."""
        return name in self._row

    def progress(self) -> tuple[Progress, ...]:
        """How far every running task is."""
        return tuple(self._progress_of(name, i) for name, i in self._row.items())

    def _progress_of(self, name: str, i: int) -> Progress:
        f, n = self._f[i].tolist(), self._n[i].tolist()
        bits = node_s = fixed_s = 0.0
        if n[fl.KIND] == fl.LLM and n[fl.PHASE] == 0:
            bits, node_s, fixed_s = _prefill_left(f, n[fl.STAGE], self.now_s)
        return Progress(name, n[fl.PHASE], n[fl.DONE], n[fl.LATE], f[fl.FIRST], f[fl.LAST], bits, node_s, fixed_s)


def _prefill_left(f: list[float], stage: int, now_s: float) -> tuple[float, float, float]:
    """Uplink bits, node seconds and fixed seconds that a prefill still needs."""
    if stage == fl.ON_DEVICE:
        return f[fl.BITS], f[fl.NODE_S], f[fl.REMAINING] + f[fl.FIXED_S]
    if stage == fl.ON_AIR:
        return f[fl.REMAINING], f[fl.NODE_S], f[fl.FIXED_S]
    if stage == fl.IN_FLIGHT:
        return 0.0, f[fl.NODE_S], f[fl.TIMER] - now_s
    return 0.0, f[fl.REMAINING], 0.0


def units_of(offer: TaskOffer, output_tokens: int | None) -> int:
    """Units of work of a task: its real number of output tokens (from the trace's truth), or its frames."""
    if isinstance(offer.work, LlmSession):
        return max(1, output_tokens if output_tokens is not None else offer.work.max_output_tokens)
    return offer.work.frames
