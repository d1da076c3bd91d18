"""The process that solves: reads Asks on stdin, writes Answers on stdout, each behind its length. Killed at will.

Started by cosched/children/pool.py as `python -m cosched.children.solve`. It ends when its stdin does, that is, with
the daemon, however that ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import Final

from cosched.children.framing import read_framed, write_framed
from cosched.children.packing import pack, solve_packed

READY: Final = b"ready"


def main() -> None:
    """Say that this process is there, and answer until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches the whole group: the daemon decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever a library prints goes to the log, not between two answers
    with contextlib.suppress(BrokenPipeError):  # the daemon is gone, and nobody waits for the answer
        write_framed(out, READY)
        while (data := read_framed(sys.stdin.buffer)) is not None:
            write_framed(out, pack(solve_packed(data)))  # a defect ends this process: the daemon goes on without it


if __name__ == "__main__":
    main()
