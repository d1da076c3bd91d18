"""What one plan hands to the next: the variance of its use; what a plan counts."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from core_cases import SITE, answer, make_core, report, session
from hypothesis import given, settings
from hypothesis import strategies as st

from cosched.core.commands import Dispatch, Plan, Solve
from cosched.core.core import LEAST_VARIANCE, Core
from cosched.core.decide import usage
from cosched.core.events import Offered, Solved, Tick
from cosched.core.planner import Planned
from cosched.core.settings import Settings
from solvers import registry as solvers
from solvers import steps
from solvers.codec import problem_from_data
from solvers.problem import Floats
from solvers.statistical import restrict


def admitted(core: Core, many: int) -> Plan:
    """Offer so many sessions of all kinds, of a UE each; returns the plan."""
    return admitted_with(core, many)[0]


def admitted_with(core: Core, many: int) -> tuple[Plan, Planned]:
    """The plan, and what it was made from."""
    for i in range(many):
        core.handle(report(f"ue{i:02d}", 0.05, 2.0), 0.05)
    some = [session(f"t{i}", 0.1, private=i % 2 == 0, tpot_s=(0.1, 0.2)[i % 2]) for i in range(many)]
    offers = tuple(msgspec.structs.replace(one, ue=f"ue{i:02d}") for i, one in enumerate(some))
    commands = core.handle(Offered(offers), 0.1)
    assert core._open is not None
    planned = core._open[1].planned
    return answer(core, commands, 0.1)[-1], planned


def asked(core: Core, at_s: float) -> Solve:
    (command,) = core.handle(Tick(), at_s)
    assert isinstance(command, Solve)
    return command


def spread(planned: Planned, plan: Plan) -> Floats:
    """(R,) variance of a plan's use, task by task: a share x that is used u of the time has variance u (x - u)."""
    total = np.zeros(len(plan.planned_use))
    for row, task in enumerate(plan.tasks):
        i = planned.problem.task_ids.index(task)
        (j,) = np.flatnonzero((planned.layout.owner == i) & (planned.layout.row == plan.point[row]))
        for s in range(2):  # the cell and the node; memory is held all the time
            u, x = planned.mean_use[j, s], plan.share[row, s]
            if planned.problem.slot[j, s] < len(total):
                total[planned.problem.slot[j, s]] += u * max(0.0, x - u)
    return total


def test_the_next_problem_allows_for_the_variance_of_the_plan_in_force():
    """Its background is what the effective-bandwidth rule asks at that variance, not at the least one."""
    core = make_core()
    plan, planned = admitted_with(core, 12)
    command = asked(core, 0.1)
    variance = spread(planned, plan)
    assert plan.variance == pytest.approx(variance, rel=1e-9)
    assert variance.max() > 2 * LEAST_VARIANCE
    n = len(SITE.cells) + len(SITE.nodes)
    margin = Settings().z * np.sqrt(np.maximum(variance[:n], LEAST_VARIANCE)) / 2
    free = make_core("compute-only")  # plans with hard reservations: no margin
    admitted(free, 1)
    assert command.problem.background[:n] - asked(free, 0.2).problem.background[:n] == pytest.approx(margin, rel=1e-9)


def test_a_core_that_takes_over_goes_on_with_the_variance_of_the_plan_in_force():
    core, other = make_core(), make_core()
    plan = admitted(core, 12)
    assert plan.variance.max() > 2 * LEAST_VARIANCE
    assert other.restore(core.snapshot()) == ()
    assert other.state.variance.tobytes() == core.state.variance.tobytes() == plan.variance.tobytes()
    background = [asked(one, 0.2).problem.background for one in (core, other)]
    assert background[0].tobytes() == background[1].tobytes()


@pytest.mark.parametrize("many", [1, 8, 40])
def test_what_a_plan_counts_is_never_negative_whoever_answers(many: int):
    """Where all solvers fail but the last, that one shares out by rule, and knows nothing of statistical use."""
    core = make_core()
    admitted(core, many)
    command = asked(core, 0.2)
    names = []
    while command.policy.name != "local":
        (again,) = core.handle(Solved(command.request, failed="late"), 0.2)
        assert isinstance(again, Solve)
        command = again
        names.append(command.policy.name)
    assert names == ["greedy", "local"]
    found = solvers.solve("local", command.problem)
    (dispatch,) = core.handle(Solved(command.request, solution=found), 0.2)
    assert isinstance(dispatch, Dispatch)
    plan = dispatch.plan
    assert (plan.planned_use >= 0).all()
    on = found.chosen[found.chosen >= 0]
    problem = steps.at(command.problem, found.step_s, found.period_s)
    by_hand = problem.background.copy()
    for j, x in zip(on, found.share[found.chosen >= 0], strict=True):
        for s in np.flatnonzero(problem.slot[j] < len(by_hand)):
            by_hand[problem.slot[j, s]] += x[s] + problem.rigid[j, s]
    assert plan.planned_use == pytest.approx(by_hand)


@given(
    st.lists(st.tuples(st.floats(0.001, 3.0), st.floats(0.0, 1.0)), min_size=1, max_size=6),
    st.floats(0.1, 4.0),
    st.floats(0.01, 0.5),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_who_is_served_with_less_than_he_uses_counts_with_what_he_has(
    tasks: list[tuple[float, float]], z: float, variance: float
):
    """Below the mean use the tangent of the effective-bandwidth rule is no demand: it would make room out of need."""
    use, share = np.array(tasks).T[:, :, None]
    phases = [{"slack_s": 1.0, "work_s": {"cell/ul": 0.001}}]
    plain = problem_from_data(
        {
            "resources": [{"id": "cell/ul", "background": 0.1}],
            "tasks": [
                {"id": f"t{i}", "points": [{"id": "p", "value": 1.0, "phases": phases}]} for i in range(len(use))
            ],
        }
    )
    restricted = restrict(plain, use, z=z, variance0=np.array([variance]))
    used = usage(restricted, np.arange(len(use)), share)[0] - restricted.background[0]
    assert used >= np.minimum(use, share).sum() - 1e-9
    ahead = (share >= use) & (use <= 1.0)
    line = use + z * use * (share - use) / (2 * np.sqrt(variance))
    assert used == pytest.approx(np.where(ahead, line, np.maximum(share, np.where(use <= 1.0, line, share))).sum())
