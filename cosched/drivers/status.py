"""What `status` answers, put together from all parts of a daemon."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from cosched import __version__
from cosched import control_messages as api
from cosched.core.planner import resource_ids

if TYPE_CHECKING:
    from cosched.drivers.live import Daemon

NS: Final = 1e-9


def of(daemon: Daemon) -> api.Status:
    """Return the status of a daemon."""
    engine, modes, plan = daemon.engine, daemon.modes, daemon.engine.plan
    now_s = daemon.clock() * NS
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
        generation=plan.generation if plan is not None else 0,
        tasks=len(engine.trackers),
        promised=int(plan.promised.sum()) if plan is not None else 0,
        value=plan.value if plan is not None else 0.0,
        bound=plan.bound if plan is not None else 0.0,
        gap=max(0.0, plan.bound - plan.value) if plan is not None else 0.0,
        resources=_resources(daemon),
        counts=dict(engine.counts),
        reasons=dict(engine.reasons),
        submit_ms=engine.submit_ms.quantiles(),
        solve_ms=engine.solve_ms.quantiles(),
        telemetry_ms=engine.plan_ms.quantiles(),
        ingest=_ingest(daemon, now_s),
        shadow=msgspec.structs.replace(daemon.shadow.view(), baseline=daemon.loaded.settings.shadow.baseline),
        capture=engine.capture.path,
        capture_bytes=engine.capture.n_bytes,
        config=str(daemon.loaded.path or ""),
    )


def _resources(daemon: Daemon) -> tuple[api.ResourceView, ...]:
    state, plan = daemon.engine.core.state, daemon.engine.plan
    site = state.site
    names = resource_ids(site)
    kinds = ["comm"] * len(site.cells) + ["compute"] * len(site.nodes) + ["memory"] * len(site.nodes)
    planned = plan.planned_use if plan is not None and len(plan.planned_use) == len(names) else np.zeros(len(names))
    rows = zip(names, kinds, planned.tolist(), state.background.tolist(), state.prices.tolist(), strict=True)
    return tuple(
        api.ResourceView(id=name, kind=kind, planned=use, background=background, price=price)
        for name, kind, use, background, price in rows
    )


def _ingest(daemon: Daemon, now_s: float) -> api.Ingest:
    intake, engine = daemon.intake, daemon.engine
    limit_s = daemon.loaded.settings.telemetry.stale_input_s
    ues = {tracker.offer.ue for tracker in engine.trackers.values()}
    counts = [(s, r, n) for (s, r), n in sorted(intake.quarantine.counts.items())]
    if daemon.sockets.telemetry.malformed:
        counts.append(("", "not a topic and a payload", daemon.sockets.telemetry.malformed))
    if daemon.authenticator is not None:
        counts += [("(handshake)", reason, n) for reason, n in sorted(daemon.authenticator.refused.items())]
    return api.Ingest(
        messages=intake.messages,
        reports=intake.reports,
        refused=tuple(api.Counted(source=s, reason=r, n=n) for s, r, n in counts),
        lost=dict(intake.gaps.lost),
        input_age_s=now_s - engine.last_sample_s if engine.last_sample_s >= 0 else 0.0,
        stale_ues=sum(now_s - engine.reported_s.get(ue, now_s) > limit_s for ue in ues),
    )
