"""What-if and why: the same core and the same solver on a copy of the state, beside what is in force.

A counterfactual is found by deciding anew with the change applied, least change first; so it holds when applied to
the state that it was asked of.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import msgspec
import numpy as np

from cosched.api import messages as api
from cosched.config.wiring import Plant
from cosched.core.commands import Decision, Plan, Solve
from cosched.core.core import Core
from cosched.core.decisions import decision_message
from cosched.core.events import Offered, Solved
from cosched.core.planner import resource_ids
from cosched.core.reasons import Reason
from cosched.core.settings import Settings
from cosched.core.snapshot import Snapshot
from cosched.daemon.board import lease_of
from cosched.errors import BadInput
from cosched.site import Cell, Site
from cosched.workloads.context import load_profiles
from solvers import steps
from solvers.price.solver import point_costs
from solvers.problem import Problem
from solvers.solution import Solution
from telemetry.messages import LlmSession, TaskOffer

MOST_PRBS: Final = 256  # more is no change that anybody could make
MOST_MORE_PRBS: Final = 1e6  # of a what-if
MOST_MORE_HZ: Final = 1e12
MOST_TIMES: Final = 8.0  # a deadline this many times as long is another task
EASE: Final = 1.2  # of the least change that would do: plans move on between the answer and the act
STEPS: Final = 7  # halvings: a found change is least within 1 % of the greatest
LEAST_PRICE: Final = 1e-6  # a free resource is divided as if it had a price
SHOWN: Final = 20  # operating points

Ask = Callable[[Solve], Awaitable[Solution]]


@dataclass(frozen=True, slots=True)
class Scene:
    """What questions are asked of: a site, who decides, and the state in force."""

    plant: Plant
    policy: str
    settings: Settings
    snapshot: Snapshot
    ask: Ask

    def core(self) -> tuple[Core, tuple[str, ...]]:
        """Return a core with the state, and the tasks that have no place on this scene's site."""
        core = self.plant.core(self.policy, self.settings)
        return core, core.restore(self.snapshot)

    async def decide(self, offers: Sequence[TaskOffer]) -> Plan:
        """Decide on further tasks now; nobody else hears of it. Raises what `ask` raises."""
        core, _ = self.core()
        todo, decisions, plan = core.handle(Offered(tuple(offers)), self.snapshot.at_s), dict[str, Decision](), None
        while todo:  # a UE's tasks are decided one after the other
            command = todo.pop(0)
            if isinstance(command, Solve):
                solution = await self.ask(command)
                todo += core.handle(Solved(command.request, solution=solution), self.snapshot.at_s)
            else:
                plan = command.plan
                decisions |= {d.task: d for d in plan.decisions}
        assert plan is not None  # noqa: S101  # what Solved leads to
        return replace(plan, decisions=tuple(decisions.values()))

    async def admits(self, offer: TaskOffer) -> bool:
        """Whether the task would be promised its deadlines now."""
        plan = await self.decide([offer])
        return any(d.task == offer.task and d.reason == Reason.ADMITTED for d in plan.decisions)

    def without(self, task: str) -> Scene:
        """Return the scene before this task came."""
        rows = tuple(row for row in self.snapshot.tasks if row.offer.task != task)
        return replace(self, snapshot=msgspec.structs.replace(self.snapshot, tasks=rows))

    def with_prbs(self, cell: str, more: int) -> Scene:
        """Return the scene with more PRBs on a cell."""
        cells = tuple(_wider(c, more) if c.id == cell else c for c in self.plant.site.cells)
        return replace(self, plant=_on(self.plant, msgspec.structs.replace(self.plant.site, cells=cells)))


def _on(plant: Plant, site: Site) -> Plant:
    """Return the plant on a site that differs in its cells' widths alone: points do not depend on them."""
    return Plant(site, plant.toml, plant.profiles, plant.ue_devices)


def _wider(cell: Cell, more: int) -> Cell:
    return msgspec.structs.replace(cell, ul_prbs=cell.ul_prbs + more)


# --- what if --------------------------------------------------------------------------------------------------------


async def whatif(scene: Scene, args: api.WhatifArgs, offers: Sequence[TaskOffer]) -> api.WhatifResult:
    """Plan a changed site; tasks that lose their place are offered again. Raises BadInput."""
    site = _changed(scene.plant.site, args)
    plant = Plant(site, scene.plant.toml, load_profiles(site), scene.plant.ue_devices)
    changed = replace(scene, plant=plant)
    _, lost = changed.core()
    present = {row.offer.task: row.offer for row in scene.snapshot.tasks}
    plan = await changed.decide([*(present[task] for task in lost), *offers])
    promised = {task for task, held in zip(plan.tasks, plan.promised.tolist(), strict=True) if held}
    rows = {name: i for i, name in enumerate(plan.tasks)}
    wanted = {offer.task: offer for offer in offers}
    return api.WhatifResult(
        kept=len(promised & set(present)),
        unpromised=tuple(task for task in present if task not in promised),
        leases=tuple(
            lease_of(
                wanted[d.task], decision_message(site, plan, d, rows.get(d.task)), d, plan.valid_until_s - plan.at_s
            )
            for d in plan.decisions
            if d.task in wanted
        ),
        planned=_by_resource(site, plan.planned_use),
        prices=_by_resource(site, plan.prices),
    )


def _changed(site: Site, args: api.WhatifArgs) -> Site:
    """Apply the change. Raises BadInput for what the site does not have, or when nothing is left."""
    cells, nodes = {c.id for c in site.cells}, {n.id for n in site.nodes}
    for kind, names, there in (
        ("cell", (*args.cells_gone, *args.more_prbs, *args.more_hz), cells),
        ("node", args.nodes_gone, nodes),
    ):
        if unknown := [name for name in names if name not in there]:
            raise BadInput(f"no {kind} '{unknown[0]}'; there are: {', '.join(sorted(there))}")
    _check_amounts(args)
    left = tuple(
        _wider(c, args.more_prbs.get(c.id, 0) + int(args.more_hz.get(c.id, 0.0) // (12e3 * c.scs_khz)))
        for c in site.cells
        if c.id not in args.cells_gone
    )
    kept = tuple(n for n in site.nodes if n.id not in args.nodes_gone)
    if not left or not kept:
        raise BadInput("nothing is left of the site: keep at least one cell and one node")
    if bad := [c.id for c in left if c.ul_prbs < 1]:
        raise BadInput(f"cell '{bad[0]}' would have less than one PRB")
    return msgspec.structs.replace(site, cells=left, nodes=kept)


def _check_amounts(args: api.WhatifArgs) -> None:
    """Refuse bandwidth that is none. Raises BadInput."""
    for key, amounts, most in (("more_prbs", args.more_prbs, MOST_MORE_PRBS), ("more_hz", args.more_hz, MOST_MORE_HZ)):
        for cell, amount in amounts.items():
            if not -most <= amount <= most:  # NaN fails both
                raise BadInput(f"{key} of '{cell}' is {amount}: a number from {-most:g} to {most:g}")


def _by_resource(site: Site, values: np.ndarray) -> dict[str, float]:
    return dict(zip(resource_ids(site), values.tolist(), strict=True))


# --- why ------------------------------------------------------------------------------------------------------------


async def explain(scene: Scene, offer: TaskOffer, lease: api.Lease, planned: np.ndarray) -> api.Explanation:
    """Say why a task has what it has; for one that was refused, what would have it admitted now."""
    before = scene.without(offer.task)
    core, _ = before.core()
    site = scene.plant.site
    solve = next(iter(core.handle(Offered((offer,)), scene.snapshot.at_s)), None)
    problem = solve.problem if isinstance(solve, Solve) else None
    refused = lease.reason.startswith("rejected") and lease.reason != Reason.REJECTED_NO_CHANNEL
    return api.Explanation(
        task=offer.task,
        lease=lease,
        prices=_by_resource(site, core.state.prices),
        planned=_by_resource(site, planned),
        points=_points(scene, offer, problem, core) if problem is not None else (),
        counterfactuals=await _counterfactuals(before, offer) if refused else (),
    )


def _points(scene: Scene, offer: TaskOffer, problem: Problem, core: Core) -> tuple[api.PointView, ...]:
    """Operating points of the task as a newcomer, by what they are worth less what they cost at the prices."""
    if offer.task not in problem.task_ids:
        return ()
    i = problem.task_ids.index(offer.task)
    bare, change = problem, None
    if problem.steps is not None:
        change = steps.change(problem, problem.steps, *steps.lengths(problem))
        problem = change.of(problem)
    # whether what others leave is enough is the plan's affair: here stands what a point needs
    empty = replace(problem, background=np.zeros_like(problem.background))
    cost, share = point_costs(empty, np.maximum(core.state.prices, LEAST_PRICE))
    table = scene.plant.points(offer, core.state.cell_of_ue[offer.ue], core.state.calibration.factors)
    views = []
    for row, j in enumerate(range(int(problem.first[i]), int(problem.first[i + 1]))):
        feasible = bool(np.isfinite(cost[j]))
        slots = [(s, int(r)) for s, r in enumerate(problem.slot[j]) if r < problem.n_resources]
        phases = np.isfinite(table.deadline_s)
        least = table.fixed_s[row] + bare.work[j].sum(axis=1) + (change.wait_s[j] if change is not None else 0.0)
        takes = share[j] + problem.rigid[j]
        views.append(
            api.PointView(
                point=problem.point_ids[j],
                value=float(offer.weight * table.quality[row]),
                cost=float(cost[j]) if feasible else None,
                least_latency_s=tuple(least[phases].tolist()),
                needs={problem.resource_ids[r]: float(takes[s]) for s, r in slots} if feasible else {},
            )
        )
    return tuple(sorted(views, key=_rank)[:SHOWN])


def _rank(view: api.PointView) -> tuple[bool, float, str]:
    return view.cost is None, (view.cost or 0.0) - view.value, view.point


async def _counterfactuals(scene: Scene, offer: TaskOffer) -> tuple[api.Counterfactual, ...]:
    """About the least changes, one of each kind, under which the task is admitted now."""
    if await scene.admits(offer):
        return (api.Counterfactual(kind="now", amount=0.0, text="it would be admitted now: submit it again"),)
    core, _ = scene.core()
    cell = scene.plant.site.cells[core.state.cell_of_ue[offer.ue]].id
    found = []
    prbs = await _least(lambda n: scene.with_prbs(cell, round(n)).admits(offer), MOST_PRBS, whole=True)
    if prbs is not None:
        text = f"admitted with {round(prbs)} more PRBs on {cell}"
        found.append(api.Counterfactual(kind="more_prbs", amount=prbs, text=text, resource=f"{cell}/ul"))
    for key in ("ttft_s", "tpot_s") if isinstance(offer.work, LlmSession) else ("deadline_s",):
        present = float(getattr(offer.work, key))
        more = await _least(partial(_admits_longer, scene, offer, key), (MOST_TIMES - 1) * present)
        if more is not None:
            text = f"admitted with {1e3 * more:.0f} ms more {key.removesuffix('_s').upper()}"
            found.append(api.Counterfactual(kind=f"more_{key}", amount=more, text=text))
    return tuple(found)


async def _least(holds: Callable[[float], Awaitable[bool]], most: float, *, whole: bool = False) -> float | None:
    """About the least amount, found by halving, for which `holds`; None when `most` does not do.

    A fifth more than the least where that holds too: on the edge the answer would be wrong a period later. What is
    returned was tried.
    """
    if not await holds(most):
        return None
    low, high = 0.0, most
    for _ in range(STEPS + whole):
        middle = float(int((low + high) / 2)) if whole else (low + high) / 2
        if whole and middle <= low:
            break
        if await holds(middle):
            high = middle
        else:
            low = middle
    eased = min(float(np.ceil(high * EASE)) if whole else high * EASE, most)
    return eased if await holds(eased) else high


async def _admits_longer(scene: Scene, offer: TaskOffer, key: str, more_s: float) -> bool:
    """Whether the task is admitted with a deadline that is so much longer."""
    work = msgspec.structs.replace(offer.work, **{key: getattr(offer.work, key) + more_s})
    return await scene.admits(msgspec.structs.replace(offer, work=work))
