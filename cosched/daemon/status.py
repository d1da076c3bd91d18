"""What `status` answers, put together from all parts of a daemon."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Container
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from cosched import __version__
from cosched.api import messages as api
from cosched.config import log
from cosched.core.commands import Plan
from cosched.core.planner import resource_ids
from cosched.core.state import State
from cosched.daemon.sound import sound
from cosched.workloads.base import LOCAL, Floats
from telemetry.quality import OTHERS

if TYPE_CHECKING:
    from cosched.daemon.daemon import Daemon

NS: Final = 1e-9


def of(daemon: Daemon) -> api.Status:
    """Return the status of a daemon."""
    engine = daemon.engine
    plan = engine.plan if engine.trackers else None  # without a task nothing is planned, and the last plan is past
    now_s = daemon.clock() * NS
    made: api.Status = sound(_made(daemon, plan, now_s))
    return made


def _made(daemon: Daemon, plan: Plan | None, now_s: float) -> api.Status:
    engine, modes = daemon.engine, daemon.modes
    return api.Status(
        version=__version__,
        pid=os.getpid(),
        site=engine.plant.site.name,
        policy=engine.core.policy.name,
        baseline=daemon.loaded.settings.shadow.baseline,
        mode=str(modes.mode),
        mode_since_s=now_s - modes.since_s,
        alarms=modes.alarms,
        uptime_s=now_s - daemon.started_ns * NS,
        generation=engine.core.generation,
        tasks=len(engine.trackers),
        promised=_promised(engine.trackers, plan),
        value=plan.value if plan is not None else 0.0,
        bound=plan.bound if plan is not None else 0.0,
        gap=max(0.0, plan.bound - plan.value) if plan is not None else 0.0,
        resources=_resources(daemon, plan),
        cells=_cells(daemon, now_s),
        counts=dict(engine.counts),
        reasons=dict(engine.reasons),
        submit_ms=engine.submit_ms.quantiles(),
        solve_ms=engine.solve_ms.quantiles(),
        telemetry_ms=engine.plan_ms.quantiles(),
        ingest=_ingest(daemon, now_s),
        shadow=msgspec.structs.replace(daemon.shadow.view(), baseline=daemon.loaded.settings.shadow.baseline),
        cluster=msgspec.structs.replace(daemon.cluster.view(), placement=daemon.placer.view()),
        capture=engine.capture.path,
        capture_bytes=engine.capture.n_bytes,
        log_dropped=log.dropped(),
        config=str(daemon.loaded.path or ""),
    )


def _promised(living: Container[str], plan: Plan | None) -> int:
    """Living tasks whose deadlines the plan holds."""
    if plan is None:
        return 0
    return sum(held and task in living for task, held in zip(plan.tasks, plan.promised.tolist(), strict=True))


def _resources(daemon: Daemon, plan: Plan | None) -> tuple[api.ResourceView, ...]:
    state = daemon.engine.core.state
    site = state.site
    names = resource_ids(site)
    kinds = ["comm"] * len(site.cells) + ["compute"] * len(site.nodes) + ["memory"] * len(site.nodes)
    planned = plan.planned_use if plan is not None and len(plan.planned_use) == len(names) else np.zeros(len(names))
    steps = [_of_steps(state, getattr(plan, name, None)) for name in ("step_s", "period_s")]
    columns = planned.tolist(), state.background.tolist(), state.prices.tolist(), _holders(state), *steps
    fields = ("id", "kind", "planned", "background", "price", "tasks", "step_ms", "period_ms")
    rows = (dict(zip(fields, row, strict=True)) for row in zip(names, kinds, *columns, strict=True))
    return tuple(api.ResourceView(**row) for row in rows)


def _of_steps(state: State, seconds: Floats | None) -> list[float]:
    """Milliseconds of a plan's column of nodes, for all resources; 0 where nobody decodes."""
    n_cells, n_nodes = len(state.site.cells), len(state.site.nodes)
    of_nodes = np.zeros(n_nodes)
    if seconds is not None and len(seconds) == n_nodes:
        of_nodes = np.where(np.isfinite(seconds), 1e3 * seconds, 0.0)
    return [*[0.0] * n_cells, *of_nodes.tolist(), *[0.0] * n_nodes]


def _holders(state: State) -> list[int]:
    """Tasks with a point on each resource: a node's sessions are those of its memory too."""
    on_cell, on_node = [0] * len(state.site.cells), [0] * len(state.site.nodes)
    on_memory = on_node.copy()
    for task in state.tasks.values():
        node = int(task.table.node[task.point])
        if node != LOCAL:
            on_cell[task.cell] += 1
            on_node[node] += 1
            on_memory[node] += task.is_llm
    return [*on_cell, *on_node, *on_memory]


def _cells(daemon: Daemon, now_s: float) -> tuple[api.CellView, ...]:
    state, heard_s = daemon.engine.core.state, daemon.engine.reported_s
    limit_s = daemon.loaded.settings.telemetry.stale_input_s
    ues, stale = Counter(state.cell_of_ue.values()), Counter[int]()
    stale.update(cell for ue, cell in state.cell_of_ue.items() if now_s - heard_s.get(ue, now_s) > limit_s)
    return tuple(api.CellView(id=cell.id, ues=ues[i], stale_ues=stale[i]) for i, cell in enumerate(state.site.cells))


def _ingest(daemon: Daemon, now_s: float) -> api.IngestView:
    intake, engine = daemon.intake, daemon.engine
    limit_s = daemon.loaded.settings.telemetry.stale_input_s
    ues = {tracker.offer.ue for tracker in engine.trackers.values()}
    counts = [(s, r, n) for (s, r), n in sorted(intake.quarantine.counts.items())]
    if intake.gaps.unfollowed:
        counts.append((OTHERS, "sequence numbers not followed", intake.gaps.unfollowed))
    if daemon.sockets.telemetry.malformed:
        counts.append(("", "not a topic and a payload", daemon.sockets.telemetry.malformed))
    if daemon.sockets.control.malformed:
        counts.append(("", "a request without a payload", daemon.sockets.control.malformed))
    if daemon.sockets.control.unread:
        counts.append(("", "answers left unread", daemon.sockets.control.unread))
    counts += [(f"({name})", reason, n) for name, reason, n in daemon.sockets.gate.counted()]
    if daemon.authenticator is not None:
        counts += [("(handshake)", reason, n) for reason, n in sorted(daemon.authenticator.refused.items())]
    return api.IngestView(
        messages=intake.messages,
        reports=intake.reports,
        refused=tuple(api.Counted(source=s, reason=r, n=n) for s, r, n in counts),
        lost=dict(intake.gaps.lost),
        input_age_s=now_s - engine.last_sample_s if engine.last_sample_s >= 0 else 0.0,
        stale_ues=sum(now_s - engine.reported_s.get(ue, now_s) > limit_s for ue in ues),
    )
