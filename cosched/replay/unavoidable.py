"""What tasks cannot avoid, unit by unit: the terms of the hindsight bound, proven one by one (docs/model.md).

A task that is met does its units one after the other, and each takes some least time, whatever it is given. So

- a prefill is done between arrival and TTFT, its bits are sent before its node can start, on the channel of that time;
- a token takes at least tau = device + air at the best channel of the session's life + flight + a step of its own
  (w + q). Outside a window there is time for so many tokens and no more; the others are in it;
- of a clip so many frames must be in time, each between its release and its deadline; a frame that no point brings
  through in time with cell and node to itself is none of them;
- a session that decodes has its node read the layers that it needs once a token. Reads are shared by all in a step, so
  they are charged to nobody: in the time in which a session lives the node reads at least what this one needs, and
  with several the greatest of it.

How a step's time is told apart: pieces of prefills and frames as they come, then reads and sequences' own parts evenly
over the rest. Points of one task may change from unit to unit on one node: what a window must hold is linear in them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from cosched.replay.past import BestChannel, Carried, Cells
from cosched.replay.replayer import Workbook
from cosched.workloads.base import Bools, Floats, Ints, PointTable
from solvers.hindsight import SOME_WORK, HindsightDemand, SharedDemand, default_windows
from telemetry.messages import LlmSession, TaskOffer, VideoClip

LENGTHS_S: Final = (1.25, 2.5, 5.0, 10.0, 20.0, 40.0, np.inf)
NEAR_S: Final = 2.0  # of windows that begin with one prefill and end with another
MOST_PER_S: Final = (
    12.0  # of these instants: of more only every second, third ... is taken, or the work grows with squares
)
CELL_S: Final = LENGTHS_S[0] / 2  # reads are counted in pieces of time of this length
IN_TIME: Final = 1e-9  # seconds: rounding
WHOLE: Final = (1, 2)  # tasks of which a window is told that it holds no more
LEAST_ASKED: Final = 0.8  # of a window's capacity: where all together ask for less, the row is left out
ROUGHLY: Final = 1e-7  # a part this near to a whole number of pieces is one


@dataclass(frozen=True, slots=True)
class Need:
    """Of one task: options (n,) that can be met at all, and what of each must be in each window (W,) of its life."""

    window: Ints  # (W,)
    node: Ints  # (n,)
    air_s: Floats  # (n, W) seconds of the uplink
    node_s: Floats  # (n, W) ... and of the node
    read_s: Floats  # (n,) seconds of reading, between `start_s` and `end_s`
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class _Look:
    """What is asked of a trace again and again."""

    book: Workbook
    best: BestChannel
    carried: dict[int, Carried]
    cells: Cells
    windows: Floats  # (W, 2)


def demand_of(book: Workbook, background: Floats, capacity: float = 1.0) -> HindsightDemand:
    """All that the bound counts; tasks in the order of book.offers. background (R,): least taken of each resource.

    capacity: part of what there is that is counted; a bound only at 1.
    """
    ends = [at_s + _longest_s(offer, book.units[offer.task]) for at_s, offer in book.offers]
    span = np.array([at_s for at_s, _ in book.offers]), np.array(ends)
    windows = np.concatenate([np.array(default_windows(*span, LENGTHS_S)), _around_prefills(book)])
    ues = sorted({book.ue_rows[offer.ue] for _, offer in book.offers})
    carried = {ue: Carried(book.truth, ue, float(span[1].max())) for ue in ues}
    look = _Look(book, BestChannel(book.truth), carried, Cells(book), windows)
    needs = [need_of(look, at_s, offer) for at_s, offer in book.offers]
    return _assembled(look, needs, (1.0 - background) * capacity)


def need_of(look: _Look, at_s: float, offer: TaskOffer) -> Need:
    """What a task cannot avoid, option by option."""
    table, units = look.book.tables[offer.task], look.book.units[offer.task]
    end_s = at_s + _longest_s(offer, units)
    near = np.flatnonzero((look.windows[:, 0] < end_s) & (look.windows[:, 1] > at_s))
    look = replace(look, windows=look.windows[near])
    if isinstance(offer.work, LlmSession):
        return _session(look, at_s, offer, offer.work, table, units, near)
    return _clip(look, at_s, offer, offer.work, table, near)


def _longest_s(offer: TaskOffer, units: int) -> float:
    """Time after which a task that is met has ended at the latest."""
    work = offer.work
    if isinstance(work, LlmSession):
        return work.ttft_s + work.tpot_s * (units - 1)
    return (work.frames - 1) / work.fps + work.deadline_s


def _greatest_hz(look: _Look, ue: str, start_s: float, end_s: float) -> float:
    return max(look.book.site.cells[c].ul_bandwidth_hz for c in look.cells.between(ue, start_s, end_s))


def _around_prefills(book: Workbook) -> Floats:
    """(W, 2) windows from where one prefill may begin to where another is due: there they are in each other's way."""
    some = [(at_s, at_s + o.work.ttft_s) for at_s, o in book.offers if isinstance(o.work, LlmSession)]
    start, end = (np.array(column) for column in zip(*some, strict=True)) if some else (np.zeros(0), np.zeros(0))
    if len(start):
        every = int(np.ceil(len(start) / max(np.ptp(start), NEAR_S) / MOST_PER_S))
        start, end = np.sort(start)[::every], np.sort(end)[::every]
    i, k = np.nonzero((end > start[:, None]) & (end <= start[:, None] + NEAR_S))
    return np.stack([start[i], end[k]], axis=1)


def _best_bps(look: _Look, row: int, start_s: float, end_s: float, hz: float, asked: Bools) -> Floats:
    """(W,) greatest rate within each window and [start_s, end_s]; that of all of it where they do not meet.

    asked (W,): of the other windows nobody wants to know.
    """
    whole = look.best.between(row, start_s, end_s) * hz
    out = np.full(len(look.windows), whole)
    for k in np.flatnonzero(asked & (look.windows[:, 0] < end_s) & (look.windows[:, 1] > start_s)).tolist():
        a, b = look.windows[k].tolist()
        out[k] = look.best.between(row, max(a, start_s), min(b, end_s)) * hz
    return out


def _session(
    look: _Look, at_s: float, offer: TaskOffer, work: LlmSession, table: PointTable, units: int, near: Ints
) -> Need:
    row, last_s, tokens = look.book.ue_rows[offer.ue], at_s + work.ttft_s, units - 1
    decode_s = work.tpot_s * tokens
    end_s = last_s + decode_s
    hz = _greatest_hz(look, offer.ue, at_s, end_s)
    device_s, flight_s = table.device_s, table.fixed_s - table.device_s  # (J, 2)
    sent_from = at_s + device_s[:, 0]
    sent = look.carried[row].sent_s(sent_from, table.ul_bits[:, 0] / hz)
    first_s = sent + flight_s[:, 0] + table.node_s[:, 0]
    air_s = table.ul_bits[:, 1] / (look.best.between(row, at_s, end_s) * hz)
    before_s, step_s = device_s[:, 1] + air_s + flight_s[:, 1], table.steps.sum(axis=1)
    token_s = before_s + step_s
    good = (table.node >= 0) & (first_s <= last_s + IN_TIME) & (token_s * tokens <= decode_s + IN_TIME * units)
    some = np.flatnonzero(good)
    prefill = _prefill(look, row, hz, table, some, (sent_from, sent + flight_s[:, 0], last_s))
    few = TokensIn(look.windows, tokens, token_s[some], (first_s[some], last_s), decode_s)
    before, after = np.zeros_like(before_s), device_s[:, 1]
    on_air = few(flight_s[some, 1] + step_s[some], after[some]) * table.ul_bits[some, 1][:, None]
    on_node = few(before[some], before_s[some])
    best = _best_bps(look, row, at_s, end_s, hz, on_air.max(axis=0, initial=0.0) > 0)
    alone = _in_one_cell(look, offer.ue, at_s, end_s)
    return Need(
        window=near,
        node=table.node[some],
        air_s=(prefill[0] + on_air / best) * alone,
        node_s=prefill[1] + on_node * table.steps[some, 1][:, None],
        read_s=table.steps[some, 0] * tokens,
        start_s=float(first_s[some].min(initial=last_s)),
        end_s=end_s,
    )


def _in_one_cell(look: _Look, ue: str, start_s: float, end_s: float) -> float:
    """1, or 0 where the UE changes its cell meanwhile: then it may send in either, and none is charged."""
    return float(len(look.cells.between(ue, start_s, end_s)) == 1)


def _prefill(
    look: _Look, row: int, hz: float, table: PointTable, some: Ints, when: tuple[Floats, Floats, float]
) -> tuple[Floats, Floats]:
    """(n, W) seconds of uplink and node that the prefills of points `some` (n,) put into each window.

    when: instants (J,) from which on bits can be sent and the node can work, and the one until which all is done.
    """
    send_s, node_from, last_s = when
    a, b = look.windows[:, 0], look.windows[:, 1]
    node_s, bits = table.node_s[some, 0][:, None], table.ul_bits[some, 0][:, None]
    on_node = np.maximum(node_s - _outside(node_from[some], np.full(len(some), last_s), a, b), 0.0)
    send, until = send_s[some], last_s - (table.fixed_s - table.device_s)[some, 0] - table.node_s[some, 0]
    until = np.maximum(until, send)
    carried = look.carried[row]
    lost = carried.bits(np.clip(a, send[:, None], until[:, None])) - carried.bits(send)[:, None]
    lost += carried.bits(until)[:, None] - carried.bits(np.clip(b, send[:, None], until[:, None]))
    left = np.maximum(bits - lost * hz, 0.0) * (bits > 0)
    best = _best_bps(look, row, float(send.min(initial=last_s)), last_s, hz, left.max(axis=0, initial=0.0) > 0)
    return left / best, on_node


def _outside(start: Floats, end: Floats, a: Floats, b: Floats) -> Floats:
    """(n, W) length of [start, end] outside [a, b]."""
    inside = np.minimum(end[:, None], b) - np.maximum(start[:, None], a)
    return np.asarray((end - start)[:, None] - np.maximum(inside, 0.0))


@dataclass(frozen=True, slots=True)
class TokensIn:
    """How many of its tokens a session cannot do outside of windows, if each takes token_s (n,) at least.

    first: earliest (n,) and latest instant of the first token; the last one is out decode_s after it at the latest.
    """

    windows: Floats
    tokens: int
    token_s: Floats
    first: tuple[Floats, float]
    decode_s: float

    def __call__(self, before_s: Floats, after_s: Floats) -> Floats:
        """(n, W). What is counted of a token that is cut by a window's edge may be done at once.

        before_s, after_s (n,): by how much sooner it may be done than evenly over the token's time, at the window's
        first and last edge. The time outside is convex in when the first token is out: greatest at an end.
        """
        a, b = self.windows[:, 0], self.windows[:, 1]
        early, late = self.first
        outside = np.zeros((len(early), len(a)))
        for first in (early, np.full_like(early, late)):
            left = np.maximum(a - first[:, None] + before_s[:, None], 0.0) * (a > early[:, None])
            right = np.maximum(first[:, None] + self.decode_s + after_s[:, None] - b, 0.0)
            outside = np.maximum(outside, left + right * (late + self.decode_s > b))
        return np.asarray(np.maximum(self.tokens - outside / self.token_s[:, None], 0.0))


def _clip(look: _Look, at_s: float, offer: TaskOffer, work: VideoClip, table: PointTable, near: Ints) -> Need:
    row, end_s = look.book.ue_rows[offer.ue], at_s + _longest_s(offer, work.frames)
    hz = _greatest_hz(look, offer.ue, at_s, end_s)
    release = at_s + np.arange(work.frames) / work.fps  # (F,)
    sent_from = release[:, None] + table.device_s[:, 0]  # (F, J)
    sent = look.carried[row].sent_s(sent_from, np.broadcast_to(table.ul_bits[:, 0] / hz, sent_from.shape))
    after_s = table.fixed_s[:, 0] - table.device_s[:, 0] + table.node_s[:, 0]
    in_time: Bools = np.asarray(sent + after_s <= release[:, None] + work.deadline_s + IN_TIME) & (table.node >= 0)
    least = int(np.ceil(work.target_ratio * work.frames - IN_TIME))
    count = np.zeros((table.n_points, len(look.windows)))
    for node in np.unique(table.node[table.node >= 0]).tolist():
        here = table.node == node
        count[here] = _frames_in(look.windows, release, work.deadline_s, np.any(in_time[:, here], axis=1), least)
    some = np.flatnonzero(in_time.any(axis=0) & (count.max(axis=1) >= least))
    frames = count[some]
    best = _best_bps(look, row, at_s, end_s, hz, frames.max(axis=0, initial=0.0) > 0)
    return Need(
        window=near,
        node=table.node[some],
        air_s=frames * table.ul_bits[some, 0][:, None] / best * _in_one_cell(look, offer.ue, at_s, end_s),
        node_s=frames * table.node_s[some, 0][:, None],
        read_s=np.zeros(len(some)),
        start_s=at_s,
        end_s=end_s,
    )


def _frames_in(windows: Floats, release: Floats, deadline_s: float, possible: Bools, least: int) -> Floats:
    """(W,) frames that must be served within each window, `least` in all; 0 where there are not so many to serve."""
    start = release[possible]
    if len(start) < least:
        return np.zeros(len(windows))
    a, b = windows[:, 0][:, None], windows[:, 1][:, None]
    within = ((start >= a) & (start + deadline_s <= b + IN_TIME)).sum(axis=1)
    return np.asarray(np.maximum(least - (len(start) - within), 0), dtype=np.float64)


def _assembled(look: _Look, needs: list[Need], rate: Floats) -> HindsightDemand:
    """Rows by window and resource, then what the windows' reads are counted in, then rows in whole tasks."""
    book, n_cells = look.book, len(look.book.site.cells)
    first = np.concatenate([[0], np.cumsum([len(need.node) for need in needs])]).astype(np.int64)
    length = look.windows[:, 1] - look.windows[:, 0]
    capacity = (length[:, None] * rate).ravel()
    n_grid = int((length > NEAR_S).sum() and np.flatnonzero(length > NEAR_S).max() + 1)
    plain = _triplets(look, needs, first, len(rate))
    task = np.repeat(np.arange(len(needs)), np.diff(first))
    is_clip = np.array([isinstance(o.work, VideoClip) for _, o in book.offers], dtype=np.bool_)
    rows, options, seconds, capacity = _with_whole_tasks(*plain, task, is_clip, capacity, n_grid * len(rate))
    return HindsightDemand(
        value=np.repeat([o.weight for _, o in book.offers], np.diff(first)).astype(np.float64),
        task=task,
        row=rows,
        option=options,
        seconds=seconds,
        capacity=capacity,
        shared=_reads(look, needs, first, n_cells, len(rate)),
    )


def _with_whole_tasks(
    row: Ints, option: Ints, seconds: Floats, task: Ints, is_clip: Bools, capacity: Floats, n_kept: int
) -> tuple[Ints, Ints, Floats, Floats]:
    """Add rows in which parts u of a window's capacity count f(u), at most 1 in all: nobody serves half a task.

    f of parts whose sum is at most 1 has a sum of at most 1: with k, floor((k + 1) u) / k, and u itself where (k + 1) u
    is whole (dual feasible functions: Fekete & Schepers, New classes of fast lower bounds for bin packing problems,
    2001). A clip may change its point from frame to frame, so all of its options count as the least of them.
    """
    part = seconds / np.maximum(capacity[row], SOME_WORK)
    owner = task[option]
    part = np.where(is_clip[owner], _least_of_task(row, owner, part, task), part)
    asked = _greatest_sums(row, owner, part, capacity.size)
    asked[:n_kept] = np.inf  # reads come to these
    some = asked[row] > LEAST_ASKED
    rows, options, counts, limits = [row[some]], [option[some]], [seconds[some]], [capacity]
    for k in WHOLE:
        scaled = (k + 1) * part
        f = np.where(
            np.abs(scaled - np.rint(scaled)) < ROUGHLY, np.minimum(part, np.floor(scaled) / k), np.floor(scaled) / k
        )
        f = np.minimum(f, 1.0 + (scaled > k + 1 + ROUGHLY))
        some = f > 0
        total = _greatest_sums(row[some], owner[some], f[some], capacity.size)
        full = np.flatnonzero(total > 1.0)
        place = np.full(capacity.size, -1)
        place[full] = sum(map(len, limits)) + np.arange(full.size)
        kept = some & (place[row] >= 0)
        rows.append(place[row[kept]])
        options.append(option[kept])
        counts.append(f[kept])
        limits.append(np.ones(full.size))
    return np.concatenate(rows), np.concatenate(options), np.concatenate(counts), np.concatenate(limits)


def _least_of_task(row: Ints, owner: Ints, part: Floats, task: Ints) -> Floats:
    """(E,) the least part of the row that an option of the same task takes, 0 where one takes nothing of it."""
    order = np.lexsort((owner, row))
    new = np.flatnonzero((np.diff(row[order], prepend=-1) != 0) | (np.diff(owner[order], prepend=-1) != 0))
    least = np.minimum.reduceat(part[order], new) if new.size else np.zeros(0)
    count = np.diff(np.append(new, len(order)))
    all_of = np.bincount(task, minlength=int(task.max(initial=0)) + 1)[owner[order][new]]
    out = np.empty_like(part)
    out[order] = np.repeat(np.where(count == all_of, least, 0.0), count)
    return out


def _greatest_sums(row: Ints, owner: Ints, part: Floats, n_rows: int) -> Floats:
    """(rows,) sum over tasks of the greatest part that an option takes."""
    order = np.lexsort((owner, row))
    new = np.flatnonzero((np.diff(row[order], prepend=-1) != 0) | (np.diff(owner[order], prepend=-1) != 0))
    most = np.maximum.reduceat(part[order], new) if new.size else np.zeros(0)
    return np.asarray(np.bincount(row[order][new], weights=most, minlength=n_rows), dtype=np.float64)


def _triplets(look: _Look, needs: list[Need], first: Ints, n_resources: int) -> tuple[Ints, Ints, Floats]:
    """Row, option and seconds of all that is not nothing."""
    n_cells, parts = len(look.book.site.cells), [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for i, (need, (at_s, offer)) in enumerate(zip(needs, look.book.offers, strict=True)):
        cell = look.cells.between(offer.ue, at_s, need.end_s)[0]
        for column, resource in ((need.air_s, np.full(len(need.node), cell)), (need.node_s, n_cells + need.node)):
            option, window = np.nonzero(column > SOME_WORK)
            row = need.window[window] * n_resources + resource[option]
            parts.append((row, first[i] + option, column[option, window]))
    rows, options, seconds = (np.concatenate(part) for part in zip(*parts, strict=True))
    return rows, options, seconds


def _reads(look: _Look, needs: list[Need], first: Ints, n_cells: int, n_resources: int) -> SharedDemand:
    """What sessions have nodes read. A cell is a stretch of time of one node and model: CELL_S each from the start on.

    Cells that a session's decoding touches hold all its reads; a window has all cells that lie in it.
    """
    book, begin = look.book, float(look.windows[:, 0].min())
    n_times = int(np.ceil((look.windows[:, 1].max() - begin) / CELL_S)) + 1
    models, n_nodes = [m.id for m in book.site.models], len(book.site.nodes)
    demand, option, seconds, cover, n_demands = [], [], [], [], 0
    for i, (need, (_, offer)) in enumerate(zip(needs, book.offers, strict=True)):
        if not isinstance(offer.work, LlmSession) or offer.work.model not in models:
            continue
        model = models.index(offer.work.model)
        times = _touched(need.start_s - begin, need.end_s - begin)
        for node in np.unique(need.node[need.read_s > 0]).tolist():
            here = np.flatnonzero((need.node == node) & (need.read_s > 0))
            demand.append(np.full(len(here), n_demands))
            option.append(first[i] + here)
            seconds.append(need.read_s[here])
            cover.append(np.stack([np.full(len(times), n_demands), (node * len(models) + model) * n_times + times]))
            n_demands += 1
    none = np.zeros(0, np.int64)
    return SharedDemand(
        demand=np.concatenate([none, *demand]),
        option=np.concatenate([none, *option]),
        seconds=np.concatenate([np.zeros(0), *seconds]),
        cover=tuple(np.concatenate([np.zeros((2, 0), np.int64), *cover], axis=1)),
        load=_loads(look.windows - begin, n_times, n_nodes, len(models), n_cells, n_resources),
        n_demands=n_demands,
        n_cells=n_nodes * len(models) * n_times,
    )


def _touched(start_s: float, end_s: float) -> Ints:
    """Cells of time that an interval is in."""
    return np.arange(int(np.floor(start_s / CELL_S - IN_TIME)), int(np.floor(end_s / CELL_S + IN_TIME)) + 1)


def _loads(
    windows: Floats, n_times: int, n_nodes: int, n_models: int, n_cells: int, n_resources: int
) -> tuple[Ints, Ints]:
    """Pairs (row, cell): which cells lie in a window of their node."""
    rows, cells = [], []
    for w, (a, b) in enumerate(windows.tolist()):
        times = np.arange(int(np.ceil(a / CELL_S - IN_TIME)), int(np.floor(b / CELL_S + IN_TIME)))
        for node in range(n_nodes):
            for model in range(n_models):
                rows.append(np.full(len(times), w * n_resources + n_cells + node))
                cells.append((node * n_models + model) * n_times + times)
    return np.concatenate(rows), np.concatenate(cells)
