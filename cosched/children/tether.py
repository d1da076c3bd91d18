"""Becomes a program that is told to end when whoever started it does, even by SIGKILL (prctl(2), PR_SET_PDEATHSIG).

`python -m cosched.children.tether PARENT PROGRAM ARGUMENT...`, with PARENT the process id of the thread that starts it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Final

PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h


def main() -> None:
    """Have SIGTERM sent when the parent ends, which outlasts execve(2), and become the program."""
    parent, *command = sys.argv[1:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM.value)
    if os.getppid() == int(parent):  # else it ended before
        os.execv(command[0], command)  # noqa: S606  # what its caller says


if __name__ == "__main__":
    main()
