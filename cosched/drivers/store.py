"""Accepted tasks, policy and generation in SQLite: what is answered `admitted` is on disk first.

WAL with synchronous=FULL: a commit that returned survives kill -9 and a power cut (sqlite.org/pragma.html). The
generation is stored as a limit some way ahead, so that a plan that changes nothing writes nothing; a restart begins
beyond the limit.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from cosched.core.channel import ChannelRow
from cosched.core.snapshot import Snapshot, TaskRow
from cosched.errors import BadInput, CoschedError
from cosched.profiles.calibration import CalibrationRow

VERSION: Final = 1
AHEAD: Final = 10_000  # generations that one write covers: 17 minutes at a plan every 100 ms
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

TABLES: Final = (
    "meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "tasks (n INTEGER PRIMARY KEY AUTOINCREMENT, task TEXT UNIQUE NOT NULL, kept BLOB NOT NULL)",
)


class StoreFailed(CoschedError):
    """The disk refuses: nothing of the transaction is stored."""


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """One accepted task, with the channel estimate that it was admitted with."""

    row: TaskRow
    channel: ChannelRow


@dataclass(frozen=True, slots=True)
class Stored:
    """What a restart begins with."""

    tasks: tuple[Kept, ...]  # in order of acceptance
    generation: int
    policy: str  # "" = as configured
    calibration: tuple[CalibrationRow, ...]
    shift_ns: int  # to be added to stored instants: the machine may have booted since

    def snapshot(self, now_ns: int) -> Snapshot:
        """State for a core at `now_ns`: the tasks, and of the channel what they were admitted with."""
        shift_s = self.shift_ns * 1e-9
        rows = {k.channel.ue: k.channel._replace(at_s=k.channel.at_s + shift_s) for k in self.tasks}
        return Snapshot(
            at_s=now_ns * 1e-9,
            generation=self.generation,
            channel=tuple(rows.values()),
            cell_of_ue={k.row.offer.ue: k.row.cell for k in self.tasks},
            tasks=tuple(_shifted(k.row, self.shift_ns) for k in self.tasks),
            calibration=self.calibration,
        )


def _shifted(row: TaskRow, shift_ns: int) -> TaskRow:
    offer = msgspec.structs.replace(row.offer, at_ns=max(0, row.offer.at_ns + shift_ns))
    return msgspec.structs.replace(row, offer=offer)


class Store:
    """The state file. One daemon at a time: the second is refused."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._limit = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None, timeout=0.0)
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("BEGIN IMMEDIATE")
            for table in TABLES:
                self._db.execute(f"CREATE TABLE IF NOT EXISTS {table}")
            self._db.execute("COMMIT")
        except sqlite3.OperationalError as error:
            used = "another daemon uses it; give this one a state.dir of its own"
            reason = used if "locked" in str(error) else str(error)
            raise BadInput(f"{path}: {reason}") from None
        except (sqlite3.DatabaseError, OSError) as error:
            raise BadInput(f"{path}: {error}; move it away to begin without state") from None
        version = int(self._meta("version") or VERSION)
        if version != VERSION:
            raise BadInput(f"{path}: state of version {version}; this program reads {VERSION}")

    def load(self, now_ns: int) -> Stored:
        """Return what is stored, and note that this boot goes on from here. Raises BadInput, StoreFailed."""
        rows = self._db.execute("SELECT kept FROM tasks ORDER BY n").fetchall()
        try:
            tasks = tuple(msgspec.json.decode(kept, type=Kept) for (kept,) in rows)
            factors = msgspec.json.decode(self._meta("calibration") or "[]", type=tuple[CalibrationRow, ...])
        except msgspec.DecodeError as error:
            raise BadInput(f"{self._path}: {error}; move it away to begin without state") from None
        boot, unix_ns = _boot_id(), time.time_ns()
        shift = 0
        if tasks and self._meta("boot") not in {"", boot}:
            # monotonic clocks of two boots have nothing in common but the wall clock
            shift = int(self._meta("monotonic_less_unix_ns") or 0) * -1 + now_ns - unix_ns
        generation = self._limit = int(self._meta("generation") or 0)
        stored = Stored(tasks, generation, self._meta("policy"), factors, shift)
        with _Transaction(self._db):
            self._set("version", str(VERSION))
            self._set("boot", boot)
            self._set("monotonic_less_unix_ns", str(now_ns - unix_ns))
            for kept in tasks if shift else ():
                moved = Kept(row=_shifted(kept.row, shift), channel=kept.channel)
                self._db.execute(
                    "UPDATE tasks SET kept = ? WHERE task = ?", (msgspec.json.encode(moved), kept.row.offer.task)
                )
        return stored

    def commit(self, put: Iterable[Kept], drop: Iterable[str], generation: int) -> None:
        """Store tasks that are new or changed, forget others, cover the generation: all of it or, on error, nothing.

        Raises StoreFailed.
        """
        puts = [(k.row.offer.task, msgspec.json.encode(k)) for k in put]
        drops = [(task,) for task in drop]
        limit = self._limit if generation <= self._limit else generation + AHEAD
        if not puts and not drops and limit == self._limit:
            return
        with _Transaction(self._db):
            self._db.executemany("DELETE FROM tasks WHERE task = ?", drops)
            self._db.executemany(
                "INSERT INTO tasks (task, kept) VALUES (?, ?) ON CONFLICT (task) DO UPDATE SET kept = excluded.kept",
                puts,
            )
            if limit != self._limit:
                self._set("generation", str(limit))
        self._limit = limit

    def set_policy(self, name: str) -> None:
        """Remember the policy that an operator chose. Raises StoreFailed."""
        with _Transaction(self._db):
            self._set("policy", name)

    def set_calibration(self, rows: Sequence[CalibrationRow]) -> None:
        """Remember what measured times have taught. Raises StoreFailed."""
        with _Transaction(self._db):
            self._set("calibration", msgspec.json.encode(rows).decode())

    def recall(self, name: str) -> str:
        """Return what is remembered under a name, "" when nothing is."""
        return self._meta(f"own/{name}")

    def remember(self, name: str, value: str) -> None:
        """Remember something across restarts. Raises StoreFailed."""
        with _Transaction(self._db):
            self._set(f"own/{name}", value)

    def close(self) -> None:
        """Fold the log into the file and close."""
        with closing(self._db):
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _meta(self, key: str) -> str:
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return str(row[0]) if row else ""

    def _set(self, key: str, value: str) -> None:
        self._db.execute(
            "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", (key, value)
        )


class _Transaction:
    """All or nothing. Raises StoreFailed in place of what SQLite raises."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            raise StoreFailed(f"state: {error}") from None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        try:
            if kind is None:
                self._db.execute("COMMIT")
                return
            self._db.execute("ROLLBACK")
        except sqlite3.Error as failed:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise StoreFailed(f"state: {failed}") from None
        if isinstance(error, sqlite3.Error):
            raise StoreFailed(f"state: {error}") from None


def _boot_id() -> str:
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:  # not Linux: every start counts as the same boot
        return ""
