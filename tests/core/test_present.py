"""What happens while a solver works: tasks end, nodes go or shrink, UEs change their cell, the policy is switched."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from core_cases import answer, report
from two_nodes import NODES, nodes_of, offer, reasons, serving

from cosched.config.wiring import plant
from cosched.core.commands import Command, Dispatch, Plan, Solve
from cosched.core.core import Core
from cosched.core.events import (
    Barred,
    Finished,
    Offered,
    Placed,
    Progress,
    Progressed,
    Shrunk,
    Solved,
    Switched,
    Tick,
)
from cosched.core.layers import NodeLayers
from cosched.core.present import MOST_ASKS
from cosched.core.settings import Settings
from solvers import registry, steps
from solvers.solution import Certificate, Solution, SolveStatus

CELLS = plant(
    NODES.replace(
        'cells = [{ id = "cell0", ul_prbs = 273, scs_khz = 30 }]',
        'cells = [{ id = "cell0", ul_prbs = 273, scs_khz = 30 }, { id = "cell1", ul_prbs = 51, scs_khz = 30 }]',
    ),
    "cells",
    {},
)


def solve_of(commands: list[Command]) -> Solve:
    (solve,) = (c for c in commands if isinstance(c, Solve))
    return solve


def solved(solve: Solve) -> Solution:
    return registry.solve(solve.policy.solver, solve.problem, warm=solve.warm, options=solve.policy.options)


def first(core: Core, solve: Solve, at_s: float) -> tuple[Plan, list[Command]]:
    """Answer one Solve; return the plan and the commands beside it."""
    commands = core.handle(Solved(solve.request, solution=solved(solve)), at_s)
    (dispatch,) = (c for c in commands if isinstance(c, Dispatch))
    return dispatch.plan, [c for c in commands if isinstance(c, Solve)]


def test_an_open_solve_is_given_up_only_where_another_follows():
    for event in (Barred(("edge0",)), Shrunk({"edge0": 1.0})):
        core, _ = serving(n=1)
        solve = solve_of(core.handle(Tick(), 0.15))
        core.handle(Finished("t0"), 0.16)
        assert core.handle(event, 0.2) == []
        plan, further = first(core, solve, 0.21)
        assert (plan.tasks, plan.decisions, further) == ((), (), [])
        assert core.is_quiet


def test_newcomers_are_not_told_of_a_node_that_went_while_they_were_planned():
    core, _ = serving(n=1)
    (home,) = set(nodes_of(core).values())
    solve = solve_of(core.handle(Offered((offer("new", 0.2),)), 0.2))
    chosen = solved(solve)
    point = int(chosen.chosen[-1])
    away = "edge0" if "edge0" in solve.problem.point_ids[point] else "edge1"
    assert core.handle(Barred((away,)), 0.21) == []  # somebody waits for it
    plan, (again,) = first(core, solve, 0.22)
    assert reasons([plan]) == {}
    assert "new" not in plan.tasks
    plans = answer(core, [again], 0.23)
    assert reasons(plans)["new"] == "admitted"
    assert away not in nodes_of(core).values()
    assert home


def test_whoever_ran_on_the_lost_node_gets_no_lease_there_and_is_planned_at_once():
    core, _ = serving()
    solve = solve_of(core.handle(Offered((offer("new", 0.2),)), 0.2))
    away = {task for task, node in nodes_of(core).items() if node == "edge0"}
    core.handle(Barred(("edge0",)), 0.21)
    plan, (again,) = first(core, solve, 0.22)
    assert away
    assert not away & set(plan.tasks)
    assert {t: r for t, r in reasons(answer(core, [again], 0.23)).items() if t in away} == dict.fromkeys(
        away, "moved_node_lost"
    )


def test_without_another_node_the_newcomer_is_refused():
    core, _ = serving("one", n=1)
    solve = solve_of(core.handle(Offered((offer("new", 0.2),)), 0.2))
    core.handle(Barred(("edge0",)), 0.21)
    plan, (again,) = first(core, solve, 0.22)
    assert plan.tasks == ()
    assert reasons(answer(core, [again], 0.23)) == {"t0": "node_lost", "new": "rejected_no_point"}


@pytest.mark.parametrize("holds", [{}, {"llama-3-8b": 31}])
def test_newcomers_are_not_told_of_layers_that_went(holds: dict[str, int]):
    core, _ = serving("one", n=1)
    answer(core, core.handle(Finished("t0"), 0.15), 0.15)
    solve = solve_of(core.handle(Offered((offer("new", 0.2),)), 0.2))
    core.handle(Placed((NodeLayers(node="edge0", holds=holds, keeps=holds),)), 0.21)
    plan, (again,) = first(core, solve, 0.22)
    assert (plan.tasks, plan.decisions) == ((), ())
    assert reasons(answer(core, [again], 0.23)) == {"new": "rejected_not_loaded"}


def test_newcomers_are_not_told_of_memory_that_went():
    core, _ = serving("one", n=1)
    whole = float(core._node_bytes[0])
    solve = solve_of(core.handle(Offered(tuple(offer(f"n{i}", 0.2) for i in range(3))), 0.2))
    core.handle(Shrunk({"edge0": whole - 2.5 * float(core.state.tasks["t0"].table.node_bytes.max())}), 0.21)
    plan, (again,) = first(core, solve, 0.22)
    told = reasons([plan]) | reasons(answer(core, [again], 0.23))
    assert sorted(told.values()) == ["admitted", "rejected_no_capacity", "rejected_no_capacity"]
    assert len(core.state.tasks) == 2


def test_a_newcomer_that_changed_its_cell_is_planned_in_the_new_one():
    core = CELLS.core("joint", Settings())
    here, there = (msgspec.structs.replace(report("ue00", t, 4.0), cell=c) for t, c in ((0.0, "cell0"), (0.2, "cell1")))
    core.handle(here, 0.0)
    solve = solve_of(core.handle(Offered((offer("new", 0.1),)), 0.1))
    core.handle(there, 0.2)
    plan, (again,) = first(core, solve, 0.22)
    assert plan.tasks == ()
    (plan,) = answer(core, [again], 0.23)
    assert core.state.tasks["new"].cell == plan.decisions[0].cell == 1


def test_who_runs_and_changed_his_cell_is_promised_nothing_there_before_the_next_plan():
    core = CELLS.core("joint", Settings())
    here, there = (msgspec.structs.replace(report("ue00", t, 4.0), cell=c) for t, c in ((0.0, "cell0"), (0.3, "cell1")))
    core.handle(here, 0.0)
    answer(core, core.handle(Offered((offer("runs", 0.1),)), 0.1), 0.12)
    solve = solve_of(core.handle(Tick(), 0.2))
    core.handle(there, 0.3)
    plan, _ = first(core, solve, 0.31)
    assert plan.tasks == ("runs",)
    assert plan.share[0, 0] > 0, "a weight, until then"
    assert not plan.promised[0]
    assert plan.reserved[0, 0] == 0.0
    assert plan.reserved[0, 1] > 0, "the node is where it was"
    plan, _ = first(core, solve_of(core.handle(Tick(), 0.4)), 0.41)
    assert plan.promised[0]
    assert plan.reserved[0, 0] > 0


def test_a_newcomer_whose_places_come_and_go_is_answered_in_the_end():
    core, _ = serving(n=1)
    commands = core.handle(Offered((offer("new", 0.2),)), 0.2)
    told: dict[str, str] = {}
    rounds = 0
    while "new" not in told:
        solve = solve_of(commands)
        chosen = solve.problem.point_ids[int(solved(solve).chosen[-1])]
        core.handle(Barred(("edge0" if "edge0" in chosen else "edge1",)), 0.3 + rounds)  # the other one is back
        plan, commands = first(core, solve, 0.4 + rounds)
        told |= reasons([plan])
        rounds += 1
    assert rounds == MOST_ASKS
    assert told["new"].startswith("rejected_")


def test_who_has_ended_is_in_no_plan():
    core, _ = serving(n=2)
    solve = solve_of(core.handle(Offered((offer("new", 0.2),)), 0.2))
    core.handle(Finished("t0"), 0.21)
    plan, _ = first(core, solve, 0.22)
    assert plan.tasks == ("t1", "new")
    assert set(reasons([plan])) == {"new"}


def test_an_answer_says_nothing_of_another_task_under_the_same_id():
    core, _ = serving(n=2)
    solve = solve_of(core.handle(Offered((offer("new", 0.2),)), 0.2))
    core.handle(Finished("t0"), 0.21)
    assert core.handle(Offered((offer("t0", 0.22),)), 0.22) == []
    plan, (again,) = first(core, solve, 0.23)
    assert "t0" not in plan.tasks
    assert set(reasons([plan])) == {"new"}
    assert reasons(answer(core, [again], 0.24)) == {"t0": "admitted"}


def test_a_promise_that_was_lost_is_not_told_to_the_next_of_that_id():
    core, _ = serving(n=1)
    late = Progress(
        task="t0",
        phase=1,
        done=2,
        late=0,
        first_s=0.2,
        last_s=90.0,
        ul_bits_left=0.0,
        node_s_left=0.0,
        fixed_s_left=0.0,
    )
    core.handle(Progressed((late,)), 90.0)
    core.handle(msgspec.structs.replace(report("ue00", 90.0, 4.0), cell="cell0"), 90.0)
    assert core.handle(Tick(), 90.0)
    core.handle(Finished("t0"), 90.1)
    plans = answer(core, core.handle(Offered((offer("t0", 90.2),)), 90.2), 90.3)
    assert len(plans[0].decisions) == 1
    assert reasons(plans) == {"t0": "admitted"}


def test_a_session_that_the_solver_drops_keeps_its_memory():
    """It stays where it is, so nobody may be put into its memory."""
    core, _ = serving("one", n=1)
    each = float(core.state.tasks["t0"].table.node_bytes[core.state.tasks["t0"].point])
    core.handle(Shrunk({"edge0": float(core._node_bytes[0]) - 1.5 * each}), 0.15)
    core._open = None
    heavy = msgspec.structs.replace(offer("new", 0.2), weight=100.0)
    solve = solve_of(core.handle(Offered((heavy,)), 0.2))
    problem = solve.problem
    new = range(int(problem.first[1]), int(problem.first[2]))
    point = max(new, key=lambda j: problem.rigid[j, 2])
    share = np.zeros((2, problem.slot.shape[1]))
    share[1] = np.maximum(problem.floor[point], 0.5)
    taken = Solution(
        SolveStatus.OK, "hand", np.array([-1, point]), share, np.array([False, True]), np.zeros(problem.n_resources),
        Certificate(float(problem.value[point]), float(problem.value[point])), 1, *steps.lengths(problem),
    )  # fmt: skip
    commands = core.handle(Solved(solve.request, solution=taken), 0.21)
    (plan,) = (c.plan for c in commands if isinstance(c, Dispatch))
    assert plan.tasks == ("t0",)
    assert reasons([plan]) == {"new": "rejected_no_capacity"}


def test_a_policy_switched_while_a_solve_is_open_plans_from_the_next_one_on():
    core, _ = serving(n=2)
    solve = solve_of(core.handle(Tick(), 0.2))
    assert solve.policy.name == "joint"
    assert core.handle(Switched("pf-admit"), 0.21) == []
    assert core.handle(Offered((offer("new", 0.22),)), 0.22) == []  # the answer is still wanted: it is another policy's
    assert core.handle(Barred(()), 0.23) == []
    plan, (again,) = first(core, solve, 0.24)
    assert again.policy.name == "pf-admit"
    assert set(plan.tasks) == {"t0", "t1"}
    (second,) = answer(core, [again], 0.25)
    assert second.generation == plan.generation + 1
    assert set(second.tasks) >= {"t0", "t1"}
    np.testing.assert_array_equal(second.node_weight, second.reserved[:, 1])  # reserved, as that policy has it
    assert (second.node_weight >= second.share[:, 1]).all()


def test_a_solve_that_fails_after_a_switch_falls_back_from_the_policy_that_it_was_of():
    core, _ = serving(n=1)
    solve = solve_of(core.handle(Tick(), 0.2))
    core.handle(Switched("local"), 0.21)
    (fallen,) = core.handle(Solved(solve.request, failed="late"), 0.22)
    assert isinstance(fallen, Solve)
    assert fallen.policy.name == "greedy"
    (plan,) = answer(core, [fallen], 0.23)
    assert plan.tasks == ("t0",)
    assert solve_of(core.handle(Tick(), 0.3)).policy.name == "local"


def test_an_answer_of_before_is_as_good_when_nothing_has_changed():
    """The plan is the same, bit for bit, whether what changed meanwhile concerns it or not."""
    twins = [serving(n=3)[0] for _ in range(2)]
    plans = []
    for core, event in zip(twins, (None, Placed(())), strict=True):
        solve = solve_of(core.handle(Tick(), 0.2))
        if event is not None:
            core.handle(event, 0.21)
        plans.append(replace(first(core, solve, 0.22)[0], decisions=()))
    one, other = plans
    assert one.tasks == other.tasks
    assert one.share.tobytes() == other.share.tobytes()
    assert one.planned_use.tobytes() == other.planned_use.tobytes()
