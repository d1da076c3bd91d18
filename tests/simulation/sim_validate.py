"""What must hold of the core's and the engine's state between two events. Raises Broken with what does not."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

import msgspec
import numpy as np

from cosched.core.commands import Plan
from cosched.core.core import Core
from cosched.core.snapshot import Snapshot
from cosched.core.state import Task
from cosched.daemon.board import ENDED
from cosched.daemon.engine import ACCEPTED, Engine
from cosched.workloads.base import LOCAL, Floats

NS = 1e-9
OVER = 1e-6  # of a resource: a solver's own tolerance, and rounding


class Broken(BaseException):  # nothing of the daemon may catch it
    """An invariant does not hold."""


def hold(condition: object, what: str, *about: object) -> None:
    """What is about it is put into words only where it does not hold: this is called a hundred times an event."""
    if not condition:
        raise Broken(" ".join([what, *map(str, about)]).strip())


def newcomers(core: Core) -> list[Task]:
    """All that wait for their first decision, asked for or not."""
    asked = [] if core._open is None else [t for t in core._open[1].planned.layout.tasks if t.point < 0]
    return [*asked, *core._waiting]


def validate_core(core: Core) -> None:
    """Hold a core's state against itself."""
    state = core.state
    n_cells = len(state.site.cells)
    for name, task in state.tasks.items():
        hold(task.offer.task == name, "task", name, "is filed under another name")
        hold(0 <= task.point < task.table.n_points, "task", name, "runs at point", task.point)
        hold(0 <= task.cell < n_cells, "task", name, "is in cell", task.cell)
        hold(task.ue == state.channel.index(task.offer.ue) >= 0, "task", name, ": no channel of its UE")
        hold(state.cell_of_ue.get(task.offer.ue, task.cell) == task.cell, "task", name, "is not where its UE is")
    ues = {t.offer.ue for t in [*state.tasks.values(), *newcomers(core)]}
    hold(len(state.known) <= core.settings.max_ues + len(ues), "more UEs than may be known:", len(state.known))
    hold(len(state.channel.rows()) <= core.settings.max_ues + len(ues), "more channels than UEs may be known")
    rows = [t.row for t in state.tasks.values() if t.row >= 0]
    hold(len(set(rows)) == len(rows), "two tasks share a row of progress")
    hold(not set(rows) & set(state._free_rows), "a row of progress is in use and free")
    hold(len(rows) + len(state._free_rows) == len(state.progress), "rows of progress are lost")
    fresh = newcomers(core)
    names = Counter(t.offer.task for t in fresh)
    hold(max(names.values(), default=0) <= 1, "newcomers twice:", names.most_common(1))
    hold(not names.keys() & state.tasks.keys(), "newcomers that run:", names.keys() & state.tasks.keys())
    hold(all(t.point == -1 for t in fresh), "a newcomer has a point")
    for name, array in (("prices", state.prices), ("variance", state.variance), ("background", state.background)):
        hold(np.isfinite(array).all() and (array >= 0).all(), "", name, array)
    hold(np.isfinite(core._use).all(), "planned use", core._use)
    hold(core._open is None or core._open[0] == core._request, "the open request is not the latest")


def validate_snapshot(core: Core, fresh: Core) -> None:
    """A core that takes the snapshot over, by way of JSON, has the same state. fresh: of the same plant."""
    taken = core.snapshot()
    text = msgspec.json.encode(taken)
    lost = fresh.restore(msgspec.json.decode(text, type=Snapshot))
    hold(not lost, "a successor has no place for", lost)
    hold(msgspec.json.encode(fresh.snapshot()) == text, "a successor's snapshot is another")


def validate_engine(engine: Engine, now_s: float) -> None:
    """Hold an engine's books against its core's."""
    core = engine.core
    living, running = set(engine.trackers), set(core.state.tasks)
    dropped = {d.task for d in core._dropped}
    hold(running <= living, "the core runs what nobody follows:", sorted(running - living))
    hold(living - running <= dropped, "followed, and not run:", sorted(living - running - dropped))
    ending = {offer.task for offer, _ in engine._ends}
    hold(ending <= set(engine._drops), "an end that is not to be stored")
    held = set(engine.board.held)
    hold(living <= held | set(engine.waiting), "no lease of", sorted(living - held))
    hold(held - living <= ending, "leases of the ended:", sorted(held - living - ending))
    asked = {t.offer.task for t in newcomers(core)}
    hold(asked <= set(engine.waiting), "asked for, and nobody waits:", sorted(asked - set(engine.waiting)))
    lost = set(engine.waiting) - asked - dropped
    hold(not lost, "waited for, and not asked:", sorted(lost))
    hold(not living & set(engine.waiting), "lives, and waits:", sorted(living & set(engine.waiting)))
    hold(all(w.replies for w in engine.waiting.values()), "somebody waits whom nobody answers")
    hold(all(n >= 0 for n in engine.counts.values()), "counts", engine.counts)
    hold(all(-math.inf < at_s <= now_s + NS for at_s in engine.reported_s.values()), "reports from the future")
    hold(len(engine.board._ended) <= ENDED, "the ended are not forgotten")


def validate_stored(engine: Engine, rows: Iterable[str]) -> None:
    """What is on disk is what lives, but for ends that the disk has refused."""
    stored, living = set(rows), set(engine.trackers)
    hold(living <= stored, "lives, and is not stored:", sorted(living - stored))
    over = stored - set(engine._drops) - living
    hold(not over, "stored, and does not live:", sorted(over))


def validate_plan(engine: Engine, plan: Plan, *, reserved: bool, stored: bool, least_use: Floats | float = 0.0) -> None:
    """Hold a plan that goes out against the state of now. reserved: shares of its policy are held for good."""
    core, state = engine.core, engine.core.state
    hold(len(set(plan.tasks)) == len(plan.tasks), "a task twice in a plan")
    told = [d.task for d in plan.decisions]
    hold(len(set(told)) == len(told), "decided twice in one plan:", sorted(told))
    hold(plan.valid_until_s - plan.at_s <= core.settings.lease_s + NS, "a lease longer than leases are")
    for name in ("share", "prbs", "node_weight", "planned_use", "reserved", "variance", "prices", "efficiency"):
        array = getattr(plan, name)
        hold(np.isfinite(array).all() and (array >= 0).all(), "plan", plan.generation, ":", name, array)
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
        hold(task.point == plan.point[i], "", name, "is planned at", plan.point[i], "and runs at", task.point)
        node = int(task.table.node[task.point])
        hold(node not in state.places.barred, "", name, "is planned on node", node, ", which is gone")
        hold(not task.is_stranded(state.places), "", name, "is planned on layers that are gone")
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
