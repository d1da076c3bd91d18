"""Compiled inner loop of the fluid execution model: an exact event-driven simulation.

Every task walks through device -> uplink -> propagation -> node for each unit of its work (the prefill, one decoded
token, one frame). A UE's device works on one thing at a time, whatever is due first. Uplinks are shared by generalised
processor sharing (Parekh & Gallager 1993): whoever is in service gets its weight over the weights of all in service, so
what an owner does not use flows to the others. Nodes serve in steps (nodes.py). Between two events all rates are
constant, so nothing is approximated by a time step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from cosched.fluid import nodes as steps
from cosched.fluid import rows as fl
from cosched.fluid.rows import Floats, Ints
from solvers.jit import cached, nopython


@nopython
def _start_unit(f: Floats, n: Ints, i: int, now: float) -> None:
    """Task i begins its next unit of work at `now`."""
    n[i, fl.STAGE] = fl.ON_DEVICE
    f[i, fl.REMAINING] = f[i, fl.DEVICE_S + n[i, fl.PHASE]]
    if f[i, fl.REMAINING] <= 0:
        _leave_device(f, n, i, now)


@nopython
def _leave_device(f: Floats, n: Ints, i: int, now: float) -> None:
    """Task i goes on to the next place that has something to do; its node has, or nobody but its device."""
    phase = n[i, fl.PHASE]
    if f[i, fl.BITS + phase] > 0:
        n[i, fl.STAGE] = fl.ON_AIR
        f[i, fl.REMAINING] = f[i, fl.BITS + phase]
        return
    _leave_air(f, n, i, now)


@nopython
def _leave_air(f: Floats, n: Ints, i: int, now: float) -> None:
    phase = n[i, fl.PHASE]
    n[i, fl.STAGE] = fl.IN_FLIGHT
    f[i, fl.TIMER] = now + f[i, fl.FIXED_S + phase]
    if f[i, fl.FIXED_S + phase] <= 0 and _has_node_work(f, n, i):
        _reach_node(f, n, i)


@nopython
def _has_node_work(f: Floats, n: Ints, i: int) -> bool:
    return bool(f[i, fl.NODE_S + n[i, fl.PHASE]] > 0 or steps.is_decoding(f, n, i))


@nopython
def _reach_node(f: Floats, n: Ints, i: int) -> None:
    n[i, fl.STAGE] = fl.ON_NODE
    f[i, fl.REMAINING] = f[i, fl.NODE_S + n[i, fl.PHASE]]


@nopython
def _next_frame(f: Floats, n: Ints, i: int, now: float) -> bool:
    """Release the next frame that can still be in time; True when there is none left."""
    while n[i, fl.LEFT] > 0:
        f[i, fl.RELEASE] += f[i, fl.PERIOD]
        if f[i, fl.RELEASE] + f[i, fl.DEADLINE] > now + fl.EPS:
            if f[i, fl.RELEASE] > now:
                n[i, fl.STAGE] = fl.WAITING
                f[i, fl.TIMER] = f[i, fl.RELEASE]
            else:
                _start_unit(f, n, i, now)
            return False
        n[i, fl.LEFT] -= 1
        n[i, fl.LATE] += 1
    n[i, fl.STAGE] = fl.OUT
    return True


@nopython
def _finish_unit(f: Floats, n: Ints, i: int, now: float) -> int:
    """A unit of task i is done; returns the event code, 0 for none."""
    n[i, fl.LEFT] -= 1
    n[i, fl.DONE] += 1
    f[i, fl.LAST] = now
    if n[i, fl.KIND] == fl.VIDEO:
        f[i, fl.LATENCY_SUM] += now - f[i, fl.RELEASE]
        return fl.EVENT_FINISHED if _next_frame(f, n, i, now) else 0
    code = 0
    if n[i, fl.PHASE] == 0:
        f[i, fl.FIRST] = now
        n[i, fl.PHASE] = 1
        code = fl.EVENT_FIRST
    if n[i, fl.LEFT] == 0:
        n[i, fl.STAGE] = fl.OUT
        return fl.EVENT_FINISHED
    _start_unit(f, n, i, now)
    return code


@nopython
def _next_stage(f: Floats, n: Ints, i: int, now: float) -> int:
    """Task i's stage is over; enter the next that has something to do. Returns the event code, 0 for none."""
    stage = n[i, fl.STAGE]
    if stage == fl.WAITING:
        _start_unit(f, n, i, now)
        return 0
    if stage == fl.ON_DEVICE:
        _leave_device(f, n, i, now)
        return 0
    if stage == fl.ON_AIR:
        _leave_air(f, n, i, now)
        return 0
    if stage == fl.IN_FLIGHT and _has_node_work(f, n, i):
        _reach_node(f, n, i)
        return 0
    if stage == fl.IN_STEP and not steps.is_decoding(f, n, i):
        f[i, fl.REMAINING] -= f[i, fl.CHUNK]
        if f[i, fl.REMAINING] > fl.EPS:
            n[i, fl.STAGE] = fl.ON_NODE
            return 0
    return _finish_unit(f, n, i, now)


@nopython
def _cell_rates(f: Floats, n: Ints, rate: Floats, hz: Floats, free: Floats, efficiency: Floats) -> None:
    """Bits per second of each task on the air; shares above a cap flow to the others (water-filling)."""
    n_tasks = f.shape[0]
    for c in range(hz.shape[0]):
        left, weights = free[c], 0.0
        for i in range(n_tasks):
            if n[i, fl.STAGE] == fl.ON_AIR and n[i, fl.CELL] == c:
                rate[i] = -1.0
                weights += f[i, fl.W_UL]
        again = True
        while again and weights > 0:
            again = False
            for i in range(n_tasks):
                if (
                    n[i, fl.STAGE] == fl.ON_AIR
                    and n[i, fl.CELL] == c
                    and rate[i] < 0
                    and (f[i, fl.CAP_UL] < left * f[i, fl.W_UL] / weights)
                ):
                    rate[i] = f[i, fl.CAP_UL]
                    left -= f[i, fl.CAP_UL]
                    weights -= f[i, fl.W_UL]
                    again = True
                    break
        for i in range(n_tasks):
            if n[i, fl.STAGE] == fl.ON_AIR and n[i, fl.CELL] == c:
                share = rate[i] if rate[i] >= 0 else left * f[i, fl.W_UL] / weights
                rate[i] = share * hz[c] * efficiency[n[i, fl.UE]]


@nopython
def _device_rates(f: Floats, n: Ints, rate: Floats) -> None:
    """1 for what each UE's device works on, 0 for what waits there: first what is due first."""
    for i in range(f.shape[0]):
        if n[i, fl.STAGE] != fl.ON_DEVICE:
            continue
        rate[i], due = 1.0, steps.due_s(f, n, i)
        for j in range(f.shape[0]):
            if j != i and n[j, fl.STAGE] == fl.ON_DEVICE and n[j, fl.UE] == n[i, fl.UE]:
                other = steps.due_s(f, n, j)
                if other < due or (other == due and j < i):
                    rate[i] = 0.0
                    break


@nopython
def _is_served(stage: int) -> bool:
    """Whether a stage works off what remains; else a timer ends it, or nobody knows yet what does."""
    return bool(stage in (fl.ON_AIR, fl.ON_DEVICE))


@nopython
def _next_event(f: Floats, n: Ints, rate: Floats, step_end: Floats, now: float, until: float) -> float:
    """Earliest instant at which a stage or step ends, or a frame's deadline passes; until at most."""
    t = until
    for node in range(step_end.shape[0]):
        if step_end[node] > now:
            t = min(t, step_end[node])
    for i in range(f.shape[0]):
        stage = n[i, fl.STAGE]
        if stage == fl.OUT:
            continue
        if _is_served(stage):
            end = now + f[i, fl.REMAINING] / rate[i] if rate[i] > 0 else np.inf
        elif stage == fl.ON_NODE:
            end = np.inf  # it waits for a step to end
        else:
            end = f[i, fl.TIMER]
        if n[i, fl.KIND] == fl.VIDEO and stage != fl.WAITING:
            end = min(end, f[i, fl.RELEASE] + f[i, fl.DEADLINE])
        t = min(t, end)
    return max(t, now)


@nopython
def _serve(
    f: Floats, n: Ints, rate: Floats, step_end: Floats, now: float, dt: float, cells: tuple[Floats, Floats, Floats],
    nodes: tuple[Floats, Floats],
) -> None:  # fmt: skip
    """Let time pass: work off what is in service and account for it."""
    used_cell, used_node = cells[2], nodes[1]
    busy = np.zeros(used_cell.shape[0])
    for i in range(f.shape[0]):
        if n[i, fl.STAGE] == fl.ON_AIR:
            f[i, fl.REMAINING] -= rate[i] * dt
            f[i, fl.AIR_BUSY] += dt
            busy[n[i, fl.CELL]] = 1.0
        elif n[i, fl.STAGE] == fl.ON_DEVICE:
            f[i, fl.REMAINING] -= rate[i] * dt
            f[i, fl.DEVICE_BUSY] += rate[i] * dt
    for c in range(busy.shape[0]):
        used_cell[c] += busy[c] * cells[1][c] * dt
    for node in range(used_node.shape[0]):
        if step_end[node] > now:
            used_node[node] += nodes[0][node] * dt


@nopython
def _is_over(f: Floats, n: Ints, rate: Floats, i: int, now: float) -> bool:
    """Whether task i's stage ends now; what is left by rounding (a picosecond's work) is none."""
    stage = n[i, fl.STAGE]
    if _is_served(stage):
        return bool(rate[i] > 0 and f[i, fl.REMAINING] <= rate[i] * fl.EPS)
    return bool(stage != fl.ON_NODE and f[i, fl.TIMER] <= now + fl.EPS)


@nopython
def _form_steps(
    f: Floats, n: Ints, step_end: Floats, planned_s: Floats, nodes: tuple[Floats, Floats], figures: Floats, now: float
) -> bool:
    """Start a step on every idle node where somebody wants one; whether there is one."""
    formed, n_models = False, 0
    for i in range(f.shape[0]):
        n_models = max(n_models, n[i, fl.MODEL] + 1)
    for node in range(step_end.shape[0]):
        if step_end[node] <= now + fl.EPS:
            step_end[node] = steps.form_step(f, n, node, now, planned_s[node], nodes[0][node], n_models, figures[node])
            formed = formed or step_end[node] > now
    return formed


@nopython
def _advance(
    f: Floats,
    n: Ints,
    efficiency: Floats,
    changes: tuple[Floats, Ints, Floats],
    cursor: int,
    cells: tuple[Floats, Floats, Floats],
    nodes: tuple[Floats, Floats],
    steps_of: tuple[Floats, Floats, Floats],
    now: float,
    until: float,
    log: tuple[Floats, Ints, Ints],
) -> tuple[int, int]:
    """Run from `now` to `until`.

    f (M, N_FLOAT), n (M, N_INT): task rows, changed in place. efficiency (U,): bit/s/Hz in force, changed in place by
    changes = (instants, ues, values) from `cursor` on. cells = (bandwidth Hz, free fraction, used seconds), nodes =
    (free fraction, used seconds); used is accumulated. steps_of = (end of the step under way (nodes,), longest planned
    (nodes,), figures (nodes, nodes.N_FIGURE)). log = (instants, rows, codes) is filled with first-token and finished
    events; it must hold 2 M entries. Returns (cursor, number of log entries).
    """
    n_log = 0
    rate = np.zeros(f.shape[0])
    step_end, planned_s, figures = steps_of
    while now < until:
        while cursor < changes[0].shape[0] and changes[0][cursor] <= now + fl.EPS:
            efficiency[changes[1][cursor]] = changes[2][cursor]
            cursor += 1
        stop = until if cursor >= changes[0].shape[0] else min(until, changes[0][cursor])
        _cell_rates(f, n, rate, cells[0], cells[1], efficiency)
        _device_rates(f, n, rate)
        t = _next_event(f, n, rate, step_end, now, stop)
        # not while something ends at this very instant: who comes out of it belongs into the same step
        if t > now + fl.EPS and _form_steps(f, n, step_end, planned_s, nodes, figures, now):
            t = _next_event(f, n, rate, step_end, now, stop)
        _serve(f, n, rate, step_end, now, t - now, cells, nodes)
        now = t
        for i in range(f.shape[0]):
            if n[i, fl.STAGE] == fl.OUT:
                continue
            code = 0
            if _is_over(f, n, rate, i, now):
                code = _next_stage(f, n, i, now)
            elif (
                n[i, fl.KIND] == fl.VIDEO
                and n[i, fl.STAGE] != fl.WAITING
                and f[i, fl.RELEASE] + f[i, fl.DEADLINE] <= now + fl.EPS
            ):
                n[i, fl.LEFT] -= 1
                n[i, fl.LATE] += 1
                code = fl.EVENT_FINISHED if _next_frame(f, n, i, now) else 0
            if code:
                log[0][n_log], log[1][n_log], log[2][n_log] = now, i, code
                n_log += 1
    return cursor, n_log


def _digest() -> int:
    """Fingerprint of the files that the entries are made of: Numba's cache looks at this one only (solvers/jit.py)."""
    whole = hashlib.sha256()
    for path in sorted(Path(__file__).resolve().parent.glob("*.py")):
        whole.update(path.read_bytes())
    return int.from_bytes(whole.digest()[:7], "big")


def _make_start(digest: int) -> Callable[[Floats, Ints, int, float], None]:
    @cached
    def entry(f: Floats, n: Ints, i: int, now: float) -> None:
        _start_unit(f, n, i, now + digest * 0)

    return entry


def _make_advance(digest: int) -> Callable[..., tuple[int, int]]:
    @cached
    def entry(
        f: Floats,
        n: Ints,
        efficiency: Floats,
        changes: tuple[Floats, Ints, Floats],
        cursor: int,
        cells: tuple[Floats, Floats, Floats],
        nodes: tuple[Floats, Floats],
        steps_of: tuple[Floats, Floats, Floats],
        now: float,
        until: float,
        log: tuple[Floats, Ints, Ints],
    ) -> tuple[int, int]:
        return _advance(f, n, efficiency, changes, cursor + digest * 0, cells, nodes, steps_of, now, until, log)

    return entry


start_unit: Final = _make_start(_digest())
"""(f, n, row, now): a task begins its first unit of work."""
advance: Final = _make_advance(_digest())
"""As `_advance`, compiled and kept."""
