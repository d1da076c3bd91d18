"""What happens around the state file: its lock, the note beside it, and what is done with a file that is damaged."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import struct
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

import msgspec
import structlog

from cosched.daemon.statefile import VERSION, Found, JudgedFile, StateGuard, judge
from cosched.errors import BadInput, CoschedError

KEPT_ASIDE: Final = 5  # damaged files that are kept; older ones go
NOTE: Final = struct.Struct(">I5Q")  # a checksum, and the guard

log = structlog.get_logger()


class StoreFailed(CoschedError):
    """The disk refuses: nothing of the transaction is stored."""


class Corrupt(StoreFailed):
    """The file is not what it looked like."""


def failed(error: sqlite3.Error) -> StoreFailed:
    """Return what a transaction raises in place of what SQLite raises."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    kind = Corrupt if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR} else StoreFailed
    return kind(f"state: {error}")


def locked(path: Path) -> IO[bytes]:
    """Take the state for this process, until the returned file is closed. Raises BadInput, StoreFailed."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(path.name + ".lock").open("ab")
    except OSError as error:
        raise StoreFailed(f"{path}: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        if isinstance(error, BlockingIOError):
            raise BadInput(f"{path}: another daemon uses it; give this one a state.dir of its own") from None
        raise StoreFailed(f"{path}: {error.strerror}") from None
    return lock


class Note:
    """The latest guard in a file of its own, written after each commit and never waited for.

    It outlives a kill -9, so that a start sees what it misses when the database, or its log, is gone or cut off.
    After a power cut it may be older than the database, or nothing: then it says nothing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.with_name(path.name + ".note")
        self.guard = StateGuard()
        self._file = -1
        try:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
            data = os.pread(self._file, NOTE.size, 0)
            if len(data) == NOTE.size and zlib.crc32(data[4:]) == int.from_bytes(data[:4], "big"):
                self.guard = StateGuard(*NOTE.unpack(data)[1:])
        except OSError as error:
            log.warning("no note of the state", why=str(error))

    def write(self, guard: StateGuard) -> None:
        """Take down what was committed."""
        self.guard = guard
        data = NOTE.pack(0, *msgspec.structs.astuple(guard))
        if self._file >= 0:
            with suppress(OSError):  # a full disk: the state itself is what says so
                os.pwrite(self._file, zlib.crc32(data[4:]).to_bytes(4, "big") + data[4:], 0)

    def close(self) -> None:
        """Close it."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def inspected(path: Path, note: Note, is_task: Callable[[bytes], bool], unix_ns: int) -> tuple[Found, str, bool]:
    """Look at a state file before it is used: (what it holds, what was lost in one line, whether it begins anew).

    Raises BadInput for one of a later version, StoreFailed when it cannot be read, or not set aside.
    """
    try:
        judged = judge(path, is_task)
        if judged.found.version > VERSION:
            raise BadInput(f"{path}: state of version {judged.found.version}; this program reads {VERSION}")
        notice = _missing(path, judged, note.guard)
        if not judged.is_whole:
            aside = _moved(path, unix_ns)
            notice = _told(judged, note.guard, aside)
        path.with_name(path.name + "-shm").unlink(missing_ok=True)  # the lock is ours: nobody shares memory
    except OSError as error:
        raise StoreFailed(f"{path}: {error.strerror}") from None
    found = judged.found
    if notice:
        log.error("state damaged", what=notice)
        if found.generation is None and not note.guard.generation:
            found.meta["generation"] = str(unix_ns // 1_000_000)  # beyond any number that steps lead to
    return found, notice, not judged.is_whole or not (found.meta or found.tasks)


def _told(judged: JudgedFile, note: StateGuard, aside: Path) -> str:
    found = judged.found
    before = max(found.guard.tasks if found.guard is not None else 0, note.tasks)
    lost = max(before - len(found.tasks), found.bad_rows)
    parts = [f"{len(found.tasks)} tasks are back"]
    if lost:
        parts.append(f"{lost} are lost")
    elif found.guard is None and not note.seq:
        parts.append("how many are lost is not known")
    if judged.broken:
        parts.append(f"{judged.broken} pages of the log, with {judged.commits} writes, were not as written")
    parts += found.wrong[:1]
    if behind := note.seq - (found.guard.seq if found.guard is not None else 0):
        parts.append(f"the last {behind} writes are missing" if behind > 0 else "")
    return f"the state file was damaged: {'; '.join(p for p in parts if p)}; what there was lies in {aside}"


def _missing(path: Path, judged: JudgedFile, note: StateGuard) -> str:
    """What a file that is whole lacks all the same: the end of its log, or everything."""
    guard = judged.found.guard or StateGuard()
    if note.seq <= guard.seq or judged.found.version == 1:
        return ""
    lost = note.tasks - len(judged.found.tasks)
    tasks = f"{lost} tasks of {note.tasks} are lost" if lost > 0 else "tasks may be lost, and ended ones back"
    return f"{path} lacks the last {note.seq - guard.seq} writes: {tasks}"


def set_aside(path: Path, unix_ns: int, why: str) -> str:
    """Move a file out of the way of which all could be read; return what is to be said. Raises StoreFailed."""
    try:
        notice = f"the state file was damaged: {why}; all that it held is back; it lies in {_moved(path, unix_ns)}"
    except OSError as error:
        raise StoreFailed(f"{path}: {error.strerror}") from None
    log.error("state damaged", what=notice)
    return notice


def _moved(path: Path, unix_ns: int) -> Path:
    """Move a damaged file and its log out of the way, under a name with the time."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(unix_ns // 1_000_000_000))
    stem = f"{path.name}.damaged-{stamp}-"
    earlier = [p.name.removeprefix(stem).removesuffix("-wal") for p in path.parent.glob(f"{stem}*")]
    n = 1 + max((int(text) for text in earlier if text.isdecimal()), default=-1)
    aside = path.with_name(f"{stem}{n:06d}")
    for suffix in ("-wal", ""):  # the log first: a database without its own would take up what is not its
        source = path.with_name(path.name + suffix)
        if source.exists():
            source.replace(aside.with_name(aside.name + suffix))
    aside.touch()
    everything = sorted(p for p in path.parent.glob(f"{path.name}.damaged-*") if not p.name.endswith("-wal"))
    for old in everything[:-KEPT_ASIDE]:
        old.unlink(missing_ok=True)
        old.with_name(old.name + "-wal").unlink(missing_ok=True)
    return aside
