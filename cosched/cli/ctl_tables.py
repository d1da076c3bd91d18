"""What `cosched ctl` prints for people: one function per kind of result."""

from __future__ import annotations

from collections.abc import Iterable

import typer

from cosched.api import messages as api

# Tables are made by hand: rich alone would take a third of the 0.3 s of CPU that `cosched ctl status` may take.


def _text(value: object) -> str:
    """Format a cell: floats with three significant digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _table(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Print aligned columns, the first to the left, numbers to the right."""
    lines = [tuple(columns), *(tuple(map(_text, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ]
        _say("  ".join(cells))


def _say(text: str) -> None:
    """Print a line; control characters, of which a hostile task's name may be full, become blanks."""
    typer.echo("".join(c if c.isprintable() else " " for c in text).rstrip())


def status(found: api.Status) -> None:
    """Print what an operator sees first."""
    shadow, ingest = found.shadow, found.ingest
    gap = found.gap / found.bound if found.bound > 0 else 0.0
    _say(f"{found.mode} for {found.mode_since_s:.0f} s; {found.site}, policy {found.policy}, up {found.uptime_s:.0f} s")
    for alarm in found.alarms:
        _say(f"ALARM {alarm}")
    _say(f"{found.tasks} tasks, {found.promised} promised; plan {found.generation}, gap {100 * gap:.2f} %")
    if found.cluster.mode != "off":
        nodes = (f"{n.node} {n.state} ({n.sessions} sessions, plan {n.applied})" for n in found.cluster.nodes)
        _say(f"cluster {found.cluster.state}, epoch {found.cluster.epoch}: {', '.join(nodes) or 'no node yet'}")
    if found.cluster.placement.state != "off":
        _table(
            ("node", "layers held", "to hold", "GB", "GB/s loading", "waits for"),
            (
                (n.node, _ranges(n.layers), _ranges(n.to_hold), n.used_bytes / 1e9, n.load_bytes_per_s / 1e9, n.waits)
                for n in found.cluster.nodes
            ),
        )
    _table(
        ("resource", "kind", "planned", "background", "price", "step ms", "read every ms"),
        ((r.id, r.kind, r.planned, r.background, r.price, *_steps(r)) for r in found.resources),
    )
    delays = (("submit", found.submit_ms), ("solve", found.solve_ms), ("telemetry", found.telemetry_ms))
    _table(("ms", "p50", "p99", "max", "n"), ((name, q.p50, q.p99, q.max, q.n) for name, q in delays))
    _say("  ".join(f"{name} {n}" for name, n in sorted(found.counts.items())))
    _say(f"input {ingest.input_age_s:.2g} s old, {ingest.reports} reports, {sum(ingest.lost.values())} lost")
    if ingest.refused:
        _table(("refused from", "reason", "n"), ((c.source or "-", c.reason, c.n) for c in ingest.refused))
    if shadow.offered:
        _say(
            f"last {shadow.window_s:.0f} s: met {shadow.live.met} of {shadow.offered}, "
            f"{shadow.baseline} {shadow.shadow.met}; admitted {shadow.live.admitted} and {shadow.shadow.admitted}"
        )


def _ranges(layers: Iterable[api.LayerRange]) -> str:
    """Ranges of layers, the last one of each included."""
    return ", ".join(f"{x.model} {x.first}-{x.last - 1}" for x in layers) or "none"


def lease_line(lease: api.Lease) -> str:
    """One decision in a line."""
    if not lease.point:
        return f"{lease.task}: {lease.reason}{f' ({lease.binding_resource})' if lease.binding_resource else ''}"
    where = f"{lease.cell} {lease.weight_prb:.1f} PRBs, {lease.node} {100 * lease.reserved.node:.1f} %"
    latency = "/".join("never" if s is None else f"{1e3 * s:.0f}" for s in lease.predicted_s)
    return f"{lease.task}: {lease.reason} {lease.point}; {where}; {latency} ms; valid {lease.valid_for_ms:.0f} ms"


def lease(found: api.Lease) -> None:
    """Print a decision and its sentence."""
    _say(lease_line(found))
    _say(f"{found.text} Past the lease: {found.fallback}.")


def released(found: api.Released) -> None:
    """Print whether a task was let go."""
    _say(f"{found.task}: {'released' if found.released else 'no such task'}")


def tasks(found: api.TaskList) -> None:
    """Print accepted tasks as a table."""
    _table(
        ("task", "UE", "kind", "weight", "age s", "done", "point", "cell", "PRBs", "node", "share"),
        ((t.task, t.ue, t.kind, t.weight, t.age_s, t.done, *_held(t.lease)) for t in found.tasks),
    )
    if found.total > len(found.tasks):
        _say(f"... and {found.total - len(found.tasks)} more: see --limit")


def _held(lease: api.Lease) -> tuple[object, ...]:
    if not lease.point:
        return (lease.reason, "", "", "", "")
    return (lease.point, lease.cell, lease.weight_prb, lease.node, lease.weight_node)


def task(found: api.TaskView) -> None:
    """Print one task."""
    _say(
        f"{found.task}: {found.kind} of {found.ue}, weight {found.weight:g}, {found.age_s:.1f} s old, done {found.done}"
    )
    lease(found.lease)
    for name, factor in found.calibration.items():
        _say(f"{name} takes {factor:.2g} x its profile, as measured")


def explanation(found: api.Explanation) -> None:
    """Print why, at which prices, with which alternatives."""
    lease(found.lease)
    used = {name: (found.planned.get(name, 0.0), price) for name, price in found.prices.items()}
    _table(("resource", "planned", "price"), ((name, *values) for name, values in used.items()))
    _table(
        ("point", "value", "cost", "least ms", "needs"),
        (
            (p.point, p.value, p.cost, "/".join(f"{1e3 * s:.0f}" for s in p.least_latency_s), _needs(p.needs))
            for p in found.points
        ),
    )
    for other in found.counterfactuals:
        _say(other.text)


def _needs(needs: dict[str, float]) -> str:
    return ", ".join(f"{name} {100 * share:.1f} %" for name, share in needs.items()) or "cannot"


def whatif(found: api.WhatifResult) -> None:
    """Print what the changed site would hold."""
    _say(f"{found.kept} tasks keep their promise, {len(found.unpromised)} lose it")
    for name in found.unpromised:
        _say(f"  {name}")
    for further in found.leases:
        _say(lease_line(further))
    _table(("resource", "planned", "price"), ((n, use, found.prices.get(n, 0.0)) for n, use in found.planned.items()))


def policy(found: api.PolicyView) -> None:
    """Print the policy in force and those there are."""
    waits = "" if found.chosen == found.policy else f"while DEGRADED, then {found.chosen} "
    _say(f"{found.policy} {waits}(baseline {found.baseline}); there are: {', '.join(found.available)}")


def mode(found: api.ModeView) -> None:
    """Print the mode."""
    _say(f"{found.mode}{''.join(f'; {alarm}' for alarm in found.alarms)}")


def _steps(resource: api.ResourceView) -> list[str]:
    """Length of a node's steps and period of its reads, where somebody decodes."""
    return [f"{ms:.1f}" if ms else "" for ms in (resource.step_ms, resource.period_ms)]


def reloaded(found: api.Reloaded) -> None:
    """Print what a reload changed."""
    _say(f"reloaded; changed: {', '.join(found.changed) or 'nothing'}")
