"""The dispatcher's process: Ray may block, log and even end its process of its own accord, but not the daemon's.

Started by the daemon (cosched/daemon/cluster_link.py) as `python -m cosched.cluster.process`; messages travel behind
their length. It ends when its stdin does, that is, with the daemon, however that ends, and a local cluster ends with
it. The main thread looks after the local cluster's processes, which takes seconds at times; the dispatcher works in an
event loop beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import sys
import tempfile
import threading
import time
import traceback
from concurrent.futures import Future, wait
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from cosched.children.framing import LENGTH_BYTES, framed
from cosched.cluster.messages import Begin, Failed, News, Update
from cosched.errors import CoschedError

if TYPE_CHECKING:
    from cosched.cluster.cluster import Local
    from cosched.cluster.dispatcher import Dispatcher

REAP_S: Final = 0.1  # a local Ray node that has died is noticed within
NOTE_S: Final = 2.0  # between two notes of which processes a local cluster has
FAREWELL_S: Final = 1.0  # to give up command of a cluster
HEALTH_MS: Final = 500  # between two looks of a local cluster at each node; it takes the fifth in vain for its death

_update = msgspec.msgpack.Decoder(Update)


class Pipe:
    """Both ends of the daemon."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)  # whatever a library prints goes to the log, not between two messages

    def begin(self) -> Begin | None:
        """Wait for the first message; None when the daemon is gone."""
        data = _read(int.from_bytes(_read(LENGTH_BYTES), "little"))
        return msgspec.msgpack.decode(data, type=Begin) if data else None

    async def open(self) -> None:
        """Listen to what follows, in this event loop."""
        self._in = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(self._in)
        await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)

    async def told(self) -> Update | None:
        """Return the next message; None when the daemon is gone."""
        try:
            head = await self._in.readexactly(LENGTH_BYTES)
            data = await self._in.readexactly(int.from_bytes(head, "little"))
        except asyncio.IncompleteReadError:
            return None
        return _update.decode(data)

    def tell(self, news: News) -> None:
        """Say something."""
        with contextlib.suppress(BrokenPipeError):  # the daemon is gone: stdin says so too
            self._out.write(framed(msgspec.msgpack.encode(news)))
            self._out.flush()


def _read(count: int) -> bytes:
    """Read so many bytes from stdin; none where it ends before."""
    data = b""
    while len(data) < count:
        if not (more := os.read(0, count - len(data))):
            return b""
        data += more
    return data


def set_environment(begin: Begin) -> None:
    """Say to Ray, before it is imported, who may speak to it and where its files are. Processes of it inherit that."""
    token_path = begin.token_file
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        os.environ.pop(name, None)
    os.environ["RAY_AUTH_MODE"] = "token" if begin.mode == "local" or token_path else "disabled"
    if begin.mode == "local":
        os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="cosched-ray-")  # 0700; sockets in it have short names
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        os.environ["RAY_health_check_period_ms"] = str(HEALTH_MS)  # noqa: SIM112  # its spelling; by itself 3 s
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))  # of the actors
    elif token_path:
        os.environ["RAY_AUTH_TOKEN_PATH"] = token_path


def serve() -> None:
    """Work for the daemon until it is gone."""
    pipe = Pipe()
    begin = pipe.begin()
    if begin is None:
        return
    set_environment(begin)
    try:
        work(pipe, begin)
    except CoschedError as error:
        pipe.tell(Failed(why=str(error)))


def work(pipe: Pipe, begin: Begin) -> None:
    """Have a cluster, command it, end it. Raises NoCluster."""
    from cosched.cluster import cluster
    from cosched.cluster.dispatcher import Dispatcher

    local = cluster.Local([node.id for node in begin.nodes], Path(begin.processes)) if begin.mode == "local" else None
    try:
        address = local.address if local is not None else begin.address
        cluster.join(address)
        dispatcher = Dispatcher(begin, pipe.tell)
        dispatcher.take_command(address)
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, name="dispatcher", daemon=True).start()
        dispatching = asyncio.run_coroutine_threadsafe(_until_told_to_end(pipe, dispatcher, begin.mode), loop)
        if local is not None:
            _look_after(local, dispatching)
        dispatching.result()
    finally:
        if local is not None:
            local.close()


def _look_after(local: Local, dispatching: Future[None]) -> None:
    """See to the processes of a local cluster for as long as there is a dispatcher."""
    noted_s = time.monotonic()
    while not wait({dispatching}, REAP_S).done:
        local.reap()
        local.revive()
        if time.monotonic() - noted_s >= NOTE_S:
            noted_s = time.monotonic()
            local.note()


async def _until_told_to_end(pipe: Pipe, dispatcher: Dispatcher, mode: str) -> None:
    """Dispatch until the daemon is gone; command of a cluster that lives on is given up then."""

    async def listen() -> None:
        await pipe.open()
        while (message := await pipe.told()) is not None:
            dispatcher.update(message)

    listening, working = asyncio.create_task(listen()), asyncio.create_task(dispatcher.run())
    await asyncio.wait({listening, working}, return_when=asyncio.FIRST_COMPLETED)
    if working.done():
        working.result()  # what went wrong in it ends this process; or another daemon has taken over
    await listening
    working.cancel()
    if mode == "join":
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.to_thread(dispatcher.release), FAREWELL_S)


def main() -> None:
    """Serve, and leave at once: Ray's own farewell takes seconds, and there is nothing left to say."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches the whole group: the daemon decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        serve()
    finally:  # also after a defect: where its cluster is gone, Ray's farewell takes a minute
        if is_defect := sys.exc_info()[0] is not None:
            traceback.print_exc()
        os._exit(int(is_defect))


if __name__ == "__main__":
    main()
