"""`cosched solve`: one problem, one solution with its certificate; the solvers without the daemon."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.markup import escape

from cosched.cli.common import JsonFlag, own_stdout, progress, told_of_compiling, warn

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from solvers.objectives.second_stage import Goal
    from solvers.problem import Floats, Problem
    from solvers.registry import Solver
    from solvers.solution import Solution

ROWS: Final = 60  # tasks shown in the table; --json has all
# Solved before the clock starts, so that what is loaded and compiled on first use is not counted as solving.
FIRST: Final = """{"resources": [{"id": "a/ul"}, {"id": "b"}], "tasks": [
  {"id": "t", "points": [{"id": "p", "value": 1, "phases": [{"slack_s": 1, "work_s": {"a/ul": 0.4, "b": 0.1}}]%s}]},
  {"id": "u", "points": [{"id": "p", "value": 1, "phases": [{"slack_s": 1, "work_s": {"a/ul": 0.5, "b": 0.1}}]%s}]}]}"""
LIMITED: Final = ', "snr": {"a/ul": 9}'


def solve(
    problem: Annotated[Path, typer.Argument(metavar="PROBLEM.json", help="docs/solve-format.md; '-' reads stdin.")],
    *,
    solver: Annotated[str, typer.Option(help="Name in the registry; an unknown one lists them all.")] = "auto",
    objective: Annotated[
        str | None,
        typer.Option(
            help="Share out what is left by latency, max-latency, alpha-fair[:ALPHA] or energy, not as the solver does."
        ),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Solve one problem and print the plan with its certificate.

    The certificate: value, proven bound, gap, prices. `auto` takes the exact solver's plan where the problem is small
    and that is better, else the price solver's, and says whose it is. A problem in which nobody can be served is a
    valid one: its plan admits no task, exit 0. Exit 2: malformed input.

    Example: cosched solve problem.json --solver greedy --objective alpha-fair:2 --json
    """
    from solvers import codec, joint, registry
    from solvers.objectives import second_stage

    goal = second_stage.parse_goal(objective) if objective is not None else None
    function = registry.get(solver)
    where = str(problem) if str(problem) != "-" else "stdin"
    parsed, snr = codec.read(_read(problem), where, lambda tasks: progress(tasks, "reading tasks"))
    if snr is not None and solver == "auto":  # the referee does not know power
        function = registry.get("joint")
    notes: list[str] = []
    with own_stdout(), told_of_compiling():
        first, first_snr = codec.read(FIRST % ((LIMITED,) * 2 if snr is not None else ("", "")))
        _solved(first, first_snr, function, goal, lambda _: None)
        if joint.is_sparse(parsed):
            joint.load(first)
    with own_stdout():
        started = time.perf_counter()
        solution = _solved(parsed, snr, function, goal, notes.append)
        solve_ms = 1e3 * (time.perf_counter() - started)
    for note in notes:
        warn(note)
    if json:
        typer.echo(codec.solution_to_json(parsed, solution, solve_ms, snr, notes))
    else:
        _print(parsed, solution, solve_ms, snr)


def _solved(
    problem: Problem, snr: Floats | None, function: Solver, goal: Goal | None, tell: Callable[[str], None]
) -> Solution:
    """Plan, and share out what is left by the goal."""
    from solvers import power
    from solvers.objectives import second_stage

    if snr is None:
        solution = function(problem)
        return solution if goal is None else second_stage.second_stage(problem, solution, goal)
    solution = power.solve(problem, snr, function)
    return solution if goal is None else power.second_stage(problem, snr, solution, goal, tell)


def _read(path: Path) -> bytes:
    return sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()


def _print(problem: Problem, solution: Solution, solve_ms: float, snr: Floats | None) -> None:
    from rich.console import Console

    console = Console()
    certificate = solution.certificate
    admitted = int((solution.chosen >= 0).sum())
    console.print(
        f"{solution.solver}: {solution.status}, value {certificate.value:.6g}, bound {certificate.bound:.6g}, "
        f"gap {certificate.gap:.3g}; {admitted} of {problem.n_tasks} tasks admitted in {solve_ms:.2f} ms "
        f"({solution.evaluations} evaluations)",
        highlight=False,
    )
    _print_resources(console, problem, solution)
    _print_tasks(console, problem, solution, snr)


def _print_resources(console: Console, problem: Problem, solution: Solution) -> None:
    from rich.table import Table

    from solvers.check import usage

    tasks = (solution.chosen >= 0).nonzero()[0]
    used = usage(problem, solution.chosen[tasks], solution.share[tasks])
    table = Table("resource", "kind", box=None, header_style="bold")
    for name in ("background", "planned", "price"):
        table.add_column(name, justify="right")
    for r, name in enumerate(problem.resource_ids):
        numbers = (f"{problem.background[r]:.3f}", f"{used[r]:.3f}", f"{solution.prices[r]:.4g}")
        table.add_row(escape(name), problem.kinds[r], *numbers)
    console.print(table)


def _print_tasks(console: Console, problem: Problem, solution: Solution, snr: Floats | None) -> None:
    from rich.table import Table

    table = Table("task", "point", "shares", "latency / slack, ms", box=None, header_style="bold")
    for i, name in enumerate(problem.task_ids[:ROWS]):
        table.add_row(escape(name), *_row(problem, solution, i, snr))
    console.print(table)
    if problem.n_tasks > ROWS:
        console.print(f"... and {problem.n_tasks - ROWS} more tasks (--json prints all)", highlight=False)


def _row(problem: Problem, solution: Solution, i: int, snr: Floats | None) -> tuple[str, str, str]:
    from solvers.codec import latencies

    j = int(solution.chosen[i])
    if j < 0:
        return "-", "", ""
    slots = [(s, int(r)) for s, r in enumerate(problem.slot[j]) if r < problem.n_resources]
    shares = "  ".join(f"{problem.resource_ids[r]} {solution.share[i, s]:.4f}" for s, r in slots)
    times = zip(latencies(problem, j, solution.share[i], snr), problem.slack[j], strict=True)
    late = "  ".join(f"{1e3 * a:.2f} / {1e3 * b:.2f}" for a, b in times if b < float("inf"))
    return escape(problem.point_ids[j]), escape(shares), late
