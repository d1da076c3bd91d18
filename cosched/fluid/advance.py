"""Compiled inner loop of the fluid execution model: an exact event-driven simulation of weighted sharing.

Every task walks through device -> uplink -> propagation -> node for each unit of its work (the prefill, one decoded
token, one frame). Uplinks and nodes are shared by generalised processor sharing (Parekh & Gallager 1993): whoever is
in service gets its weight over the weights of all in service, so what an owner does not use flows to the others.
Between two events all rates are constant, so nothing is approximated by a time step.

State lives in two arrays, one row a task; the columns are the constants below. Times in seconds.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from solvers.jit import cached, nopython

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# float columns
W_UL: Final = 0  # weight on the uplink
W_NODE: Final = 1  # weight on the node
CAP_UL: Final = 2  # greatest share of the uplink that the UE's power carries
DEVICE_S: Final = 3  # + phase: device time of a unit
BITS: Final = 5  # + phase: uplink bits of a unit
FIXED_S: Final = 7  # + phase: propagation and other time that no share changes
NODE_S: Final = 9  # + phase: node time of a unit at full share
REMAINING: Final = 11  # of the stage in service: bits or node seconds
TIMER: Final = 12  # instant at which a timed stage ends
ARRIVAL: Final = 13
FIRST: Final = 14  # instant of the first token
LAST: Final = 15  # instant of the latest token or frame
PERIOD: Final = 16  # of a video's frames
DEADLINE: Final = 17  # of a frame, after its release
RELEASE: Final = 18  # of the frame in work
LATENCY_SUM: Final = 19  # over frames
DEVICE_BUSY: Final = 20  # accumulated device seconds
AIR_BUSY: Final = 21  # accumulated seconds on the air
NODE_BUSY: Final = 22  # accumulated node work, seconds at full share
N_FLOAT: Final = 23

# integer columns
KIND: Final = 0  # 0 llm, 1 video
STAGE: Final = 1
CELL: Final = 2
NODE: Final = 3
UE: Final = 4
PHASE: Final = 5
LEFT: Final = 6  # tokens or frames still to do
DONE: Final = 7  # tokens, or frames in time
LATE: Final = 8  # frames dropped at their deadline
N_INT: Final = 9

LLM: Final = 0
VIDEO: Final = 1

# stages
OUT: Final = 0  # finished or never started
ON_DEVICE: Final = 1
ON_AIR: Final = 2
IN_FLIGHT: Final = 3
ON_NODE: Final = 4
WAITING: Final = 5  # for the release of its next frame

# event codes
EVENT_FIRST: Final = 1
EVENT_FINISHED: Final = 2

_EPS: Final = 1e-12


@cached
def start_unit(f: Floats, n: Ints, i: int, now: float) -> None:
    """Task i begins its next unit of work at `now`."""
    phase = n[i, PHASE]
    n[i, STAGE] = ON_DEVICE
    f[i, TIMER] = now + f[i, DEVICE_S + phase]
    f[i, DEVICE_BUSY] += f[i, DEVICE_S + phase]


@nopython
def _next_frame(f: Floats, n: Ints, i: int, now: float) -> bool:
    """Release the next frame that can still be in time; True when there is none left."""
    while n[i, LEFT] > 0:
        f[i, RELEASE] += f[i, PERIOD]
        if f[i, RELEASE] + f[i, DEADLINE] > now + _EPS:
            if f[i, RELEASE] > now:
                n[i, STAGE] = WAITING
                f[i, TIMER] = f[i, RELEASE]
            else:
                start_unit(f, n, i, now)
            return False
        n[i, LEFT] -= 1
        n[i, LATE] += 1
    n[i, STAGE] = OUT
    return True


@nopython
def _finish_unit(f: Floats, n: Ints, i: int, now: float) -> int:
    """A unit of task i is done; returns the event code, 0 for none."""
    n[i, LEFT] -= 1
    n[i, DONE] += 1
    f[i, LAST] = now
    if n[i, KIND] == VIDEO:
        f[i, LATENCY_SUM] += now - f[i, RELEASE]
        return EVENT_FINISHED if _next_frame(f, n, i, now) else 0
    code = 0
    if n[i, PHASE] == 0:
        f[i, FIRST] = now
        n[i, PHASE] = 1
        code = EVENT_FIRST
    if n[i, LEFT] == 0:
        n[i, STAGE] = OUT
        return EVENT_FINISHED
    start_unit(f, n, i, now)
    return code


@nopython
def _next_stage(f: Floats, n: Ints, i: int, now: float) -> int:
    """Task i's stage is over; enter the next that has something to do. Returns the event code, 0 for none."""
    phase = n[i, PHASE]
    stage = n[i, STAGE]
    if stage == WAITING:
        start_unit(f, n, i, now)
        return 0
    if stage == ON_DEVICE:
        stage = ON_AIR
        if f[i, BITS + phase] > 0:
            n[i, STAGE] = ON_AIR
            f[i, REMAINING] = f[i, BITS + phase]
            return 0
    if stage == ON_AIR:
        stage = IN_FLIGHT
        if f[i, FIXED_S + phase] > 0:
            n[i, STAGE] = IN_FLIGHT
            f[i, TIMER] = now + f[i, FIXED_S + phase]
            return 0
    if stage == IN_FLIGHT and f[i, NODE_S + phase] > 0:
        n[i, STAGE] = ON_NODE
        f[i, REMAINING] = f[i, NODE_S + phase]
        return 0
    return _finish_unit(f, n, i, now)


@nopython
def _cell_rates(f: Floats, n: Ints, rate: Floats, hz: Floats, free: Floats, efficiency: Floats) -> None:
    """Bits per second of each task on the air; shares above a cap flow to the others (water-filling)."""
    n_tasks = f.shape[0]
    for c in range(hz.shape[0]):
        left, weights = free[c], 0.0
        for i in range(n_tasks):
            if n[i, STAGE] == ON_AIR and n[i, CELL] == c:
                rate[i] = -1.0
                weights += f[i, W_UL]
        again = True
        while again and weights > 0:
            again = False
            for i in range(n_tasks):
                if (
                    n[i, STAGE] == ON_AIR
                    and n[i, CELL] == c
                    and rate[i] < 0
                    and (f[i, CAP_UL] < left * f[i, W_UL] / weights)
                ):
                    rate[i] = f[i, CAP_UL]
                    left -= f[i, CAP_UL]
                    weights -= f[i, W_UL]
                    again = True
                    break
        for i in range(n_tasks):
            if n[i, STAGE] == ON_AIR and n[i, CELL] == c:
                share = rate[i] if rate[i] >= 0 else left * f[i, W_UL] / weights
                rate[i] = share * hz[c] * efficiency[n[i, UE]]


@nopython
def _node_rates(f: Floats, n: Ints, rate: Floats, total: Floats, free: Floats) -> None:
    """Node seconds per second of each task in service on a node."""
    total[:] = 0.0
    for i in range(f.shape[0]):
        if n[i, STAGE] == ON_NODE:
            total[n[i, NODE]] += f[i, W_NODE]
    for i in range(f.shape[0]):
        if n[i, STAGE] == ON_NODE:
            rate[i] = free[n[i, NODE]] * f[i, W_NODE] / total[n[i, NODE]]


@nopython
def _next_event(f: Floats, n: Ints, rate: Floats, now: float, until: float) -> float:
    """Earliest instant at which a stage ends or a frame's deadline passes, at most `until`."""
    t = until
    for i in range(f.shape[0]):
        stage = n[i, STAGE]
        if stage == OUT:
            continue
        if stage in (ON_AIR, ON_NODE):
            end = now + f[i, REMAINING] / rate[i] if rate[i] > 0 else np.inf
        else:
            end = f[i, TIMER]
        if n[i, KIND] == VIDEO and stage != WAITING:
            end = min(end, f[i, RELEASE] + f[i, DEADLINE])
        t = min(t, end)
    return max(t, now)


@nopython
def _serve(
    f: Floats, n: Ints, rate: Floats, dt: float, used_cell: Floats, used_node: Floats, free_cell: Floats
) -> None:
    """Let time pass: work off what is in service and account for it."""
    busy = np.zeros(used_cell.shape[0])
    for i in range(f.shape[0]):
        if n[i, STAGE] == ON_AIR:
            f[i, REMAINING] -= rate[i] * dt
            f[i, AIR_BUSY] += dt
            busy[n[i, CELL]] = 1.0
        elif n[i, STAGE] == ON_NODE:
            f[i, REMAINING] -= rate[i] * dt
            f[i, NODE_BUSY] += rate[i] * dt
            used_node[n[i, NODE]] += rate[i] * dt
    for c in range(busy.shape[0]):
        used_cell[c] += busy[c] * free_cell[c] * dt


@nopython
def _is_over(f: Floats, n: Ints, rate: Floats, i: int, now: float) -> bool:
    """Whether task i's stage ends now; what is left by rounding (a picosecond's work) is none."""
    if n[i, STAGE] == ON_AIR or n[i, STAGE] == ON_NODE:
        return bool(f[i, REMAINING] <= rate[i] * _EPS)
    return bool(f[i, TIMER] <= now + _EPS)


@cached
def advance(
    f: Floats,
    n: Ints,
    efficiency: Floats,
    changes: tuple[Floats, Ints, Floats],
    cursor: int,
    cells: tuple[Floats, Floats, Floats],
    nodes: tuple[Floats, Floats],
    now: float,
    until: float,
    log: tuple[Floats, Ints, Ints],
) -> tuple[int, int]:
    """Run from `now` to `until`.

    f (M, N_FLOAT), n (M, N_INT): task rows, changed in place. efficiency (U,): bit/s/Hz in force, changed in place by
    changes = (instants, ues, values) from `cursor` on. cells = (bandwidth Hz, free fraction, used seconds), nodes =
    (free fraction, used seconds); used is accumulated. log = (instants, rows, codes) is filled with first-token
    and finished events; it must hold 2 M entries. Returns (cursor, number of log entries).
    """
    n_log = 0
    rate = np.zeros(f.shape[0])
    total = np.zeros(nodes[0].shape[0])
    while now < until:
        while cursor < changes[0].shape[0] and changes[0][cursor] <= now + _EPS:
            efficiency[changes[1][cursor]] = changes[2][cursor]
            cursor += 1
        stop = until if cursor >= changes[0].shape[0] else min(until, changes[0][cursor])
        _cell_rates(f, n, rate, cells[0], cells[1], efficiency)
        _node_rates(f, n, rate, total, nodes[0])
        t = _next_event(f, n, rate, now, stop)
        _serve(f, n, rate, t - now, cells[2], nodes[1], cells[1])
        now = t
        for i in range(f.shape[0]):
            if n[i, STAGE] == OUT:
                continue
            code = 0
            if _is_over(f, n, rate, i, now):
                code = _next_stage(f, n, i, now)
            elif n[i, KIND] == VIDEO and n[i, STAGE] != WAITING and f[i, RELEASE] + f[i, DEADLINE] <= now + _EPS:
                n[i, LEFT] -= 1
                n[i, LATE] += 1
                code = EVENT_FINISHED if _next_frame(f, n, i, now) else 0
            if code:
                log[0][n_log], log[1][n_log], log[2][n_log] = now, i, code
                n_log += 1
    return cursor, n_log
