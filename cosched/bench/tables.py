"""Rows of a suite as tables for the terminal: cases down, subjects across."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich import box
from rich.table import Table

from cosched.bench.model import RATIO, BenchRow, CapacityRow, ModelClaim


def tables(suite: str, rows: Sequence[BenchRow]) -> list[Table]:
    """One table per figure and group of cases; `1+1 offered=8` is the line `offered=8` of the group `1+1`.

    Means; where there are several in a line the greatest is marked, of times and errors the least.
    """
    groups: dict[tuple[str, str], list[BenchRow]] = {}
    for row in rows:
        groups.setdefault((_split(row.case)[0], row.figure), []).append(row)
    return [_table(f"{suite} {group}".rstrip() + f": {figure}", some) for (group, figure), some in groups.items()]


def _split(case: str) -> tuple[str, str]:
    """Return group and line of a case; `100x4x4x32` is the line `tasks=100` of the group `4x4x32`."""
    group, _, last = case.rpartition(" ")
    if sized := re.fullmatch(r"(\d+)x(\d+x\d+x\d+)", last):
        return f"{group} {sized[2]}".lstrip(), f"tasks={sized[1]}"
    return (group, last) if "=" in last else (case, "")


def _table(title: str, rows: Sequence[BenchRow]) -> Table:
    cases = list(dict.fromkeys(row.case for row in rows))
    subjects = list(dict.fromkeys(row.subject for row in rows))
    value = {(row.subject, row.case): row.value for row in rows}
    figure, compared = rows[0].figure, rows[0].figure != RATIO and len(subjects) > 1
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    table.add_column("")
    for subject in subjects:
        table.add_column(subject.replace("-", "-\n").replace(" ", "\n"), justify="right", no_wrap=True)
    for case in cases:
        cells = [value.get((subject, case)) for subject in subjects]
        best = (min if figure.endswith(("ms", "percent")) else max)(cell for cell in cells if cell is not None)
        table.add_row(_split(case)[1], *(_cell(cell, cell == best and compared) for cell in cells))
    return table


def _cell(value: float | None, marked: bool) -> str:
    return "" if value is None else f"{value:.2f}{'*' if marked else ' '}"


def capacity_tables(rows: Sequence[CapacityRow]) -> list[Table]:
    """A table for each site: policies down; across, for each kind of task, the load and what is met there a second."""
    return [_capacity(site, [row for row in rows if row.site == site]) for site in dict.fromkeys(r.site for r in rows)]


def _capacity(site: str, rows: Sequence[CapacityRow]) -> Table:
    title = f"{site}: greatest load at which 95 % hold their deadlines, tasks and tokens met a second there"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    table.add_column("")
    kinds = list(dict.fromkeys(row.of for row in rows))
    for kind in kinds:
        table.add_column(f"of the\n{kind}", justify="right", no_wrap=True)
        table.add_column("tasks/s", justify="right", no_wrap=True)
        table.add_column("tokens/s", justify="right", no_wrap=True)
    found = {(row.policy, row.of): row for row in rows}
    for policy in dict.fromkeys(row.policy for row in rows):
        cells = [cell for kind in kinds for cell in _capacity_cells(found[policy, kind])]
        table.add_row(policy, *cells)
    return table


def _capacity_cells(row: CapacityRow) -> tuple[str, str, str]:
    return f"{row.limit} {row.load:.2f}".strip(), f"{row.met_per_s:.2f}", f"{row.tokens_per_s:.0f}"


def claims_table(claims: Sequence[ModelClaim]) -> Table:
    """List what was asked, what was reached, and whether that holds."""
    table = Table(title="claims", title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("claim", "reached", "asked", "holds"):
        table.add_column(heading, justify="left" if heading == "claim" else "right")
    for claim in claims:
        asked = f"{'at most ' if claim.at_most else ''}{claim.asked:.2f}"
        table.add_row(claim.text, f"{claim.reached:.2f}", asked, "yes" if claim.holds else "NO")
    return table
