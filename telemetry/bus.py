"""ZeroMQ sockets: the only file that knows them. Frames in, frames out; no message is decoded here.

The daemon binds, everybody else connects, so that a publisher never waits for a slow daemon. A socket's file
descriptor is edge-triggered: whoever is told that it is readable drains it until it is empty, or comes back by
itself (`Pump`). See the ZeroMQ guide, chapter 2, and `zmq_getsockopt(3)`, ZMQ_FD.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple

import zmq

from telemetry.errors import BadEndpoint

if TYPE_CHECKING:
    import asyncio  # by the types alone: a client that blocks does without

SOCKET_MODE: Final = 0o660  # of ipc sockets: owner and group
KEEPALIVE: Final = (  # of tcp, in seconds and probes: a host that is gone is noticed in half a minute
    (zmq.TCP_KEEPALIVE, 1),
    (zmq.TCP_KEEPALIVE_IDLE, 10),
    (zmq.TCP_KEEPALIVE_INTVL, 5),
    (zmq.TCP_KEEPALIVE_CNT, 3),
    (zmq.TCP_MAXRT, 20_000),  # ms that what was sent may stay unacknowledged
)
HANDSHAKE_MS: Final = 5_000  # a peer that never finishes its CURVE handshake holds nothing for longer
QUEUE: Final = 100_000  # messages a client's socket holds before it drops (PUB) or the pipe fills
TAKEN: Final = (
    1_000  # messages that the daemon takes in of one peer before it has read them: the rest waits at the peer
)
ANSWERS: Final = 10_000  # ... and that it holds for a peer that does not take them; what is beyond is dropped
SMALL_BYTES: Final = 4_096  # of a payload, that is copied from the socket at once
TOPIC_BYTES: Final = 8_192  # of what a subscriber may send in one message; a handshake has 500
BACKLOG: Final = 1_024  # connections that wait until libzmq accepts them
ENOUGH: Final = 2_000  # messages in one go: some 10 ms, then others have their turn


@dataclass(frozen=True, slots=True)
class Curve:
    """CURVE keys (Z85 text) of this end; `server`: the public key of the end connected to, "" when binding."""

    public: str
    secret: str
    server: str = ""


class Frame(NamedTuple):
    """One message of the telemetry bus. `user`: what the authenticator calls the sender, "" without CURVE.

    peer: the connection that it came by, on a plain one.
    """

    topic: bytes
    payload: bytes | memoryview
    user: str
    peer: str = ""


class BusRequest(NamedTuple):
    """One message on a ROUTER: how to answer it (routing id, and the empty frame of a REQ), and what it says."""

    route: tuple[bytes, ...]
    payload: bytes
    user: str


def context() -> zmq.Context[zmq.Socket[bytes]]:
    """Return this process's context."""
    return zmq.Context.instance()


def io_threads(n: int) -> None:
    """Have so many threads carry this process's connections; before the first socket."""
    context().set(zmq.IO_THREADS, n)


class Bus:
    """One socket with its endpoints. `close` takes it down at once; `close(linger_ms)` sends what is queued first.

    `domain` is what the authenticator (RFC 27) knows the socket by. There are no heartbeats of libzmq: with a full
    queue they abort the process (libzmq 4.3.5, stream_engine_base.cpp; issues 3937, 4364, 4767). Dead hosts are noticed
    by tcp, dead processes by the connection; whoever must notice more listens for messages (the status, every second).
    """

    domain: ClassVar[str] = ""  # what the authenticator is told of this socket (ZAP, RFC 27)

    def __init__(self, kind: int, curve: Curve | None, max_bytes: int = -1) -> None:
        self.socket: zmq.Socket[bytes] = context().socket(kind)
        self.endpoints: list[str] = []
        self._files: list[Path] = []  # of ipc endpoints bound here
        self._curve = curve
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVHWM, QUEUE)
        self.socket.setsockopt(zmq.SNDHWM, QUEUE)
        self.socket.setsockopt(zmq.MAXMSGSIZE, max_bytes)
        for option, value in KEEPALIVE:
            self.socket.setsockopt(option, value)
        self.socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        if curve is not None:
            self.socket.setsockopt_string(zmq.CURVE_PUBLICKEY, curve.public)
            self.socket.setsockopt_string(zmq.CURVE_SECRETKEY, curve.secret)
            if curve.server:
                self.socket.setsockopt_string(zmq.CURVE_SERVERKEY, curve.server)

    @property
    def fd(self) -> int:
        """File descriptor that becomes readable when there may be something to receive."""
        return int(self.socket.getsockopt(zmq.FD))

    def bind(self, endpoints: Sequence[str]) -> None:
        """Open the endpoints for others. Raises BadEndpoint.

        tcp beyond loopback needs CURVE; ipc and loopback tcp are plain, guarded by file mode and by the machine.
        """
        for endpoint in sorted(endpoints, key=lambda e: e.startswith("tcp://")):  # a domain cannot be taken back
            tcp = endpoint.startswith("tcp://")
            if tcp and self._curve is None and not is_loopback(endpoint):
                raise BadEndpoint(f"{endpoint}: tcp beyond this machine needs keys: see 'cosched keys new'")
            if self._curve is not None:  # applies to what is bound from here on
                self.socket.setsockopt(zmq.CURVE_SERVER, int(tcp))
                if tcp:
                    self.socket.setsockopt_string(zmq.ZAP_DOMAIN, self.domain)
            try:
                self.socket.bind(endpoint)
            except zmq.ZMQError as error:
                raise _unusable(endpoint, error) from None
            self.endpoints.append(self.socket.getsockopt_string(zmq.LAST_ENDPOINT))
            if endpoint.startswith("ipc://"):
                self._files.append(Path(endpoint.removeprefix("ipc://")))
                self._files[-1].chmod(SOCKET_MODE)

    def bind_behind(self, plain: Path | None, guarded: Path | None, public: Sequence[str]) -> None:
        """Bind behind a door (cosched/daemon/children/door.py), which accepts at the `public` endpoints.

        plain, guarded: ipc paths for connections without and with CURVE, in a folder that is the daemon's own.
        """
        self.socket.setsockopt(zmq.BACKLOG, BACKLOG)
        for path, curve in ((plain, 0), (guarded, 1)):  # a domain cannot be taken back: plain goes first
            if path is None:
                continue
            if self._curve is not None:
                self.socket.setsockopt(zmq.CURVE_SERVER, curve)
                if curve:
                    self.socket.setsockopt_string(zmq.ZAP_DOMAIN, self.domain)
            try:
                self.socket.bind(f"ipc://{path}")
            except zmq.ZMQError as error:
                raise _unusable(f"ipc://{path}", error) from None
            self._files.append(path)
        self.endpoints = list(public)

    def connect(self, endpoint: str) -> None:
        """Connect; ZeroMQ keeps trying in the background. Raises BadEndpoint for one that is malformed."""
        try:
            self.socket.connect(endpoint)
        except zmq.ZMQError as error:
            raise _unusable(endpoint, error) from None
        self.endpoints.append(endpoint)

    def wait(self, timeout_s: float) -> bool:
        """Wait for something to receive; False after `timeout_s`."""
        return bool(self.socket.poll(round(1e3 * timeout_s), zmq.POLLIN))

    def close(self, linger_ms: int = 0) -> None:
        """Close; bound ipc files are removed."""
        self.socket.close(linger=linger_ms)
        for file in self._files:
            file.unlink(missing_ok=True)

    def _take(self) -> list[bytes] | None:
        """Receive one message's frames; None when there is none."""
        try:
            frames = [self.socket.recv(zmq.NOBLOCK)]
        except zmq.Again:
            return None
        while self.socket.getsockopt(zmq.RCVMORE):
            frames.append(self.socket.recv(zmq.NOBLOCK))
        return frames

    def _take_named(self) -> tuple[list[bytes], str] | None:
        """Receive one message's frames and who sent it, as the authenticator calls him (RFC 27, User-Id)."""
        try:
            frame = self.socket.recv(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return None
        frames, user = [frame.bytes], user_of(frame)
        while frame.more:
            frame = self.socket.recv(zmq.NOBLOCK, copy=False)
            frames.append(frame.bytes)
        return frames, user


def user_of(frame: zmq.Frame) -> str:
    """Return the authenticated user of a frame, "" on a plain connection."""
    try:
        return str(frame.get("User-Id"))
    except zmq.ZMQError:
        return ""


def connection_of(frame: zmq.Frame) -> str:
    """Return a name for the connection that a frame came by: its descriptor here, as long as it lives."""
    try:
        return f"#{frame.get(zmq.SRCFD)}"
    except zmq.ZMQError:  # inproc
        return "#"


def _unusable(endpoint: str, error: zmq.ZMQError) -> BadEndpoint:
    malformed = error.errno in {errno.EINVAL, errno.EPROTONOSUPPORT}
    form = "an endpoint is written as tcp://127.0.0.1:5551 or ipc:///run/x.sock"
    return BadEndpoint(f"{endpoint}: {form if malformed else error.strerror}")


def is_loopback(endpoint: str) -> bool:
    """Whether a tcp endpoint can be reached from this machine alone."""
    host = endpoint.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # `*`, an interface, a name
        return False


class TelemetrySocket(Bus):
    """The daemon's SUB: takes every topic. Frames that are not (topic, payload) are counted in `malformed`."""

    domain = "telemetry"

    def __init__(self, curve: Curve | None = None, max_bytes: int = -1) -> None:
        super().__init__(zmq.SUB, curve, max_bytes)
        self.socket.setsockopt(zmq.RCVHWM, TAKEN)
        self.socket.setsockopt(zmq.SUBSCRIBE, b"")
        self.malformed = 0
        self._named = curve is not None

    def drain(self, limit: int = ENOUGH) -> list[Frame]:
        """Receive what has arrived, at most `limit` messages."""
        receive, named, out = self.socket.recv, self._named, []
        with contextlib.suppress(zmq.Again):
            for _ in range(limit):  # frames know whether more follow; to ask the socket takes longer than to receive
                topic = last = receive(zmq.NOBLOCK, copy=False)
                if topic.more:
                    last = receive(zmq.NOBLOCK, copy=False)
                    if not last.more:
                        user = user_of(last) if named else ""
                        size = len(last)  # a large one is not copied: it may not be taken at all
                        payload = last.bytes if size <= SMALL_BYTES else last.buffer
                        out.append(Frame(topic.bytes, payload, user, "" if user else connection_of(last)))
                        continue
                self.malformed += 1
                while last.more:
                    last = receive(zmq.NOBLOCK, copy=False)
        return out


class Publisher(Bus):
    """A PUB that connects to the daemon: never blocks, drops when the daemon is slower than the queue is long."""

    def __init__(self, endpoint: str, curve: Curve | None = None) -> None:
        super().__init__(zmq.PUB, curve)
        self.connect(endpoint)

    def send(self, topic: bytes, payload: bytes) -> None:
        """Hand one message to the socket."""
        self.socket.send(topic, zmq.SNDMORE)
        self.socket.send(payload)


class ControlSocket(Bus):
    """The daemon's ROUTER: REQ and DEALER clients of any language."""

    domain = "control"

    def __init__(self, curve: Curve | None = None, max_bytes: int = -1) -> None:
        super().__init__(zmq.ROUTER, curve, max_bytes)
        self.socket.setsockopt(zmq.RCVHWM, TAKEN)
        self.socket.setsockopt(zmq.SNDHWM, ANSWERS)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # or what is dropped is not told
        self.malformed = self.unread = 0

    def drain(self, limit: int = ENOUGH) -> list[BusRequest]:
        """Receive the requests that have arrived; what has no payload is dropped, and counted in `malformed`."""
        out: list[BusRequest] = []
        for _ in range(limit):
            taken = self._take_named()
            if taken is None:
                break
            frames, user = taken
            if len(frames) >= 2:
                out.append(BusRequest(tuple(frames[:-1]), frames[-1], user))
            else:
                self.malformed += 1
        return out

    def answer(self, route: tuple[bytes, ...], payload: bytes) -> None:
        """Send an answer; a client that has gone gets none, nor does one that leaves too many unread (`unread`)."""
        if self.socket.closed:  # work that was under way ends after a stop
            return
        try:
            self.socket.send_multipart([*route, payload], zmq.NOBLOCK)
        except zmq.Again:
            self.unread += 1
        except zmq.ZMQError as error:
            if error.errno != errno.EHOSTUNREACH:
                raise


class DecisionSocket(Bus):
    """The daemon's XPUB."""

    domain = "decisions"

    def __init__(self, curve: Curve | None = None) -> None:
        super().__init__(zmq.XPUB, curve, TOPIC_BYTES)
        self.socket.setsockopt(zmq.RCVHWM, TAKEN)
        self.socket.setsockopt(zmq.SNDHWM, ANSWERS)
        self.socket.setsockopt(zmq.XPUB_VERBOSE, 1)  # tells of every new subscriber, not of new topics only

    def send(self, topic: bytes, payload: bytes) -> None:
        """Publish; a subscriber that is too slow loses messages, nobody else does."""
        self.socket.send(topic, zmq.SNDMORE)
        self.socket.send(payload)

    def subscribed(self, limit: int = ENOUGH) -> tuple[set[bytes], bool]:
        """Topics that were subscribed to since the last call, and whether there may be more."""
        out: set[bytes] = set()
        for _ in range(limit):
            if (frames := self._take()) is None:
                return out, False
            if len(frames) == 1 and frames[0][:1] == b"\x01":
                out.add(frames[0][1:])
        return out, True


class Follower(Bus):
    """A client's SUB on the decisions."""

    def __init__(self, endpoint: str, topics: Sequence[bytes], curve: Curve | None = None) -> None:
        super().__init__(zmq.SUB, curve)
        for topic in topics:
            self.socket.setsockopt(zmq.SUBSCRIBE, topic)
        self.connect(endpoint)

    def drain(self, limit: int = ENOUGH) -> list[tuple[bytes, bytes]]:
        """Receive (topic, payload) of what has arrived."""
        out: list[tuple[bytes, bytes]] = []
        while len(out) < limit and (frames := self._take()) is not None:
            if len(frames) == 2:
                out.append((frames[0], frames[1]))
        return out


class Foreign(Bus):
    """A SUB on somebody else's publisher, whose messages are one frame without a topic."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(zmq.SUB, None)
        self.socket.setsockopt(zmq.SUBSCRIBE, b"")
        self.connect(endpoint)

    def drain(self, limit: int = ENOUGH) -> list[bytes]:
        """Receive what has arrived; of a message with more frames, the last."""
        out: list[bytes] = []
        while len(out) < limit and (frames := self._take()) is not None:
            out.append(frames[-1])
        return out


class Dealer(Bus):
    """A client's end of the control socket: many requests may be under way."""

    def __init__(self, endpoint: str, curve: Curve | None = None) -> None:
        super().__init__(zmq.DEALER, curve)
        self.connect(endpoint)

    def send(self, payload: bytes) -> None:
        """Send one request."""
        self.socket.send(payload)

    def drain(self, limit: int = ENOUGH) -> list[bytes]:
        """Receive the answers that have arrived."""
        out: list[bytes] = []
        while len(out) < limit and (frames := self._take()) is not None:
            out.append(frames[-1])
        return out


class Pump:
    """Calls `work` in the event loop whenever a socket may have something.

    `work` returns whether there may be more: 0 (False) = no, 1 (True) = yes, between them = seconds until it may be.
    Sending on a socket can swallow the edge that tells of a message received meanwhile: whoever sends calls `again`.
    rest_s: after what was there, pause for so long, so that what comes in a trickle is taken in handfuls. Only for a
    socket that nobody sends on.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, bus: Bus, work: Callable[[], float], rest_s: float = 0.0
    ) -> None:
        self._loop, self._fd, self._work, self._rest_s = loop, bus.fd, work, rest_s
        self._due: asyncio.Handle | None = None
        self._later: asyncio.TimerHandle | None = None
        self._is_over = False
        self._loop.add_reader(self._fd, self._run)
        self.again()

    def again(self) -> None:
        """Look once more, soon; not after `stop`, for then the socket is being closed."""
        if self._due is None and not self._is_over:
            self._due = self._loop.call_soon(self._run)

    def _run(self) -> None:
        self._forget()
        more = float(self._work())
        if self._is_over:
            return
        if more >= 1:
            self.again()
        elif self._rest_s:
            self._loop.remove_reader(self._fd)
            self._later = self._loop.call_later(max(self._rest_s, more), self._wake, more > 0)
        elif more > 0:
            self._later = self._loop.call_later(more, self._run)

    def _wake(self, look: bool) -> None:  # of a timer
        self._later = None
        self._loop.add_reader(self._fd, self._run)
        if look:
            self.again()

    def _forget(self) -> None:
        for handle in (self._due, self._later):
            if handle is not None:
                handle.cancel()
        self._due = self._later = None

    def stop(self) -> None:
        """Call no more."""
        self._is_over = True
        self._loop.remove_reader(self._fd)
        self._forget()
