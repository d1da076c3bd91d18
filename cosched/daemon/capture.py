"""Records what a core is told and what it decides, in rotating MCAP files (journal.py says what is in them).

Recording never stops scheduling: when the disk refuses, it ends with an alarm and is tried again with the next file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import msgspec
import structlog

from cosched.config.settings import CaptureSettings
from cosched.daemon.journal import Config
from telemetry.trace import Recorder

CHUNK_BYTES: Final = 64 * 1024  # what a crash can lose
RETRY_NS: Final = 60_000_000_000  # after a full disk
SUFFIX: Final = ".mcap"

log = structlog.get_logger()


@dataclass(slots=True)
class _CaptureFile:
    path: Path
    stream: IO[bytes]
    recorder: Recorder
    begun_ns: int


@dataclass(slots=True)
class Capture:
    """Writes one file after another; `begin` may only be called while the core is quiet."""

    settings: CaptureSettings
    folder: Path
    alarm: str = ""
    _file: _CaptureFile | None = None
    _tried_ns: int = 0

    @property
    def path(self) -> str:
        """File being written, "" when there is none."""
        return str(self._file.path) if self._file is not None else ""

    @property
    def n_bytes(self) -> int:
        """Bytes in it so far."""
        return self._file.stream.tell() if self._file is not None else 0

    def is_due(self, now_ns: int) -> bool:
        """Whether a new file should begin as soon as the core is quiet."""
        if not self.settings.enabled:
            return False
        if self._file is None:
            return not self._tried_ns or now_ns - self._tried_ns > RETRY_NS
        age_s = (now_ns - self._file.begun_ns) * 1e-9
        return self.n_bytes >= self.settings.max_bytes or age_s >= self.settings.max_age_s

    def begin(self, now_ns: int, head: Callable[[], Config]) -> None:
        """Close the file and begin the next with `head`."""
        self.close(now_ns)
        self._tried_ns = now_ns
        if not self.settings.enabled:
            return
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self._new_path(stamp)
            stream = path.open("xb")
            recorder = Recorder(stream, chunk_bytes=CHUNK_BYTES, checksums=True)
        except OSError as error:
            self._fail(error)
            return
        self._file = _CaptureFile(path, stream, recorder, now_ns)
        self.alarm = ""
        self.add("config", head(), now_ns)
        self.flush()
        self._thin_out()

    def _new_path(self, stamp: str) -> Path:
        """Names sort by time; several files of one second are numbered."""
        for n in range(10_000):
            path = self.folder / f"{stamp}-{n:04d}{SUFFIX}"
            if not path.exists():
                return path
        raise FileExistsError(17, "ten thousand captures in one second", str(self.folder))

    def add(self, topic: str, record: msgspec.Struct, at_ns: int, source_ns: int | None = None) -> None:
        """Record what happened at `at_ns`; `source_ns`: the sender's stamp, where there is one."""
        if self._file is None:
            return
        try:
            self._file.recorder.record(topic, record, at_ns=at_ns, source_ns=at_ns if source_ns is None else source_ns)
        except OSError as error:
            self._fail(error)

    def flush(self) -> None:
        """Hand the chunks that are whole to the system, where a kill -9 does not reach them."""
        if self._file is None:
            return
        try:
            self._file.stream.flush()
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        """Recording stops; what is on disk can be read up to its last whole chunk."""
        self.alarm = f"capture: {error.strerror}"
        log.error("capture stopped", why=str(error))
        file, self._file = self._file, None
        if file is not None:
            try:
                file.stream.close()
            except OSError as again:  # its buffer has no place either
                log.debug("capture not flushed", why=str(again))

    def close(self, now_ns: int) -> None:
        """End the file."""
        if self._file is None:
            return
        self._tried_ns = now_ns
        try:
            self._file.recorder.finish()
            self._file.stream.close()
        except OSError as error:
            self._fail(error)
        self._file = None

    def _thin_out(self) -> None:
        """Remove the oldest files beyond `keep`."""
        for path in captures(self.folder)[: -self.settings.keep or None]:
            if path != (self._file.path if self._file else None):
                path.unlink(missing_ok=True)


def captures(folder: Path) -> Sequence[Path]:
    """Files of a capture folder, oldest first."""
    return sorted(folder.glob(f"*{SUFFIX}"))
