"""Compiled: nodes that serve in steps (docs/execution.md). Steps are events, so nothing is approximated by a time step.

A step is formed when its node is free and somebody wants one. It reads what its decoders share once, takes their own
parts, and pieces of what else waits (prefills, video frames) before; decoders come out at its end, frames when their
piece is done. Decoders make no step longer than the plan says; who would waits for the next one. Among those who wait,
first come the promised ones, and of these who is due first. While other work waits, a step is read for none but those
who are due soon, and all others join: so many share it. While none waits decoders run ahead of their promises: what
they are ahead by is time that a prefill has the node for itself.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from cosched.fluid import rows as fl
from cosched.fluid.rows import Floats, Ints
from solvers.jit import nopython

SOON: Final = 2.0  # planned steps: where other work waits, who is due later than in so many starts none
MOST_RESERVED: Final = 0.3  # of a planned step, for pieces of other work beside those who decode
BEHIND: Final = 3.0  # tokens: who is more of them behind comes last, his promise is not to be saved
PREFILL_PART: Final = 0.5  # of a step in which decoders wait: more is not prefilled in one
NOBODY_DECODES_S: Final = 0.005  # piece of work that is done at once where no step length is planned
LATER: Final = 1e6  # seconds: what comes after all else of its kind
HELD: Final = 8e6  # ... and who is due so late that he starts no step
DECODERS: Final = 0
ELASTIC: Final = 1  # what is done in pieces: prefills and frames
SLIP: Final = 1e-9  # of a step: rounding

# figures of a node, kept while it serves
STEPS: Final = 0  # that were formed with decoders in them
LENGTH_S: Final = 1  # of these, summed
SEQUENCES: Final = 2  # in these
OVER: Final = 3  # of these were longer than planned: a single sequence that does not fit
N_FIGURE: Final = 4


@nopython
def is_decoding(f: Floats, n: Ints, i: int) -> bool:
    """Whether what task i does next on its node is a token in a step."""
    return bool(n[i, fl.KIND] == fl.LLM and n[i, fl.PHASE] == 1 and f[i, fl.OWN_S] > 0)


@nopython
def due_s(f: Floats, n: Ints, i: int) -> float:
    """Instant at which the unit that task i works on is due."""
    if n[i, fl.KIND] == fl.VIDEO:
        return float(f[i, fl.RELEASE] + f[i, fl.DEADLINE])
    if n[i, fl.PHASE] == 0:
        return float(f[i, fl.ARRIVAL] + f[i, fl.DEADLINE])
    return float(f[i, fl.FIRST] + n[i, fl.DONE] * f[i, fl.PERIOD])


@nopython
def _urgency(f: Floats, n: Ints, i: int, now: float) -> float:
    """Who comes first has the least."""
    left = due_s(f, n, i) - now
    spare = BEHIND * f[i, fl.PERIOD] if n[i, fl.KIND] == fl.LLM and n[i, fl.PHASE] == 1 else 0.0
    return float(left + (LATER if left < -spare else 0.0) + 2 * LATER * n[i, fl.RANK])


@nopython
def _insert(order: Ints, key: Floats, count: int, i: int, value: float) -> None:
    """Put i into the first `count` of `order`, which are sorted by key; of equals the earlier row stays first."""
    at = count
    while at > 0 and key[at - 1] > value:
        order[at], key[at] = order[at - 1], key[at - 1]
        at -= 1
    order[at], key[at] = i, value


@nopython
def _queue(f: Floats, n: Ints, node: int, now: float, order: Ints, key: Floats, kind: int, soon_s: float) -> int:
    """Fill `order` (M,) with the DECODERS or ELASTIC rows that wait on a node, the most urgent first; how many.

    Decoders that are due later than in soon_s seconds start no step.
    """
    count = 0
    for i in range(f.shape[0]):
        if n[i, fl.STAGE] == fl.ON_NODE and n[i, fl.NODE] == node and is_decoding(f, n, i) == (kind == DECODERS):
            held = kind == DECODERS and due_s(f, n, i) - soon_s > now + fl.EPS
            _insert(order, key, count, i, _urgency(f, n, i, now) + (HELD if held else 0.0))
            count += 1
    return count


@nopython
def _join(f: Floats, n: Ints, i: int, shared: Floats, room_s: float) -> float:
    """Take decoder i into a step in which `shared` (models,) is read already, if that takes no longer than room_s.

    Returns by how much the step grows, 0 where it stays out.
    """
    own, model = f[i, fl.OWN_S], n[i, fl.MODEL]
    more = max(0.0, f[i, fl.SHARED_S] - shared[model]) + own
    if more > room_s:
        return 0.0
    shared[model] = max(shared[model], f[i, fl.SHARED_S])
    n[i, fl.STAGE] = fl.IN_STEP
    f[i, fl.TIMER] = -np.inf  # it is out with the step
    return float(more)


@nopython
def form_step(
    f: Floats, n: Ints, node: int, now: float, planned_s: float, free: float, n_models: int, figures: Floats
) -> float:
    """Form a step of an idle node from who waits there; return when it ends, `now` when nobody wants one.

    planned_s: its greatest length at the whole node; free: part of the node that is ours; figures (N_FIGURE,).
    """
    m = f.shape[0]
    decoders, elastic, key, unused = np.empty(m, dtype=np.int64), np.empty(m, dtype=np.int64), np.empty(m), np.empty(m)
    n_e = _queue(f, n, node, now, elastic, unused, ELASTIC, np.inf)
    soon_s = SOON * planned_s / free if n_e > 0 and free > 0 else np.inf
    n_d = _queue(f, n, node, now, decoders, key, DECODERS, soon_s)
    if free <= 0 or (n_e == 0 and n_d == 0):
        return now
    most_s = planned_s
    if np.isinf(most_s) and n_d == 0:
        most_s = NOBODY_DECODES_S
    reserved_s = _reserved_s(f, n, elastic[:n_e], now, most_s)
    shared, step_s, batch, d = np.zeros(n_models), 0.0, 0, 0
    while d < n_d and key[d] < HELD:
        more = _join(f, n, decoders[d], shared, most_s - step_s if batch > 0 else np.inf)
        step_s, batch, d = step_s + more, batch + (more > 0), d + 1
    while batch > 0 and d < n_d:  # who is not in need joins where there is room: the weights are read anyway
        more = _join(f, n, decoders[d], shared, most_s - step_s)
        step_s, batch, d = step_s + more, batch + (more > 0), d + 1
    step_s += _pieces(f, n, elastic[:n_e], now, free, max(most_s - step_s, reserved_s), most_s, batch > 0)
    end = now + step_s / free
    _close(f, n, node, end, shared.sum() / max(batch, 1))
    if batch > 0:
        figures[STEPS] += 1
        figures[LENGTH_S] += step_s
        figures[SEQUENCES] += batch
        figures[OVER] += step_s > (1 + MOST_RESERVED) * most_s * (1 + SLIP)
    return end


@nopython
def _reserved_s(f: Floats, n: Ints, elastic: Ints, now: float, most_s: float) -> float:
    """Seconds of a step that are for pieces of work at least: the part of all time with which all of it is in time."""
    waiting_s, part = 0.0, 0.0
    for i in elastic:  # in the order in which they are due
        waiting_s += f[i, fl.REMAINING]
        left = due_s(f, n, i) - now
        if n[i, fl.RANK] == 0 and left > 0:
            part = max(part, waiting_s / left)
    return float(min(waiting_s, min(part, MOST_RESERVED) * most_s))


@nopython
def _close(f: Floats, n: Ints, node: int, end: float, shared_s: float) -> None:
    """Say when those in the step come out, but for frames that are out before; charge decoders for it."""
    for i in range(f.shape[0]):
        if n[i, fl.STAGE] == fl.IN_STEP and n[i, fl.NODE] == node and np.isinf(f[i, fl.TIMER]):
            f[i, fl.TIMER] = end
            if is_decoding(f, n, i):
                f[i, fl.NODE_BUSY] += f[i, fl.OWN_S] + shared_s


@nopython
def _pieces(
    f: Floats, n: Ints, order: Ints, now: float, free: float, room_s: float, most_s: float, decoders: bool
) -> float:
    """Give those in `order` (n,) their pieces of a step that begins now; return how long all pieces take."""
    taken, prefill_s = 0.0, 0.0
    for i in order:
        piece = min(f[i, fl.REMAINING], room_s - taken)
        is_frame = n[i, fl.KIND] == fl.VIDEO
        if decoders and not is_frame:
            piece = min(piece, PREFILL_PART * most_s - prefill_s)
        if piece <= 0:
            continue
        taken += piece
        if not is_frame:
            prefill_s += piece
        f[i, fl.CHUNK] = piece
        f[i, fl.NODE_BUSY] += piece
        n[i, fl.STAGE] = fl.IN_STEP
        # a frame is out when its piece is done, all else when the step is
        whole = is_frame and piece >= f[i, fl.REMAINING]
        f[i, fl.TIMER] = now + taken / free if whole else -np.inf
    return taken
