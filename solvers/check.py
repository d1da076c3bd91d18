"""The referee: is this plan what it says it is? Shares no code with the solvers, only the arrays they exchange.

Feasibility is arithmetic on the whole plan at once. The bound is checked by evaluating the dual function at the
solution's prices with bisection instead of the solvers' closed forms.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from solvers.check_steps import at_steps
from solvers.problem import Floats, Ints, Problem
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
    whole, problem = problem, at_steps(problem, solution)
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
        most = dual_value(at_steps(whole, solution, offered=True), solution.prices, snr)
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
