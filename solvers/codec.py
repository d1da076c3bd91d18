"""Problem and Solution as JSON (docs/solve-format.md), with an error that names the place of whatever is wrong."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np

from solvers.errors import BadProblem
from solvers.latency import seconds
from solvers.problem import KINDS, PHASES, Floats, Problem
from solvers.solution import Solution

VERSION: Final = 1
RESOURCES: Final = 4096  # at most: the solvers keep matrices of resources x resources
CELLS: Final = 1 << 25  # points x resources of the widest point at most: 2.5 GB of columns
VALUE: Final = 1e100  # so that sums of values stay finite
SNR: Final = (1e-9, 1e12)  # a ratio: -90 to 120 dB
RANK: Final = 1 << 62  # of an arrival
NEAR: Final = 12  # bytes shown on either side of what is no JSON

Watch = Callable[[Iterable["_Task"]], Iterable["_Task"]]  # sees the tasks of a file go by: for a progress bar


class _Resource(msgspec.Struct):
    id: str
    background: float = 0.0
    kind: str | None = None


class _Phase(msgspec.Struct, gc=False):
    slack_s: float | None = None  # None: no deadline
    work_s: dict[str, float] = {}


class _Point(msgspec.Struct, gc=False):
    id: str
    value: float
    phases: list[_Phase] = []
    floor: dict[str, float] = {}
    cap: dict[str, float] = {}
    rigid: dict[str, float] = {}
    activity: dict[str, float] = {}
    snr: dict[str, float] = {}


class _Task(msgspec.Struct, gc=False):
    id: str
    points: list[_Point] = []
    held: str | None = None
    order: int | None = None
    channel: float | None = None


class _Coupling(msgspec.Struct):
    source: str = msgspec.field(name="from")
    to: str = msgspec.field(name="to")
    per_share: float = msgspec.field(name="per_share")


class _File(msgspec.Struct):
    resources: list[_Resource]
    v: int = VERSION
    tasks: list[_Task] = []
    couplings: list[_Coupling] = []
    points: list[Any] = []  # misplaced: to be refused, not passed over as a key of a later version


def read(data: bytes | str, where: str = "problem", watch: Watch = iter) -> tuple[Problem, Floats | None]:
    """Read a problem file (docs/solve-format.md): the problem, and snr (J, S) for solvers/power.py if any point has it.

    Raises BadProblem with the JSON path of what is wrong. A million points take about 15 s and 1.5 GB.
    """
    if not data:
        raise BadProblem(where, "is empty; a problem is a JSON object (docs/solve-format.md)")
    try:
        raw = msgspec.json.decode(data, type=_File)
    except msgspec.DecodeError as error:
        raise _located(where, error, data) from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise BadProblem(where, f"not JSON: {error}") from None
    return _problem(raw, where, watch)


def problem_from_json(data: bytes | str, where: str = "problem", watch: Watch = iter) -> Problem:
    """Read a problem file without power-limited points. Raises BadProblem as `read`."""
    return _unlimited(read(data, where, watch), where)


def problem_from_data(data: Mapping[str, Any], where: str = "problem") -> Problem:
    """Build a problem from the same structure as Python dicts and lists. Raises BadProblem as problem_from_json."""
    try:
        raw = msgspec.convert(data, type=_File)
    except msgspec.ValidationError as error:
        raise _named(where, error) from None
    return _unlimited(_problem(raw, where, iter), where)


def _unlimited(found: tuple[Problem, Floats | None], where: str) -> Problem:
    problem, snr = found
    if snr is not None:
        raise BadProblem(where, "points have an snr; this takes rates in proportion to shares only")
    return problem


def problem_to_json(problem: Problem) -> bytes:
    """Write a problem in the format that problem_from_json reads; the two are inverse up to the order of slots."""
    p = problem
    data = {
        "v": VERSION,
        "resources": [
            {"id": r, "background": float(b), "kind": k}
            for r, b, k in zip(p.resource_ids, p.background, p.kinds, strict=True)
        ],
        "tasks": [_task_data(p, i) for i in range(p.n_tasks)],
        "couplings": [
            {"from": p.resource_ids[a], "to": p.resource_ids[b], "per_share": float(k)}
            for a, b, k in zip(p.coupling_from, p.coupling_to, p.coupling_per_share, strict=True)
        ],
    }
    return msgspec.json.encode(data)


def solution_to_json(
    problem: Problem, solution: Solution, solve_ms: float, snr: Floats | None = None, notes: Sequence[str] = ()
) -> bytes:
    """Write a solution as `cosched solve --json` prints it (docs/solve-format.md), with notes if there are any."""
    prices = zip(problem.resource_ids, solution.prices, strict=True)
    data = {
        "v": VERSION,
        "status": str(solution.status),
        "value": solution.certificate.value,
        "bound": solution.certificate.bound if math.isfinite(solution.certificate.bound) else None,
        "gap": solution.certificate.gap if math.isfinite(solution.certificate.gap) else None,
        "solver": solution.solver,
        "solve_ms": round(solve_ms, 3),
        "evaluations": int(solution.evaluations),
        "prices": {r: float(x) for r, x in prices},
        "tasks": {task: _served(problem, solution, i, snr) for i, task in enumerate(problem.task_ids)},
    }
    return msgspec.json.encode(data | ({"notes": list(notes)} if notes else {}))


def latencies(problem: Problem, chosen: int, share: Floats, snr: Floats | None = None) -> Floats:
    """(Q,) seconds that a point's shared resources take in each phase with these shares; inf where work has none."""
    work = problem.work[chosen]  # (Q, S)
    limit = np.full(work.shape, np.inf) if snr is None else np.broadcast_to(snr[chosen], work.shape)
    return np.asarray(seconds(work, limit, np.broadcast_to(share, work.shape)).sum(axis=1), dtype=np.float64)


def _served(problem: Problem, solution: Solution, i: int, snr: Floats | None) -> dict[str, Any] | None:
    j = int(solution.chosen[i])
    if j < 0:
        return None
    slots = [(s, int(r)) for s, r in enumerate(problem.slot[j]) if r < problem.n_resources]
    latency = latencies(problem, j, solution.share[i], snr)
    with np.errstate(invalid="ignore"):  # no deadline, no share: how much is left is no number
        left = problem.slack[j] - latency
    exists = np.isfinite(problem.slack[j]) | (problem.work[j] > 0).any(axis=1)
    return {
        "point": problem.point_ids[j],
        "promised": bool(solution.promised[i]),
        "shares": {problem.resource_ids[r]: float(solution.share[i, s]) for s, r in slots},
        "latency_s": [_finite(x) for x in latency[exists]],
        "slack_s": [_finite(x) for x in left[exists]],
    }


def _finite(x: float) -> float | None:
    return float(x) if math.isfinite(x) else None


def _located(where: str, error: msgspec.DecodeError, data: bytes | str) -> BadProblem:
    """Turn `... (byte 41)` into line, column and what stands there."""
    found = re.search(r"(.*) \(byte (\d+)\)$", str(error))
    if found is None:
        return _named(where, error)
    at, data = int(found[2]), data.encode() if isinstance(data, str) else data
    line, column = data.count(b"\n", 0, at) + 1, at - data.rfind(b"\n", 0, at)
    there = data[max(0, at - NEAR) : at + NEAR].decode(errors="replace")
    hint = "; JSON has no NaN and no Infinity" if "NaN" in there or "Infinity" in there else ""
    return BadProblem(f"{where}: line {line}, column {column}", f"{found[1]} in {there!r}{hint}")


def _named(where: str, error: msgspec.DecodeError) -> BadProblem:
    """Turn `... - at `$.tasks[0].id`` into a place and a reason."""
    what, _, path = str(error).partition(" - at `$")
    return BadProblem(where + path.rstrip("`"), what)


def _problem(raw: _File, where: str, watch: Watch) -> tuple[Problem, Floats | None]:
    if raw.v != VERSION:
        raise BadProblem(f"{where}.v", f"version {raw.v} is unknown; this reads v = {VERSION}")
    if raw.points:
        raise BadProblem(f"{where}.points", "points of no task; a point stands in its task's own list, tasks[].points")
    if len(raw.resources) > RESOURCES:
        raise BadProblem(f"{where}.resources", f"{len(raw.resources)} resources; at most {RESOURCES} can be planned")
    index = _unique((r.id for r in raw.resources), f"{where}.resources")
    _unique((t.id for t in raw.tasks), f"{where}.tasks")
    for k, resource in enumerate(raw.resources):
        _check_resource(resource, f"{where}.resources[{k}]")
    _check_couplings(raw.couplings, index, f"{where}.couplings")
    columns = _Columns(len(raw.resources), raw.tasks, f"{where}.tasks")
    j = 0
    for i, task in enumerate(watch(raw.tasks)):
        _unique((p.id for p in task.points), f"{where}.tasks[{i}].points")
        for k, point in enumerate(task.points):
            columns.fill(j, point, index, f"{where}.tasks[{i}].points[{k}]")
            j += 1
    return columns.problem(raw, index, where), columns.snr if np.isfinite(columns.snr).any() else None


def _unique(ids: Iterable[str], where: str) -> dict[str, int]:
    index: dict[str, int] = {}
    for k, name in enumerate(ids):
        if not name:
            raise BadProblem(f"{where}[{k}].id", "is empty")
        if name in index:
            raise BadProblem(f"{where}[{k}].id", f"'{name}' is there twice (also at [{index[name]}])")
        index[name] = k
    return index


def _check_resource(resource: _Resource, where: str) -> None:
    if not 0 <= resource.background <= 1:
        raise BadProblem(f"{where}.background", f"{resource.background:.12g} is outside 0..1")
    if resource.kind is not None and resource.kind not in KINDS:
        raise BadProblem(f"{where}.kind", f"'{resource.kind}' is none of {', '.join(KINDS)}")


def _check_couplings(couplings: Sequence[_Coupling], index: Mapping[str, int], where: str) -> None:
    targets: dict[str, list[str]] = {}
    for k, c in enumerate(couplings):
        for name in (c.source, c.to):
            _known(name, index, f"{where}[{k}]")
        if not (math.isfinite(c.per_share) and c.per_share >= 0):
            raise BadProblem(f"{where}[{k}].per_share", f"{c.per_share:g} is not a number >= 0")
        if c.to in targets.get(c.source, []):
            raise BadProblem(f"{where}[{k}]", f"'{c.source}' to '{c.to}' is there twice")
        targets.setdefault(c.source, []).append(c.to)
    if loop := _cycle(targets):
        raise BadProblem(where, f"couplings run in a circle: {' -> '.join(loop)}")


def _cycle(targets: Mapping[str, Sequence[str]]) -> list[str]:
    """A circle in the graph of couplings, [] if there is none. Sources without incoming edge are taken away first."""
    left = {a: list(b) for a, b in targets.items()}
    while True:
        incoming = {b for bs in left.values() for b in bs}
        free = [a for a in left if a not in incoming]
        if not free:
            break
        for a in free:
            del left[a]
    path: list[str] = []
    at = next(iter(left), None)
    while at is not None and at not in path:
        path.append(at)
        at = next((b for b in left[at] if b in left), None)
    return [*path[path.index(at) :], at] if at is not None else []


def _known(name: str, index: Mapping[str, int], where: str) -> int:
    try:
        return index[name]
    except KeyError:
        raise BadProblem(where, f"unknown resource '{name}'; there are: {', '.join(index) or 'none'}") from None


class _Columns:
    """The arrays of a Problem while they are filled row by row."""

    def __init__(self, n_resources: int, tasks: Sequence[_Task], where: str) -> None:
        n = sum(len(t.points) for t in tasks)
        width, widest = 1, ""
        for i, task in enumerate(tasks):
            for k, point in enumerate(task.points):
                if (touched := len(_touched(point))) > width:
                    width, widest = touched, f"{where}[{i}].points[{k}]"
        if n * width > CELLS:
            raise BadProblem(widest or where, f"touches {width} resources: too many for a problem of {n} points")
        self.n_resources = n_resources
        self.value = np.zeros(n)
        self.slack = np.full((n, PHASES), np.inf)
        self.slot = np.full((n, width), n_resources, dtype=np.int64)
        self.work = np.zeros((n, PHASES, width))
        self.floor = np.zeros((n, width))
        self.cap = np.ones((n, width))
        self.activity = np.ones((n, width))
        self.rigid = np.zeros((n, width))
        self.snr = np.full((n, width), np.inf)

    def fill(self, j: int, point: _Point, index: Mapping[str, int], where: str) -> None:
        """Row j from one point. Raises BadProblem."""
        if not abs(point.value) <= VALUE:
            raise BadProblem(f"{where}.value", f"{point.value:g} is not a finite number of at most {VALUE:g}")
        if len(point.phases) > PHASES:
            raise BadProblem(f"{where}.phases", f"{len(point.phases)} phases; at most {PHASES} can be planned")
        slots = {r: s for s, r in enumerate(sorted(_known(name, index, where) for name in _touched(point)))}
        self.value[j] = point.value
        self.slot[j, : len(slots)] = list(slots)
        for q, phase in enumerate(point.phases):
            slack = math.inf if phase.slack_s is None else phase.slack_s
            if math.isnan(slack):
                raise BadProblem(f"{where}.phases[{q}].slack_s", "is not a number")
            self.slack[j, q] = slack
            for name, x in phase.work_s.items():
                self.work[j, q, slots[index[name]]] = _number(x, f"{where}.phases[{q}].work_s.{name}")
        for key, read in _READ.items():
            column = getattr(self, key)
            for name, x in getattr(point, key).items():
                column[j, slots[index[name]]] = read(x, f"{where}.{key}.{name}")
        if point.floor and (self.floor[j] > self.cap[j]).any():
            r = int(self.slot[j, int(np.argmax(self.floor[j] > self.cap[j]))])
            raise BadProblem(f"{where}.floor.{list(index)[r]}", "is greater than the cap")

    def problem(self, raw: _File, index: Mapping[str, int], where: str) -> Problem:
        """Put the arrays together."""
        counts = [len(t.points) for t in raw.tasks]
        first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
        order = [_rank(t, i, f"{where}.tasks[{i}].order") for i, t in enumerate(raw.tasks)]
        return Problem(
            resource_ids=tuple(index),
            kinds=tuple(r.kind or kind_of(r.id) for r in raw.resources),
            background=np.array([r.background for r in raw.resources], dtype=np.float64),
            coupling_from=np.array([index[c.source] for c in raw.couplings], dtype=np.int64),
            coupling_to=np.array([index[c.to] for c in raw.couplings], dtype=np.int64),
            coupling_per_share=np.array([c.per_share for c in raw.couplings], dtype=np.float64),
            task_ids=tuple(t.id for t in raw.tasks),
            first=first,
            point_ids=tuple(p.id for t in raw.tasks for p in t.points),
            value=self.value,
            slack=self.slack,
            slot=self.slot,
            work=self.work,
            floor=self.floor,
            cap=self.cap,
            activity=self.activity,
            rigid=self.rigid,
            held=np.array(
                [_held(t, int(first[i]), f"{where}.tasks[{i}].held") for i, t in enumerate(raw.tasks)], dtype=np.int64
            ),
            order=np.array(order, dtype=np.int64),
            channel=np.array(
                [_channel(t, f"{where}.tasks[{i}].channel") for i, t in enumerate(raw.tasks)], dtype=np.float64
            ),
        )


def kind_of(resource_id: str) -> str:
    """Kind of a resource that does not say: by the name's usual form (`cell0/ul`, `node0/mem`, `link1`)."""
    if any(part in resource_id for part in ("/ul", "/dl", "link")):
        return "comm"
    return "memory" if resource_id.endswith("/mem") else "compute"


def _touched(point: _Point) -> set[str]:
    names: set[str] = set()
    for phase in point.phases:
        names.update(phase.work_s)
    return names.union(point.floor, point.cap, point.rigid, point.activity, point.snr)


def _number(x: float, where: str, most: float = math.inf) -> float:
    if not (math.isfinite(x) and 0 <= x <= most):
        allowed = "not a number >= 0" if most == math.inf else f"outside 0..{most:g}"
        raise BadProblem(where, f"{x:.12g} is {allowed}")
    return x


def _signal_to_noise(x: float, where: str) -> float:
    if not SNR[0] <= x <= SNR[1]:
        raise BadProblem(where, f"{x:.12g} is outside {SNR[0]:g}..{SNR[1]:g}; it is a ratio, not in dB")
    return x


def _fraction(x: float, where: str) -> float:
    return _number(x, where, 1.0)


# How the numbers of a point by resource are checked.
_READ: Final[dict[str, Callable[[float, str], float]]] = {
    "floor": _fraction,
    "cap": _fraction,
    "activity": _fraction,
    "rigid": _number,
    "snr": _signal_to_noise,
}


def _rank(task: _Task, i: int, where: str) -> int:
    if task.order is None:
        return i
    if abs(task.order) > RANK:
        raise BadProblem(where, f"{task.order} is not a rank of at most {RANK}")
    return task.order


def _held(task: _Task, first: int, where: str) -> int:
    if task.held is None:
        return -1
    for k, point in enumerate(task.points):
        if point.id == task.held:
            return first + k
    raise BadProblem(where, f"'{task.held}' is no point of this task")


def _channel(task: _Task, where: str) -> float:
    if task.channel is None:
        return math.nan
    return _number(task.channel, where)


def _task_data(p: Problem, i: int) -> dict[str, Any]:
    points = [_point_data(p, j) for j in range(int(p.first[i]), int(p.first[i + 1]))]
    data: dict[str, Any] = {"id": p.task_ids[i], "points": points, "order": int(p.order[i])}
    if p.held[i] >= 0:
        data["held"] = p.point_ids[int(p.held[i])]
    if not math.isnan(p.channel[i]):
        data["channel"] = float(p.channel[i])
    return data


def _point_data(p: Problem, j: int) -> dict[str, Any]:
    slots = [(s, p.resource_ids[int(r)]) for s, r in enumerate(p.slot[j]) if r < p.n_resources]
    phases = [
        {"slack_s": _finite(p.slack[j, q]), "work_s": {name: float(p.work[j, q, s]) for s, name in slots}}
        for q in range(PHASES)
    ]
    data: dict[str, Any] = {"id": p.point_ids[j], "value": float(p.value[j]), "phases": phases}
    for key in ("floor", "cap", "rigid", "activity"):
        data[key] = {name: float(getattr(p, key)[j, s]) for s, name in slots}
    return data
