"""A disk that refuses, tears or fills: the kernel's own limit of a file's size, in force while the daemon works.

A write at or past the limit fails, one across it is cut short: what SQLite and MCAP then see is real.
"""

from __future__ import annotations

import contextlib
import resource
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Disk:
    """`room`: bytes by which the longest log may still grow; None: as many as it likes; -1: nothing is written."""

    folder: Path
    room: int | None = None

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @contextlib.contextmanager
    def in_force(self) -> Iterator[None]:
        if self.room is None:
            yield
            return
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self._limit(), hard))
        try:
            yield
        finally:
            room = self.room
            self.lift()
            self.room = room

    def lift(self) -> None:
        """Let everything be written again, at once."""
        self.room = None
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

    def _limit(self) -> int:
        if self.room is None or self.room < 0:
            return 0
        logs = [p.stat().st_size for p in self.state.glob("*-wal")]
        return max(logs, default=0) + self.room

    def kill(self, torn: bytes = b"") -> None:
        """Have the files as a kill -9 leaves them, for whoever comes next; torn: half a write at the end of the log."""
        image = self.folder / "image"
        shutil.copytree(self.state, image)
        if torn:
            for log in image.glob("*-wal"):
                with log.open("ab") as stream:
                    stream.write(torn)
        self._image = image

    def after(self) -> None:
        """The dead daemon's handles are closed: put its files back to what they were."""
        shutil.rmtree(self.state)
        self._image.rename(self.state)
