"""The referee: is this plan what it says it is? Shares no code with the solvers, only the arrays they exchange.

Feasibility is arithmetic on the whole plan at once. The bound is checked by evaluating the dual function at the
solution's prices with bisection instead of the solvers' closed forms.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Final, cast

import numpy as np
import numpy.typing as npt

from solvers.problem import Floats, Ints, Problem, Steps
from solvers.solution import Solution

Mask = npt.NDArray[np.bool_]

BOUND_TOLERANCE: Final = 1e-6  # of the dual at the prices over the bound reported, per unit of value
HALVINGS: Final = 36  # of the mixtures 0..1: 1e-11, far below BOUND_TOLERANCE; costs are concave there
LEAST_LOG: Final = -1400.0  # of a multiplier: below all that doubles can say
DEVICE_SLIP: Final = 1e-5  # of a device: its tasks are added up one after the other
SMALL: Final = 1e-5  # v below which the slope of v / log(1 + v) is its series
SHOWN: Final = 3  # findings of one kind that are spelled out


def verify(
    problem: Problem, solution: Solution, *, dual: bool = True, tolerance: float = 1e-9, snr: Floats | None = None
) -> list[str]:
    """Return findings, one line each; none if the plan holds. snr (J, S): of power-limited slots, else inf.

    Shares within caps (floors too, where deadlines are promised), use of each resource with background and couplings
    at most 1, promised deadlines held, points belonging to their tasks, nothing held or promised without one, the value
    as reported and not above the bound; with `dual` the dual function at the prices not above the bound (unless all
    prices are 0 or it is inf). Where resources serve in steps, all of that at the plan's lengths.
    """
    findings = list(_shapes(problem, solution))
    if findings:
        return findings
    whole, problem = problem, _at_steps(problem, solution)
    tasks = np.flatnonzero(solution.chosen >= 0)
    points = solution.chosen[tasks]
    findings += _belonging(problem, tasks, points) + _unserved(problem, solution)
    if findings:
        return findings
    share = solution.share[tasks]
    promised = solution.promised[tasks]
    findings += _limits(problem, tasks, points, share, promised, tolerance)
    findings += _use(problem, points, share, tolerance) + _devices(problem, tasks[promised], points[promised])
    findings += _deadlines(problem, tasks, points, share, promised, tolerance, _rows(snr, points))
    findings += _value(problem, solution, points[promised], tolerance)
    certificate = solution.certificate
    if dual and not findings and np.isfinite(certificate.bound) and (solution.prices > 0).any():
        most = dual_value(_at_steps(whole, solution, offered=True), solution.prices, snr)
        if not most <= certificate.bound + BOUND_TOLERANCE * max(1.0, abs(certificate.bound)):
            findings.append(f"bound {certificate.bound:.9g} is not proven: the dual at the prices is {most:.9g}")
    return findings


def dual_value(problem: Problem, prices: Floats, snr: Floats | None = None) -> float:
    """Dual function at prices (R,): sum price x room + sum over tasks of max(0, value - least cost)."""
    room = np.maximum(0.0, 1.0 - problem.background)  # (R,)
    net = problem.value - _least_costs(problem, prices, room, snr)  # (J,)
    total = float((prices * room).sum())
    for i in range(problem.n_tasks):
        total += max(0.0, float(net[problem.first[i] : problem.first[i + 1]].max(initial=0.0)))
    return total


def _at_steps(p: Problem, s: Solution, *, offered: bool = False) -> Problem:
    """The problem at the plan's lengths and periods, worked out point by point from what a step is.

    Of reads only those are counted that the chosen cause; with `offered` those that a bound has to count: what runs, or
    may come where several may, is read every period, and each newcomer pays for what he needs beyond.
    """
    steps = p.steps
    if steps is None:
        return p
    slack, rigid, background = p.slack.copy(), p.rigid.copy(), p.background.copy()
    owner = np.repeat(np.arange(p.n_tasks), np.diff(p.first)).tolist()
    chosen = set(s.chosen.tolist())
    served = np.flatnonzero(steps.slot >= 0).tolist()
    place = {j: int(p.slot[j, steps.slot[j]]) for j in served}
    decoders = [j for j in served if steps.shared_s[j] > 0]
    rides = {
        j: _rides(p, j, _length(steps, j, float(s.step_s[place[j]])), float(s.period_s[place[j]])) for j in decoders
    }
    for j in served:
        length = _length(steps, j, float(s.step_s[place[j]]))
        if math.isfinite(length):
            slack[j] = [a - w * length for a, w in zip(p.slack[j], steps.wait[j], strict=True)]
    for j in decoders:
        if not math.isfinite(float(s.step_s[place[j]])):
            slack[j] = -np.inf
        if rides[j] and not steps.streams[j]:
            slack[j, 1] -= float(s.period_s[place[j]]) / 2
        rigid[j, int(steps.slot[j])] += steps.demand[j]
    for r in set(place.values()):
        here, period = [j for j in decoders if place[j] == r], float(s.period_s[r])
        if not offered:
            background[r] += _reads(steps, [j for j in here if j in chosen], period, rides)
            continue
        background[r] += _offered_reads(p, owner, here, period, rides, rigid)
    return dataclasses.replace(p, slack=slack, rigid=rigid, background=background, steps=None)


def _is_like_held(p: Problem, j: int, held: int, here: list[int], rides: dict[int, bool]) -> bool:
    """Whether a point burdens its resource as the one does that its task holds."""
    if held not in here:
        return False
    steps = cast("Steps", p.steps)
    same = all(column[j] == column[held] for column in (steps.group, steps.pace_s, steps.streams))
    return same and rides[j] == rides[held] and bool(steps.shared_s[j] <= steps.shared_s[held])


def _length(steps: Steps, j: int, planned: float) -> float:
    """Seconds of a step that point j waits for: as planned, or as long as its own part makes it."""
    return max(planned, float(steps.shared_s[j] + steps.own_s[j]))


def _offered_reads(
    p: Problem, owner: list[int], here: list[int], period: float, rides: dict[int, bool], rigid: Floats
) -> float:
    """Reads that a bound counts on a resource for its decoders `here`; to `rigid` what each newcomer adds to that."""
    steps = cast("Steps", p.steps)
    runs = [j for j in here if p.held[owner[j]] == j]
    come = [j for j in here if j not in runs and not _is_like_held(p, j, int(p.held[owner[j]]), here, rides)]
    several = len({owner[j] for j in come}) > 1
    ride = [j for j in come if rides[j] and math.isfinite(period)] if several else []
    base = max(_greatest(steps, runs + ride) / period, _alone(steps, runs, rides))
    for j in come:
        mine = [k for k in (*runs, *ride) if steps.group[k] == steps.group[j]]
        others = _greatest(steps, [k for k in (*runs, *ride) if steps.group[k] != steps.group[j]]) / period
        if rides[j]:
            with_it = 0.0 if math.isinf(period) else others + _greatest(steps, [*mine, j]) / period
        elif steps.streams[j]:
            with_it = others + _greatest(steps, [*mine, j]) / float(steps.pace_s[j])
        else:
            with_it = _alone(steps, [j], rides) + (base if several else _alone(steps, runs, rides))
        rigid[j, int(steps.slot[j])] += max(0.0, with_it - base)
    return base


def _reads(steps: Steps, chosen: list[int], period: float, rides: dict[int, bool]) -> float:
    """Part of a resource that reads take for the chosen: each group's as often as it needs, or those for some alone."""
    total = 0.0
    for group in {int(steps.group[j]) for j in chosen}:
        riders = [j for j in chosen if int(steps.group[j]) == group and (rides[j] or steps.streams[j])]
        often = min([period if rides[j] else float(steps.pace_s[j]) for j in riders], default=math.inf)
        total += _greatest(steps, riders) / often if riders else 0.0
    return max(total, _alone(steps, chosen, rides))


def _alone(steps: Steps, points: list[int], rides: dict[int, bool]) -> float:
    """Part of a resource that reads take which these decoders need for themselves."""
    return sum(float(steps.shared_s[j] / steps.pace_s[j]) for j in points if not (rides[j] or steps.streams[j]))


def _rides(p: Problem, j: int, length: float, period: float) -> bool:
    """Whether a decoder keeps its pace with reads of that period, if that leaves four times its work elsewhere."""
    steps = cast("Steps", p.steps)
    if float(steps.pace_s[j]) < period:
        return False
    waits = 0.0 if math.isinf(length) else float(steps.wait[j, 1]) * length
    return bool(steps.streams[j]) or 2 * (float(p.slack[j, 1]) - waits - 4 * float(p.work[j, 1].sum())) >= period


def _greatest(steps: Steps, points: Iterable[int]) -> float:
    """The greatest shared part of each group, added up."""
    greatest: dict[int, float] = {}
    for j in points:
        group = int(steps.group[j])
        greatest[group] = max(greatest.get(group, 0.0), float(steps.shared_s[j]))
    return sum(greatest.values())


def usage(problem: Problem, points: Ints, share: Floats) -> Floats:
    """(R,) what chosen points (K,) with shares (K, S) take, background left out."""
    n = problem.n_resources
    slot = problem.slot[points].ravel()
    counted = (problem.activity[points] * share).ravel()
    elastic = np.bincount(slot, weights=counted, minlength=n + 1)
    total = elastic + np.bincount(slot, weights=problem.rigid[points].ravel(), minlength=n + 1)
    for a, b, per_share in zip(problem.coupling_from, problem.coupling_to, problem.coupling_per_share, strict=True):
        total[b] += per_share * elastic[a]
    return np.asarray(total[:n], dtype=np.float64)


def _shapes(p: Problem, s: Solution) -> Iterator[str]:
    expected = {
        "chosen": (p.n_tasks,),
        "promised": (p.n_tasks,),
        "share": (p.n_tasks, p.slot.shape[1]),
        "prices": (p.n_resources,),
    }
    if p.steps is not None:
        expected |= {"step_s": (p.n_resources,), "period_s": (p.n_resources,)}
    for name, shape in expected.items():
        array = getattr(s, name)
        if array.shape != shape:
            yield f"{name} has shape {array.shape}, not {shape}"
        elif name in ("step_s", "period_s") and not (array > 0).all():
            yield "a step takes no time"
        elif name not in ("step_s", "period_s") and array.dtype.kind == "f" and not np.isfinite(array).all():
            yield f"{name} holds a number that is not finite"
    if (s.prices < 0).any():
        yield "a price is negative"


def _unserved(p: Problem, s: Solution) -> list[str]:
    tasks = np.flatnonzero(s.chosen < 0)
    promised = _named(p, tasks, s.promised[tasks], lambda _: "is promised what it is not given: it has no point")
    return promised + _named(p, tasks, (s.share[tasks] != 0).any(axis=1), lambda _: "holds shares without a point")


def _belonging(p: Problem, tasks: Ints, points: Ints) -> list[str]:
    wrong = (points < p.first[tasks]) | (points >= p.first[tasks + 1])
    return _named(p, tasks, wrong, lambda k: f"point {points[k]} belongs to another task")


def _limits(p: Problem, tasks: Ints, points: Ints, share: Floats, promised: Mask, tolerance: float) -> list[str]:
    used = p.slot[points] < p.n_resources  # (K, S)
    least = np.where(promised[:, None], p.floor[points], 0.0)
    low = np.any(used & (share < least * (1 - tolerance) - tolerance * 1e-3), axis=1)
    high = np.any(share > np.where(used, p.cap[points], 0.0) * (1 + tolerance), axis=1)
    return _named(p, tasks, low, lambda k: f"a share is below its floor: {share[k]}") + _named(
        p, tasks, high, lambda k: f"a share is above its cap: {share[k]}"
    )


def _use(p: Problem, points: Ints, share: Floats, tolerance: float) -> list[str]:
    taken = usage(p, points, share)
    over = (taken > tolerance) & (taken + p.background > 1 + tolerance)
    return [
        f"resource {p.resource_ids[r]} is used to {taken[r] + p.background[r]:.12g}"
        for r in np.flatnonzero(over)[:SHOWN]
    ]


def _devices(p: Problem, tasks: Ints, points: Ints) -> list[str]:
    """Devices of UEs that are asked for more than all of their time by what is promised."""
    if p.devices is None or not tasks.size:
        return []
    used = np.bincount(p.devices.ue[tasks], weights=p.devices.use[points])
    return [f"the device of UE {u} is used to {used[u]:.12g}" for u in np.flatnonzero(used > 1 + DEVICE_SLIP)[:SHOWN]]


def _deadlines(
    p: Problem, tasks: Ints, points: Ints, share: Floats, promised: Mask, tolerance: float, snr: Floats | None
) -> list[str]:
    latency = _latency(p.work[points], share, snr)  # (K, Q)
    never = np.isneginf(p.slack[points])
    slack = np.where(never, 0.0, p.slack[points])
    late = (never | (latency > slack + tolerance * np.maximum(1e-3, np.abs(slack)))).any(axis=1) & promised
    return _named(p, tasks, late, lambda k: f"takes {latency[k]} s of a slack of {p.slack[points[k]]} s")


def _value(p: Problem, s: Solution, promised: Ints, tolerance: float) -> list[str]:
    value, reported = float(p.value[promised].sum()), s.certificate.value
    loose = tolerance * max(1.0, abs(value))
    findings = []
    if abs(value - reported) > loose:
        findings.append(f"value reported {reported:.12g}, promised points are worth {value:.12g}")
    if not s.certificate.bound >= reported - loose:
        findings.append(f"bound {s.certificate.bound:.12g} is below the value {reported:.12g}")
    return findings


def _named(p: Problem, tasks: Ints, wrong: Mask, what: Callable[[int], str]) -> list[str]:
    return [f"task {p.task_ids[tasks[k]]}: {what(int(k))}" for k in np.flatnonzero(wrong)[:SHOWN]]


def _rows(snr: Floats | None, points: Ints) -> Floats | None:
    """(K, S) of points (K,); None, no slot is limited by power, stays None."""
    return None if snr is None else snr[points]


def _latency(a: Floats, x: Floats, snr: Floats | None) -> Floats:
    """(K, Q) sum of work a (K, Q, S) over what shares x (K, S) carry, as part of what a whole resource does."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        carried = x
        if snr is not None:
            s = np.where(np.isinf(snr), 1.0, snr)
            carried = np.where(np.isinf(snr), x, x * np.log2(1 + s / x) / np.log2(1 + s))
        return np.asarray(np.where(a > 0, a / carried[:, None, :], 0.0).sum(axis=2), dtype=np.float64)


def _least_costs(p: Problem, prices: Floats, room: Floats, snr: Floats | None = None) -> Floats:
    """(J,) cheapest way to hold each point at prices; inf where no shares hold it. snr (J, S), None: all inf."""
    charge = np.append(prices, 0.0)
    for a, b, per_share in zip(p.coupling_from, p.coupling_to, p.coupling_per_share, strict=True):
        charge[a] += per_share * prices[b]
    pay = p.activity * charge[p.slot]  # (J, S) for a whole share
    cap = _greatest_shares(p, room)
    with np.errstate(divide="ignore", invalid="ignore"):
        a = np.where(p.work > 0, p.work / np.maximum(p.slack, 0.0)[:, :, None], 0.0)  # (J, Q, S)
        least = _latency(a, cap, snr)  # (J, Q)
    hopeless = (p.slack < 0).any(axis=1) | (p.floor > cap * (1 + 1e-12)).any(axis=1)
    hopeless |= ~(least <= 1 + 1e-12).all(axis=1) | (p.rigid > np.append(room, np.inf)[p.slot] + 1e-12).any(axis=1)
    cost = (np.append(prices, 0.0)[p.slot] * p.rigid).sum(axis=1)
    ok = np.flatnonzero(~hopeless)
    cost[hopeless] = np.inf
    cost[ok] += _two_phase_cost(a[ok], pay[ok], p.floor[ok], np.maximum(cap[ok], p.floor[ok]), _rows(snr, ok))
    return np.asarray(cost, dtype=np.float64)


def _greatest_shares(p: Problem, room: Floats) -> Floats:
    """(J, S) caps, or what the resource and those coupled to it can give to this point alone."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # inf is right: p.cap is the limit then
        left = np.maximum(0.0, np.append(room, np.inf)[p.slot] - p.rigid)
        cap = np.minimum(p.cap, np.where(p.activity > 0, left / p.activity, np.inf))
        for a, b, per_share in zip(p.coupling_from, p.coupling_to, p.coupling_per_share, strict=True):
            alone = np.where(p.activity * per_share > 0, room[b] / (p.activity * per_share), np.inf)
            cap = np.where(p.slot == a, np.minimum(cap, alone), cap)
    return np.asarray(cap, dtype=np.float64)


def _two_phase_cost(a: Floats, pay: Floats, floor: Floats, cap: Floats, snr: Floats | None) -> Floats:
    """(K,) cost of both deadlines together: the greatest one-phase cost over mixtures of the phases.

    It is concave in the mixture; its slope has the sign of the difference of the latencies, so bisect.
    """
    both = np.flatnonzero(np.all(np.any(a > 0, axis=2), axis=1))
    cost = (pay * _one_phase_shares(a.sum(axis=1), pay, floor, cap, snr)).sum(axis=1)  # right where one phase is empty
    if not both.size:
        return np.asarray(cost, dtype=np.float64)
    a, pay, floor, cap, snr = a[both], pay[both], floor[both], cap[both], _rows(snr, both)
    low, high, best = np.zeros(len(a)), np.ones(len(a)), np.zeros(len(a))
    for theta in (low, high):
        x = _one_phase_shares(_mixture(a, theta), pay, floor, cap, snr)
        best = np.maximum(best, (pay * x).sum(axis=1))
    for _ in range(HALVINGS):
        theta = (low + high) / 2  # (K,)
        x = _one_phase_shares(_mixture(a, theta), pay, floor, cap, snr)
        best = np.maximum(best, (pay * x).sum(axis=1))
        latency = _latency(a, x, snr)
        up = latency[:, 0] > latency[:, 1]
        low, high = np.where(up, theta, low), np.where(up, high, theta)
    cost[both] = best
    return np.asarray(cost, dtype=np.float64)


def _mixture(a: Floats, theta: Floats) -> Floats:
    return np.asarray(theta[:, None] * a[:, 0] + (1 - theta)[:, None] * a[:, 1], dtype=np.float64)


def _one_phase_shares(a: Floats, pay: Floats, floor: Floats, cap: Floats, snr: Floats | None) -> Floats:
    """Cheapest shares between floor and cap at the least multiplier of latency that meets the deadline 1 (K, S)."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        bills = np.where(a > 0, pay / (a * _gain(cap, snr)), 0.0)  # multipliers that reach the caps
        top = bills.max(axis=1, initial=0.0) * 4 + 1e-300
        low, high = np.full(len(a), LEAST_LOG), np.log(top)
        for _ in range(HALVINGS + 10):  # of more than a thousand
            middle = (low + high) / 2
            x = np.clip(_share_at(np.exp(middle)[:, None] * a, pay, snr), floor, cap)
            late = _latency(a[:, None, :], x, snr)[:, 0] > 1
            low, high = np.where(late, middle, low), np.where(late, high, middle)
        x = _share_at(np.exp(high)[:, None] * a, pay, snr)
    return np.asarray(np.clip(x, floor, cap), dtype=np.float64)


def _gain(x: Floats, snr: Floats | None) -> Floats:
    """(K, S) seconds saved by a little more share, per share and per second of work."""
    if snr is None:
        return np.asarray(x**-2.0)
    s = np.where(np.isinf(snr), 1.0, snr)
    return np.asarray(np.where(np.isinf(snr), x**-2.0, np.log1p(s) / x**2 * _bent(s / x)))


def _bent(v: Floats) -> Floats:
    """Slope of v / log(1 + v)."""
    rise = np.log1p(v)
    return np.asarray(np.where(v < SMALL, 0.5 - v / 6, (rise - v / (1 + v)) / rise**2))


@functools.cache
def _table() -> tuple[Floats, Floats]:
    """Logarithms of v^2 _bent(v), which rises, and of v: so dense that what is read off it is right to 1e-6."""
    z = np.linspace(-40.0, 60.0, 30_000)
    return 2 * z + np.log(_bent(np.exp(z))), z


def _share_at(a: Floats, pay: Floats, snr: Floats | None) -> Floats:
    """(K, S) share whose last bit saves as much latency as it costs; a: work times the multiplier of latency."""
    if snr is None:
        return np.asarray(np.where(a > 0, np.sqrt(a / pay), 0.0), dtype=np.float64)
    s = np.where(np.isinf(snr), 1.0, snr)
    v = np.exp(np.interp(np.log(pay * s**2 / (a * np.log1p(s))), *_table()))
    x = np.where(np.isinf(snr), np.sqrt(a / pay), np.where(pay > 0, s / v, np.inf))
    return np.asarray(np.where(a > 0, x, 0.0), dtype=np.float64)
