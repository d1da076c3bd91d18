"""Compiled passes over all candidate points: what a layout holds, and what of a Problem changes from tick to tick.

One pass instead of a dozen array operations: at a few tasks the calls cost more than the arithmetic, at thousands the
temporaries do.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from cosched.workloads.base import Bools, Floats, Ints
from solvers.jit import cached, nopython

SLOTS: Final = 3  # cell uplink, node, node memory

# what kind of work a task does next
FRAMES: Final = 0
WAITING: Final = 1  # a session of which nothing has been served
PREFILLING: Final = 2
DECODING: Final = 3

# columns of a point, + phase where there are two
BITS: Final = 0
NODE_S: Final = 2
FIXED_S: Final = 4
QUALITY: Final = 6
BYTES: Final = 7
NODE: Final = 8  # index, below 0 = the device alone
ROW: Final = 9  # of the task's table
SHARED_S: Final = 10  # of a step of the node: what all in it share
OWN_S: Final = 11  # ... and what this sequence adds to it
DEVICE_S: Final = 12  # + phase
DEVICE_USE: Final = 14  # part of the device's time
N_POINT: Final = 15

# columns of a task
DEADLINE_S: Final = 0  # + phase
RATE_HZ: Final = 2  # + phase
ARRIVAL_S: Final = 4
WEIGHT: Final = 5
KIND: Final = 6
COUNT: Final = 7  # of its points
HELD: Final = 8  # which of them it holds, -1 = none
CELL: Final = 9
UE: Final = 10  # row of the channel estimates
MODEL: Final = 11  # that it runs layers of, a number from 0
N_TASK: Final = 12

FULL: Final = 1e-9  # of a device: rounding
MOST_LOAD: Final = 0.99  # of a device that others take: what is beside them ends nevertheless

# steps of its node by which the slack of a unit of work is less
FRAME_STEPS: Final = 0.5  # frames are done within a step, wherever in it
PREFILL_STEPS: Final = 1.0
TOKEN_STEPS: Final = 1.0  # its own; who is sent for at each token waits for the rest of another's as well
FOREIGN_STEPS: Final = 0.5  # ... which on average is half of one, as often as one is running

# columns of progress (cosched/core/events.py)
DONE: Final = 0
FIRST_S: Final = 1
LAST_S: Final = 2
BITS_LEFT: Final = 3
NODE_S_LEFT: Final = 4
FIXED_S_LEFT: Final = 5
N_PROGRESS: Final = 6


class Gathered(NamedTuple):
    """Columns that stay while the set of tasks and their phases do: N tasks with J points."""

    first: Ints  # (N + 1,)
    owner: Ints  # (J,)
    row: Ints  # (J,)
    slot: Ints  # (J, SLOTS)
    rigid: Floats  # (J, SLOTS)
    value: Floats  # (J,)
    held: Ints  # (N,) of all J, -1 = none
    cell: Ints  # (N,)


class PaceRule(NamedTuple):
    """How deadlines are planned (cosched/core/settings.py)."""

    margin: float
    pace_horizon: float
    pace_least: float
    pace_most: float


class Channel(NamedTuple):
    """(U,) bit/s/Hz to plan sessions and frames with, and the mean; (cells,) bandwidth."""

    session: Floats
    frame: Floats
    mean: Floats
    hz: Floats


class Instant(NamedTuple):
    """The columns of one instant."""

    work: Floats  # (J, 2, SLOTS) seconds at full share
    slack: Floats  # (J, 2) seconds
    mean_use: Floats  # (J, SLOTS) rate x work
    efficiency: Floats  # (N,) bit/s/Hz planned with
    demand: Floats  # (J,) part of the node that decoding takes besides
    wait: Floats  # (J, 2) steps of the node by which slack is less
    pace_s: Floats  # (N,) seconds a token that the plan counts on, inf where nothing is decoded
    device_load: Floats  # (N,) part of its device that the UE's earlier tasks take
    queued: Bools  # (J,) whether its prefill waits on its node for those that are due before
    lead_s: Floats  # (N,) seconds until the next token is due, inf where none is


def new_gathered(n_points: int, n_tasks: int) -> Gathered:
    """Room for a layout's columns. NumPy's memory is used again and again, that of compiled code comes anew."""
    points, tasks = (np.zeros(n, dtype=np.int64) for n in (n_points, n_tasks))
    return Gathered(
        first=np.zeros(n_tasks + 1, dtype=np.int64),
        owner=points,
        row=points.copy(),
        slot=np.zeros((n_points, SLOTS), dtype=np.int64),
        rigid=np.zeros((n_points, SLOTS)),
        value=np.zeros(n_points),
        held=tasks,
        cell=tasks.copy(),
    )


@cached
def gather(
    out: Gathered, points: Floats, task: Floats, n_cells: int, node_bytes: Floats, stickiness: float, switch: float
) -> None:
    """Take columns (J, N_POINT) and (N, N_TASK) apart into `out`, which holds zeros.

    node_bytes (nodes,): memory for sessions. Values: weight x quality, and for a running task what it is worth to go on
    less the cost of a switch, both in multiples of its weight.
    """
    first, owner, row, slot, rigid, value, held, cell = out
    n_nodes = node_bytes.shape[0]
    for i in range(task.shape[0]):
        first[i + 1] = first[i] + int(task[i, COUNT])
        held[i] = first[i] + int(task[i, HELD]) if task[i, HELD] >= 0 else -1
        cell[i] = int(task[i, CELL])
        for j in range(first[i], first[i + 1]):
            owner[j], row[j], node = i, int(points[j, ROW]), int(points[j, NODE])
            if node >= 0:
                slot[j, 0], slot[j, 1], slot[j, 2] = cell[i], n_cells + node, n_cells + n_nodes + node
                rigid[j, 2] = points[j, BYTES] / node_bytes[node]
            else:
                slot[j, :] = n_cells + 2 * n_nodes  # no resource
            value[j] = task[i, WEIGHT] * points[j, QUALITY]
            if held[i] >= 0:
                value[j] += task[i, WEIGHT] * stickiness
            if held[i] >= 0 and j != held[i]:
                value[j] -= switch * task[i, WEIGHT]


@nopython
def _pace_s(aim_s: float, progress: Floats, k: int, rule: PaceRule) -> float:
    """TPOT to plan the next tokens with: behind means faster, within limits.

    The promise is on the mean over the session, so a token that was late is made up for over the next ones.
    """
    ahead_s = (progress[k, DONE] - 1) * aim_s - (progress[k, LAST_S] - progress[k, FIRST_S])
    paced_s = aim_s + ahead_s / rule.pace_horizon
    return float(min(max(paced_s, rule.pace_least * aim_s), rule.pace_most * aim_s))


@nopython
def _left_s(task: Floats, i: int, progress: Floats, k: int, now_s: float, rule: PaceRule) -> tuple[float, float]:
    """Planned deadline of each phase, counted from the start of its unit of work; inf where it is over."""
    aim_s = task[i, DEADLINE_S + 1] * rule.margin
    if task[i, KIND] == DECODING:
        return np.inf, _pace_s(aim_s, progress, k, rule)
    left_s = task[i, DEADLINE_S] * rule.margin
    if task[i, KIND] != FRAMES:
        left_s -= now_s - task[i, ARRIVAL_S]
    return left_s, aim_s


@nopython
def _rates_hz(task: Floats, i: int, left_s: tuple[float, float], margin: float) -> tuple[float, float]:
    """Activations a second of each phase that the plan counts on.

    Who is ahead of the promised pace asks for less for a while, who is behind for more. A prefill comes once: until it
    is due it uses what it needs for certain.
    """
    first, second = task[i, RATE_HZ], task[i, RATE_HZ + 1]
    if task[i, KIND] == DECODING:
        second = margin / left_s[1]
    elif task[i, KIND] == PREFILLING and left_s[0] > 0.0:
        first = max(first, 1.0 / left_s[0])
    return first, second


@nopython
def _is_in_time(bits_and_s: Floats, slack: Floats, j: int, seconds_per_bit: float, step_s: float) -> bool:
    """Whether point j holds its deadlines with cell and node to itself, in steps of its own alone.

    bits_and_s (J, 2, SLOTS).
    """
    first = bits_and_s[j, 0, 0] * seconds_per_bit <= slack[j, 0] - bits_and_s[j, 0, 1]
    return bool(first and bits_and_s[j, 1, 0] * seconds_per_bit <= slack[j, 1] - bits_and_s[j, 1, 1] - step_s)


def new_tick(n_points: int, n_tasks: int) -> Instant:
    """Room for an instant's columns."""
    return Instant(
        np.zeros((n_points, 2, SLOTS)), np.empty((n_points, 2)), np.zeros((n_points, SLOTS)), np.empty(n_tasks),
        np.zeros(n_points), np.zeros((n_points, 2)), np.empty(n_tasks), np.zeros(n_tasks),
        np.zeros(n_points, dtype=np.bool_), np.full(n_tasks, np.inf),
    )  # fmt: skip


@nopython
def _steps(points: Floats, j: int, kind: int, busy: float, wait: Floats) -> None:
    """Set wait (2,) of point j; busy: part of the time in which a step of its node runs."""
    if points[j, NODE] < 0:
        return
    if kind == FRAMES:
        wait[0] = FRAME_STEPS
        return
    if kind != DECODING:
        wait[0] = PREFILL_STEPS
    if points[j, OWN_S] > 0:
        wait[1] = TOKEN_STEPS
        if kind == WAITING and points[j, BITS + 1] > 0:  # who runs has his place in the rhythm of the steps
            wait[1] += FOREIGN_STEPS * busy


@nopython
def _is_queued(points: Floats, j: int, kind: int) -> bool:
    """Whether all that the first token of point j needs besides its node's work is the way of the prompt."""
    alone = points[j, NODE] >= 0 and points[j, OWN_S] > 0 and points[j, BITS + 1] <= 0
    return bool(alone and kind in (WAITING, PREFILLING))


@nopython
def _load_devices(
    first: Ints, points: Floats, task: Floats, device_load: Floats, on_device: Floats, comes: Bools
) -> None:
    """Set device_load (N,): what the tasks before take of the same UE's device; on_device (UEs,): what all of it take.

    comes (UEs,): whether one of it comes. Tasks are in order of admission, newcomers last, and of one UE there is at
    most one newcomer.
    """
    for i in range(task.shape[0]):
        ue = int(task[i, UE])
        device_load[i] = on_device[ue]
        if task[i, HELD] >= 0:
            on_device[ue] += points[first[i] + int(task[i, HELD]), DEVICE_USE]
        else:
            comes[ue] = True


@nopython
def _wait_for_device(
    points: Floats, j: int, held: int, load: float, all_load: float, comes: bool, slack: Floats
) -> None:
    """Take from slack (2,) of point j what its device does meanwhile for the UE's other tasks.

    held: the point of a task that runs, below 0 = it is new. The tasks before come first, so it has what they leave. A
    newcomer takes no more than is left; who runs no more than he has, unless nobody else is there or comes.
    """
    own = points[held, DEVICE_USE] if held >= 0 else 0.0
    others, use = all_load - own, points[j, DEVICE_USE]
    if use > own + FULL and (others + use > 1.0 + FULL if held < 0 else (others > FULL or comes)):
        slack[:] = -np.inf
    elif load > 0.0:
        for q in range(2):
            slack[q] -= points[j, DEVICE_S + q] * (1.0 / (1.0 - min(load, MOST_LOAD)) - 1.0)


@cached
def fill(
    out: Instant,
    first: Ints,
    points: Floats,
    task: Floats,
    row: Ints,
    progress: Floats,
    channel: Channel,
    now_s: float,
    rule: PaceRule,
    busy: Floats,
) -> None:
    """Fill `out`, as new_tick gives it, with the columns of the instant now_s.

    row (N,) of progress (rows, N_PROGRESS), -1 = none yet. busy (nodes,): part of the time in which a step runs.
    Frames are planned with less risk than sessions. Whom no point would serve in time at that, even alone, is planned
    with the mean: better a promise at even odds than none at all.
    """
    work, slack, mean_use, efficiency, demand, wait, pace_s, device_load, queued, lead_s = out
    is_alone = np.sum(task[:, HELD] < 0) == 1  # of several newcomers each is planned with a share: they share in prices
    on_device = np.zeros(channel.mean.shape[0])  # by UE: what its tasks take
    comes = np.zeros(channel.mean.shape[0], dtype=np.bool_)  # by UE: whether one asks that has nothing yet
    _load_devices(first, points, task, device_load, on_device, comes)
    for i in range(task.shape[0]):
        k, kind, ue, hz = max(row[i], 0), int(task[i, KIND]), int(task[i, UE]), channel.hz[int(task[i, CELL])]
        left_s = _left_s(task, i, progress, k, now_s, rule)
        held = first[i] + int(task[i, HELD]) if task[i, HELD] >= 0 else -1
        efficiency[i] = channel.frame[ue] if kind == FRAMES else channel.session[ue]
        seconds_per_bit, is_served = 1.0 / (efficiency[i] * hz), False
        for j in range(first[i], first[i + 1]):
            for q in range(2):
                work[j, q, 0] = points[j, BITS + q]  # until their rate is known
                work[j, q, 1] = points[j, NODE_S + q]
                slack[j, q] = left_s[q] - points[j, FIXED_S + q]
            if kind == PREFILLING:  # what is left of it
                work[j, 0, 0], work[j, 0, 1] = progress[k, BITS_LEFT], progress[k, NODE_S_LEFT]
                slack[j, 0] = left_s[0] - progress[k, FIXED_S_LEFT]
            _wait_for_device(points, j, held, device_load[i], on_device[ue], comes[ue], slack[j])
            alone_s = points[j, SHARED_S] + points[j, OWN_S]
            is_served = is_served or _is_in_time(work, slack, j, seconds_per_bit, alone_s)
        if not is_served:
            efficiency[i] = channel.mean[ue]
            seconds_per_bit = 1.0 / (efficiency[i] * hz)
        rate_hz = _rates_hz(task, i, left_s, rule.margin)
        pace_s[i] = 1.0 / rate_hz[1] if rate_hz[1] > 0 else np.inf
        if kind == DECODING:
            due_s = progress[k, FIRST_S] + progress[k, DONE] * task[i, DEADLINE_S + 1] * rule.margin
            lead_s[i] = max(0.0, due_s - now_s)
        for j in range(first[i], first[i + 1]):
            for q in range(2):
                work[j, q, 0] *= seconds_per_bit
                for s in range(2):
                    mean_use[j, s] = max(mean_use[j, s], min(work[j, q, s] * rate_hz[q], 1.0))
            _steps(points, j, kind, busy[max(int(points[j, NODE]), 0)], wait[j])
            queued[j] = _is_queued(points, j, kind) and (j == held or (held < 0 and is_alone))
            # first the prefill, then the tokens: what it takes is the greater of the two, not both
            demand[j] = max(0.0, points[j, OWN_S] * rate_hz[1] - (0.0 if queued[j] else mean_use[j, 1]))


@cached
def unbeaten(value: Floats, seconds: Floats) -> Bools:
    """(n,) which points no other beats: none of more value or as much (n,) takes no more seconds (n, R).

    Of equal ones the first. Compiled, since it is called at every submit.
    """
    n = value.shape[0]
    keep = np.ones(n, dtype=np.bool_)
    for j in range(n):
        for i in range(n):
            if i == j or not keep[i] or value[i] < value[j]:
                continue
            no_worse, equal = True, value[i] == value[j]
            for r in range(seconds.shape[1]):
                no_worse = no_worse and seconds[i, r] <= seconds[j, r]
                equal = equal and seconds[i, r] == seconds[j, r]
            if no_worse and (not equal or i < j):
                keep[j] = False
                break
    return keep
