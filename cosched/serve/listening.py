"""The HTTP server: uvicorn, with bounds on what a connection may take and how long.

uvicorn has no limit on the time that a request's head takes, on connections by address, and on how long the body of a
request that was answered already may go on: those are here.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Final

import h11
import structlog
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from cosched.errors import BadInput
from cosched.serve.app import FrontEnd
from cosched.serve.exchange import TRANSPORT
from cosched.serve.settings import LoadedServe, ServeLimits, ServeSettings, load

log = structlog.get_logger()
BACKLOG: Final = 256
SEND_BYTES: Final = 65_536  # that the kernel keeps for a client that does not read
WAITING_BYTES: Final = 16_384  # ... and we do, before its stream stands still
FULL: Final = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class BoundedProtocol(H11Protocol):
    """One connection. `limits` and `addresses` are of the class that `bounded` makes."""

    limits: ClassVar[ServeLimits]
    addresses: ClassVar[Counter[str]]

    def __init__(self, *args: Any, **more: Any) -> None:  # noqa: ANN401  # uvicorn's own
        super().__init__(*args, **more)
        self._due: asyncio.TimerHandle | None = None
        self._address = ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Take a connection, or turn it away where there are too many."""
        super().connection_made(transport)
        self._address = self.client[0] if self.client else ""
        self.addresses[self._address] += 1
        self.app_state = {TRANSPORT: transport}
        transport.set_write_buffer_limits(high=WAITING_BYTES)
        limits = self.limits
        if len(self.connections) > limits.connections or self.addresses[self._address] > limits.connections_each:
            transport.write(FULL)
            transport.close()
            return
        self._within(limits.header_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a connection."""
        self.addresses[self._address] -= 1
        if self.addresses[self._address] <= 0:
            del self.addresses[self._address]
        self._in_time()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes in; a head that has begun is to end in time."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            if not self._is_draining:
                self._in_time()
        elif self._due is None and self.conn.trailing_data[0]:
            self._within(self.limits.header_s)

    def on_response_complete(self) -> None:
        """Have the rest of a body that nobody wants come in time, too."""
        super().on_response_complete()
        if self._is_draining and self._due is None:
            self._within(self.limits.body_s)

    @property
    def _is_draining(self) -> bool:
        return self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY

    def _within(self, seconds: float) -> None:
        self._due = self.loop.call_later(seconds, self._too_late)

    def _in_time(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _too_late(self) -> None:
        self.transport.abort()


def bounded(of: ServeLimits) -> type[BoundedProtocol]:
    """Return the class of one server's connections."""

    class ServedConnection(BoundedProtocol):
        """One connection of this server."""

        limits = of
        addresses: ClassVar[Counter[str]] = Counter()

    return ServedConnection


class HttpServer(uvicorn.Server):
    """uvicorn's server; signals are for whoever runs it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them alone."""
        yield


class _ToOurLog(logging.Handler):
    """What uvicorn has to say goes the way of all else."""

    def emit(self, record: logging.LogRecord) -> None:
        log.log(record.levelno, record.getMessage(), exc_info=record.exc_info)


def configured(settings: ServeSettings, front: FrontEnd) -> uvicorn.Config:
    """Return uvicorn's configuration. Raises BadInput: certificate or key cannot be used."""
    limits = settings.limits
    logger = logging.getLogger("uvicorn")
    logger.handlers, logger.propagate = [_ToOurLog()], False
    config = uvicorn.Config(
        front.app, http=bounded(limits), ws="none", loop="none", lifespan="off", log_config=None, log_level="error",
        access_log=False, proxy_headers=False, server_header=False, h11_max_incomplete_event_size=limits.header_bytes,
        timeout_keep_alive=max(1, round(limits.idle_s)), timeout_graceful_shutdown=max(1, round(limits.closing_s)),
        ssl_certfile=settings.tls.cert or None, ssl_keyfile=settings.tls.key or None,
    )  # fmt: skip
    try:
        config.load()
    except OSError as error:  # ssl.SSLError too
        raise BadInput(f"[tls] {settings.tls.cert}: certificate and key cannot be used: {error}") from None
    return config


def bound(settings: ServeSettings) -> socket.socket:
    """Return the listening socket. Raises BadInput."""
    host, port = settings.address
    try:
        info = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.create_server(info[4][:2], family=info[0], backlog=BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise BadInput(f"listen = '{settings.listen}': something listens there already") from None
        raise BadInput(f"listen = '{settings.listen}': {error.strerror or error}") from None
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
    return listening


def run(loaded: LoadedServe, tell: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP reads the keys anew. tell: told the URL at the start. Raises BadInput."""
    settings = loaded.settings
    front = FrontEnd(settings)
    config = configured(settings, front)
    with bound(settings) as listening:
        host, port = listening.getsockname()[:2]
        tell(f"{'https' if settings.tls.cert else 'http'}://{f'[{host}]' if ':' in host else host}:{port}/v1")
        asyncio.run(_serve(loaded, front, HttpServer(config), listening))


async def _serve(loaded: LoadedServe, front: FrontEnd, server: HttpServer, listening: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: setattr(server, "should_exit", True))
    loop.add_signal_handler(signal.SIGHUP, lambda: _reload(loaded, front))
    await front.start()
    try:
        await server.serve(sockets=[listening])
    finally:
        await front.stop()


def _reload(loaded: LoadedServe, front: FrontEnd) -> None:
    """Take the file's keys; all else asks for a restart."""
    try:
        settings = load(loaded.path).settings
    except BadInput as error:
        log.warning("the new configuration is refused, the old one stays", error=str(error))
        return
    if bool(settings.keys) != bool(loaded.settings.keys):
        log.warning("the new configuration is refused: whether keys are asked for changes with a restart alone")
        return
    front.clients.take(settings)
    log.info("keys read", keys=len(settings.keys))
