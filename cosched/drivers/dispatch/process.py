"""The dispatcher's process: Ray may block, log and even end its process of its own accord, but not the daemon's.

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
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from cosched.drivers.dispatch.messages import Begin, Failed, News, Told, Update
from cosched.errors import CoschedError

if TYPE_CHECKING:
    from cosched.drivers.dispatch.cluster import Local
    from cosched.drivers.dispatch.dispatcher import Dispatcher

LENGTH_BYTES: Final = 4
REAP_S: Final = 0.1  # a local Ray node that has died is noticed within
NOTE_S: Final = 2.0  # between two notes of which processes a local cluster has
FAREWELL_S: Final = 1.0  # to give up command of a cluster

_told = msgspec.msgpack.Decoder(Told)


class Pipe:
    """Both ends of the daemon."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)  # whatever a library prints goes to the log, not between two messages
        self._in = asyncio.StreamReader()

    async def open(self) -> None:
        """Begin to listen."""
        protocol = asyncio.StreamReaderProtocol(self._in)
        await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)

    async def told(self) -> Begin | Update | None:
        """Return the next message; None when the daemon is gone."""
        try:
            head = await self._in.readexactly(LENGTH_BYTES)
            data = await self._in.readexactly(int.from_bytes(head, "little"))
        except asyncio.IncompleteReadError:
            return None
        message: Begin | Update = _told.decode(data)
        return message

    def tell(self, news: News) -> None:
        """Say something."""
        data = msgspec.msgpack.encode(news)
        with contextlib.suppress(BrokenPipeError):  # the daemon is gone: stdin says so too
            self._out.write(len(data).to_bytes(LENGTH_BYTES, "little") + data)
            self._out.flush()


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
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))  # of the actors
    elif token_path:
        os.environ["RAY_AUTH_TOKEN_PATH"] = token_path


async def serve() -> None:
    """Work for the daemon until it is gone."""
    pipe = Pipe()
    await pipe.open()
    begin = await pipe.told()
    if not isinstance(begin, Begin):
        return
    set_environment(begin)
    try:
        await work(pipe, begin)
    except CoschedError as error:
        pipe.tell(Failed(why=str(error)))


async def work(pipe: Pipe, begin: Begin) -> None:
    """Have a cluster, command it, end it. Raises NoCluster."""
    from cosched.drivers.dispatch import cluster
    from cosched.drivers.dispatch.dispatcher import Dispatcher

    # in this thread, though it takes seconds: Linux ends the children of a thread with the thread
    local = cluster.Local([node.id for node in begin.nodes], Path(begin.processes)) if begin.mode == "local" else None
    try:
        address = local.address if local is not None else begin.address
        cluster.join(address)
        dispatcher = Dispatcher(begin, pipe.tell)
        dispatcher.take_command(address)
        await _until_told_to_end(pipe, dispatcher, local)
        if local is None:
            await asyncio.wait_for(asyncio.to_thread(dispatcher.release), FAREWELL_S)
    finally:
        if local is not None:
            local.close()


async def _until_told_to_end(pipe: Pipe, dispatcher: Dispatcher, local: Local | None) -> None:
    async def listen() -> None:
        while (message := await pipe.told()) is not None:
            if isinstance(message, Update):
                dispatcher.update(message)

    async def look_after() -> None:
        while local is not None:
            for _ in range(round(NOTE_S / REAP_S)):
                await asyncio.sleep(REAP_S)
                local.reap()
            local.note()

    listening = asyncio.create_task(listen())
    others = {asyncio.create_task(dispatcher.run()), asyncio.create_task(look_after())}
    while not listening.done():
        done, _ = await asyncio.wait({listening, *others}, return_when=asyncio.FIRST_COMPLETED)
        for task in done & others:
            others.discard(task)
            task.result()  # what went wrong in it ends this process
    for task in others:
        task.cancel()


def main() -> None:
    """Serve, and leave at once: Ray's own farewell takes seconds, and there is nothing left to say."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches the whole group: the daemon decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    asyncio.run(serve())
    os._exit(0)


if __name__ == "__main__":
    main()
