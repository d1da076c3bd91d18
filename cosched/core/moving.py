"""What it costs a running session to go on elsewhere: the time until its KV cache is there.

Either the KV of the layers that change hands is sent, or the new route computes it again from the tokens, whichever is
sooner (cosched/runtime/move.py does what it finds the cheaper by the same count). The cost in a plan is the part of the
time left to the session's promise that this eats. Only who must or should leave his place has a choice to move at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from cosched.core.events import Progress
from cosched.core.settings import Settings
from cosched.workloads.base import LOCAL, Bools, Floats, Ints, PointTable
from telemetry.messages import LlmSession

DOWN_BPS: Final = 100e6  # of KV on its way to the device: no radio report says it
PEER_BPS: Final = 1e9  # ... and between nodes: no site description does


class Moves(NamedTuple):
    """Candidates (n,) of one session; columns (n, 2): sending its KV cache, and computing it again."""

    seconds: Floats  # (n, 2) that no channel changes; inf: there is nothing to send
    bits: Floats  # (n, 2) on the uplink
    stays: Bools  # (n,) where it is now
    left_s: float  # until its last token is due
    stranded: bool  # it cannot stay


def moves_of(
    table: PointTable, rows: Ints, point: int, work: LlmSession, progress: Progress | None, *, stranded: bool
) -> Moves:
    """Return what moving from `point` to each of `rows` takes, with uplink, device and node for itself alone."""
    done = progress.done if progress is not None and progress.phase == 1 else 0
    tokens = work.context_tokens + (work.new_tokens + done if done else 0)  # what is not prefilled yet is no move
    part = tokens / (work.context_tokens + work.new_tokens + work.max_output_tokens)
    here, there = 8 * part * table.node_bytes[point], 8 * part * table.node_bytes[rows]  # bits of KV on nodes
    other = (table.node[rows] != table.node[point]) & (table.node[rows] != LOCAL)
    send_s = np.maximum(here - there, 0.0) / DOWN_BPS + other * np.minimum(here, there) / PEER_BPS
    again = tokens / work.new_tokens
    device_s, node_s = table.device_s[rows, 0], table.node_s[rows, 0]
    again_s = again * (device_s + node_s) + (table.fixed_s[rows, 0] - device_s)
    left_s = work.tpot_s * max(work.max_output_tokens - done, 1) if done else work.ttft_s
    return Moves(
        seconds=np.stack([np.full(len(rows), np.inf) if stranded else send_s, again_s], axis=1),
        bits=np.stack([np.maximum(there - here, 0.0), again * table.ul_bits[rows, 0]], axis=1),
        stays=~other & (table.node[rows] == table.node[point]) & (table.split[rows] == table.split[point]),
        left_s=left_s,
        stranded=stranded,
    )


def move_s(moves: Moves, uplink_bps: float) -> Floats:
    """(n,) seconds until a session goes on at each candidate, 0 where it is."""
    return np.asarray(np.where(moves.stays, 0.0, (moves.seconds + moves.bits / uplink_bps).min(axis=1)))


def charged(
    value: Floats,
    moves: Sequence[tuple[slice, float, Moves]],
    uplink_bps: Sequence[float],
    settings: Settings,
) -> Floats:
    """Return values (J,) of points less what moving there costs; moves: points, weight and moves of each session.

    Who cannot stay is worth as much more than a newcomer as one that runs. Layers that are to go cost those who stay on
    them twice what a switch does: so a session leaves them if that eats less than `switch_cost` of what it has left.
    """
    value = value.copy()
    for (rows, weight, one), bps in zip(moves, uplink_bps, strict=True):
        eaten = np.minimum(move_s(one, bps) / one.left_s, 1.0)
        if one.stranded:
            value[rows] += weight * (settings.stickiness - settings.switch_cost - eaten)
        else:
            value[rows] -= weight * np.where(one.stays, 2 * settings.switch_cost, eaten)
    return value
