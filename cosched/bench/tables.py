"""Rows of a suite as tables for the terminal: one per group of cases, cases across, subjects down."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from cosched.bench.model import BenchRow, Claim


def tables(suite: str, rows: Sequence[BenchRow]) -> list[Table]:
    """One table per figure and case without its last word (`1+1 offered=8` is a column of `1+1`)."""
    groups: dict[tuple[str, str], list[BenchRow]] = {}
    for row in rows:
        groups.setdefault((_group(row.case), row.figure), []).append(row)
    return [_table(f"{suite} {group}: {figure}", some) for (group, figure), some in groups.items()]


def _group(case: str) -> str:
    return case.rsplit(" ", 1)[0] if "=" in case else case


def _table(title: str, rows: Sequence[BenchRow]) -> Table:
    """Means; of each column the greatest is marked, unless there is one subject only."""
    cases = list(dict.fromkeys(row.case for row in rows))
    subjects = list(dict.fromkeys(row.subject for row in rows))
    value = {(row.subject, row.case): row.value for row in rows}
    best = {case: max(row.value for row in rows if row.case == case) for case in cases}
    table = Table(title=title, title_justify="left")
    table.add_column("subject")
    for case in cases:
        table.add_column(case.rsplit(" ", 1)[-1] if "=" in case else rows[0].figure, justify="right")
    for subject in subjects:
        cells = [_cell(value.get((subject, case)), best[case], len(cases) > 1) for case in cases]
        table.add_row(subject, *cells)
    return table


def _cell(value: float | None, best: float, marked: bool) -> str:
    if value is None:
        return ""
    return f"{value:.2f}{'*' if marked and value == best else ''}"


def claims_table(claims: Sequence[Claim]) -> Table:
    """What was asked, what was reached, and whether that holds."""
    table = Table(title="claims", title_justify="left")
    for heading in ("claim", "reached", "asked", "holds"):
        table.add_column(heading, justify="left" if heading == "claim" else "right")
    for claim in claims:
        table.add_row(claim.text, f"{claim.reached:.2f}", f"{claim.asked:.2f}", "yes" if claim.holds else "NO")
    return table
