"""The file format: round trips, defaults, and a named place for everything that can be wrong."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from solver_cases import EXAMPLE, random_problem

from solvers.codec import kind_of, problem_from_data, problem_from_json, problem_to_json, solution_to_json
from solvers.errors import BadProblem
from solvers.price import solver as price
from solvers.problem import Problem

POINT = ("tasks", 0, "points", 0)
PHASE = (*POINT, "phases", 0)


def changed(path: tuple[str | int, ...], value: object) -> dict[str, Any]:
    data = copy.deepcopy(EXAMPLE)
    at: Any = data
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return data


def test_the_example_of_the_interface():
    problem = problem_from_json(json.dumps(EXAMPLE), "file.json")
    assert problem.kinds == ("comm", "compute", "memory")
    assert problem.slot.tolist() == [[0, 1, 2]]
    assert problem.work[0, 0].tolist() == [0.002, 0.004, 0.0]
    assert problem.slack[0].tolist() == [0.08, math.inf]
    assert problem.floor[0].tolist() == [0.01, 0, 0]
    assert problem.cap[0].tolist() == [0.2, 1, 1]
    assert problem.rigid[0].tolist() == [0, 0, 0.05]
    assert problem.activity[0].tolist() == [0.2, 1, 1]
    assert problem.held.tolist() == [-1, -1]
    assert problem.first.tolist() == [0, 1, 1]


def test_its_solution_as_json():
    problem = problem_from_data(EXAMPLE)
    out = json.loads(solution_to_json(problem, price.solve(problem), 0.5))
    assert out["v"] == 1
    assert out["status"] == "ok"
    assert out["value"] == out["bound"] == 1.0
    assert out["gap"] == 0.0
    assert out["tasks"]["t2"] is None
    task = out["tasks"]["t1"]
    assert task["point"] == "k=4"
    assert set(task["shares"]) == {"cell0/ul", "node0", "node0/mem"}
    latency = 0.002 / task["shares"]["cell0/ul"] + 0.004 / task["shares"]["node0"]
    assert task["latency_s"] == [pytest.approx(latency)]
    assert task["slack_s"] == [pytest.approx(0.08 - latency)]
    assert set(out["prices"]) == {"cell0/ul", "node0", "node0/mem"}


def test_optional_keys_of_a_task():
    data = changed(("tasks", 0), {**EXAMPLE["tasks"][0], "held": "k=4", "channel": 2.5, "order": 7})
    problem = problem_from_data(data)
    assert problem.held.tolist() == [0, -1]
    assert problem.channel[0] == 2.5
    assert math.isnan(problem.channel[1])
    assert problem.order.tolist() == [7, 1]


def test_unknown_keys_are_accepted():
    problem_from_data({**EXAMPLE, "comment": "from a newer version", "tasks": [{"id": "t", "colour": 3}]})


WRONG = [
    (("v",), 2, "problem.v", "unknown"),
    (("resources", 1, "id"), "cell0/ul", "problem.resources[1].id", "twice"),
    (("resources", 0, "id"), "", "problem.resources[0].id", "empty"),
    (("resources", 0, "background"), 1.5, "problem.resources[0].background", "outside 0..1"),
    (("resources", 0, "background"), -0.1, "problem.resources[0].background", "outside 0..1"),
    (("resources", 0, "background"), math.nan, "problem.resources[0].background", "outside 0..1"),
    (("resources", 0, "kind"), "radio", "problem.resources[0].kind", "none of"),
    (("tasks", 1, "id"), "t1", "problem.tasks[1].id", "twice"),
    (("tasks", 0, "held"), "k=9", "problem.tasks[0].held", "no point"),
    (("tasks", 0, "channel"), -1, "problem.tasks[0].channel", ">= 0"),
    ((*POINT, "value"), math.inf, "problem.tasks[0].points[0].value", "finite"),
    ((*POINT, "value"), "much", "problem.tasks[0].points[0].value", "float"),
    ((*POINT, "phases"), [{}, {}, {}], "problem.tasks[0].points[0].phases", "at most 2"),
    ((*POINT, "floor"), {"cell0/ul": 0.5}, "problem.tasks[0].points[0].floor.cell0/ul", "cap"),
    ((*POINT, "floor"), {"cell9": 0.5}, "problem.tasks[0].points[0]", "unknown resource 'cell9'"),
    ((*POINT, "cap"), {"cell0/ul": 48}, "problem.tasks[0].points[0].cap.cell0/ul", "outside 0..1"),
    ((*POINT, "activity"), {"cell0/ul": 1.2}, "problem.tasks[0].points[0].activity.cell0/ul", "outside 0..1"),
    ((*POINT, "rigid"), {"node0/mem": -1}, "problem.tasks[0].points[0].rigid.node0/mem", ">= 0"),
    ((*PHASE, "work_s"), {"node0": -0.1}, "problem.tasks[0].points[0].phases[0].work_s.node0", ">= 0"),
    ((*PHASE, "work_s"), {"node0": math.nan}, "problem.tasks[0].points[0].phases[0].work_s.node0", ">= 0"),
    ((*PHASE, "slack_s"), math.nan, "problem.tasks[0].points[0].phases[0].slack_s", "not a number"),
    (("couplings", 0, "to"), "node9", "problem.couplings[0]", "unknown resource 'node9'"),
    (("couplings", 0, "per_share"), -1, "problem.couplings[0].per_share", ">= 0"),
    (("couplings", 0, "to"), "cell0/ul", "problem.couplings", "circle"),
    (("couplings",), [EXAMPLE["couplings"][0]] * 2, "problem.couplings[1]", "twice"),
    (("tasks",), {}, "problem.tasks", "array"),
]


@pytest.mark.parametrize(("path", "value", "where", "what"), WRONG)
def test_what_is_wrong_is_named(path: tuple[str | int, ...], value: object, where: str, what: str):
    with pytest.raises(BadProblem) as caught:
        problem_from_data(changed(path, value))
    assert caught.value.where == where
    assert what in caught.value.what


def test_a_circle_of_three_is_named():
    names = ["a", "b", "c", "d"]
    links = [("a", "b"), ("b", "c"), ("c", "a"), ("d", "a")]
    data = {
        "resources": [{"id": n} for n in names],
        "couplings": [{"from": a, "to": b, "per_share": 0.1} for a, b in links],
    }
    with pytest.raises(BadProblem, match=r"circle: a -> b -> c -> a"):
        problem_from_data(data)
    problem_from_data({**data, "couplings": data["couplings"][:2]})


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"resources": [], "tasks": [{}]}', b'{"resources": NaN}', b"[" * 9999],
)
def test_broken_json_is_one_clear_error(text: bytes):
    with pytest.raises(BadProblem, match=r"^file"):
        problem_from_json(text, "file")


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["v", "resources", "tasks", "id", "points", "phases", "work_s", "value", "couplings"]),
                inner,
            )
        ),
    ).map(lambda value: json.dumps(value).encode())
)
def test_any_bytes_are_read_or_refused(text: bytes):
    try:
        problem = problem_from_json(text)
    except BadProblem:
        return
    price.solve(problem)


@pytest.mark.parametrize("seed", range(5))
def test_round_trip(seed: int):
    problem = random_problem(seed, 6, 3, 4, coupled=True, soft=True)
    problem = dataclasses.replace(problem, held=np.array([0, -1, 7, -1, -1, -1]), channel=np.arange(6.0))
    again = problem_from_json(problem_to_json(problem))
    assert again.task_ids == problem.task_ids
    assert (again.held == problem.held).all()
    assert columns(again) == columns(problem)
    assert price.solve(again).certificate == price.solve(problem).certificate


def columns(p: Problem) -> list[dict[str, Any]]:
    """What each point asks of each resource, in whatever slot it stands."""
    out = []
    for j in range(p.n_points):
        used = {
            p.resource_ids[r]: (*p.work[j, :, s], p.floor[j, s], p.cap[j, s], p.activity[j, s], p.rigid[j, s])
            for s, r in enumerate(p.slot[j])
            if r < p.n_resources
        }
        out.append({"value": p.value[j], "slack": p.slack[j].tolist(), **used})
    return out


@pytest.mark.parametrize(
    ("name", "kind"),
    [("cell0/ul", "comm"), ("cell0/dl", "comm"), ("link3", "comm"), ("node0/mem", "memory"), ("node0", "compute")],
)
def test_kind_by_name(name: str, kind: str):
    assert kind_of(name) == kind
