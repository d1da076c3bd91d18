"""ZeroMQ sockets for requests with many frames: activations and KV caches travel beside their message, not in it.

A server binds `Served`, its clients connect `Caller`. A caller learns that its server has gone from the connection
itself (a process that is killed closes it, tcp notices a machine that is gone), not from a timeout alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

import zmq

from telemetry.bus import ENOUGH, Bus, Curve, context
from telemetry.errors import BadEndpoint

WAITING: Final = 1_000  # messages that a socket holds of one peer: they may be megabytes each
WAITING_IN: Final = 64  # ... and that a server holds of one client before it is made to wait
TRACKED: Final = 1 << 16  # bytes of an answer from which on it is told whether they have left this process
GONE: Final = (  # or nobody listens there, or does not let us in
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)

_numbers = itertools.count()


class Call(NamedTuple):
    """One message at a server: whom to answer, and the frames."""

    route: bytes
    frames: list[bytes]
    user: str = ""  # what the authenticator calls the sender, "" on a plain connection


class Sent(NamedTuple):
    """An answer that a client is to get. `left`: whether its bytes have left this process, or were dropped with it."""

    n_bytes: int
    tracker: zmq.MessageTracker | None  # of a long answer's last frame: they leave in order

    @property
    def left(self) -> bool:
        """Whether nothing of it is held here any more."""
        return self.tracker is None or self.tracker.done


class Guard(Protocol):
    """A socket that answers CURVE handshakes (cosched/api/zap.py), drained by whoever serves."""

    socket: zmq.Socket[bytes]

    def drain(self) -> bool:
        """Answer the handshakes that wait."""
        ...


class ServedCall(Bus):
    """The server's ROUTER. Frames of over `max_bytes` close the connection of whoever sends them."""

    domain = "runtime"

    def __init__(self, curve: Curve | None = None, max_bytes: int = -1) -> None:
        super().__init__(zmq.ROUTER, curve, max_bytes)
        _hold_little(self)
        self.socket.setsockopt(zmq.RCVHWM, WAITING_IN)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # an answer that nobody gets is told, not dropped in silence

    def drain(self, limit: int = ENOUGH) -> list[Call]:
        """Receive what has arrived."""
        out: list[Call] = []
        while len(out) < limit and (taken := self._take_named()) is not None:
            frames, user = taken
            out.append(Call(frames[0], frames[1:], user))
        return out

    def answer(self, route: bytes, frames: Sequence[bytes]) -> Sent | None:
        """Send an answer; None: the client has gone or takes nothing any more, and gets none."""
        size = sum(map(len, frames))
        tracked = zmq.Frame(frames[-1], track=True, copy=False, copy_threshold=0) if size >= TRACKED else None
        try:
            self.socket.send_multipart([route, *frames[:-1], frames[-1] if tracked is None else tracked], zmq.NOBLOCK)
        except zmq.Again:
            return None
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return None
        return Sent(size, None if tracked is None else tracked.tracker)


class Caller(Bus):
    """A client's DEALER with a watch over its connection."""

    def __init__(self, endpoint: str, curve: Curve | None = None, max_bytes: int = -1) -> None:
        try:
            super().__init__(zmq.DEALER, curve, max_bytes)
        except zmq.ZMQError as error:  # keys that are none: they may be a client's word
            self.socket.close(linger=0)
            raise BadEndpoint(f"{endpoint}: its key is none: {error.strerror}") from None
        _hold_little(self)
        self.endpoint = endpoint
        watch = f"inproc://cosched.caller.{next(_numbers)}"
        self.socket.monitor(watch, GONE)
        self._watch: zmq.Socket[bytes] = context().socket(zmq.PAIR)
        self._watch.connect(watch)
        try:
            self.connect(endpoint)
        except BadEndpoint:
            self.close()
            raise

    def send(self, frames: Sequence[bytes]) -> bool:
        """Hand one message over; False where so many wait that the server must be taken for gone."""
        try:
            self.socket.send_multipart(list(frames), zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def drain(self, limit: int = ENOUGH) -> list[list[bytes]]:
        """Receive the answers that have arrived."""
        out: list[list[bytes]] = []
        while len(out) < limit and (frames := self._take()) is not None:
            out.append(frames)
        return out

    def lost(self) -> bool:
        """Whether the connection broke since the last call."""
        broke = False
        while self._watch.poll(0):
            self._watch.recv_multipart()
            broke = True
        return broke

    def close(self, linger_ms: int = 0) -> None:
        """Close, the watch too."""
        self.socket.disable_monitor()
        self._watch.close(linger=0)
        super().close(linger_ms)


def wait_for(waiting: Sequence[Bus | Guard], timeout_s: float) -> None:
    """Wait until one of the sockets may have something to receive, or a connection broke, or `timeout_s` is over."""
    poller = zmq.Poller()
    for bus in waiting:
        poller.register(bus.socket, zmq.POLLIN)
        if isinstance(bus, Caller):
            poller.register(bus._watch, zmq.POLLIN)  # noqa: SLF001  # this module's own
    poller.poll(max(0, round(1e3 * timeout_s)))


def _hold_little(bus: Bus) -> None:
    bus.socket.setsockopt(zmq.RCVHWM, WAITING)
    bus.socket.setsockopt(zmq.SNDHWM, WAITING)
