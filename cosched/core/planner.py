"""Snapshot -> Problem: operating points in physical units become columns of shares and seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cosched.core.settings import Settings
from cosched.core.state import State, Task
from cosched.site import Site
from cosched.workloads.base import LOCAL, Floats, Ints
from solvers.problem import Problem
from telemetry.messages import LlmSession, VideoClip

SLOTS = 3  # cell uplink, node, node memory


@dataclass(frozen=True, slots=True)
class Layout:
    """Columns of all candidate points, as long as the set of tasks and their phases stay (J points, N tasks)."""

    tasks: tuple[Task, ...]
    names: tuple[str, ...]
    first: Ints  # (N + 1,)
    owner: Ints  # (J,) task of a point
    row: Ints  # (J,) row in the task's PointTable
    point_ids: tuple[str, ...]
    slot: Ints  # (J, SLOTS)
    bits: Floats  # (J, 2)
    node_s: Floats  # (J, 2)
    fixed_s: Floats  # (J, 2)
    rate_hz: Floats  # (J, 2)
    memory: Floats  # (J,) fraction of the node's
    value: Floats  # (J,)
    deadline_s: Floats  # (N, 2)
    held: Ints  # (N,)
    cell: Ints  # (N,)
    ue: Ints  # (N,)
    prefilling: tuple[int, ...]  # tasks whose prefill is under way


@dataclass(frozen=True, slots=True)
class Planned:
    """A Problem and what is needed to read its solution."""

    problem: Problem
    mean_use: Floats  # (J, SLOTS) rate x work: what restrict() needs
    layout: Layout
    efficiency: Floats  # (N,) bit/s/Hz planned with


def resource_ids(site: Site) -> tuple[str, ...]:
    """Ids of the shared resources, in the order of the arrays: uplinks, nodes, memories."""
    nodes = [n.id for n in site.nodes]
    return (*(f"{c.id}/ul" for c in site.cells), *nodes, *(f"{n}/mem" for n in nodes))


def make_layout(state: State, newcomers: Sequence[Task], settings: Settings, node_bytes: Floats) -> Layout:
    """Gather the candidate points of all tasks. node_bytes (nodes,): memory for sessions on each node."""
    tasks = (*state.tasks.values(), *newcomers)
    rows = [t.candidates() for t in tasks]
    count = np.array([len(r) for r in rows], dtype=np.int64)
    owner = np.repeat(np.arange(len(tasks)), count)
    node = _gather([t.table.node.astype(np.float64) for t in tasks], rows, (0,)).astype(np.int64)
    cell = np.array([t.cell for t in tasks], dtype=np.int64)
    n_cells, n_nodes = len(state.site.cells), len(state.site.nodes)
    away = node != LOCAL
    padding = n_cells + 2 * n_nodes
    slot = np.where(
        away[:, None],
        np.stack([cell[owner] if tasks else node, n_cells + node, n_cells + n_nodes + node], axis=1),
        padding,
    )
    bytes_used = _gather([t.table.node_bytes for t in tasks], rows, (0,))
    columns = {name: _gather([getattr(t.table, name) for t in tasks], rows, (0, 2)) for name in _PHASED}
    decoding = np.array([t.is_llm and t.phase == 1 for t in tasks], dtype=bool)
    for name in ("ul_bits", "node_s"):
        columns[name][decoding[owner], 0] = 0.0
    deadline = np.array([_deadlines(t) for t in tasks]).reshape(-1, 2)
    return Layout(
        tasks=tasks,
        names=tuple(t.offer.task for t in tasks),
        first=np.concatenate([[0], np.cumsum(count)]),
        owner=owner,
        row=np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64),
        point_ids=tuple(t.table.point_ids[r] for t, some in zip(tasks, rows, strict=True) for r in some),
        slot=slot,
        bits=columns["ul_bits"],
        node_s=columns["node_s"],
        fixed_s=columns["fixed_s"],
        rate_hz=np.array([t.table.rate_hz for t in tasks]).reshape(-1, 2)[owner],
        memory=np.where(away, bytes_used / node_bytes[node], 0.0),
        value=_values(tasks, rows, settings),
        deadline_s=deadline,
        held=np.array(_held(tasks, rows, count), dtype=np.int64),
        cell=cell,
        ue=np.array([t.ue for t in tasks], dtype=np.int64),
        prefilling=tuple(
            i for i, t in enumerate(tasks) if t.is_llm and t.phase == 0 and t.progress is not None and t.point >= 0
        ),
    )


_PHASED = ("ul_bits", "node_s", "fixed_s")


def _gather(columns: list[Floats], rows: list[Ints], shape: tuple[int, ...]) -> Floats:
    if not rows:
        return np.zeros(shape)
    return np.concatenate([c[r] for c, r in zip(columns, rows, strict=True)])


def _deadlines(task: Task) -> tuple[float, float]:
    """Deadlines of the phases that still lie ahead."""
    first, second = task.table.deadline_s
    return (np.inf if task.is_llm and task.phase == 1 else float(first)), float(second)


def _held(tasks: Sequence[Task], rows: list[Ints], count: Ints) -> list[int]:
    start = np.cumsum(count) - count
    return [
        int(s) + int(np.flatnonzero(r == t.point)[0]) if t.point >= 0 else -1
        for t, r, s in zip(tasks, rows, start, strict=True)
    ]


def _values(tasks: Sequence[Task], rows: list[Ints], settings: Settings) -> Floats:
    """Value of each candidate: weight x quality, what it is worth to go on, less the cost of a switch."""
    values = []
    for task, some in zip(tasks, rows, strict=True):
        value = task.offer.weight * task.table.quality[some]
        if task.point >= 0:
            value = value + task.offer.weight * settings.stickiness
            value = value - np.where(some == task.point, 0.0, settings.switch_cost * task.offer.weight)
        values.append(value)
    return np.concatenate(values) if values else np.zeros(0)


def pace(task: Task, settings: Settings) -> float:
    """TPOT to plan the next tokens with: behind means faster, within limits.

    The promise is on the mean over the session, so a token that was late is made up for over the next ones.
    """
    work, progress = task.offer.work, task.progress
    if not isinstance(work, LlmSession):
        return np.inf
    if progress is None or progress.phase == 0:
        return work.tpot_s * settings.deadline_margin
    aim = work.tpot_s * settings.deadline_margin
    ahead_s = (progress.done - 1) * aim - (progress.last_s - progress.first_s)
    paced = aim + ahead_s / settings.pace_horizon
    return min(max(paced, settings.pace_least * aim), settings.pace_most * aim)


def _frame_deadline(task: Task, settings: Settings) -> float:
    work = task.offer.work
    return work.deadline_s * settings.deadline_margin if isinstance(work, VideoClip) else np.inf


def _time_left(layout: Layout, now_s: float, settings: Settings) -> Floats:
    """(N, 2) planned deadline of each phase, counted from the start of its unit of work."""
    left = np.empty((len(layout.tasks), 2))
    for i, task in enumerate(layout.tasks):
        left[i, 1] = pace(task, settings)
        if not task.is_llm:
            left[i, 0] = _frame_deadline(task, settings)
        elif np.isinf(layout.deadline_s[i, 0]):
            left[i, 0] = np.inf
        else:
            left[i, 0] = layout.deadline_s[i, 0] * settings.deadline_margin
            left[i, 0] -= now_s - task.offer.at_ns * 1e-9
    return left


def _channel(
    state: State, layout: Layout, bits: Floats, left_s: Floats, now_s: float, settings: Settings
) -> tuple[Floats, Floats]:
    """(N,) bit/s/Hz to plan with, (N,) seconds per bit. left_s (J, 2): what a point leaves for the whole uplink.

    Frames are planned with less risk than sessions. Whom no point would serve in time at that, even alone, is planned
    with the mean: better a promise at even odds than none at all.
    """
    if not layout.tasks:
        return np.zeros(0), np.zeros(0)
    hz = np.array([c.ul_bandwidth_hz for c in state.site.cells])[layout.cell]
    session = state.channel.planned(now_s, settings.session_risk_sd)
    frame = state.channel.planned(now_s, settings.frame_risk_sd)
    is_llm = np.array([t.is_llm for t in layout.tasks], dtype=bool)
    careful = np.where(is_llm, session[layout.ue], frame[layout.ue])
    alone = (bits * (1.0 / (careful * hz))[layout.owner][:, None] <= left_s).all(axis=1)
    served = np.bincount(layout.owner[alone], minlength=len(layout.tasks)) > 0
    efficiency = np.where(served, careful, state.channel.planned(now_s, 0.0)[layout.ue])
    return efficiency, 1.0 / (efficiency * hz)


def plan_problem(state: State, layout: Layout, now_s: float, settings: Settings) -> Planned:
    """Columns of the present instant: efficiency estimates, deadlines as they are now, prefill as far as it is."""
    site = state.site
    bits, node_s, fixed_s = layout.bits, layout.node_s, layout.fixed_s
    if layout.prefilling:
        bits, node_s, fixed_s = bits.copy(), node_s.copy(), fixed_s.copy()
        for i in layout.prefilling:
            progress, j = layout.tasks[i].progress, int(layout.first[i])
            if progress is not None:
                bits[j, 0], node_s[j, 0] = progress.ul_bits_left, progress.node_s_left
                fixed_s[j, 0] = progress.fixed_s_left
    n_points = len(layout.owner)
    slack = _time_left(layout, now_s, settings)[layout.owner] - fixed_s
    efficiency, seconds_per_bit = _channel(state, layout, bits, slack - node_s, now_s, settings)
    work = np.zeros((n_points, 2, SLOTS))
    work[:, :, 0] = bits * seconds_per_bit[layout.owner][:, None]
    work[:, :, 1] = node_s
    mean_use = np.minimum((work * layout.rate_hz[:, :, None]).max(axis=1), 1.0)
    rigid = np.zeros((n_points, SLOTS))
    rigid[:, 2] = layout.memory
    problem = Problem(
        resource_ids=resource_ids(site),
        kinds=("comm",) * len(site.cells) + ("compute",) * len(site.nodes) + ("memory",) * len(site.nodes),
        background=state.background,
        coupling_from=np.zeros(0, dtype=np.int64),
        coupling_to=np.zeros(0, dtype=np.int64),
        coupling_per_share=np.zeros(0),
        task_ids=layout.names,
        first=layout.first,
        point_ids=layout.point_ids,
        value=layout.value,
        slack=slack,
        slot=layout.slot,
        work=work,
        floor=mean_use,
        cap=np.ones((n_points, SLOTS)),
        activity=np.ones((n_points, SLOTS)),
        rigid=rigid,
        held=layout.held,
        order=np.arange(len(layout.tasks)),
        channel=efficiency,
    )
    return Planned(problem=problem, mean_use=mean_use, layout=layout, efficiency=efficiency)
