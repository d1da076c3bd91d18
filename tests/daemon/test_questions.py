"""What-if and why: a changed site is planned as it would be, and what is said to help does, when it is done."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import TypeVar

import msgspec
import numpy as np
import pytest
from core_cases import answer, report
from two_nodes import NODES, TWO, WORK, offer, serving

from cosched.api import messages as api
from cosched.config.wiring import Plant, plant
from cosched.core.commands import Plan, Solve
from cosched.core.core import Core
from cosched.core.decisions import decision_message
from cosched.core.events import Offered
from cosched.core.settings import Settings
from cosched.daemon.board import lease_of
from cosched.daemon.questions import EASE, MOST_PRBS, STEPS, Scene, _changed, _least, explain, whatif
from cosched.errors import BadInput
from solvers import registry
from solvers.solution import Solution
from telemetry.messages import TaskOffer

T = TypeVar("T")
EFFICIENCY = 2.0
PRIVATE = msgspec.structs.replace(WORK, private=True)  # activations go over the air, not tokens
# A cell so narrow that a few sessions fill it
NARROW = plant(NODES.replace("ul_prbs = 273, scs_khz = 30", "ul_prbs = 48, scs_khz = 15"), "narrow", {})


def run(work: Coroutine[object, object, T]) -> T:
    return asyncio.run(work)


async def ask(command: Solve) -> Solution:
    solve = partial(registry.solve, command.policy.solver)
    return solve(command.problem, warm=command.warm, options=command.policy.options)


def scene_of(core: Core, where: Plant, at_s: float = 0.2) -> Scene:
    snapshot = msgspec.structs.replace(core.snapshot(), at_s=at_s)
    return Scene(plant=where, policy="joint", settings=Settings(), snapshot=snapshot, ask=ask)


@pytest.fixture(scope="module")
def two() -> Scene:
    """Four sessions on two nodes."""
    core, _ = serving("two", n=4)
    return scene_of(core, TWO)


def filled(where: Plant, most: int = 20) -> tuple[Core, Plan, TaskOffer]:
    """A core that has refused one task, the plan that did, and the task."""
    core = where.core("joint", Settings())
    core.handle(msgspec.structs.replace(report("ue00", 0.0, EFFICIENCY), cell="cell0"), 0.0)
    for n in range(most):
        asked = msgspec.structs.replace(offer(f"t{n}", 0.1), work=PRIVATE)
        (plan,) = answer(core, core.handle(Offered((asked,)), 0.1), 0.1)
        if any(d.point < 0 for d in plan.decisions):
            return core, plan, asked
    raise AssertionError("nobody is refused")


@pytest.fixture(scope="module")
def narrow() -> tuple[Scene, TaskOffer, api.Lease, Plan]:
    core, plan, refused = filled(NARROW)
    (decision,) = plan.decisions
    assert decision.binding == "cell0/ul"
    lease = lease_of(refused, decision_message(NARROW.site, plan, decision, None), decision, 0.5)
    return scene_of(core, NARROW), refused, lease, plan


# --- what if --------------------------------------------------------------------------------------------------------


def test_a_site_that_is_not_changed_keeps_everybody(two: Scene):
    found = run(whatif(two, api.WhatifArgs(), ()))
    assert (found.kept, found.unpromised, found.leases) == (4, (), ())
    assert set(found.planned) == set(found.prices) == {"cell0/ul", "edge0", "edge1", "edge0/mem", "edge1/mem"}


def test_whoever_was_on_a_node_that_is_gone_is_planned_on_the_other(two: Scene):
    before = run(whatif(two, api.WhatifArgs(), ()))
    found = run(whatif(two, api.WhatifArgs(nodes_gone=("edge0",)), ()))
    assert (found.kept, found.unpromised) == (4, ())
    assert set(found.planned) == {"cell0/ul", "edge1", "edge1/mem"}
    assert found.planned["edge1/mem"] == pytest.approx(before.planned["edge0/mem"] + before.planned["edge1/mem"])


def test_further_tasks_get_their_leases_and_nothing_of_it_is_in_force(two: Scene):
    taken = two.snapshot
    found = run(whatif(two, api.WhatifArgs(), (offer("x", 0.2), offer("y", 0.2))))
    assert [(lease.task, lease.reason, lease.promised) for lease in found.leases] == [
        ("x", "admitted", True), ("y", "admitted", True),
    ]  # fmt: skip
    assert all(lease.valid_for_ms == pytest.approx(500.0) and lease.node for lease in found.leases)
    assert found.kept == 4, "of those that are there"
    assert two.snapshot == taken
    stranger = msgspec.structs.replace(offer("z", 0.2), ue="ue99")
    assert [lease.reason for lease in run(whatif(two, api.WhatifArgs(), (stranger,))).leases] == ["rejected_no_channel"]


def test_who_loses_his_promise_is_named(narrow: tuple[Scene, TaskOffer, api.Lease, Plan]):
    scene, _, _, _ = narrow
    living = [row.offer.task for row in scene.snapshot.tasks]
    found = run(whatif(scene, api.WhatifArgs(more_prbs={"cell0": -5}), ()))
    assert found.unpromised
    assert found.kept + len(found.unpromised) == len(living)
    assert list(found.unpromised) == [task for task in living if task in found.unpromised]


def test_who_was_refused_is_let_in_with_more(narrow: tuple[Scene, TaskOffer, api.Lease, Plan]):
    scene, refused, _, _ = narrow
    for args, reason in (
        (api.WhatifArgs(), "rejected_no_capacity"),
        (api.WhatifArgs(more_prbs={"cell0": 50}), "admitted"),
        (api.WhatifArgs(more_hz={"cell0": 50 * 180e3}), "admitted"),
    ):
        assert run(whatif(scene, args, (refused,))).leases[0].reason == reason


@pytest.mark.parametrize(
    ("args", "prbs"),
    [
        ({}, 273), ({"more_prbs": {"cell0": 7}}, 280), ({"more_prbs": {"cell0": -272}}, 1),
        ({"more_hz": {"cell0": 360e3}}, 274), ({"more_hz": {"cell0": 719e3}}, 274), ({"more_hz": {"cell0": -1.0}}, 272),
        ({"more_hz": {"cell0": 360e3}, "more_prbs": {"cell0": 2}}, 276),
    ],
)  # fmt: skip
def test_bandwidth_is_whole_prbs_rounded_down(args: dict[str, dict[str, float]], prbs: int):
    changed = _changed(TWO.site, msgspec.convert(args, api.WhatifArgs))
    assert changed.cells[0].ul_prbs == prbs
    assert changed.nodes == TWO.site.nodes


@pytest.mark.parametrize(
    ("args", "what"),
    [
        ({"cells_gone": ("cell9",)}, "no cell 'cell9'; there are: cell0"),
        ({"nodes_gone": ("edge9",)}, "no node 'edge9'; there are: edge0, edge1"),
        ({"more_prbs": {"cell9": 1}}, "no cell 'cell9'"),
        ({"more_hz": {"cell9": 1.0}}, "no cell 'cell9'"),
        ({"cells_gone": ("cell0",)}, "nothing is left"),
        ({"nodes_gone": ("edge0", "edge1")}, "nothing is left"),
        ({"more_prbs": {"cell0": -273}}, "less than one PRB"),
        ({"more_prbs": {"cell0": 1_000_001}}, "more_prbs of 'cell0' is 1000001"),
        ({"more_hz": {"cell0": math.nan}}, "more_hz of 'cell0' is nan"),
        ({"more_hz": {"cell0": -math.inf}}, "more_hz of 'cell0' is -inf"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(two: Scene, args: dict[str, object], what: str):
    with pytest.raises(BadInput, match=what):
        run(whatif(two, api.WhatifArgs(**args), ()))  # type: ignore[arg-type]


# --- why ------------------------------------------------------------------------------------------------------------


def test_what_is_said_to_help_does_and_half_of_it_does_not(narrow: tuple[Scene, TaskOffer, api.Lease, Plan]):
    scene, refused, lease, plan = narrow
    found = {c.kind: c for c in run(explain(scene, refused, lease, plan.planned_use)).counterfactuals}
    assert "more_prbs" in found
    more = found["more_prbs"]
    assert more.resource == "cell0/ul"
    assert more.text == f"admitted with {more.amount:.0f} more PRBs on cell0"
    assert run(scene.with_prbs("cell0", round(more.amount)).admits(refused))
    assert not run(scene.with_prbs("cell0", math.ceil(more.amount / EASE) - 2).admits(refused))
    for kind, key in (("more_ttft_s", "ttft_s"), ("more_tpot_s", "tpot_s")):
        if kind in found:
            longer = {key: getattr(refused.work, key) + found[kind].amount}
            work = msgspec.structs.replace(refused.work, **longer)
            assert run(scene.admits(msgspec.structs.replace(refused, work=work)))


def test_what_runs_or_has_no_channel_is_explained_without_counterfactuals(
    narrow: tuple[Scene, TaskOffer, api.Lease, Plan],
):
    scene, refused, lease, plan = narrow
    for reason in ("admitted", "released", "rejected_no_channel"):
        told = msgspec.structs.replace(lease, reason=reason)
        assert run(explain(scene, refused, told, plan.planned_use)).counterfactuals == ()


def test_who_was_refused_and_would_be_let_in_by_now_is_told_so(two: Scene):
    refused = offer("x", 0.2)
    found = run(whatif(two, api.WhatifArgs(), (refused,)))
    lease = msgspec.structs.replace(found.leases[0], reason="rejected_no_capacity")
    said = run(explain(two, refused, lease, np.zeros(5)))
    assert [(c.kind, c.amount) for c in said.counterfactuals] == [("now", 0.0)]


def test_points_are_those_of_a_newcomer_best_first(narrow: tuple[Scene, TaskOffer, api.Lease, Plan]):
    scene, refused, lease, plan = narrow
    said = run(explain(scene, refused, lease, plan.planned_use))
    assert said.planned == dict(zip(said.prices, plan.planned_use.tolist(), strict=True))
    table = scene.plant.points(refused, 0)
    assert {p.point for p in said.points} <= set(table.point_ids)
    can = [p for p in said.points if p.cost is not None]
    gains = [p.value - p.cost for p in can if p.cost is not None]
    assert can
    assert gains == sorted(gains, reverse=True)
    assert said.points[: len(can)] == tuple(can), "those that cannot be come last"
    for point in said.points:
        row = table.point_ids.index(point.point)
        assert point.value == pytest.approx(refused.weight * table.quality[row])
        assert bool(point.needs) == (point.cost is not None)
        assert len(point.least_latency_s) == 2
        assert (np.array(point.least_latency_s) >= table.fixed_s[row] - 1e-12).all()


def test_a_task_that_runs_is_explained_as_if_it_came_anew(two: Scene):
    row = two.snapshot.tasks[0]
    lease = run(whatif(two, api.WhatifArgs(), (offer("x", 0.2),))).leases[0]
    said = run(explain(two, row.offer, msgspec.structs.replace(lease, task=row.offer.task), np.zeros(5)))
    assert len({p.point.rsplit("/", 1)[-1] for p in said.points} & {"edge0", "edge1"}) == 2, "not kept to its node"
    assert len(two.without(row.offer.task).snapshot.tasks) == 3


# --- the least amount -----------------------------------------------------------------------------------------------


def threshold(limit: float, tried: list[float], *, gone_above: float = math.inf) -> Callable[[float], Awaitable[bool]]:
    async def holds(amount: float) -> bool:
        tried.append(amount)
        return limit <= amount < gone_above

    return holds


@pytest.mark.parametrize("limit", [0.02, 0.5, 3.0, 6.9])
def test_the_least_amount_is_found_within_a_part_of_the_most_and_eased(limit: float):
    tried: list[float] = []
    found = run(_least(threshold(limit, tried), 7.0))
    assert found is not None
    assert limit <= found <= min(7.0, EASE * (limit + 7.0 / 2**STEPS) + 1e-9)
    assert found >= min(7.0, EASE * limit) - 1e-9
    assert found in tried, "what is said was tried"
    assert len(tried) == STEPS + 2


@pytest.mark.parametrize("limit", [1, 2, 100, MOST_PRBS])
def test_whole_amounts_are_exact_before_they_are_eased(limit: int):
    found = run(_least(threshold(limit, []), MOST_PRBS, whole=True))
    assert found == min(MOST_PRBS, math.ceil(limit * EASE))


def test_where_the_most_does_not_do_nothing_does_and_where_more_would_not_the_least_stays():
    tried: list[float] = []
    assert run(_least(threshold(8.0, tried), 7.0)) is None
    assert tried == [7.0]

    async def holds(amount: float) -> bool:
        return amount in {16.0, 12.0, 11.0}  # a fifth more than 11 is 14

    assert run(_least(holds, 16.0, whole=True)) == 11.0


def test_a_scene_with_more_prbs_differs_in_them_alone(two: Scene):
    wider = two.with_prbs("cell0", 5)
    assert wider.plant.site.cells[0].ul_prbs == 278
    assert replace(wider, plant=two.plant) == two
    assert two.with_prbs("elsewhere", 5).plant.site == two.plant.site
