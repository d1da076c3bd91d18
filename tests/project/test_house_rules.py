"""House rules that no linter knows: layers, one room per foreign system, a pure core, files read in one go."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(path for name in ("cosched", "solvers", "telemetry") for path in (ROOT / name).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

MAX_FILE_LINES: Final = 500
MAX_FUNCTION_LINES: Final = 60

# A foreign system is known in one room: to replace it, or to move to its next version, is to change these files.
ROOMS: Final[dict[str, tuple[str, ...]]] = {
    "cvxpy": ("solvers/objectives/convex.py",),
    "jinja2": ("cosched/runtime/chat.py",),
    "mcap": ("telemetry/trace.py",),
    "numba": ("solvers/compiling.py", "solvers/jit.py"),
    "ortools": ("solvers/referees/exact.py", "solvers/referees/mip.py", "solvers/placement.py"),
    "plotly": ("cosched/report/html.py",),
    "prometheus_client": ("cosched/daemon/metrics.py", "cosched/serve/metrics.py"),
    "psutil": ("telemetry/agent.py", "cosched/cluster/processes.py"),
    "pynvml": ("telemetry/agent.py",),
    "ray": ("cosched/cluster/*.py",),
    "rich": ("cosched/bench/tables.py", "cosched/cli/*.py", "cosched/report/table.py", "cosched/top/*.py"),
    "safetensors": ("cosched/runtime/weights.py",),
    "structlog": (
        "cosched/config/log.py",
        "cosched/children/pool.py",
        "cosched/cluster/serving.py",
        "cosched/daemon/*.py",
        "cosched/serve/*.py",
    ),
    "starlette": ("cosched/serve/*.py",),
    "torch": ("cosched/runtime/*.py",),
    "transformers": ("cosched/runtime/*.py",),
    "textual": ("cosched/top/*.py",),
    "typer": ("cosched/cli/*.py",),
    "uvicorn": ("cosched/serve/listening.py",),
    "websockets": ("telemetry/adapters/sources.py",),
    "zmq": ("telemetry/bus.py", "telemetry/calls.py", "cosched/api/zap.py"),
}

# What decides gets time as a stamp and randomness as a generator, and reads no file, socket or environment.
PURE: Final = ("cosched/core/", "cosched/fluid/", "cosched/workloads/", "solvers/")
IMPURE: Final = {
    *("asyncio", "datetime", "logging", "multiprocessing", "os", "random", "secrets", "socket", "structlog"),
    *("subprocess", "threading", "time", "uuid"),
}
# Class names that are defined more than once, at most five, and why.
NAMED_AGAIN: Final = {"Options": "of each adapter: the registry looks for it by that name"}
SWITCH: Final = "solvers/jit.py"  # reads COSCHED_KERNEL: compiled, or NumPy with the same results


@functools.cache
def tree(path: Path) -> ast.Module:
    """Parse once for all tests."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and top-level name of every import in a file, inside functions too."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module.partition(".")[0]


def test_layers_hold() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("system", ROOMS)
def test_foreign_system_has_its_room(system: str) -> None:
    strangers = [
        f"{name_of(path)}:{line}"
        for path in SOURCES
        for line, module in imports(path)
        if module == system and not any(fnmatch(name_of(path), room) for room in ROOMS[system])
    ]
    assert strangers == [], f"only {', '.join(ROOMS[system])} may import {system}"


def test_what_decides_reads_no_clock_and_no_environment() -> None:
    found = [
        f"{name_of(path)}:{line}: {module}"
        for path in SOURCES
        if name_of(path).startswith(PURE) and name_of(path) != SWITCH
        for line, module in imports(path)
        if module in IMPURE
    ]
    assert found == []


def test_randomness_is_a_generator_that_is_handed_in() -> None:
    """`random` and numpy's global state are nowhere; `default_rng()` without a seed is nowhere either."""
    found = [
        f"{name_of(path)}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("default_rng") and not node.args
    ]
    found += [f"{name_of(path)}:{line}" for path in SOURCES for line, module in imports(path) if module == "random"]
    assert found == []


def test_files_are_read_in_one_go() -> None:
    long = {
        name_of(path): lines for path in SOURCES + TESTS if (lines := path.read_text().count("\n")) > MAX_FILE_LINES
    }
    assert long == {}


def test_functions_are_short() -> None:
    """Counted without the signature: a command's is its table of options."""
    long = [
        f"{name_of(path)}:{node.lineno} {node.name}: {lines} lines"
        for path in SOURCES + TESTS
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or 0) - node.body[0].lineno + 1) > MAX_FUNCTION_LINES
    ]
    assert long == []


def test_every_module_says_what_it_is_for() -> None:
    assert [name_of(path) for path in SOURCES + TESTS if not ast.get_docstring(tree(path))] == []


def test_a_class_name_is_defined_once() -> None:
    places: dict[str, list[str]] = {}
    for path in SOURCES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(f"{name_of(path)}:{node.lineno}")
    assert {name for name, where in places.items() if len(where) > 1} == set(NAMED_AGAIN), "one name, one thing"


def test_a_tolerance_is_named_once() -> None:
    """Numbers that say what counts as equal or as nothing stand in one file."""
    small = [
        f"{name_of(path)}:{node.lineno}"
        for path in SOURCES
        if name_of(path).startswith(("solvers/price/", "solvers/sparse/", "solvers/grid/", "solvers/objectives/"))
        for node in tree(path).body
        if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, float) and node.value.value < 1e-5
    ]  # fmt: skip
    assert small == [], "solvers/tolerances.py is the place"
