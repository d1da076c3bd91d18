"""`cosched solve` as a user runs it: whatever is wrong is one line that names the place, and a million points pass."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cosched.cli.main import main
from solvers.objectives import convex

POINT = {"id": "p", "value": 1.0, "phases": [{"slack_s": 1.0, "work_s": {"a": 0.1}}]}
GOOD = {"v": 1, "resources": [{"id": "a"}, {"id": "b"}], "tasks": [{"id": "t", "points": [POINT]}]}

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the program on a file with this content; returns exit code, stdout and stderr."""

    def program(content: object, *options: str) -> tuple[int, str, str]:
        path = tmp_path / "problem.json"
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        try:
            main(["solve", str(path), *options])
        except SystemExit as end:
            out, err = capsys.readouterr()
            return int(end.code or 0), out, err
        raise AssertionError("the program did not exit")

    return program


def task(**changes: object) -> dict[str, Any]:
    return GOOD | {"tasks": [GOOD["tasks"][0] | {"points": [POINT | changes]}]}


def phase(**changes: object) -> dict[str, Any]:
    return task(phases=[POINT["phases"][0] | changes])


def coupled(*pairs: tuple[str, str]) -> dict[str, Any]:
    return GOOD | {"couplings": [{"from": a, "to": b, "per_share": 0.1} for a, b in pairs]}


BAD: dict[str, tuple[object, str, str]] = {
    "unknown resource": (phase(work_s={"cell9": 0.1}), ".tasks[0].points[0]", "'cell9'; there are: a, b"),
    "NaN": (b'{\n"resources": [{"id": "a", "background": NaN}]}', "problem.json: line 2, column 41", "JSON has no NaN"),
    "infinite": (b'{"resources": [{"id": "a", "background": 1e999}]}', ".resources[0].background", "out of range"),
    "negative work": (phase(work_s={"a": -0.1}), ".tasks[0].points[0].phases[0].work_s.a", "-0.1"),
    "negative rigid demand": (task(rigid={"b": -1}), ".tasks[0].points[0].rigid.b", "-1"),
    "task twice": (GOOD | {"tasks": GOOD["tasks"] * 2}, ".tasks[1].id", "'t' is there twice (also at [0])"),
    "point twice": (GOOD | {"tasks": [{"id": "t", "points": [POINT, POINT]}]}, ".tasks[0].points[1].id", "twice"),
    "resource twice": (GOOD | {"resources": [{"id": "a"}] * 2}, ".resources[1].id", "twice"),
    "points of no task": (GOOD | {"points": [POINT | {"task": "nobody"}]}, ".points", "points of no task"),
    "held point of no task": (GOOD | {"tasks": [{"id": "t", "held": "p", "points": []}]}, ".tasks[0].held", "no point"),
    "circle": (coupled(("a", "b"), ("b", "a")), ".couplings", "a -> b -> a"),
    "circle of one": (coupled(("a", "a")), ".couplings", "a -> a"),
    "background over 1": (GOOD | {"resources": [{"id": "a", "background": 1.0000001}]}, ".background", "1.0000001"),
    "wrong version": (GOOD | {"v": 2}, ".v", "version 2"),
    "missing key": ({"v": 1, "tasks": []}, "problem.json", "`resources`"),
    "missing value": (GOOD | {"tasks": [{"id": "t", "points": [{"id": "p"}]}]}, ".tasks[0].points[0]", "`value`"),
    "wrong type": (GOOD | {"tasks": 5}, ".tasks", "`array`"),
    "text for a number": (task(value="much"), ".tasks[0].points[0].value", "`float`"),
    "not an object": (b"[]", "problem.json", "`object`"),
    "empty": (b"", "problem.json", "is empty"),
    "cut off": (json.dumps(GOOD).encode()[:-3], "problem.json", "truncated"),
    "not JSON": (b"tasks: none", "problem.json", "malformed"),
    "not UTF-8": (b'{"resources": [{"id": "\xe9"}]}', "problem.json", "utf-8"),
    "nested without end": (b'{"resources":' + b"[" * 99_999, "problem.json", ""),
    "huge rank": (GOOD | {"tasks": [{"id": "t", "order": 10**30}]}, ".tasks[0].order", str(10**30)),
    "huge value": (task(value=10**200), ".tasks[0].points[0].value", "1e+200"),
    "too many resources": ({"resources": [{"id": str(r)} for r in range(5000)]}, ".resources", "at most 4096"),
    "one point on too many": (
        {
            "resources": [{"id": str(r)} for r in range(4000)],
            "tasks": [
                {"id": "t", "points": [{"id": str(j), "value": 1} for j in range(9000)]},
                {"id": "u", "points": [{"id": "wide", "value": 1, "rigid": {str(r): 1e-4 for r in range(4000)}}]},
            ],
        },
        ".tasks[1].points[0]",
        "4000",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_that_names_the_place(name: str, run: Run):
    content, where, what = BAD[name]
    code, out, err = run(content, "--json")
    assert code == 2
    assert out == ""
    assert err.startswith("cosched: error: ")
    assert len(err.splitlines()) == 1
    assert len(err) < 600
    assert where in err
    assert what in err


def test_what_is_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for path in (tmp_path, tmp_path / "none.json"):
        with pytest.raises(SystemExit) as end:
            main(["solve", str(path)])
        assert end.value.code == 2
        assert str(path) in capsys.readouterr().err


def test_an_unknown_solver_lists_those_there_are(run: Run):
    code, _, err = run(GOOD, "--solver", "magic")
    assert code == 2
    assert "unknown solver 'magic'" in err
    assert "joint" in err


HOPELESS: dict[str, dict[str, Any]] = {
    "no capacity": GOOD | {"resources": [{"id": "a", "background": 1}]},
    "too much work": phase(work_s={"a": 5.0}),
    "deadline past": phase(slack_s=-0.1),
    "rigid demand over 1": task(rigid={"b": 1.5}),
    "worth nothing": task(value=0.0),
    "task without points": GOOD | {"tasks": [{"id": "t"}]},
}


@pytest.mark.parametrize("name", HOPELESS)
def test_a_hopeless_problem_is_ok_with_nobody_admitted(name: str, run: Run):
    code, out, err = run(HOPELESS[name], "--json")
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert answer["status"] == "ok"
    assert answer["tasks"] == {"t": None}
    assert answer["value"] == answer["bound"] == 0.0
    code, out, _ = run(HOPELESS[name])
    assert code == 0
    assert "0 of 1 tasks admitted" in " ".join(out.split())


def test_no_task_at_all(run: Run):
    code, out, _ = run({"resources": []}, "--json")
    assert code == 0
    assert json.loads(out)["tasks"] == {}


def test_standard_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    for text, code in ((json.dumps(GOOD), 0), ("{", 2)):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        with pytest.raises(SystemExit) as end:
            main(["solve", "-", "--json"])
        assert (end.value.code or 0) == code
    out, err = capsys.readouterr()
    assert json.loads(out)["tasks"]["t"]["point"] == "p"
    assert err.startswith("cosched: error: stdin: ")


NO_DEADLINE = phase(slack_s=None)
OPEN = {
    "resources": [{"id": "m"}],
    "tasks": [
        {"id": f"t{i}", "points": [{"id": "p", "value": x, "rigid": {"m": x / 1000}}]}
        for i, x in enumerate((371, 214, 339, 287, 305, 262, 398, 233))
    ],
}


@pytest.mark.parametrize("solver", ["auto", "joint", "exact", "grid", "greedy", "compute-only"])
@pytest.mark.parametrize("compiled", [True, False])
def test_no_deadline_and_no_compiler_are_no_trouble(tmp_path: Path, solver: str, compiled: bool):
    """Plain JSON, nothing on stderr: no scalar of NumPy's that JSON does not know, no warning about infinite slack."""
    path = tmp_path / "problem.json"
    content = NO_DEADLINE | {"tasks": [*NO_DEADLINE["tasks"], *task(rigid={"b": 0.5})["tasks"]]}
    content["tasks"][1] = content["tasks"][1] | {"id": "u"}
    path.write_text(json.dumps(content))
    done = subprocess.run(
        [sys.executable, "-m", "cosched.cli.main", "solve", str(path), "--solver", solver, "--json"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COSCHED_KERNEL": "numba" if compiled else "numpy"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    assert answer["tasks"]["t"]["slack_s"] == [None]
    assert answer["value"] == (1.0 if solver in {"greedy", "compute-only"} else 2.0)  # the node shares by rule there


def test_the_solver_by_default_is_the_referee_where_that_is_better_and_the_answer_says_so(run: Run):
    answers = [json.loads(run(OPEN, *more, "--json")[1]) for more in ((), (), ("--solver", "exact"))]
    for answer in answers[:2]:
        assert answer["value"] == answers[2]["value"]
    first, again = ({k: v for k, v in a.items() if k != "solve_ms"} for a in answers[:2])
    assert first == again
    assert first["solver"] in {"exact", "joint"}
    assert first["gap"] <= 1e-5 * first["value"]
    assert json.loads(run(GOOD, "--json")[1])["solver"] == "joint"


def test_what_is_loaded_is_not_counted_as_solving(tmp_path: Path):
    """The first solve of a process loads kernels and libraries, hundreds of milliseconds; the clock starts after it."""
    path = tmp_path / "problem.json"
    path.write_text(json.dumps(OPEN))
    code = f"""
import json, sys, time
import solvers.registry as registry
from cosched.cli.main import main
real = registry.get
def slow_at_first(name):
    solve, calls = real(name), []
    def first(problem, **more):
        calls.append(problem)
        if len(calls) == 1:
            time.sleep(1.0)
        return solve(problem, **more)
    return first
registry.get = slow_at_first
main(["solve", {str(path)!r}, "--solver", "joint", "--json"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["solve_ms"] < 900


def test_where_the_cone_solver_gives_up_the_answer_says_so(run: Run, monkeypatch: pytest.MonkeyPatch):
    def gives_up(*_: object, **__: object) -> None:
        raise convex.Unsolved("second stage: no optimum")

    monkeypatch.setattr(convex, "second_stage", gives_up)
    code, out, err = run(task(snr={"a": 5.0}), "--objective", "latency", "--json")
    assert code == 0
    (note,) = json.loads(out)["notes"]
    assert "fast path" in note
    assert err == f"cosched: warning: {note}\n"


def write_million(path: Path) -> None:
    """31 250 tasks x 32 points on two resources; about half can be served."""
    tasks = 31_250
    with path.open("w", encoding="ascii") as file:
        file.write('{"resources":[{"id":"a"},{"id":"b"}],"tasks":[')
        for i in range(tasks):
            need, lean = (0.5 + i * 0.6180339887 % 1.0) * 2.0 / tasks, 0.5 + i * 0.7548776662 % 1.0
            points = ",".join(
                f'{{"id":"{k}","value":1,"phases":[{{"slack_s":1,"work_s":'
                f'{{"a":{need * lean * (1 + k) / 16:.6g},"b":{need * 2.0 * 0.9**k:.6g}}}}}]}}'
                for k in range(32)
            )
            file.write(f'{"," if i else ""}{{"id":"t{i}","points":[{points}]}}')
        file.write("]}")


@pytest.mark.slow
def test_a_million_points_are_solved_in_bounded_time_and_memory(tmp_path: Path):
    path = tmp_path / "million.json"
    write_million(path)
    measured = (
        "import resource, sys\nfrom cosched.cli.main import main\n"
        "try:\n    main(['solve', sys.argv[1], '--solver', 'joint', '--json'])\nfinally:\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", measured, str(path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stderr) < 3_000_000  # KiB
    answer = json.loads(done.stdout)
    assert answer["status"] == "ok"
    assert len(answer["tasks"]) == 31_250
    assert 0.999 * answer["bound"] <= answer["value"] <= answer["bound"]
    assert 5_000 < answer["value"] < 25_000


def test_what_libraries_print_is_not_in_the_result(tmp_path: Path):
    """HiGHS prints to C's stdout now and then, whatever it is asked; here any C code does, before and after."""
    (tmp_path / "problem.json").write_text(json.dumps(GOOD))
    code = f"""
import ctypes
from solvers import registry
from cosched.cli.main import main
c, joint = ctypes.CDLL(None), registry.get("joint")
registry.get = lambda name: lambda problem: (c.printf(b"noise from C\\n"), joint(problem))[1]
main(["solve", {str(tmp_path / "problem.json")!r}, "--json"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["value"] == 1.0
    assert done.stderr == "noise from C\n" * 2  # once before the clock starts
