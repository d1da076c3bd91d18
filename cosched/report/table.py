"""Tables: for the terminal (rich), for scripts (`replay --json`), and for the README (Markdown)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from cosched.report import stats
from cosched.report.figures import BLANK, Row, comparison_rows, fold
from cosched.report.model import ReplayResult, Summary, Sweep, SweepRow

MARK: Final = "*"  # survives without colour
_GAP: Final = 1  # characters between two columns
_MEAN: Final = "mean 1-2"  # the column of averages over loads
_HEAD: Final = 9  # characters of a column's head; longer names go on below
_CELL: Final = 11  # "0.76 ± 0.02" stays whole, a policy's name may go over two lines


class _Blocks:
    """Rows x columns, laid out in as many blocks as the console's width asks for, so that no column is ever cut."""

    def __init__(self, corner: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
        self._corner = corner
        self._columns = columns
        self._rows = rows
        self._label_width = max([len(corner), *(len(row.label) for row in rows)])
        self._widths = [self._width(column) for column in columns]

    def _width(self, column: str) -> int:
        cells = (row.cells.get(column, BLANK) for row in self._rows)
        lines = [*fold(column, _HEAD), *(line for text in cells for line in fold(text, _CELL))]
        return max(len(line) for line in lines) + len(MARK) + _GAP

    def __rich_measure__(self, _console: Console, options: ConsoleOptions) -> Measurement:
        widest = self._label_width + sum(self._widths)
        least = self._label_width + max(self._widths, default=0)
        return Measurement(min(least, options.max_width), min(widest, options.max_width))

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        for columns in self._blocks(options.max_width):
            yield self._block(columns)
            yield Text("")

    def _blocks(self, width: int) -> list[Sequence[str]]:
        """Fewest blocks that fit `width`, then filled evenly."""
        per_block = self._fitting(width)
        count = max(1, -(-len(self._columns) // per_block))
        size = max(1, -(-len(self._columns) // count))
        return [self._columns[i : i + size] for i in range(0, len(self._columns), size)] or [[]]

    def _fitting(self, width: int) -> int:
        """How many columns any block can hold: counted on the widest ones, and at least one."""
        room = width - self._label_width
        totals = itertools.accumulate(sorted(self._widths, reverse=True))
        return max(1, sum(total <= room for total in totals))

    def _block(self, columns: Sequence[str]) -> Table:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0, pad_edge=False)  # the box divides by _GAP
        table.add_column(Text(self._corner), no_wrap=True, vertical="bottom")
        for column in columns:
            table.add_column(_folded(column, _HEAD), justify="right", no_wrap=True, vertical="bottom")
        for row in self._rows:
            cells = [_cell(row.cells.get(column, BLANK), marked=column in row.best) for column in columns]
            table.add_row(Text(row.label), *cells)
        return table


def _cell(text: str, *, marked: bool) -> Text:
    """Right-justified text with one column for the mark, so that digits stay below each other."""
    return Text(text + MARK, style="bold green") if marked else _folded(text, _CELL)


def _folded(text: str, width: int) -> Text:
    return Text("\n".join(f"{line} " for line in fold(text, width)))


def _framed(title: str, caption: str, blocks: _Blocks) -> Table:
    outer = Table(title=Text(title), caption=Text(caption), box=None, show_header=False, padding=0, pad_edge=False)
    outer.title_justify = outer.caption_justify = "left"
    outer.add_column()
    outer.add_row(blocks)
    return outer


def comparison_table(result: ReplayResult) -> Table:
    """Figures as rows, policies as columns; the best of each row in bold green and with an asterisk.

    On a narrow console the policies go on in further blocks below: no column is cut.
    """
    trace = result.trace
    title = (
        f"{trace.path}: {trace.duration_s:g} s, {trace.ues} UEs, {trace.tasks} tasks, "
        f"{trace.local_feasible} of them served by the device alone, "
        f"{100 * trace.overlap_share:.0f} % overlap another of their UE, {trace.most_at_once} at most at once"
    )
    caption = f"{MARK} best of its row\n{stats.headline(result)}"
    return _framed(title, caption, _Blocks("", list(result.policies), comparison_rows(result)))


def sweep_table(sweep: Sweep) -> Table:
    """Share of the offered tasks met: policies as rows, loads as columns, mean ± standard deviation over seeds.

    Below them the hindsight bound and the gain of joint over the best decoupled policy and the better greedy.
    """
    outer = Table(title=Text(sweep.name), caption=Text(_sweep_caption(sweep)), box=None, show_header=False, padding=0)
    outer.title_justify = outer.caption_justify = "left"
    outer.add_column()
    for site in stats.sites(sweep):
        columns, rows = sweep_rows(stats.of_site(sweep, site))
        outer.add_row(_Blocks(f"{site}, load", columns, rows))
    return outer


def _sweep_caption(sweep: Sweep) -> str:
    seeds = len({row.seed for row in sweep.rows})
    if seeds == 0:
        return "The sweep holds no run."
    spread = f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else "one seed"
    return f"Share of offered tasks met, {spread}; {MARK} best of its load\n{sweep.command}"


def sweep_rows(rows: Sequence[SweepRow]) -> tuple[list[str], list[Row]]:
    """(columns, rows) of one site's sweep: a column per load, the last one averages over loads 1 to 2."""
    at = stats.loads(rows)
    table = [*_policy_rows(rows, at), *_bound_rows(rows, at)]
    gains = [row for label, against in stats.AGAINST.items() for row in _gain_rows(rows, at, label, against)]
    mean = [_MEAN] if len(stats.in_range(rows)) > 1 else []
    return [*(_load(load) for load in at), *mean], [*table, *gains]


def _load(load: float) -> str:
    return f"{load:g}"


def _policy_rows(rows: Sequence[SweepRow], at: Sequence[float]) -> list[Row]:
    columns = {p: _columns([r for r in rows if r.policy == p], at, stats.met_ratio) for p in stats.policies(rows)}
    shown = {p: {c: _spread(s) for c, s in spreads.items()} for p, spreads in columns.items()}
    means = {p: {c: f"{s.mean:.2f}" for c, s in spreads.items()} for p, spreads in columns.items()}
    top = {c: _top([m[c] for m in means.values() if c in m]) for c in (*map(_load, at), _MEAN)}
    return [
        Row(label=p, cells=shown[p], best=frozenset(c for c, mean in means[p].items() if mean == top[c]))
        for p in columns
    ]


def _columns(rows: Sequence[SweepRow], at: Sequence[float], of: Callable[[SweepRow], float]) -> dict[str, stats.Spread]:
    """Column -> mean and spread over seeds of one policy's figure."""
    found = {_load(load): stats.mean_over_loads(rows, [load], of) for load in at}
    found[_MEAN] = stats.mean_over_loads(rows, stats.in_range(rows), of)
    return {column: s for column, s in found.items() if s is not None}


def _top(printed: Sequence[str]) -> str | None:
    """Return the highest of figures printed with the same number of digits; None where all are the same."""
    return max(printed) if len(set(printed)) > 1 else None


def _bound_rows(rows: Sequence[SweepRow], at: Sequence[float]) -> list[Row]:
    if stats.is_weighted(rows):  # the bound is on the value, not on the tasks met
        return []
    bound = stats.bound_over_load(rows)
    cells = {_load(load): _spread(bound[load]) for load in at if load in bound}
    return [Row(label="hindsight bound", cells=cells, best=frozenset())]


def _gain_rows(rows: Sequence[SweepRow], at: Sequence[float], label: str, against: Sequence[str]) -> list[Row]:
    gains = {_load(load): gain for load in at if (gain := stats.gain_at(rows, load, against)) is not None}
    if not gains:
        return []
    cells = {load: _spread(gain.ratio) for load, gain in gains.items()}
    mean = stats.mean_gain(rows, stats.in_range(rows), against)
    if mean is not None:
        cells[_MEAN] = _spread(mean)
    names = Row(label="  which is", cells={a: gain.against for a, gain in gains.items()}, best=frozenset())
    return [Row(label=f"joint / {label}", cells=cells, best=frozenset()), names]


def _spread(s: stats.Spread) -> str:
    return f"{s.mean:.2f} ± {s.sd:.2f}" if s.n > 1 else f"{s.mean:.2f}"


# --- for scripts -------------------------------------------------------------------------------------------------


def to_json(result: ReplayResult) -> bytes:
    """Exactly the keys of `replay --json` (docs/report.md); a figure that is not finite becomes null.

    `failed` is there only if a policy failed: why, by name.
    """
    policies = {name: _summary_json(run.summary) for name, run in result.policies.items()}
    whole = {"v": result.v, "trace": msgspec.to_builtins(result.trace), "policies": policies}
    return msgspec.json.encode(whole | ({"failed": result.failed} if result.failed else {}))


def _summary_json(summary: Summary) -> dict[str, Any]:
    whole: dict[str, Any] = msgspec.to_builtins(summary)
    latency, decide = summary.latency_ms, summary.decide_ms
    whole["latency_ms"] = {"p50": latency.p50, "p95": latency.p95, "p99": latency.p99}
    whole["decide_ms"] = {"p50": decide.p50, "p99": decide.p99, "max": decide.max}
    return whole


# --- for the README ----------------------------------------------------------------------------------------------


def to_markdown(result: ReplayResult) -> str:
    """Return the comparison as a Markdown table, the best figure of each row in bold."""
    return _markdown("", list(result.policies), comparison_rows(result))


def sweep_markdown(sweep: Sweep) -> str:
    """Return the sweep's table as Markdown, one table per site, with the command that reproduces it."""
    tables = [_markdown(f"{site}, load", *sweep_rows(stats.of_site(sweep, site))) for site in stats.sites(sweep)]
    return "\n".join([*tables, f"Command: `{sweep.command}`\n"])


def _markdown(corner: str, columns: Sequence[str], rows: Sequence[Row]) -> str:
    lines = [_line([corner, *columns]), _line(["---", *("---:" for _ in columns)])]
    for row in rows:
        cells = [row.cells.get(c, BLANK) for c in columns]
        marked = [f"**{cell}**" if c in row.best else cell for c, cell in zip(columns, map(_safe, cells), strict=True)]
        lines.append(_line([_safe(row.label).strip(), *marked], escaped=True))
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str], *, escaped: bool = False) -> str:
    return "| " + " | ".join(cells if escaped else [_safe(cell) for cell in cells]) + " |"


def _safe(text: str) -> str:
    """Ids come from traces: nothing in them may end a cell or start markup."""
    for sign, code in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("\n", " "), ("*", "\\*"), ("`", "'")):
        text = text.replace(sign, code)
    return text
