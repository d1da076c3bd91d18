"""Where UEs are: dropped uniformly over the cells' discs, then standing, walking to waypoints or on straight lines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import msgspec
import numpy as np

from cosched.simulate.pathloss import Floats

HEX_DIRECTIONS: Final = ((-1, 1), (-1, 0), (0, -1), (1, -1), (1, 0), (0, 1))  # axial coordinates, once round a ring


class Mobility(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How UEs move: `static`, `waypoint` (uniform targets, pause on arrival), `line` (straight, back at the edge)."""

    kind: Literal["static", "waypoint", "line"] = "waypoint"
    speed_m_s: float = 0.83  # 3 km/h, pedestrians of TR 38.901 Table 7.2-1
    pause_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Area:
    """Cell sites (C, 2) in metres, and the disc round each of them in which UEs are dropped."""

    sites_m: Floats
    radius_m: float
    least_m: float

    @property
    def low_m(self) -> Floats:
        """Lower left corner of the area's bounding box, (2,)."""
        return np.asarray(self.sites_m.min(axis=0) - self.radius_m)

    @property
    def high_m(self) -> Floats:
        """Upper right corner, (2,)."""
        return np.asarray(self.sites_m.max(axis=0) + self.radius_m)

    def drop(self, count: int, rng: np.random.Generator) -> Floats:
        """(count, 2) positions: a uniform cell, then uniform over its ring from least_m to radius_m."""
        cell = rng.integers(len(self.sites_m), size=count)
        radius = np.sqrt(rng.uniform(self.least_m**2, self.radius_m**2, size=count))
        angle = rng.uniform(0.0, 2.0 * np.pi, size=count)
        return np.asarray(self.sites_m[cell] + np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=1))


def hexagonal_sites(count: int, spacing_m: float) -> Floats:
    """(count, 2) positions of a hexagonal layout, ring by ring round the origin."""
    axial = [(0, 0)]
    ring = 1
    while len(axial) < count:
        q, r = ring, 0
        for dq, dr in HEX_DIRECTIONS:
            for _ in range(ring):
                axial.append((q, r))
                q, r = q + dq, r + dr
        ring += 1
    at = np.array(axial[:count], dtype=np.float64)
    return np.asarray(spacing_m * np.stack((at[:, 0] + 0.5 * at[:, 1], np.sqrt(0.75) * at[:, 1]), axis=1))


def walk(
    area: Area, mobility: Mobility, start: Floats, *, times: int, step_s: float, rng: np.random.Generator
) -> Floats:
    """Positions (times, U, 2) in metres, `step_s` apart, from start (U, 2)."""
    if mobility.kind == "static" or mobility.speed_m_s == 0.0:
        return np.repeat(start[None], times, axis=0)
    if mobility.kind == "line":
        return _line(area, start, mobility.speed_m_s * step_s * np.arange(times, dtype=np.float64), rng)
    path = np.empty((times, *start.shape))
    path[0] = start
    walker = _Waypoints(area, mobility, count=len(start), step_s=step_s, rng=rng)
    for t in range(1, times):
        path[t] = walker.step(path[t - 1])
    return path


def _line(area: Area, start: Floats, gone_m: Floats, rng: np.random.Generator) -> Floats:
    """Constant heading; folded back at the bounding box like light at a mirror. gone_m: (T,)."""
    heading = rng.uniform(0.0, 2.0 * np.pi, size=len(start))
    direction = np.stack((np.cos(heading), np.sin(heading)), axis=1)  # (U, 2)
    free = start + direction * gone_m[:, None, None]  # (T, U, 2)
    span = area.high_m - area.low_m
    folded = np.mod(free - area.low_m, 2.0 * span)
    return np.asarray(area.low_m + np.minimum(folded, 2.0 * span - folded))


class _Waypoints:
    """Uniform targets one after another; what is left of a step on arrival is spent waiting."""

    def __init__(self, area: Area, mobility: Mobility, *, count: int, step_s: float, rng: np.random.Generator) -> None:
        self._area, self._mobility, self._step_s, self._rng = area, mobility, step_s, rng
        self._target = area.drop(count, rng)
        self._wait_s = np.zeros(count)

    def step(self, at: Floats) -> Floats:
        """Return where the UEs at (U, 2) are one step later."""
        wait_s, ahead = self._wait_s, self._target - at
        far_m = np.hypot(ahead[:, 0], ahead[:, 1])
        go_m = np.where(wait_s > 0.0, 0.0, np.minimum(far_m, self._mobility.speed_m_s * self._step_s))
        arrived = (go_m >= far_m) & (wait_s <= 0.0)
        self._wait_s = np.where(arrived, self._mobility.pause_s, np.maximum(wait_s - self._step_s, 0.0))
        # Drawn for all, used by those who arrived: one UE's arrival does not shift another's random numbers.
        self._target = np.where(arrived[:, None], self._area.drop(len(at), self._rng), self._target)
        return np.asarray(at + ahead * (go_m / np.maximum(far_m, 1e-9))[:, None])
