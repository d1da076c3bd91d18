"""What importers share: the records they return, their tally, and reading tables in the shapes that files come in.

A file is CSV or JSON lines, plain or gzip, with or without a byte order mark, CRLF and a newline at its end. A gzip
that is cut off gives its good part and a warning.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import math
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from telemetry import quality
from telemetry.errors import BadFile
from telemetry.messages import UeReport

S_NS: Final = 1_000_000_000
MS_NS: Final = 1_000_000
LATEST_UNIX_S: Final = 4_102_444_800  # the year 2100: later is a broken clock, and 64 bits of ns end in 2262
MAX_TOKENS: Final = 100_000_000  # far above any context there is


class RecordedRequest(NamedTuple):
    """One recorded LLM request: when (seconds from the recording's first), prompt tokens, output tokens."""

    at_s: float
    context_tokens: int
    output_tokens: int


@dataclass(slots=True)
class ImportTally:
    """What an importer saw: rows read, valid and idle samples, rows dropped by reason, and remarks with their count."""

    rows: int = 0
    valid: int = 0
    idle: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    remarks: Counter[str] = field(default_factory=Counter)

    def warnings(self, source: str) -> list[str]:
        """One line per reason, in the order of the text, each with its count."""
        dropped = [f"{source}: {n} rows dropped: {reason}" for reason, n in sorted(self.dropped.items())]
        return dropped + [f"{source}: {remark} ({n})" for remark, n in sorted(self.remarks.items())]


@dataclass(frozen=True, slots=True)
class RanRecording:
    """Reports of a RAN source. `at_ns` counts from `start_unix_ns`, the first instant kept; sorted by (at_ns, ue)."""

    source: str
    reports: tuple[UeReport, ...]
    start_unix_ns: int
    tally: ImportTally


@dataclass(frozen=True, slots=True)
class RequestRecording:
    """Requests of a request source, sorted by time; the first is at 0 s."""

    source: str
    requests: tuple[RecordedRequest, ...]
    tally: ImportTally


class RanImporter(Protocol):
    """Reads files (or folders of them) of one RAN source."""

    def __call__(self, paths: Sequence[Path]) -> RanRecording:
        """Read `paths`. Raises BadFile: what, where, the mend."""
        ...


class RequestImporter(Protocol):
    """Reads files of one request source."""

    def __call__(self, paths: Sequence[Path]) -> RequestRecording:
        """Read `paths`. Raises BadFile: what, where, the mend."""
        ...


class Column:
    """Cells of one optional or required column of a table, by row; an absent column has only empty cells."""

    def __init__(self, index: int | None) -> None:
        self._index = index
        self.exists = index is not None

    def text(self, row: Sequence[str]) -> str:
        """Return the cell without blanks around it, "" where the row or the column has none."""
        if self._index is None or self._index >= len(row):
            return ""
        return row[self._index].strip()

    def number(self, row: Sequence[str]) -> float | None:
        """Return the cell as a finite number, None where it is empty, NaN, infinite or not a number."""
        try:
            value = float(self.text(row))
        except ValueError:
            return None
        return value if math.isfinite(value) else None


class SourceTable:
    """A CSV file with named columns. Names match without regard to case and blanks; the first of two equals counts."""

    def __init__(self, path: Path, header: Sequence[str], rows: list[list[str]]) -> None:
        self.path = path
        self.rows = rows
        self._names: dict[str, int] = {}
        for index, name in enumerate(header):
            self._names.setdefault(_plain(name), index)

    def column(self, *names: str) -> Column:
        """Return the first of `names` that the file has; without any, a column of empty cells."""
        return Column(next((self._names[_plain(n)] for n in names if _plain(n) in self._names), None))

    def require(self, *names: str) -> None:
        """Raise BadFile that lists which of `names` the header lacks."""
        missing = [n for n in names if _plain(n) not in self._names]
        if missing:
            raise BadFile(f"{self.path}: no column {', '.join(repr(n) for n in missing)}: is it another format?")


def read_table(path: Path, tally: ImportTally) -> SourceTable:
    """Read a CSV file whole. Raises BadFile when it is missing, empty or not text."""
    rows = csv.reader(read_lines(path, tally))
    try:
        header = next(rows, None)
        body = [row for row in rows if any(row)]
    except csv.Error as error:
        raise BadFile(f"{path}: not CSV: {error}") from None
    if header is None:
        raise BadFile(f"{path}: the file is empty")
    return SourceTable(path, header, body)


def read_lines(path: Path, tally: ImportTally) -> Iterator[str]:
    """Yield the lines of a plain or gzip text file. Raises BadFile when it is missing or not text."""
    data = _inflate(path, tally)
    if b"\0" in data:
        raise BadFile(f"{path}: binary data where text was expected")
    text = data.decode("utf-8-sig", errors="replace")
    return iter(io.StringIO(text, newline=None))


def csv_files(paths: Sequence[Path], tally: ImportTally, pattern: str = "") -> list[Path]:
    """Files as given; a folder stands for its .csv and .csv.gz files (at any depth).

    Where names in a folder contain `pattern`, only those are taken, and the others counted. Raises BadFile for a folder
    without such files, or no path at all.
    """
    if not paths:
        raise BadFile("no input file was given")
    return [file for path in paths for file in (_in_folder(path, tally, pattern) if path.is_dir() else [path])]


def _in_folder(folder: Path, tally: ImportTally, pattern: str) -> list[Path]:
    names = [p for p in sorted(folder.rglob("*.csv*")) if p.name.endswith((".csv", ".csv.gz"))]
    if not names:
        raise BadFile(f"{folder}: no .csv or .csv.gz file in this folder")
    found = [p for p in names if pattern in p.name] or names
    if len(found) < len(names):
        tally.remarks[f"other .csv files in the folder, without {pattern} in their name, left aside"] += len(
            names
        ) - len(found)
    return found


def _inflate(path: Path, tally: ImportTally) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadFile(f"{path}: {error.strerror}") from None
    if not data.startswith(b"\x1f\x8b"):
        return data
    good = io.BytesIO()
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            while block := stream.read(1 << 16):
                good.write(block)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        tally.remarks[f"{path.name}: gzip is cut off or damaged, its good part was read"] += 1
    return good.getvalue()


def _plain(name: str) -> str:
    return "".join(name.split()).lower()


def request_recording(source: str, rows: list[tuple[int, int, int]], tally: ImportTally) -> RequestRecording:
    """Make a recording of (at_ns, context tokens, output tokens) rows, its first request at 0 s.

    Rows out of order are sorted and counted. Raises BadFile when there is none.
    """
    if not rows:
        raise BadFile(f"{source}: no usable request in the files given ({sum(tally.dropped.values())} rows dropped)")
    if backwards := sum(b[0] < a[0] for a, b in itertools.pairwise(rows)):
        tally.remarks["steps back in time, rows sorted"] += backwards
    rows = sorted(rows, key=lambda row: row[0])
    tally.valid += len(rows)
    requests = tuple(RecordedRequest((at - rows[0][0]) / S_NS, context, output) for at, context, output in rows)
    return RequestRecording(source, requests, tally)


class RecordedSample(NamedTuple):
    """One row of a RAN source before it becomes a report. `at_ns`: Unix time; `fields`: of UeReport, with a value."""

    at_ns: int
    ue: str
    cell: str
    fields: dict[str, float]


def ran_recording(source: str, samples: Iterable[RecordedSample], tally: ImportTally) -> RanRecording:
    """Make a recording of samples that are in order of time within each UE; impossible values are blanked and counted.

    Time counts from the first sample. Raises BadFile when there is none.
    """
    kept = sorted(samples, key=lambda s: (s.at_ns, s.ue))
    if not kept:
        raise BadFile(f"{source}: no usable row in the files given ({sum(tally.dropped.values())} rows dropped)")
    seq: Counter[str] = Counter()
    reports = []
    for sample in kept:
        report = _report(f"{source}/{sample.ue}", seq[sample.ue], sample, kept[0].at_ns, tally)
        if report is not None:
            reports.append(report)
            seq[sample.ue] += 1
    return RanRecording(source, tuple(reports), kept[0].at_ns, tally)


def _report(source: str, seq: int, sample: RecordedSample, start_ns: int, tally: ImportTally) -> UeReport | None:
    at_ns, ue, cell, fields = sample
    found = quality.inspect(UeReport(at_ns=at_ns - start_ns, source=source, seq=seq, ue=ue, cell=cell, **fields))
    tally.remarks.update(f"values blanked: {reason}" for reason in found.reasons)
    if not isinstance(found.message, UeReport):
        return None
    has_sample = found.message.ul_efficiency_bps_hz is not None
    tally.valid += has_sample
    tally.idle += not has_sample
    return found.message
