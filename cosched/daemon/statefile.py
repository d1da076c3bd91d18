"""The state file's form, and what can be read of one whatever its content: nothing here writes to it.

SQLite has no checksum of what is in the database itself, so each row carries one; one row more, the guard, says how
many rows there are and what they add up to, in the same transaction. So a row that is damaged, gone or back from the
dead is noticed. The file is judged as an image in memory (database and log put together as SQLite does), so that
looking at it changes nothing of it.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from cosched.daemon import wal

VERSION: Final = 2  # 1: without checksums and guard
MAX_BYTES: Final = 1 << 28  # of a database or its log: ten thousand tasks have 6 MB
MOST_PROBES: Final = 20_000  # rows that are looked for one by one between damaged pages
STEP: Final = 100_000  # of SQLite's instructions,
MOST_STEPS: Final = 2_000  # and so many of them: damage may lead in circles
PAGE_BYTES: Final = 4096  # SQLite's usual one, where the file does not say
MAGIC: Final = b"SQLite format 3\x00"

TABLES: Final = (
    "meta (key TEXT PRIMARY KEY, value TEXT NOT NULL, crc INTEGER NOT NULL)",
    "tasks (n INTEGER PRIMARY KEY AUTOINCREMENT, task TEXT UNIQUE NOT NULL, kept BLOB NOT NULL, crc INTEGER NOT NULL)",
    "guard (id INTEGER PRIMARY KEY, value BLOB NOT NULL, crc INTEGER NOT NULL)",
)


class StateGuard(msgspec.Struct, frozen=True, array_like=True):
    """What the other rows amount to after the latest transaction. generation: none beyond it was ever given away."""

    seq: int = 0  # transactions so far
    tasks: int = 0
    meta: int = 0
    total: int = 0  # checksums of all rows, exclusive-or
    generation: int = 0

    def after(self, removed: list[int], added: list[int], tasks: int, meta: int, generation: int) -> StateGuard:
        """Return the guard after one more transaction."""
        total = self.total
        for crc in (*removed, *added):
            total ^= crc
        return StateGuard(self.seq + 1, tasks, meta, total, generation)


def checksum(name: str, value: bytes) -> int:
    """Of one row."""
    return zlib.crc32(name.encode() + b"\0" + value)


@dataclass(slots=True)
class Found:
    """What a state file holds. `wrong`: what is damaged, one line each; empty for one that is whole."""

    version: int = VERSION
    meta: dict[str, str] = field(default_factory=dict)
    tasks: dict[str, bytes] = field(default_factory=dict)  # in order of acceptance
    guard: StateGuard | None = None
    bad_rows: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Checksums of all rows, exclusive-or."""
        sums = [checksum(k, v.encode()) for k, v in self.meta.items()]
        sums += [checksum(t, kept) for t, kept in self.tasks.items()]
        return StateGuard().after([], sums, 0, 0, 0).total

    @property
    def generation(self) -> int | None:
        """Limit of the generations, None where no copy of it is left."""
        text = self.meta.get("generation", "")
        known = [int(text)] if text.isdecimal() and len(text) < 19 else []
        return max([*known, *([self.guard.generation] if self.guard is not None else [])], default=None)


@dataclass(frozen=True, slots=True)
class JudgedFile:
    """A state file as it was found: the best that can be made of it. broken: frames of its log that do not check."""

    found: Found
    broken: int = 0
    commits: int = 0  # transactions among them

    @property
    def is_whole(self) -> bool:
        """Whether it can be used as it is."""
        return not self.broken and not self.found.wrong


def judge(path: Path, is_task: Callable[[bytes], bool]) -> JudgedFile:
    """Read a state file of any content. is_task: whether a row's bytes are a task. Raises OSError."""
    log_path = path.with_name(path.name + "-wal")
    sizes = [p.stat().st_size if p.exists() else 0 for p in (path, log_path)]
    if max(sizes) > MAX_BYTES:
        return JudgedFile(Found(wrong=[f"it has {max(sizes)} bytes, more than any state has"]))
    database = path.read_bytes() if sizes[0] else b""
    page_bytes = int.from_bytes(database[16:18], "big")
    page_bytes = 65_536 if page_bytes == 1 else page_bytes if page_bytes in wal.PAGE_SIZES else PAGE_BYTES
    log = wal.read(log_path.read_bytes() if sizes[1] else b"", page_bytes)
    plain = _read(wal.image(database, log.page_bytes, log.whole), is_task)
    if log.whole and not (database.startswith(MAGIC) and database[18:20] == b"\2\2" and page_bytes == log.page_bytes):
        plain.wrong.append("the database is not that of its log")
    if not log.broken:
        return JudgedFile(plain)
    commits = sum(frame.pages > 0 for frame in log.kept[len(log.whole) :])
    mended = _read(wal.image(database, log.page_bytes, log.kept), is_task)
    return JudgedFile(max((plain, mended), key=_worth), log.broken, commits)


def _worth(found: Found) -> tuple[bool, int, int]:
    """What is consistent goes before what is not, then what is later, then what holds more."""
    seq = found.guard.seq if found.guard is not None else -1
    return not found.wrong, seq, len(found.tasks)


def _read(data: bytes, is_task: Callable[[bytes], bool]) -> Found:
    if not data:
        return Found()
    found = Found()
    if not data.startswith(MAGIC):
        found.wrong.append("it is no SQLite database")
        return found
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        try:
            db.deserialize(data)
            db.execute("PRAGMA trusted_schema=OFF")
            steps = iter(range(MOST_STEPS))
            db.set_progress_handler(lambda: next(steps, None) is None, STEP)
            for table in ("meta", "tasks", "guard"):  # a damaged schema must not run anything
                if (text := _kind(db, table)) not in {"", "table"}:
                    found.wrong.append(f"'{table}' is a {text}")
                    return found
            _rows(db, found, is_task)
        except (sqlite3.Error, MemoryError, OverflowError, UnicodeDecodeError) as error:
            found.wrong.append(str(error))
    return found


def _kind(db: sqlite3.Connection, name: str) -> str:
    row = db.execute("SELECT type FROM sqlite_schema WHERE name = ?", (name,)).fetchone()
    return str(row[0]) if row else ""


def _rows(db: sqlite3.Connection, found: Found, is_task: Callable[[bytes], bool]) -> None:
    tables = [t for t in ("meta", "tasks", "guard") if _kind(db, t)]
    if not tables and not db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
        return  # a life that was killed before it wrote anything
    if missing := [t for t in ("meta", "tasks") if t not in tables]:
        found.wrong.append(f"its table '{missing[0]}' is gone")
    has_sums = any(row[1] == "crc" for t in tables[:1] for row in db.execute(f"PRAGMA table_info({t})"))
    crc = "crc" if has_sums else "-1"
    if "guard" in tables:
        found.guard = _guard(db, found)
    for _, key, value, row_sum in _each(db, "meta", "rowid", f"key, value, {crc}", found) if "meta" in tables else ():
        if _is_row(key, value, row_sum, str, found):
            found.meta[key] = value
    for _, task, kept, row_sum in _each(db, "tasks", "n", f"task, kept, {crc}", found) if "tasks" in tables else ():
        if _is_row(task, kept, row_sum, bytes, found) and is_task(kept):
            found.tasks[task] = kept
        elif isinstance(task, str) and isinstance(kept, bytes) and row_sum in {-1, checksum(task, kept)}:
            found.bad_rows += 1
    found.version = int(found.meta.get("version") or 0) if found.meta.get("version", "0").isdecimal() else 0
    _add_up(found, is_first=not has_sums)
    _check_structure(db, found)


def _guard(db: sqlite3.Connection, found: Found) -> StateGuard | None:
    try:
        row = db.execute("SELECT value, crc FROM guard WHERE id = 1").fetchone()
        if row is not None and isinstance(row[0], bytes) and zlib.crc32(row[0]) == row[1]:
            return msgspec.msgpack.decode(row[0], type=StateGuard)
    except (sqlite3.Error, msgspec.DecodeError) as error:
        found.wrong.append(str(error))
    return None


def _is_row(name: object, value: object, row_sum: object, kind: type, found: Found) -> bool:
    """Whether a row is as it was written; counted where it is not."""
    if isinstance(name, str) and isinstance(value, kind):
        data = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
        if row_sum == -1 or row_sum == checksum(name, data):
            return True
    found.bad_rows += 1
    return False


def _each(db: sqlite3.Connection, table: str, key: str, columns: str, found: Found) -> Iterator[tuple[Any, ...]]:
    """Rows of a table in order: from its beginning, from its end, and one by one where pages between are damaged."""
    rows: dict[int, tuple[Any, ...]] = {}
    ends: list[int] = []
    for order in ("ASC", "DESC"):
        last = None
        try:
            for row in db.execute(f"SELECT {key}, {columns} FROM {table} ORDER BY {key} {order}"):  # noqa: S608  # names of ours
                last = row[0]
                rows[last] = row
            break
        except (sqlite3.Error, UnicodeDecodeError, MemoryError) as error:
            found.wrong.append(str(error))
            ends.append(last if isinstance(last, int) else 0)
    if len(ends) == 2 and ends[1] > ends[0]:
        for n in range(ends[0] + 1, min(ends[1], ends[0] + MOST_PROBES)):
            try:
                row = db.execute(f"SELECT {key}, {columns} FROM {table} WHERE {key} = ?", (n,)).fetchone()  # noqa: S608
            except (sqlite3.Error, UnicodeDecodeError, MemoryError):
                continue
            if row is not None:
                rows[n] = row
    return iter([rows[n] for n in sorted(rows)])


def _add_up(found: Found, *, is_first: bool) -> None:
    """Hold the rows against the guard."""
    if found.bad_rows:
        found.wrong.append(f"{found.bad_rows} rows are damaged")
    if found.guard is None:
        if not (is_first or found.version == 1 or not (found.meta or found.tasks)):
            found.wrong.append("what its rows add up to is gone")
    elif (found.guard.tasks, found.guard.meta) != (len(found.tasks), len(found.meta)):
        found.wrong.append(f"{len(found.tasks)} tasks are there of {found.guard.tasks}")
    elif found.guard.total != found.total:
        found.wrong.append("its rows do not add up")


def _check_structure(db: sqlite3.Connection, found: Found) -> None:
    try:
        for (text,) in db.execute("PRAGMA integrity_check(1)"):
            if text != "ok":
                found.wrong.append(" ".join(str(text).split()))
    except sqlite3.Error as error:
        found.wrong.append(str(error))
