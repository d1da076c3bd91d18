"""The dispatcher's process: Ray may block, log and end a process of its own accord, but not the daemon's.

Started by link.py as `python -m cosched.drivers.dispatch.process`; messages travel behind their length. It ends when
its stdin does, that is, with the daemon, however that ends, and a local cluster ends with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from cosched.drivers.dispatch.messages import Begin, Failed, News, Told, Update
from cosched.errors import CoschedError

if TYPE_CHECKING:
    from cosched.drivers.dispatch.cluster import Local
    from cosched.drivers.dispatch.dispatcher import Dispatcher

LENGTH_BYTES: Final = 4
MAX_BYTES: Final = 1 << 28
NOTE_S: Final = 2.0  # between two notes of which processes a local cluster has
FAREWELL_S: Final = 1.0  # to give up command of a cluster

_told = msgspec.msgpack.Decoder(Told)


def main() -> None:
    """Work for the daemon at the other end of stdin until it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches the whole group: the daemon decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever a library prints goes to the log, not between two messages

    def tell(news: News) -> None:
        data = msgspec.msgpack.encode(news)
        with contextlib.suppress(BrokenPipeError):  # the daemon is gone: stdin says so too
            out.write(len(data).to_bytes(LENGTH_BYTES, "little") + data)

    length = int.from_bytes(sys.stdin.buffer.raw.read(LENGTH_BYTES) or b"", "little")  # type: ignore[attr-defined]  # raw
    begin = _told.decode(sys.stdin.buffer.raw.read(length)) if length else None  # type: ignore[attr-defined]  # same
    if not isinstance(begin, Begin):
        return
    set_environment(begin)
    work(begin, tell)
