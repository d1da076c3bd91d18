"""Azure LLM inference traces (CC-BY-4.0): CSV of TIMESTAMP, ContextTokens, GeneratedTokens; one request a row.

Pitfalls: times have seven fractional digits (100 ns; strptime's %f takes six), no zone in the traces of 2023 and one
in those of 2024; the source files have CRLF and no newline at their end.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from telemetry.errors import BadFile
from telemetry.importers.base import (
    MAX_TOKENS,
    S_NS,
    Column,
    ImportTally,
    RequestRecording,
    csv_files,
    read_table,
    request_recording,
)

SOURCE: Final = "azure-llm"
_SECONDS_WIDTH: Final = len("2023-11-16 18:15:46")


def read(paths: Sequence[Path]) -> RequestRecording:
    """Read one or more trace files as one recording. Raises BadFile."""
    tally = ImportTally()
    rows = [row for path in csv_files(paths, tally) for row in _rows(path, tally)]
    return request_recording(SOURCE, rows, tally)


def _rows(path: Path, tally: ImportTally) -> list[tuple[int, int, int]]:
    table = read_table(path, tally)
    table.require("TIMESTAMP", "ContextTokens", "GeneratedTokens")
    time, context, output = (table.column(n) for n in ("TIMESTAMP", "ContextTokens", "GeneratedTokens"))
    tally.rows += len(table.rows)
    rows = []
    for cells in table.rows:
        try:
            row = (unix_ns(time.text(cells)), _tokens(context, cells), _tokens(output, cells))
        except BadFile as error:
            tally.dropped[str(error)] += 1
            continue
        rows.append(row)
    return rows


def _tokens(column: Column, cells: list[str]) -> int:
    value = column.number(cells)
    if value is None:
        raise BadFile("a token count is empty or not a number")
    if not 1 <= value <= MAX_TOKENS:
        raise BadFile("no token to read or to write, or impossibly many")
    return int(value)


def unix_ns(text: str) -> int:
    """Unix time in ns of `2023-11-16 18:15:46.6805900`, taken as UTC where no zone stands. Raises BadFile."""
    whole, rest = text[:_SECONDS_WIDTH], text[_SECONDS_WIDTH:]
    digits = rest.removeprefix(".")
    fraction = digits[: len(digits) - len(digits.lstrip("0123456789"))] if rest.startswith(".") else ""
    zone = rest[len(fraction) + 1 :] if fraction else rest
    try:
        at = datetime.fromisoformat(whole + zone)
    except ValueError:
        raise BadFile("time is not of the form 2023-11-16 18:15:46.6805900") from None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return int(at.timestamp()) * S_NS + int(fraction[:9].ljust(9, "0"))
