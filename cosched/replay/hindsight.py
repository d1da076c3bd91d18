"""The hindsight bound of a trace: what any policy could have reached, arrivals and channel known.

Counts only what no policy can avoid, and capacity without any safety margin (docs/model.md, section 7). `bound` looks
at when a unit of work can be done at all (unavoidable.py); `loose_bound` only at the work of a task's whole life.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cosched.replay.past import BestChannel, Cells
from cosched.replay.replayer import Workbook
from cosched.replay.unavoidable import demand_of
from cosched.workloads.base import Floats, Ints, PointTable
from telemetry.messages import CellReport, LlmSession, NodeReport, TaskOffer


def bound(book: Workbook) -> float:
    """Greatest total weight of tasks met that any policy can reach on this trace (an upper bound)."""
    return look_back(book).bound


@dataclass(frozen=True, slots=True)
class LookBack:
    """`bound`, and what its relaxation would serve: part of each task, in fractions."""

    bound: float
    served: Mapping[str, float]


def look_back(book: Workbook, *, capacity: float = 1.0) -> LookBack:
    """The bound and whom it serves. capacity: part of each uplink and node that there is; a bound at 1 only."""
    from solvers.hindsight import least_dual

    if not book.offers:
        return LookBack(0.0, {})
    demand = demand_of(book, _least_background(book), capacity)
    found = least_dual(demand)
    served = np.bincount(demand.task, weights=found.taken, minlength=len(book.offers))
    return LookBack(found.bound, {o.task: float(part) for (_, o), part in zip(book.offers, served, strict=True)})


def loose_bound(book: Workbook) -> float:
    """The bound as it was before `bound`: work anywhere in a task's life, at full speed, at its best channel."""
    from solvers.hindsight import default_windows, hindsight_bound

    if not book.offers:
        return 0.0
    work, value, count, start, end = unavoidable(book)
    return hindsight_bound(
        value=value,
        first=np.concatenate([[0], np.cumsum(count)]),
        work=work,
        start_s=start,
        end_s=end,
        windows=default_windows(start, end),
        background=_least_background(book),
    ).bound


def _least_background(book: Workbook) -> Floats:
    """(R,) least part of each uplink and node that other people's load takes in the whole trace."""
    least = {("cell", c.id): c.background_fraction for c in book.site.cells}
    least |= {("node", n.id): n.background_fraction for n in book.site.nodes}
    for _, report in book.reports:
        if isinstance(report, CellReport):
            key, fraction = ("cell", report.cell), report.background_ul_fraction
        elif isinstance(report, NodeReport):
            key, fraction = ("node", report.node), report.background_fraction
        else:
            continue
        if key in least:
            least[key] = min(least[key], fraction)
    return np.array(list(least.values()), dtype=np.float64)


def unavoidable(book: Workbook) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """Options (J, R) seconds of each uplink and node; value (J,); options per task (N,); life (N,), (N,).

    Whose UE changes its cell during its life may send in either: no uplink is charged for it.
    """
    best, cells_of = BestChannel(book.truth), Cells(book)
    works, values, counts, starts, ends = [], [], [], [], []
    for at_s, offer in book.offers:
        end_s = at_s + longest_life_s(offer, book.units[offer.task])
        cells = cells_of.between(offer.ue, at_s, end_s)
        hz = max(book.site.cells[cell].ul_bandwidth_hz for cell in cells)
        rate = best.between(book.ue_rows[offer.ue], at_s, end_s) * hz
        work = least_work(book, offer, rate, cells[0] if len(cells) == 1 else None)
        works.append(work)
        values.append(np.full(len(work), offer.weight))
        counts.append(len(work))
        starts.append(at_s)
        ends.append(end_s)
    return np.concatenate(works), np.concatenate(values), np.array(counts), np.array(starts), np.array(ends)


def least_work(book: Workbook, offer: TaskOffer, best_rate_bps: float, cell: int | None) -> Floats:
    """(J', R) seconds of each uplink and node that the options of a task cannot do without; cell None: no uplink's."""
    seconds, node = options(book.tables[offer.task], offer, book.units[offer.task], best_rate_bps)
    n_cells = len(book.site.cells)
    work = np.zeros((len(node), n_cells + len(book.site.nodes)))
    if cell is not None:
        work[:, cell] = seconds[:, 0]
    work[np.arange(len(node)), n_cells + node] = seconds[:, 1]
    return work


def longest_life_s(offer: TaskOffer, units: int) -> float:
    """Time after which a task that is met has ended at the latest."""
    work = offer.work
    if isinstance(work, LlmSession):
        return work.ttft_s + work.tpot_s * (units - 1)
    return (work.frames - 1) / work.fps + work.deadline_s


def options(table: PointTable, offer: TaskOffer, units: int, best_rate_bps: float) -> tuple[Floats, Ints]:
    """Seconds of (uplink, node) that each point cannot do without (J', 2), and its node (J',).

    Points that miss a deadline even with every resource to themselves are left out. Of a clip only the frames that
    must be in time count.
    """
    air = table.ul_bits / best_rate_bps
    alone = table.fixed_s + air + table.least_s
    node_s = table.node_s.copy()
    node_s[:, 1] += table.steps[:, 1]  # a token's own part of its step; what all in it share, no one of them must pay
    good = (alone <= table.deadline_s + 1e-9).all(axis=1)
    if isinstance(offer.work, LlmSession):
        times = np.array([1.0, units - 1.0])
    else:
        times = np.array([np.ceil(offer.work.target_ratio * offer.work.frames - 1e-9), 0.0])
    seconds = np.stack([(air * times).sum(axis=1), (node_s * times).sum(axis=1)], axis=1)
    return seconds[good], table.node[good]
