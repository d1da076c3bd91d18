"""What the channel of a trace was: cells, best efficiency and bits carried in any interval, for whom looks back."""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from cosched.fluid.world import ChannelTruth
from cosched.workloads.base import Floats
from telemetry.messages import UeReport

if TYPE_CHECKING:
    from cosched.replay.replayer import Workbook  # it looks back, too, where it is to foresee


class Cells:
    """Serving cells of each UE over time, from the trace's reports."""

    def __init__(self, book: Workbook) -> None:
        index = {c.id: i for i, c in enumerate(book.site.cells)}
        self._steps: dict[str, list[tuple[float, int]]] = {
            ue: [(-np.inf, index[cell])] for ue, cell in book.cell_of_ue.items()
        }
        for at_s, report in book.reports:
            if isinstance(report, UeReport) and report.cell in index:
                steps = self._steps[report.ue]
                if steps[-1][1] != index[report.cell]:
                    steps.append((at_s, index[report.cell]))

    def between(self, ue: str, start_s: float, end_s: float) -> tuple[int, ...]:
        """Return the cells in force at any instant of [start_s, end_s]."""
        steps = self._steps[ue]
        first = bisect.bisect_right(steps, start_s, key=lambda step: step[0]) - 1
        last = bisect.bisect_right(steps, end_s, key=lambda step: step[0])
        return tuple(sorted({cell for _, cell in steps[first:last]}))


class BestChannel:
    """Greatest efficiency of a UE in an interval, from the truth."""

    def __init__(self, truth: ChannelTruth) -> None:
        self._steps: Mapping[int, tuple[Floats, Floats]] = {
            u: (
                np.concatenate([[-np.inf], truth.at_s[truth.ue == u]]),
                np.concatenate([truth.initial_bps_hz[u : u + 1], truth.efficiency_bps_hz[truth.ue == u]]),
            )
            for u in range(len(truth.initial_bps_hz))
        }

    def between(self, ue: int, start_s: float, end_s: float) -> float:
        """bit/s/Hz, the greatest in force at any instant of [start_s, end_s]."""
        at_s, value = self._steps[ue]
        first = int(np.searchsorted(at_s, start_s, side="right")) - 1
        last = int(np.searchsorted(at_s, end_s, side="right"))
        return float(value[first:last].max())


class Carried:
    """Bits that a UE can have sent since the start of the trace with 1 Hz to itself, and when so many are sent."""

    def __init__(self, truth: ChannelTruth, ue: int, end_s: float) -> None:
        at_s = np.concatenate([[0.0], truth.at_s[truth.ue == ue]])
        value = np.concatenate([truth.initial_bps_hz[ue : ue + 1], truth.efficiency_bps_hz[truth.ue == ue]])
        last = max(end_s, float(at_s[-1])) + 1.0
        self._at_s = np.append(at_s, last)
        self._bits = np.concatenate([[0.0], np.cumsum(value * np.diff(self._at_s))])

    def bits(self, at_s: Floats) -> Floats:
        """Bits a Hz until the instants; after the end of all that is asked for there are none."""
        return np.asarray(np.interp(at_s, self._at_s, self._bits))

    def sent_s(self, from_s: Floats, bits_per_hz: Floats) -> Floats:
        """Instants at which so many bits a Hz that start to be sent at from_s are through; inf where never."""
        target = self.bits(from_s) + bits_per_hz
        through = np.interp(target, self._bits, self._at_s)
        return np.where(bits_per_hz > 0, np.where(target > self._bits[-1], np.inf, through), from_s)
