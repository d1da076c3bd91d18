"""What the dashboard says, as plain text made of what the daemon answers; nothing of a screen is known here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from cosched.api import messages as api

BAR: Final = 10  # characters of a whole resource
MOST_ALARMS: Final = 4  # lines; what is beyond is counted
MINUTE_S: Final = 120.0  # from here on, spans are told in minutes
HOUR_S: Final = 7200.0
LEAST_PRICE: Final = 1e-6  # value for a whole resource: what is less is rounding of a resource that has room

COLUMNS: Final = ("task", "UE", "cell", "node", "split", "PRBs", "node%", "ms/limit", "slack", "reason", "lease")
NUMBERS: Final = frozenset({"PRBs", "node%", "ms/limit", "slack", "lease"})
GREATEST_FIRST: Final = NUMBERS - {"slack", "lease"}  # when sorted: what wants to be looked at is on top


def plain(text: str) -> str:
    """Control characters, of which a hostile task's name may be full, become blanks."""
    return "".join(c if c.isprintable() else " " for c in text)


def span(seconds: float) -> str:
    """`12 s`, `3 min`, `5 h`."""
    if seconds < MINUTE_S:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < HOUR_S else f"{seconds / 3600:.0f} h"


def bar(fraction: float) -> str:
    """Ten characters and the number: `████······  42 %`."""
    full = round(BAR * min(1.0, max(0.0, fraction)))
    return f"{'█' * full}{'·' * (BAR - full)} {100 * fraction:3.0f} %"


# --- the head -------------------------------------------------------------------------------------------------------


def head(found: api.Status) -> list[str]:
    """Mode, plan and gain, delays: a line each."""
    return [mode(found), f"{held(found)}  {gain(found.shadow)}", delays(found)]


def mode(found: api.Status) -> str:
    """What the daemon does, since when, for which site."""
    since = f"{found.mode} for {span(found.mode_since_s)}"
    return f"{since}  {plain(found.site)}, policy {found.policy}, up {span(found.uptime_s)}, plan {found.generation}"


def held(found: api.Status) -> str:
    """How much of what is asked the plan holds."""
    return f"{found.tasks} tasks, {found.promised} promised, gap {100 * relative_gap(found):.2f} %"


def delays(found: api.Status) -> str:
    """How long decisions take, how old their input is, what is recorded."""
    measured = (("submit", found.submit_ms), ("solve", found.solve_ms), ("plan", found.telemetry_ms))
    told = ", ".join(f"{name} {_short(q.p50)}/{_short(q.p99)}" for name, q in measured)
    recorded = f"capture {found.capture_bytes / 1e6:.1f} MB" if found.capture else "not recording"
    return f"{told} ms; input {found.ingest.input_age_s:.1f} s old; {recorded}"


def _short(ms: float) -> str:
    return f"{ms:.1f}" if ms < 10 else f"{ms:.0f}"


def relative_gap(found: api.Status) -> float:
    """How far the plan can be from optimal at most, as a part of its bound."""
    return found.gap / found.bound if found.bound > 0 else 0.0


def gain(shadow: api.ShadowView) -> str:
    """What the policy in force gains over the baseline that runs in shadow."""
    if not shadow.offered:
        return f"gain over {shadow.baseline}: after a minute"
    live, base = shadow.live.met, shadow.shadow.met
    times = f" {live / base:.2f} x" if base else ""
    return f"over {shadow.baseline}:{times} met ({live}, {base} of {shadow.offered} in {span(shadow.window_s)})"


def alarms(found: api.Status) -> list[str]:
    """What is wrong, the mode's own reasons first; empty where nothing is."""
    lines = [f"ALARM {plain(text)}" for text in found.alarms]
    if found.ingest.stale_ues:
        lines.append(f"STALE {found.ingest.stale_ues} UEs with tasks are not reported any more")
    refused = sorted(found.ingest.refused, key=lambda c: (-c.n, c.source, c.reason))
    lines += [f"REFUSED {c.n} from {plain(c.source) or 'no source'}: {plain(c.reason)}" for c in refused]
    lost = sorted(found.ingest.lost.items(), key=lambda item: (-item[1], item[0]))
    lines += [f"LOST {n} messages of {plain(source)}" for source, n in lost if n]
    if len(lines) > MOST_ALARMS:
        lines = [*lines[: MOST_ALARMS - 1], f"and {len(lines) - MOST_ALARMS + 1} more: 'cosched ctl status'"]
    return lines


def cells(found: api.Status) -> list[str]:
    """A line a cell, after its head: load, tasks, UEs, stale ones."""
    there = {cell.id: cell for cell in found.cells}
    rows = [("cell", "planned", "tasks", "UEs", "stale")]
    for r in found.resources:
        cell = there.get(r.id.removesuffix("/ul"))
        if r.kind == "comm" and cell is not None:
            rows.append((plain(cell.id), bar(r.planned), str(r.tasks), str(cell.ues), str(cell.stale_ues)))
    return aligned(rows)


def nodes(found: api.Status) -> list[str]:
    """A line a node, after its head: load, tasks, planned length of a step."""
    rows = [("node", "planned", "tasks", "step ms")]
    rows += [
        (plain(r.id), bar(r.planned), str(r.tasks), f"{r.step_ms:.0f}" if r.step_ms else "")
        for r in found.resources
        if r.kind == "compute"
    ]
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of equal width, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(_put, row, widths, (True, *(False,) * len(row)))).rstrip() for row in rows]


def _put(text: str, width: int, left: bool) -> str:
    return text.ljust(width) if left else text.rjust(width)


# --- the tasks ------------------------------------------------------------------------------------------------------


class TableCell(NamedTuple):
    """One cell: what it shows, and what it sorts by; a blank comes last either way."""

    text: str
    number: float = 0.0
    blank: bool = False


BLANK: Final = TableCell("", blank=True)


@dataclass(frozen=True, slots=True)
class TableRow:
    """One task as shown, a cell per column."""

    task: str
    cells: tuple[TableCell, ...]


def rows(tasks: Iterable[api.TaskView], turned_away: Iterable[api.Lease]) -> list[TableRow]:
    """Tasks that run, then those that were refused or dropped lately."""
    return [*(_running(view) for view in tasks), *(_gone(lease) for lease in turned_away)]


def _running(view: api.TaskView) -> TableRow:
    lease = view.lease
    if not lease.point:  # restored, and not planned yet
        return _gone(lease)
    return TableRow(
        lease.task,
        (
            *map(_text, (lease.task, lease.ue, lease.cell, lease.node or "device", _split(lease))),
            *(_number(lease.weight_prb, 1), _number(1e2 * lease.reserved.node, 1)),
            *_latency(lease, view.phase),
            *(_text(lease.reason if lease.promised else "no promise"), _number(lease.valid_for_ms)),
        ),
    )


def _latency(lease: api.Lease, phase: int) -> tuple[TableCell, TableCell]:
    """Predicted latency of the phase that a task is in, of its deadline, and the slack between them."""
    if phase >= len(lease.predicted_s):
        return BLANK, BLANK
    predicted_s, slack_s = lease.predicted_s[phase], lease.slack_s[phase]
    if predicted_s is None or slack_s is None:
        return TableCell("never", math.inf), TableCell("-", -math.inf)
    limit_s = predicted_s + slack_s
    return TableCell(f"{1e3 * predicted_s:.0f}/{1e3 * limit_s:.0f}", predicted_s / limit_s), _number(1e3 * slack_s)


def _split(lease: api.Lease) -> str:
    """The operating point without its node, which has a column of its own."""
    return lease.point.removesuffix(f"/{lease.node}")


def _gone(lease: api.Lease) -> TableRow:
    reason = lease.reason.removeprefix("rejected_")
    state = "refused" if reason != lease.reason else "ended"
    where = map(_text, (lease.task, lease.ue, lease.cell, "-", state))
    return TableRow(lease.task, (*where, *(BLANK,) * 4, _text(reason), BLANK))


def _text(text: str) -> TableCell:
    return TableCell(plain(text).replace("_", " "))


def _number(value: float, digits: int = 0) -> TableCell:
    return TableCell(f"{value:.{digits}f}", value)


def arranged(found: Sequence[TableRow], column: str, wanted: str, *, descending: bool) -> list[TableRow]:
    """Rows that contain `wanted` in any column, sorted by one; ties by task, blanks last."""
    at, wanted = COLUMNS.index(column), wanted.casefold()
    kept = [row for row in found if any(wanted in cell.text.casefold() for cell in row.cells)]
    kept.sort(key=lambda row: row.task)
    kept.sort(key=lambda row: _order(row.cells[at], column), reverse=descending)
    kept.sort(key=lambda row: row.cells[at].blank)
    return kept


def _order(cell: TableCell, column: str) -> tuple[float, str]:
    return (cell.number, "") if column in NUMBERS else (0.0, cell.text)


# --- why ------------------------------------------------------------------------------------------------------------


def _price(price: float) -> str:
    return f"{price:.3g}" if price >= LEAST_PRICE else "0"


def _of_deadline(predicted_s: float | None, slack_s: float | None) -> str:
    if predicted_s is None or slack_s is None:
        return "never"
    return f"{1e3 * predicted_s:.0f} ms of {1e3 * (predicted_s + slack_s):.0f}"


def explanation(found: api.Explanation) -> list[str]:
    """Why a task has what it has or was refused: reason, resources with prices, alternatives, what would change it."""
    lease = found.lease
    lines = [f"{plain(found.task)} of {plain(lease.ue)}", "", plain(lease.text)]
    if lease.point:
        phases = ", ".join(map(_of_deadline, lease.predicted_s, lease.slack_s))
        lines.append(
            f"{plain(lease.point)}: {plain(lease.cell)} {lease.weight_prb:.1f} PRBs, "
            f"{plain(lease.node) or 'device'} {100 * lease.reserved.node:.1f} % reserved; {phases}"
        )
    if lease.binding_resource:
        lines.append(f"Binding resource: {plain(lease.binding_resource)}")
    lines.append(f"Its radio sample was {lease.input_age_ms:.0f} ms old. Past the lease: {lease.fallback}.")
    if found.counterfactuals:
        lines += ["", "What would change it:", *(f"  {plain(c.text)}" for c in found.counterfactuals)]
    used = [(plain(n), f"{100 * found.planned.get(n, 0.0):.1f}", _price(p)) for n, p in found.prices.items()]
    lines += ["", *aligned([("resource", "planned %", "price"), *used])]
    points = [
        (plain(p.point), f"{p.value:.3g}", "too slow" if p.cost is None else _price(p.cost),
         "/".join(f"{1e3 * s:.0f}" for s in p.least_latency_s))
        for p in found.points
    ]  # fmt: skip
    if points:
        lines += ["", *aligned([("operating point", "value", "cost", "least ms"), *points])]
    return lines
