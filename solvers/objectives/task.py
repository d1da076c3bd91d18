"""One task of the second stage at prices: its cheapest shares, and how they answer (docs/exact.md).

Shares are `x = sqrt((e + m a) / price)` between floor and cap: e what the objective asks by the share itself (energy),
m what the task pays for latency: its weight, its marginal utility at the latency that results, or what its deadline
needs. solvers/objectives/stage.py puts tasks together.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from solvers.jit import inlined, nopython
from solvers.problem import Floats, Ints
from solvers.tolerances import BINDS, FLAT, INNER_FINE, TINY_MULTIPLIER

LATENCY: Final = 0  # and energy
ALPHA_FAIR: Final = 1
MAX_LATENCY: Final = 2

INNER: Final = 60  # steps of a search in one number; 2 to 8 are used

# What Stage.cell holds of slot k; one array, because every array costs in every call of compiled code.
A: Final = 0  # work / deadline, two phases
E: Final = 2  # what the objective pays for 1 / share by itself
FLOOR: Final = 3
CAP: Final = 4
ACTIVITY: Final = 5
MIX: Final = 6  # scratch: work / deadline, phases mixed
ROOT: Final = 7  # ... root of MIX x ACTIVITY
UNIT: Final = 8  # ... root of MIX / ACTIVITY
PAY: Final = 9  # ... price of a share
HALF: Final = 10  # ... half of 1 / share where no limit holds it, else 0
FIELDS: Final = 11


class Aim(NamedTuple):
    """The objective in numbers. tie: part of latency beside energy, 0: energy does not count."""

    kind: int
    alpha: float
    headroom: float
    tie: float


@inlined
def mix(cell: Floats, low: int, high: int, theta: float) -> None:
    """Mix the phases of slots low .. high - 1."""
    for k in range(low, high):
        a = theta * cell[k, A] + (1.0 - theta) * cell[k, A + 1]
        cell[k, MIX] = a
        cell[k, ROOT], cell[k, UNIT] = math.sqrt(a * cell[k, ACTIVITY]), math.sqrt(a / cell[k, ACTIVITY])


@inlined
def latency(cell: Floats, x: Floats, low: int, high: int, what: int) -> float:
    """Sum of work / share; what: A, A + 1 or MIX."""
    total = 0.0
    for k in range(low, high):
        if cell[k, what] > 0.0:
            total += cell[k, what] / x[k]
    return total


@inlined
def _shares(cell: Floats, x: Floats, low: int, high: int, m: float) -> tuple[float, float]:
    """Set the shares for multiplier m; returns the mixed latency and its derivative by log m."""
    late = slope = 0.0
    for k in range(low, high):
        part = m * cell[k, MIX]
        wish = cell[k, E] + part
        free = math.sqrt(wish / cell[k, PAY]) if cell[k, PAY] > 0.0 else (math.inf if wish > 0.0 else 0.0)
        x[k] = min(cell[k, CAP], max(cell[k, FLOOR], free))
        if cell[k, MIX] > 0.0:
            late += cell[k, MIX] / x[k]
            if part > 0.0 and cell[k, FLOOR] < x[k] < cell[k, CAP]:
                slope -= 0.5 * cell[k, MIX] / x[k] * (part / wish)
    return late, slope


@nopython
def _meet(cell: Floats, x: Floats, low: int, high: int, target: float, m: float) -> float:
    """Find the multiplier, from m > 0, at which the mixed latency is `target`.

    Newton in y = 1 / sqrt(m): without energy latency is piecewise linear in y, and the search ends after a few clips.
    """
    y = 1.0 / math.sqrt(m)
    least, most = 0.0, math.inf
    for _ in range(INNER):
        late, slope = _shares(cell, x, low, high, 1.0 / (y * y))
        gap = late - target
        if abs(gap) <= INNER_FINE * target:
            break
        if gap > 0.0:
            most = y
        else:
            least = y
        new = y + 0.5 * gap * y / slope if slope < 0.0 else math.inf
        if not least < new < most:
            new = 0.5 * (least + most) if most < math.inf else 4.0 * y
        if new == y or most - least <= 1e-16 * most:
            break
        y = new
    return 1.0 / (y * y)


@nopython
def _fair(cell: Floats, x: Floats, low: int, high: int, aim: Aim, w: float) -> float:
    """Multiplier that is the marginal utility at the latency it leads to, at least that of the deadline."""
    top = 1.0 + aim.headroom
    m = w * top**-aim.alpha
    late, _ = _shares(cell, x, low, high, m)
    if late > 1.0:
        m = _meet(cell, x, low, high, 1.0, m)
        if m >= w * aim.headroom**-aim.alpha:
            return m
    z, least, most = math.log(m), math.log(m), math.inf
    for _ in range(INNER):
        late, slope = _shares(cell, x, low, high, math.exp(z))
        spare = max(top - late, 0.5 * aim.headroom)
        gap = z - math.log(w) + aim.alpha * math.log(spare)
        if abs(gap) <= INNER_FINE:
            break
        if gap < 0.0:
            least = z
        else:
            most = z
        new = z - gap / (1.0 - aim.alpha * slope / spare)
        if not least < new < most:
            new = 0.5 * (least + most) if most < math.inf else z + 1.0
        if abs(new - z) <= 1e-15 * abs(z):
            break
        z = new
    return math.exp(z)


@nopython
def _free_fair(aim: Aim, total: float, w: float) -> float:
    """Multiplier m = w (1 + headroom - total / sqrt(m))^-alpha, at least that of the deadline, total^2."""
    top = 1.0 + aim.headroom
    floor = max(total * total, 1e-300)
    if floor >= w * aim.headroom**-aim.alpha:
        return floor
    if aim.alpha == 1.0:
        root = (total + math.sqrt(total * total + 4.0 * w * top)) / (2.0 * top)
        return root * root
    least, most = math.log(max(floor, w * top**-aim.alpha)), math.inf
    z = least
    for _ in range(INNER):
        late = total * math.exp(-0.5 * z)
        spare = top - late
        gap = z - math.log(w) + aim.alpha * math.log(spare)
        if gap < 0.0:
            least = z
        else:
            most = z
        new = z - gap / (1.0 + 0.5 * aim.alpha * late / spare)
        if not least < new < most:
            new = 0.5 * (least + most) if most < math.inf else z + 1.0
        if abs(new - z) <= INNER_FINE:
            break
        z = new
    return math.exp(z)


@inlined
def free(aim: Aim, total: float, w: float, target: float) -> float:
    """Multiplier where no floor, no cap and no energy is in the way; total: sum of roots of work x price."""
    if aim.kind == ALPHA_FAIR:
        return _free_fair(aim, total, w)
    m = (total / target) ** 2
    return max(m, w) if aim.kind == LATENCY else m


@nopython
def one(cell: Floats, x: Floats, low: int, high: int, aim: Aim, w: float, target: float) -> float:
    """Shares for the present mixture within floors and caps; returns the multiplier."""
    if aim.kind == ALPHA_FAIR:
        return _fair(cell, x, low, high, aim, w)
    m = w if aim.kind == LATENCY else 0.0
    late, _ = _shares(cell, x, low, high, m)
    if late <= target:
        return m
    return _meet(cell, x, low, high, target, max(m, 1e-6 * w, TINY_MULTIPLIER))


@nopython
def both(cell: Floats, x: Floats, low: int, high: int, aim: Aim, w: float, target: float) -> tuple[float, float]:
    """Shares at the mixture at which both phases take as long, or the longer one alone: (multiplier, mixture).

    False position (Illinois) on the difference of the latencies, which falls with the mixture.
    """
    ends, gaps = (0.0, 1.0), (0.0, 0.0)
    for theta in ends:
        mix(cell, low, high, theta)
        m = one(cell, x, low, high, aim, w, target)
        gap = latency(cell, x, low, high, A) - latency(cell, x, low, high, A + 1)
        if (gap <= 0.0 and theta == 0.0) or (gap >= 0.0 and theta == 1.0):
            return m, theta
        gaps = (gaps[1], gap)
    kept = 0
    theta = 0.0
    for step in range(INNER):
        theta = (ends[0] * gaps[1] - ends[1] * gaps[0]) / (gaps[1] - gaps[0])
        if step > 20 or not ends[0] < theta < ends[1]:
            theta = 0.5 * (ends[0] + ends[1])
        mix(cell, low, high, theta)
        m = one(cell, x, low, high, aim, w, target)
        gap = latency(cell, x, low, high, A) - latency(cell, x, low, high, A + 1)
        if abs(gap) <= INNER_FINE:
            break
        if gap > 0.0:
            ends, gaps = (theta, ends[1]), (gap, 0.5 * gaps[1] if kept > 0 else gaps[1])
            kept = 1
        else:
            ends, gaps = (ends[0], theta), (0.5 * gaps[0] if kept < 0 else gaps[0], gap)
            kept = -1
    return m, theta


@nopython
def even(cell: Floats, low: int, high: int, theta: float) -> float:
    """Mixture at which both phases take as long where no limit is in the way, sought from `theta` on.

    Then x is in proportion to sqrt(MIX / PAY), and the difference of the latencies has the sign of
    sum sqrt(PAY / MIX) (a0 - a1), which falls with the mixture: Newton, kept within a bracket.
    """
    least, most = -1.0, 2.0  # beyond 0 and 1: the ends have not been looked at
    for _ in range(INNER):
        gap = slope = size = 0.0
        for k in range(low, high):
            d = cell[k, A] - cell[k, A + 1]
            a = cell[k, A + 1] + theta * d
            part = math.sqrt(cell[k, PAY] / a) * d
            gap += part
            size += abs(part)
            slope -= 0.5 * part * d / a
        if not abs(gap) > INNER_FINE * size:
            break
        if gap > 0.0:
            least = theta
        else:
            most = theta
        if least >= 1.0 or most <= 0.0:
            break
        new = min(1.0, max(0.0, theta - gap / slope))
        if not least < new < most:
            new = 0.5 * (max(least, 0.0) + min(most, 1.0))
        if new == theta:
            break
        theta = new
    return theta


@inlined
def _utility(aim: Aim, w: float, late: float) -> float:
    """Minus the weighted utility of a task whose latency over deadline is `late`."""
    spare = max(1.0 + aim.headroom - late, 1e-300)
    if aim.alpha == 1.0:
        return float(-w * math.log(spare))
    return float(w * spare ** (1.0 - aim.alpha) / (aim.alpha - 1.0))


@inlined
def height_of(aim: Aim, w: float, m: float, late: float, target: float) -> float:
    """Least of objective + m (late - what it is to be): a proven part of the dual whatever m and the mixture are."""
    if aim.kind == ALPHA_FAIR:
        mine = min(late, 1.0)
        return _utility(aim, w, mine) + m * (late - mine)
    least = w if aim.kind == LATENCY else 0.0
    return least * target + m * (late - target)


@inlined
def stiffness(aim: Aim, m: float, late: float, target: float) -> float:
    """How the multiplier of a task follows its latency: 0, not at all; inf, it keeps a deadline."""
    if late >= target * (1.0 - BINDS):
        return math.inf
    return aim.alpha * m / max(1.0 + aim.headroom - late, 1e-300) if aim.kind == ALPHA_FAIR else 0.0


@inlined
def _answers(q00: float, q01: float, q11: float, stiff: float) -> tuple[float, float, float]:
    """(Q + 1 1' / stiff)^-1: how the multipliers of two phases that take as long follow their latencies; or zeros."""
    if stiff == 0.0:  # their sum is fixed
        among = q00 - 2.0 * q01 + q11
        part = 1.0 / among if among > FLAT * (q00 + q11) else 0.0
        return part, -part, part
    a, b, c = q00 + 1.0 / stiff, q01 + 1.0 / stiff, q11 + 1.0 / stiff
    area = a * c - b * b
    return (c / area, -b / area, a / area) if area > FLAT * a * c else (0.0, 0.0, 0.0)


@inlined
def respond(
    cell: Floats, resource: Ints, x: Floats, low: int, high: int, bend: Floats, m: float, stiff: float, even: bool
) -> None:
    """Add a task to bend: half of what each free slot pays, less what its multipliers give back (docs/exact.md).

    even: both phases take equally long, each with a multiplier of its own.
    """
    q = q00 = q01 = q11 = 0.0
    for k in range(low, high):
        cell[k, HALF] = 0.0
        if cell[k, FLOOR] < x[k] < cell[k, CAP] and cell[k, PAY] > 0.0:
            bend[resource[k], resource[k]] += 0.5 * cell[k, PAY] * x[k]
            whole = cell[k, E] + m * cell[k, MIX]
            cell[k, HALF] = 0.5 / x[k]
            part = cell[k, HALF] / whole if whole > 0.0 else 0.0
            q += part * cell[k, MIX] * cell[k, MIX]
            q00 += part * cell[k, A] * cell[k, A]
            q01 += part * cell[k, A] * cell[k, A + 1]
            q11 += part * cell[k, A + 1] * cell[k, A + 1]
    w00 = w01 = w11 = 0.0
    if even:
        w00, w01, w11 = _answers(q00, q01, q11, stiff)
    kappa = 1.0 / (q + 1.0 / stiff) if w00 <= 0.0 and q > 0.0 and stiff > 0.0 else 0.0
    if w00 <= 0.0 and kappa <= 0.0:
        return
    for k in range(low, high):
        u = cell[k, HALF] * (w00 * cell[k, A] + w01 * cell[k, A + 1])
        v = cell[k, HALF] * (w01 * cell[k, A] + w11 * cell[k, A + 1])
        back = cell[k, HALF] * kappa * cell[k, MIX]
        for z in range(low, high):
            given = u * cell[z, A] + v * cell[z, A + 1] + back * cell[z, MIX]
            bend[resource[k], resource[z]] -= given * cell[z, HALF]
