"""Reference forms of the second stage in cvxpy: what is left over, shared out at given points (docs/exact.md).

Disciplined convex programs (Grant & Boyd 2008) for the interior-point solver Clarabel, independent of the price
solvers' closed forms. Few tasks: compiled once per shape with parameters (DPP, Agrawal et al. 2019) and solved again
with new numbers. Many: built anew with constants, because compiling parameters then takes longer than everything else.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from solvers.errors import BadProblem, SolverError
from solvers.latency import seconds as true_seconds
from solvers.objectives.second_stage import HEADROOM, Goal, Leftover, Objective, leftover
from solvers.problem import Floats, Ints, Problem

PARAMETERS: Final = 500  # tasks: up to here problems are compiled with parameters (docs/exact.md)
EVEN: Final = 0.3  # of an even share: shares are not counted in less
SHAPES: Final = 8  # compiled problems that are kept
LINEAR: Final = np.inf  # snr of a slot whose rate is proportional to its share


class Unsolved(SolverError):
    """The cone solver stopped without an optimum, for numerical reasons."""


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a compiled problem is made for: everything but numbers. Arrays as bytes, so that it can be a key."""

    goal: Goal
    n_tasks: int
    n_resources: int
    owner: bytes
    resource: bytes
    pull: bytes
    limited: bytes  # (K,) bool: power-limited slots


@dataclass(frozen=True, slots=True)
class _Form:
    """A problem in cvxpy; `numbers` are its parameters by name (constants, where it is not compiled)."""

    problem: Any
    share: Any  # (K,) variable
    numbers: dict[str, Any]


def second_stage(
    problem: Problem,
    chosen: Ints,
    *,
    objective: Goal | None = None,
    weight: Floats | None = None,
    snr: Floats | None = None,
    parameters: bool | None = None,
) -> tuple[Floats, float]:
    """Shares (N, S) for the chosen points (N,), -1 = none, and the least value of the objective (default: latency).

    weight: (N,) > 0, 1 by default. snr: (J, S) received signal to noise of an uplink slot if the device spread its
    power over the whole resource; inf: rate proportional to the share. With it the rate is b log2(1 + P h / (N0 b)),
    so that latency is work log(1 + snr) / (x log(1 + snr / x)): convex in x, the perspective of the logarithm.
    parameters: compile once per shape and solve again with new numbers, or build anew; None: by the number of tasks.
    Raises BadProblem where the points do not fit together, Unsolved where Clarabel finds no optimum.
    """
    goal = objective or Goal()
    left = leftover(problem, chosen, goal, weight)
    gamma = np.full(len(left.task), LINEAR) if snr is None else snr[chosen[left.task], left.slot]
    limited = np.isfinite(gamma)
    unit = _units(left)
    scale = np.where(limited, np.log1p(np.where(limited, gamma, 1.0)), 1.0) / unit  # latency is 1 at full share
    typical = _typical(left, gamma, unit)
    whole = 1.0  # what the objective is counted in
    if goal.objective is Objective.ENERGY:
        whole = float((left.energy * scale).sum()) or 1.0
    elif goal.objective is not Objective.ALPHA_FAIR:
        whole = typical
    numbers = {
        "a0": left.a[0] * scale / typical,
        "a1": left.a[1] * scale / typical,
        "typical": np.array([typical]),
        "energy": left.energy * scale / whole,
        "floor": left.floor / unit,
        "cap": left.cap / unit,
        "activity": left.activity * unit,
        "weight": left.weight * (typical / whole if goal.objective is Objective.ENERGY else 1.0),
        "room": np.maximum(left.room, 0.0),
        "snr": (gamma / unit)[limited],
    }
    if not len(left.task):
        return left.fixed, 0.0
    arrays = (left.owner, left.resource, left.pull, limited)
    shape = _Shape(goal, len(left.weight), len(left.room), *(a.tobytes() for a in arrays))
    compiled = len(left.weight) <= PARAMETERS if parameters is None else parameters
    form = _compiled(shape) if compiled else _build(shape, numbers)
    value = _solve(form, numbers) * whole
    share = left.fixed.copy()
    share[left.task, left.slot] = np.clip(form.share.value * unit, left.floor, left.cap)
    return share, value


def _units(left: Leftover) -> Floats:
    """Units (K,) that shares are decided in: what they must be at least, or a part of an even share where that is more.

    Where deadlines are loose, what shares must be is a millionth of what they are in the end, or less.
    """
    users = np.bincount(left.resource, minlength=len(left.room))
    even = (np.maximum(left.room, 0.0) / np.maximum(users, 1))[left.resource]
    unit = np.maximum(np.maximum(left.a.max(axis=0), left.floor), EVEN * np.minimum(even, left.cap))
    return np.where(unit > 0, unit, 1.0)


def _typical(left: Leftover, gamma: Floats, unit: Floats) -> float:
    """Greatest latency over deadline at these shares, at most 1: what latencies are counted in."""
    slow = left.a * true_seconds(np.ones_like(unit), gamma, np.minimum(unit, 1.0))
    late = [np.bincount(left.owner, weights=a, minlength=len(left.weight)).max(initial=0.0) for a in slow]
    return float(min(1.0, max(*late, 1e-300)))


def _cvxpy() -> Any:  # noqa: ANN401  # a module
    """Import on use; its star imports hide its names from mypy."""
    import cvxpy

    return cvxpy


@functools.lru_cache(maxsize=SHAPES)
def _compiled(shape: _Shape) -> _Form:
    return _build(shape, None)


def _build(shape: _Shape, constants: dict[str, Floats] | None) -> _Form:
    """State the program; without constants, with parameters in their places."""
    cp = _cvxpy()

    owner, resource = np.frombuffer(shape.owner, np.int64), np.frombuffer(shape.resource, np.int64)
    limited = np.flatnonzero(np.frombuffer(shape.limited, np.bool_))
    n_resources = shape.n_resources
    numbers = {
        name: cp.Parameter(size, nonneg=True) if constants is None else cp.Constant(constants[name])
        for name, size in _sizes(shape, len(owner), len(limited)).items()
    }
    x, late = cp.Variable(len(owner)), cp.Variable(shape.n_tasks)
    seconds, limits = _seconds(x, numbers, limited)
    belongs = _incidence(owner, shape.n_tasks)  # (n, K)
    used = np.frombuffer(shape.pull).reshape(n_resources, n_resources) @ _incidence(resource, n_resources)  # (R, K)
    limits += [x >= numbers["floor"], x <= numbers["cap"], numbers["typical"] * late <= 1]
    limits += [belongs @ cp.multiply(numbers[a], seconds) <= late for a in ("a0", "a1")]
    limits += [used @ cp.multiply(numbers["activity"], x) <= numbers["room"]]
    return _Form(cp.Problem(cp.Minimize(_objective(shape.goal, late, seconds, numbers)), limits), x, numbers)


def _sizes(shape: _Shape, n_slots: int, n_limited: int) -> dict[str, int]:
    """Lengths of the numbers that a shape needs."""
    sizes = dict.fromkeys(("a0", "a1", "floor", "cap", "activity"), n_slots) | {"weight": shape.n_tasks}
    sizes |= {"energy": n_slots} if shape.goal.objective is Objective.ENERGY else {}
    return sizes | {"room": shape.n_resources, "typical": 1} | ({"snr": n_limited} if n_limited else {})


def _seconds(x: Any, numbers: dict[str, Any], limited: Ints) -> tuple[Any, list[Any]]:  # noqa: ANN401  # of cvxpy
    """Latency of each slot per work: 1 / x, or 1 / (x log(1 + snr / x)) where power limits; and what defines it."""
    cp = _cvxpy()

    if not limited.size:
        return cp.inv_pos(x), []
    free = np.setdiff1d(np.arange(x.size), limited)
    b, seconds = x[limited], cp.Variable(x.size)  # a variable: a parameter times what holds another is not DPP
    limits = [seconds[limited] >= cp.inv_pos(-cp.rel_entr(b, b + numbers["snr"]))]
    return seconds, [*limits, seconds[free] >= cp.inv_pos(x[free])]


def _incidence(rows: Ints, n: int) -> Any:  # noqa: ANN401  # a sparse matrix
    """(n, K) 1 where column k belongs to row rows[k]."""
    import scipy.sparse

    return scipy.sparse.csr_array((np.ones(len(rows)), (rows, np.arange(len(rows)))), shape=(n, len(rows)))


def _objective(goal: Goal, late: Any, seconds: Any, numbers: dict[str, Any]) -> Any:  # noqa: ANN401  # of cvxpy
    cp = _cvxpy()

    if goal.objective is Objective.MAX_LATENCY:
        return cp.max(late)
    if goal.objective is Objective.ENERGY:
        return numbers["energy"] @ seconds + numbers["weight"] @ late
    if goal.objective is Objective.LATENCY:
        return numbers["weight"] @ late
    spare = 1.0 + HEADROOM - numbers["typical"] * late
    if goal.alpha == 1.0:
        return -(numbers["weight"] @ cp.log(spare))
    return numbers["weight"] @ (cp.power(spare, 1.0 - goal.alpha) * (1.0 / (goal.alpha - 1.0)))


def _solve(form: _Form, numbers: dict[str, Floats]) -> float:
    """Fill in the numbers and solve. Raises BadProblem where nothing is feasible, Unsolved."""
    import warnings

    cp = _cvxpy()

    for name, place in form.numbers.items():
        if isinstance(place, cp.Parameter):
            place.value = numbers[name]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what an inaccurate solution is: Unsolved, below
            value = form.problem.solve(solver=cp.CLARABEL)
    except cp.SolverError as error:
        raise Unsolved(f"second stage: {error}") from None
    if form.problem.status in {cp.INFEASIBLE, cp.INFEASIBLE_INACCURATE}:
        raise BadProblem("chosen", "these points cannot be served together")
    if form.problem.status != cp.OPTIMAL:
        raise Unsolved(f"second stage: Clarabel ended with '{form.problem.status}'")
    return float(value)
