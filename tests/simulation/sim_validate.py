"""What must hold between a core's or an engine's state and what is beside it: a successor, the disk, a new plan.

What must hold of the state alone it says itself (`Core.validate`, `Engine.validate`). Raises Broken with what does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
import numpy as np

from cosched.core.commands import Plan
from cosched.core.core import Core
from cosched.core.snapshot import Snapshot
from cosched.daemon.engine import ACCEPTED, Engine
from cosched.errors import hold
from cosched.workloads.base import LOCAL, Floats

NS = 1e-9
OVER = 1e-6  # of a resource: a solver's own tolerance, and rounding


def validate_snapshot(core: Core, fresh: Core) -> None:
    """A core that takes the snapshot over, by way of JSON, has the same state. fresh: of the same plant."""
    taken = core.snapshot()
    text = msgspec.json.encode(taken)
    lost = fresh.restore(msgspec.json.decode(text, type=Snapshot))
    hold(not lost, "a successor has no place for", lost)
    hold(msgspec.json.encode(fresh.snapshot()) == text, "a successor's snapshot is another")


def validate_stored(engine: Engine, rows: Iterable[str]) -> None:
    """What is on disk is what lives, but for ends that the disk has refused."""
    stored, living = set(rows), set(engine.trackers)
    hold(living <= stored, "lives, and is not stored:", sorted(living - stored))
    over = stored - set(engine._drops) - living
    hold(not over, "stored, and does not live:", sorted(over))


def validate_plan(engine: Engine, plan: Plan, *, reserved: bool, stored: bool, least_use: Floats | float = 0.0) -> None:
    """Hold a plan that goes out against the state of now. reserved: shares of its policy are held for good."""
    core, state = engine.core, engine.core.state
    plan.validate()
    hold(plan.valid_until_s - plan.at_s <= core.settings.lease_s + NS, "a lease longer than leases are")
    rows = {name: i for i, name in enumerate(plan.tasks) if name in state.tasks}
    not_run = set(plan.tasks) - rows.keys()
    taken_back = set() if stored else {d.task for d in plan.decisions if d.reason in ACCEPTED}
    hold(not_run <= taken_back, "planned, and not run:", sorted(not_run - taken_back))
    came = {d.task for d in plan.decisions if d.point >= 0}
    use = np.zeros((2, len(state.prices)))  # promised, memory
    moved = np.zeros(len(state.prices))
    n_cells, n_nodes = len(state.site.cells), len(state.site.nodes)
    for name, i in rows.items():
        task = state.tasks[name]
        hold(task.point == plan.point[i], name, "is planned at", plan.point[i], "and runs at", task.point)
        node = int(task.table.node[task.point])
        hold(node not in state.places.barred, name, "is planned on node", node, ", which is gone")
        hold(not task.is_stranded(state.places), name, "is planned on layers that are gone")
        if node == LOCAL:
            continue
        memory = n_cells + n_nodes + node
        use[1, memory] += task.table.node_bytes[task.point]
        moved[memory] += task.table.node_bytes[task.point] if name in came else 0.0
        if plan.promised[i]:
            use[0, task.cell] += plan.share[i, 0]
            use[0, n_cells + node] += plan.share[i, 1]
    room = core._session_bytes * (1 + OVER)
    full = (use[1, n_cells + n_nodes :] > room) & (moved[n_cells + n_nodes :] > 0)
    hold(not full.any(), "memory is overfilled:", use[1, n_cells + n_nodes :], "of", room)
    hold((plan.planned_use <= np.maximum(1.0, least_use) + OVER).all(), "planned", plan.planned_use)
    if reserved:
        hold((use[0] <= 1.0 + OVER).all(), "reserved", use[0])
    validate_steps(core, plan, rows)


def validate_steps(core: Core, plan: Plan, rows: Mapping[str, int]) -> None:
    """Who is promised a token every so often gets it: his node's steps have a length, and there is room for them.

    rows: of tasks that run. Counted is the least that steps must hold: the own part of each token, and of the reads
    those of the one who needs most of it; what else is done on the node is left out.
    """
    state = core.state
    for name in ("step_s", "period_s"):
        hold(getattr(plan, name).shape == (len(state.site.nodes),), name, "is not one a node:", getattr(plan, name))
    own, read = np.zeros(len(plan.step_s)), np.zeros(len(plan.step_s))
    for name, i in rows.items():
        task, node = state.tasks[name], int(state.tasks[name].table.node[plan.point[i]])
        shared_s, own_s = task.table.steps[plan.point[i]].tolist()
        if node == LOCAL or own_s <= 0:
            hold(node != LOCAL or not plan.wait_s[i].any(), name, "waits for steps of no node:", plan.wait_s[i])
            continue
        hold(np.isfinite(plan.pace_s[i]), name, "decodes on a node, and no pace is counted on")
        if plan.promised[i]:
            step_s, most_s = float(plan.step_s[node]), float(task.table.deadline_s[1]) * core.settings.deadline_margin
            hold(np.isfinite(step_s), name, "decodes on node", node, "whose steps have no length")
            hold(plan.wait_s[i, 1] >= step_s * (1 - OVER), name, "waits", plan.wait_s[i], "s for a step of", step_s)
            hold(plan.wait_s[i, 1] < plan.pace_s[i], name, "waits as long as a token takes:", plan.wait_s[i])
            own[node] += own_s / plan.pace_s[i]
            read[node] = max(read[node], shared_s / most_s)
    hold((own + read <= 1.0 + OVER).all(), "nodes are to do", own, "of tokens and", read, "of reads")
