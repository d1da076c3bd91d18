"""Snapshot -> Problem: operating points in physical units become columns of shares and seconds.

What stays from tick to tick (Layout) is gathered when the set of tasks, a phase or a point changes; what the clock,
the channel and progress change is one compiled pass (columns.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cosched.core import columns as col
from cosched.core.moving import Moves, charged
from cosched.core.settings import Settings
from cosched.core.state import Block, State, Task
from cosched.site import Site
from cosched.workloads.base import Floats, Ints
from solvers.problem import Devices, Problem, Steps

SLOTS = col.SLOTS  # cell uplink, node, node memory


class Columns(NamedTuple):
    """What is gathered task by task (J points, N tasks); a Layout has it too."""

    tasks: tuple[Task, ...]
    names: tuple[str, ...]
    point_ids: tuple[str, ...]
    points: Floats  # (J, N_POINT)
    task: Floats  # (N, N_TASK)
    progress_row: Ints  # (N,) of state.progress
    moves: tuple[tuple[int, Moves], ...]  # of the sessions that may move, by task


@dataclass(frozen=True, slots=True)
class Layout:
    """Columns of all candidate points, as long as the set of tasks and their phases stay (J points, N tasks)."""

    tasks: tuple[Task, ...]
    names: tuple[str, ...]
    point_ids: tuple[str, ...]
    points: Floats  # (J, N_POINT)
    task: Floats  # (N, N_TASK)
    progress_row: Ints  # (N,) of state.progress
    moves: tuple[tuple[int, Moves], ...]  # of the sessions that may move, by task
    first: Ints  # (N + 1,)
    owner: Ints  # (J,) task of a point
    row: Ints  # (J,) row in the task's PointTable
    slot: Ints  # (J, SLOTS)
    rigid: Floats  # (J, SLOTS)
    ones: Floats  # (J, SLOTS)
    value: Floats  # (J,)
    held: Ints  # (N,)
    cell: Ints  # (N,)
    order: Ints  # (N,)


@dataclass(frozen=True, slots=True)
class Planned:
    """A Problem and what is needed to read its solution."""

    problem: Problem
    mean_use: Floats  # (J, SLOTS) rate x work: what restrict() needs
    layout: Layout
    efficiency: Floats  # (N,) bit/s/Hz planned with
    pace_s: Floats  # (N,) seconds a token that is counted on, inf where nothing is decoded
    alone_slack: Floats  # (J, 2) slack with nobody else in the steps of its node
    device_load: Floats  # (N,) part of its device that the UE's earlier tasks take
    wait_s: Floats  # (J, 2) seconds that each phase waits for steps, once their lengths are known
    queue_use: Floats  # (J,) of its node that a prefill in a queue takes on average, until it is due


def resource_ids(site: Site) -> tuple[str, ...]:
    """Ids of the shared resources, in the order of the arrays: uplinks, nodes, memories."""
    nodes = [n.id for n in site.nodes]
    return (*(f"{c.id}/ul" for c in site.cells), *nodes, *(f"{n}/mem" for n in nodes))


def make_layout(state: State, newcomers: Sequence[Task], settings: Settings, node_bytes: Floats) -> Layout:
    """Gather the candidate points of all tasks. node_bytes (nodes,): memory for sessions on each node."""
    nobody = Columns((), (), (), np.zeros((0, col.N_POINT)), np.zeros((0, col.N_TASK)), np.zeros(0, dtype=np.int64), ())
    running = _behind(nobody, tuple(state.tasks.values()), state, state.progress_rows())
    return add_newcomers(running, newcomers, state, settings, node_bytes)


def add_newcomers(
    running: Columns | Layout, newcomers: Sequence[Task], state: State, settings: Settings, node_bytes: Floats
) -> Layout:
    """Return the layout of the tasks that run with newcomers behind them."""
    columns = _behind(running, tuple(newcomers), state, np.full(len(newcomers), -1))
    points, tasks = columns.points, columns.tasks
    gathered = col.new_gathered(len(points), len(tasks))
    value_of = (settings.stickiness, settings.switch_cost)
    col.gather(gathered, points, columns.task, len(state.site.cells), node_bytes, *value_of)
    return Layout(
        **columns._asdict(),
        ones=np.ones(gathered.slot.shape),
        order=np.arange(len(tasks)),
        **gathered._asdict(),
    )


def _behind(running: Columns | Layout, tasks: tuple[Task, ...], state: State, progress_row: Ints) -> Columns:
    beside = _beside(running.tasks, tasks)
    blocks = [_within_memory(t, t.block(state.places, state.models), beside.get(t.ue, ())) for t in tasks]
    return Columns(
        tasks=(*running.tasks, *tasks),
        names=(*running.names, *[t.offer.task for t in tasks]),
        point_ids=(*running.point_ids, *itertools.chain.from_iterable([b.ids for b in blocks])),
        points=np.concatenate([running.points, *[b.points for b in blocks]]),
        task=np.concatenate([running.task.ravel(), *[b.task for b in blocks]]).reshape(-1, col.N_TASK),
        progress_row=np.concatenate([running.progress_row, progress_row]),
        moves=(
            *running.moves,
            *[(i, b.moves) for i, b in enumerate(blocks, len(running.tasks)) if b.moves is not None],
        ),
    )


def _beside(running: Sequence[Task], tasks: Sequence[Task]) -> dict[int, list[Task]]:
    """UE -> its tasks that run, of the UEs of newcomers; one pass, for a burst of these beside thousands that run."""
    found: dict[int, list[Task]] = {t.ue: [] for t in tasks if t.point < 0}
    for task in running if found else ():
        if task.ue in found and task.point >= 0:
            found[task.ue].append(task)
    return found


def _within_memory(task: Task, block: Block, beside: Sequence[Task]) -> Block:
    """Rule points out for which a newcomer's device has no memory beside what its UE's other tasks hold."""
    if task.point >= 0 or not beside or task.table.device_bytes is None:
        return block
    layers: dict[str, float] = {}  # once for all sessions of a model
    cached = 0.0
    for other in beside:
        if other.table.device_bytes is not None:
            weights, kv = other.table.device_bytes[other.point]
            layers[other.model] = max(layers.get(other.model, 0.0), float(weights))
            cached += float(kv)
    own = layers.pop(task.model, 0.0)
    needed = task.table.device_bytes[block.points[:, col.ROW].astype(np.int64)]
    full = np.maximum(needed[:, 0], own) + needed[:, 1] + sum(layers.values()) + cached > 1 + col.FULL
    if not full.any():
        return block
    points = block.points.copy()
    points[full, col.FIXED_S] = np.inf
    return block._replace(points=points)


def plan_problem(
    state: State, layout: Layout, now_s: float, settings: Settings, *, busy: Floats | None = None
) -> Planned:
    """Columns of the present instant: efficiency estimates, deadlines as they are now, prefill as far as it is.

    busy (nodes,): planned use of each node, None: all of it.
    """
    planned = state.channel.planned
    careful = planned(now_s, settings.session_risk_sd), planned(now_s, settings.frame_risk_sd)
    channel = col.Channel(*careful, planned(now_s, 0.0), np.array([c.ul_bandwidth_hz for c in state.site.cells]))
    rule = col.PaceRule(settings.deadline_margin, float(settings.pace_horizon), settings.pace_least, settings.pace_most)
    now = col.new_tick(len(layout.points), len(layout.tasks))
    rows = (layout.first, layout.points, layout.task, layout.progress_row)
    busy = np.ones(len(state.site.nodes)) if busy is None else np.minimum(busy, 1.0)
    col.fill(now, *rows, state.progress, channel, now_s, rule, busy)
    site = state.site
    problem = Problem(
        resource_ids=resource_ids(site),
        kinds=("comm",) * len(site.cells) + ("compute",) * len(site.nodes) + ("memory",) * len(site.nodes),
        background=state.background.copy(),
        coupling_from=np.zeros(0, dtype=np.int64),
        coupling_to=np.zeros(0, dtype=np.int64),
        coupling_per_share=np.zeros(0),
        task_ids=layout.names,
        first=layout.first,
        point_ids=layout.point_ids,
        value=_values(layout, now.efficiency * channel.hz[layout.cell], settings) if layout.moves else layout.value,
        slack=now.slack,
        slot=layout.slot,
        work=now.work,
        floor=now.mean_use,
        cap=layout.ones,
        activity=layout.ones,
        rigid=layout.rigid,
        held=layout.held,
        order=layout.order,
        channel=now.efficiency,
        devices=Devices(layout.task[:, col.UE].astype(np.int64), layout.points[:, col.DEVICE_USE].copy()),
        steps=_steps(layout, now, settings),
    )
    # a queue is no statistical use of the node
    mean_use, queue_use = now.mean_use.copy(), np.where(now.queued, now.mean_use[:, 1], 0.0)
    mean_use[now.queued, 1] = 0.0
    alone_slack = now.slack.copy()
    alone_slack[:, 1] -= layout.points[:, col.SHARED_S] + layout.points[:, col.OWN_S]
    return Planned(
        problem, mean_use, layout, now.efficiency, now.pace_s, alone_slack, now.device_load, np.zeros_like(now.slack),
        queue_use,
    )  # fmt: skip


def _steps(layout: Layout, now: col.Instant, settings: Settings) -> Steps:
    """What of each point depends on the steps of its node."""
    points, task = layout.points, layout.task
    return Steps(
        slot=np.where(points[:, col.NODE] >= 0, 1, -1),
        shared_s=points[:, col.SHARED_S].copy(),
        own_s=points[:, col.OWN_S].copy(),
        pace_s=task[layout.owner, col.DEADLINE_S + 1] * settings.deadline_margin,
        streams=points[:, col.BITS + 1] <= 0,
        demand=now.demand,
        wait=now.wait,
        group=task[layout.owner, col.MODEL].astype(np.int64),
        weight=task[:, col.WEIGHT].copy(),
        queued=now.queued,
        lead_s=now.lead_s,
    )


def _values(layout: Layout, uplink_bps: Floats, settings: Settings) -> Floats:
    """(J,) values, those of sessions that may move less what that costs at the present channel (N,)."""
    first = layout.first.tolist()
    moves = [(slice(first[i], first[i + 1]), layout.tasks[i].offer.weight, one) for i, one in layout.moves]
    return charged(layout.value, moves, [float(uplink_bps[i]) for i, _ in layout.moves], settings)
