"""Accepted tasks, policy and generation in SQLite: what is answered `admitted` is on disk first.

WAL with synchronous=FULL: a commit that returned survives kill -9 and a power cut (sqlite.org/pragma.html). The
generation is stored as a limit far ahead, reserved before the first plan, so that a plan that changes nothing writes
nothing and a disk that refuses later does no harm; a restart begins beyond the limit. A file that is damaged is set
aside, what can be read of it goes into a new one, and `notice` says what was lost (docs/decisions/0018).
"""

from __future__ import annotations

import sqlite3
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import structlog

from cosched.core.channel import ChannelRow
from cosched.core.snapshot import Snapshot, TaskRow
from cosched.daemon.statefile import TABLES, VERSION, Found, StateGuard, checksum
from cosched.daemon.upkeep import Corrupt, Note, StoreFailed, failed, inspected, locked, set_aside
from cosched.errors import BadInput
from cosched.profiles.calibration import CalibrationRow
from telemetry.messages import TaskOffer, VideoClip

AHEAD: Final = (
    100_000_000  # generations reserved at once: 11 days at a plan every 10 ms, and 2^53 hold 90 million lives
)
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
NS: Final = 1e-9
MOST_AGE_S: Final = 1e8  # of a task: three years are as good as for ever

__all__ = ["Kept", "Store", "StoreFailed", "Stored"]

log = structlog.get_logger()


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """One accepted task, with the channel estimate that it was admitted with."""

    row: TaskRow
    channel: ChannelRow


@dataclass(frozen=True, slots=True)
class Stored:
    """What a restart begins with. Instants are of the present boot's clock."""

    tasks: tuple[Kept, ...]  # in order of acceptance
    generation: int
    policy: str  # "" = as configured
    calibration: tuple[CalibrationRow, ...]

    def snapshot(self, now_ns: int) -> Snapshot:
        """State for a core at `now_ns`: the tasks, and of the channel what they were admitted with."""
        return Snapshot(
            at_s=now_ns * NS,
            generation=self.generation,
            channel=tuple({k.channel.ue: k.channel for k in self.tasks}.values()),
            cell_of_ue={k.row.offer.ue: k.row.cell for k in self.tasks},
            tasks=tuple(k.row for k in self.tasks),
            calibration=self.calibration,
        )


class Store:
    """The state file. One daemon at a time: the second is refused.

    clock: monotonic ns; wall: ns since 1970; boot: names the boot that `clock` counts from, "" where nobody can.
    notice: one line that says what was found damaged at the start, "" where nothing was.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], int] = time.monotonic_ns,
        wall: Callable[[], int] = time.time_ns,
        boot: Callable[[], str] | None = None,
    ) -> None:
        self._path, self._clock, self._wall = path, clock, wall
        self._boot = boot or _boot_id
        self._lock = locked(path)
        try:
            self._note = Note(path)
            found, self.notice, is_new = inspected(path, self._note, _is_task, wall())
            self.limit = self._used = max(found.generation or 0, self._note.guard.generation)
            self._is_loaded = False
            is_new = is_new or found.version != VERSION or found.guard is None
            try:
                self._take_up(found, is_new=is_new)
            except Corrupt as error:  # what looked whole is not when it is written to
                self.notice = set_aside(path, wall(), str(error))
                self._take_up(found, is_new=True)
        except BaseException:
            self._lock.close()
            raise

    def _take_up(self, found: Found, *, is_new: bool) -> None:
        """Open the file and write to it; a new one, one of an older version, and one that was damaged, in full."""
        self._db = _connected(self._path)
        guard = found.guard or StateGuard()
        try:
            if is_new:
                self._guard = StateGuard(seq=max(guard.seq, self._note.guard.seq))
                self._sums, self._meta = {}, {}
                meta = {**found.meta, "version": str(VERSION), "generation": str(self.limit)}
                self._write(meta=meta, puts=found.tasks, is_first=True)
            else:
                self._guard, self._meta = guard, dict(found.meta)
                self._sums = {task: checksum(task, kept) for task, kept in found.tasks.items()}
                self._write(meta={})
        except StoreFailed:
            self._db.close()
            raise

    def load(self, now_ns: int) -> Stored:
        """Return what is stored, reserve generations, and note that this boot goes on from here.

        Raises StoreFailed: without a reservation generations could go back, and nobody would obey.
        """
        try:
            rows = self._db.execute("SELECT kept FROM tasks ORDER BY n").fetchall()
            tasks = tuple(msgspec.json.decode(kept, type=Kept) for (kept,) in rows)
            factors = msgspec.json.decode(self._meta.get("calibration") or "[]", type=tuple[CalibrationRow, ...])
        except (sqlite3.Error, msgspec.DecodeError) as error:
            raise StoreFailed(f"state: {error}") from None
        shift_ns = self._shift_ns(now_ns)
        moved = tuple(_aged(kept, shift_ns, now_ns) for kept in tasks)
        changed = [new for old, new in zip(tasks, moved, strict=True) if new != old]
        generation = max(self._used, self.limit)
        puts = {kept.row.offer.task: msgspec.json.encode(kept) for kept in changed}
        self._is_loaded = True
        self._write(meta={"boot": self._boot(), "generation": str(generation + AHEAD)}, puts=puts)
        with suppress(sqlite3.Error):  # so that a log that is lost does not take the reservation with it
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)")
        self._used = generation
        return Stored(moved, generation, self._meta.get("policy", ""), factors)

    def _shift_ns(self, now_ns: int) -> int:
        """What is to be added to stored instants: monotonic clocks of two boots have only the wall clock in common.

        A wall clock that went back says nothing of the time that passed: then it counts as none.
        """
        if self._meta.get("boot", "") in {"", self._boot()}:
            return 0
        seen_ns, unix_ns = _pair(self._meta.get("seen", ""))
        if not unix_ns:  # a file of version 1
            less = self._meta.get("monotonic_less_unix_ns", "0")
            return now_ns - self._wall() - (int(less) if less.lstrip("-").isdecimal() else 0)
        return now_ns - max(0, self._wall() - unix_ns) - seen_ns

    def commit(self, put: Iterable[Kept], drop: Iterable[str], generation: int) -> None:
        """Store tasks that are new or changed, forget others, cover the generation: all of it or, on error, nothing.

        Raises StoreFailed.
        """
        puts = {k.row.offer.task: msgspec.json.encode(k) for k in put}
        drops = list(dict.fromkeys(task for task in drop if task in self._sums and task not in puts))
        self._used = max(self._used, generation)
        is_short = generation > self.limit - AHEAD // 2
        if puts or drops or is_short:
            self._write(meta={"generation": str(generation + AHEAD)} if is_short else {}, puts=puts, drops=drops)

    def set_policy(self, name: str) -> None:
        """Remember the policy that an operator chose. Raises StoreFailed."""
        self._write(meta={"policy": name})

    def set_calibration(self, rows: Sequence[CalibrationRow]) -> None:
        """Remember what measured times have taught. Raises StoreFailed."""
        self._write(meta={"calibration": msgspec.json.encode(rows).decode()})

    def recall(self, name: str) -> str:
        """Return what is remembered under a name, "" when nothing is."""
        return self._meta.get(f"own/{name}", "")

    def remember(self, name: str, value: str) -> None:
        """Remember something across restarts. Raises StoreFailed."""
        self._write(meta={f"own/{name}": value})

    def close(self) -> None:
        """Give back the generations that nobody had, fold the log into the file and close."""
        try:
            with closing(self._db):
                if self._used < self.limit:
                    self._write(meta={"generation": str(self._used)})
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except (sqlite3.Error, StoreFailed) as error:  # the log is read at the next start
            log.warning("state not folded together", why=str(error))
        finally:
            self._note.close()
            self._lock.close()

    def _write(
        self,
        *,
        meta: Mapping[str, str],
        puts: Mapping[str, bytes] | None = None,
        drops: Sequence[str] = (),
        is_first: bool = False,
    ) -> None:
        """Do one transaction, the guard's row in it. Raises StoreFailed: then nothing has changed."""
        puts = puts or {}
        if self._is_loaded:  # before, stored instants are of the clock that was seen last
            meta = {**meta, "seen": f"{self._clock()} {self._wall()}"}
        new = {task: checksum(task, kept) for task, kept in puts.items()}
        removed = [self._sums[t] for t in (*drops, *puts) if t in self._sums]
        removed += [checksum(k, self._meta[k].encode()) for k in meta if k in self._meta]
        added = [*new.values(), *(checksum(k, v.encode()) for k, v in meta.items())]
        n_tasks = len(self._sums) - len(drops) + sum(task not in self._sums for task in new)
        limit = int(meta.get("generation", self.limit))
        guard = self._guard.after(removed, added, n_tasks, len(self._meta.keys() | meta.keys()), limit)
        with _Transaction(self._db):
            if is_first:
                _make_tables(self._db)
            self._db.executemany("DELETE FROM tasks WHERE task = ?", [(task,) for task in drops])
            _put(self._db, "tasks", "task", "kept", [(t, kept, new[t]) for t, kept in puts.items()])
            _put(self._db, "meta", "key", "value", [(k, v, checksum(k, v.encode())) for k, v in meta.items()])
            data = msgspec.msgpack.encode(guard)
            _put(self._db, "guard", "id", "value", [(1, data, zlib.crc32(data))])
        self._guard, self.limit = guard, limit
        self._meta.update(meta)
        self._sums.update(new)
        for task in drops:
            del self._sums[task]
        self._note.write(guard)


def _make_tables(db: sqlite3.Connection) -> None:
    for table in ("meta", "tasks", "guard"):
        db.execute(f"DROP TABLE IF EXISTS {table}")
    for text in TABLES:
        db.execute(f"CREATE TABLE {text}")


def _put(db: sqlite3.Connection, table: str, key: str, value: str, rows: Sequence[tuple[object, ...]]) -> None:
    db.executemany(
        f"INSERT INTO {table} ({key}, {value}, crc) VALUES (?, ?, ?) ON CONFLICT ({key})"  # noqa: S608  # names of ours
        f" DO UPDATE SET {value} = excluded.{value}, crc = excluded.crc",
        rows,
    )


def _connected(path: Path) -> sqlite3.Connection:
    """Open the file. Raises BadInput when somebody else has it, StoreFailed when the disk refuses."""
    try:
        db = sqlite3.connect(path, isolation_level=None, timeout=0.0)
    except sqlite3.Error as error:
        raise failed(error) from None
    try:
        db.execute("PRAGMA locking_mode=EXCLUSIVE")
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        with suppress(sqlite3.OperationalError):  # what follows is written over the log of before: a full disk has room
            db.execute("PRAGMA wal_checkpoint(RESTART)")
        db.execute("BEGIN IMMEDIATE")
        db.execute("COMMIT")
    except sqlite3.Error as error:
        db.close()
        if "locked" in str(error):
            raise BadInput(f"{path}: another daemon uses it; give this one a state.dir of its own") from None
        raise failed(error) from None
    return db


def _is_task(kept: bytes) -> bool:
    try:
        msgspec.json.decode(kept, type=Kept)
    except msgspec.DecodeError:
        return False
    return True


def _pair(text: str) -> tuple[int, int]:
    parts = text.split(" ")
    return (int(parts[0]), int(parts[1])) if len(parts) == 2 and all(p.isdecimal() for p in parts) else (0, 0)


def _aged(kept: Kept, shift_ns: int, now_ns: int) -> Kept:
    """Return the task at the age that it has by now: none is from the future, none is older than it can get."""
    offer = kept.row.offer
    at_ns = min(now_ns, max(offer.at_ns + shift_ns, now_ns - round(min(_life_s(offer), MOST_AGE_S) / NS)))
    at_s = min(now_ns * NS, kept.channel.at_s + shift_ns * NS)
    if at_ns == offer.at_ns and at_s == kept.channel.at_s:
        return kept
    row = msgspec.structs.replace(kept.row, offer=msgspec.structs.replace(offer, at_ns=at_ns))
    return Kept(row=row, channel=kept.channel._replace(at_s=at_s))


def _life_s(offer: TaskOffer) -> float:
    """How long a task may last by its own deadlines."""
    work = offer.work
    if isinstance(work, VideoClip):
        return work.frames / work.fps + work.deadline_s
    return work.ttft_s + work.max_output_tokens * work.tpot_s


class _Transaction:
    """All or nothing. Raises StoreFailed in place of what SQLite raises."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            raise failed(error) from None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        try:
            if kind is None:
                self._db.execute("COMMIT")
                return
            self._db.execute("ROLLBACK")
        except sqlite3.Error as refused:
            if self._db.in_transaction:
                with suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
            raise failed(refused) from None
        if isinstance(error, sqlite3.Error):
            raise failed(error) from None


def _boot_id() -> str:
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:  # not Linux: every start counts as the same boot
        return ""
