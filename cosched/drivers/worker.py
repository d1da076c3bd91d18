"""The process that solves: reads Asks on stdin, writes Answers on stdout, each behind its length. Killed at will.

Started by cosched/drivers/pool.py as `python -m cosched.drivers.worker`. It ends when its stdin does, that is, with
the daemon, however that ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import BinaryIO, Final

from cosched.drivers.packing import pack, solve_packed

LENGTH_BYTES: Final = 4
READY: Final = b"ready"


def main() -> None:
    """Say that this process is there, and answer until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches the whole group: the daemon decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever a library prints goes to the log, not between two answers
    with contextlib.suppress(BrokenPipeError):  # the daemon is gone, and nobody waits for the answer
        _write(out, READY)
        while (data := _read(sys.stdin.buffer)) is not None:
            _write(out, pack(solve_packed(data)))  # a defect ends this process: the daemon goes on without it


def _read(stream: BinaryIO) -> bytes | None:
    """Next Ask; None when the daemon is gone, in the middle of one too."""
    head = stream.read(LENGTH_BYTES)
    length = int.from_bytes(head, "little")
    data = stream.read(length) if len(head) == LENGTH_BYTES else b""
    return data if data and len(data) == length else None


def _write(stream: BinaryIO, data: bytes) -> None:
    view = memoryview(len(data).to_bytes(LENGTH_BYTES, "little") + data)
    while view:
        view = view[stream.write(view) :]


if __name__ == "__main__":
    main()
