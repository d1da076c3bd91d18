"""Mooncake request traces (Apache-2.0): JSON lines of timestamp (ms from the start), input_length, output_length.

Pitfalls: many requests share one timestamp (they are kept: a burst is a burst); prompts are very long (median 7.9 k,
up to 123 k tokens); `hash_ids` (512-token blocks of the prefix cache) are not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from telemetry.errors import BadFile
from telemetry.importers.base import (
    LATEST_UNIX_S,
    MAX_TOKENS,
    MS_NS,
    ImportTally,
    RequestRecording,
    read_lines,
    request_recording,
)

SOURCE: Final = "mooncake"


class _Line(msgspec.Struct):
    timestamp: float
    input_length: int
    output_length: int


def read(paths: Sequence[Path]) -> RequestRecording:
    """Read one or more .jsonl[.gz] files as one recording. Raises BadFile."""
    tally = ImportTally()
    rows = [row for path in paths for row in _rows(path, tally)]
    return request_recording(SOURCE, rows, tally)


def _rows(path: Path, tally: ImportTally) -> list[tuple[int, int, int]]:
    if path.is_dir():
        raise BadFile(f"{path}: a folder; name its .jsonl files")
    decoder = msgspec.json.Decoder(_Line)
    rows = []
    for text in read_lines(path, tally):
        if not text.strip():
            continue
        tally.rows += 1
        try:
            line = decoder.decode(text)
        except msgspec.DecodeError:
            tally.dropped["not a line of timestamp, input_length, output_length"] += 1
            continue
        if reason := _unusable(line):
            tally.dropped[reason] += 1
        else:
            rows.append((round(line.timestamp * MS_NS), line.input_length, line.output_length))
    return rows


def _unusable(line: _Line) -> str:
    if not 0 <= line.timestamp < LATEST_UNIX_S * 1e3:
        return "time is negative or after 2100"
    if not 1 <= min(line.input_length, line.output_length) <= max(line.input_length, line.output_length) <= MAX_TOKENS:
        return "no token to read or to write, or impossibly many"
    return ""
