"""Video analytics with a partial offload: the codesign example of "Pervasive distributed intelligence", section 2.

A frame takes C operations. The device does C1 = s C of them, which shrinks the data that is left from R0 bits (raw
frame) linearly to R0 (1 - s); those go up, and the node does C2 = C - C1. One phase: end to end, with deadline D.
Speeds are peak x compute efficiency of the profiles: dense convolutions are GEMMs, but nobody measured these here.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from cosched.profiles.device import Device
from cosched.workloads import checks
from cosched.workloads.base import LOCAL, Floats, Ints, PointTable, WorkloadContext, on_air
from cosched.workloads.pruning import prune
from telemetry.messages import TaskOffer, VideoClip

GRID_PERCENT: Final = 5  # 21 values of s; the cost of a point is smooth in s, finer steps gain little
PRIVATE_PERCENT: Final = 5  # raw frames stay on the device: its first layers must run there


def points(offer: TaskOffer, context: WorkloadContext) -> PointTable:
    """Return the ways to serve a VideoClip that can hold its deadline, dominated ones left out.

    Raises BadInput: numbers that are negative, zero or not numbers.
    """
    return prune(all_points(offer, context))


def all_points(offer: TaskOffer, context: WorkloadContext) -> PointTable:
    """Return every split and node within privacy, whether in time or not; the local point last."""
    clip = _checked(offer)
    n_nodes = len(context.site.nodes)
    shares = np.arange(PRIVATE_PERCENT if clip.private else 0, 100, GRID_PERCENT)  # (S,) percent
    split = np.append(np.tile(shares, n_nodes), 100).astype(np.int64)  # (J,)
    node = np.append(np.repeat(np.arange(n_nodes), len(shares)), LOCAL).astype(np.int64)
    on_device = split / 100.0
    device_s = on_device * clip.frame_flop / flop_s(context.device)
    ul_bits = (1 - on_device) * clip.frame_bits
    return PointTable(
        point_ids=_names(split, node, context),
        split=split,
        precision_bits=np.zeros_like(split),
        node=node,
        quality=np.ones(len(split)),
        fixed_s=_first_phase(device_s + _round_trip_s(context)[node]),
        device_s=_first_phase(device_s),
        ul_bits=_first_phase(on_air(context, ul_bits, 1)),
        node_s=_first_phase((1 - on_device) * clip.frame_flop / _node_flop_s(context)[node]),
        node_bytes=ul_bits / 8,
        device_energy_j=_first_phase(device_s * context.device.power_w.busy),
        deadline_s=np.array([clip.deadline_s, np.inf]),
        rate_hz=np.array([clip.fps, 0.0]),
        guess=_guesses(context),
    )


def flop_s(device: Device, fraction: float = 1.0) -> float:
    """Operations a second that a device does on convolutions and GEMMs."""
    return device.peak_flop_s * device.compute_efficiency * fraction


def _checked(offer: TaskOffer) -> VideoClip:
    clip = offer.work
    if not isinstance(clip, VideoClip):
        raise checks.refuse(offer, "is no video clip")
    checks.at_least(offer, "weight", offer.weight, 0)
    checks.positive(offer, "frame_flop", clip.frame_flop)
    checks.at_least(offer, "frame_bits", clip.frame_bits, 0)
    checks.positive(offer, "fps", clip.fps)
    checks.positive(offer, "deadline_s", clip.deadline_s)
    checks.at_least(offer, "frames", clip.frames, 1)
    if not 0 < clip.target_ratio <= 1:
        raise checks.refuse(offer, f"target_ratio = {clip.target_ratio:g}: must be in (0, 1]")
    return clip


def _names(split: Ints, node: Ints, context: WorkloadContext) -> tuple[str, ...]:
    ids = [n.id for n in context.site.nodes]
    pairs = zip(split.tolist(), node.tolist(), strict=True)
    return tuple("local" if n == LOCAL else f"s={s}%/{ids[n]}" for s, n in pairs)


def _first_phase(column: Floats) -> Floats:
    """(J, 2) with the second phase zero: there is none."""
    return np.stack([column, np.zeros_like(column)], axis=1)


def _round_trip_s(context: WorkloadContext) -> Floats:
    """(nodes + 1,) propagation there and back; the last entry is LOCAL's, index -1."""
    return np.array([2 * (context.cell_one_way_s + n.one_way_s) for n in context.site.nodes] + [0.0])


def _node_flop_s(context: WorkloadContext) -> Floats:
    """(nodes + 1,) operations a second of the whole slice; the last entry is LOCAL's, which has no work for it."""
    nodes = zip(context.site.nodes, context.node_devices, strict=True)
    return np.array([flop_s(device, node.fraction) for node, device in nodes] + [np.inf])


def _guesses(context: WorkloadContext) -> tuple[str, ...]:
    keys = dict.fromkeys([context.device.key, *(d.key for d in context.node_devices)])
    power = [f"{context.device.key}: power"] if "power" in context.device.guess else []
    return (*(f"{key}: speed on video" for key in keys), *power)
