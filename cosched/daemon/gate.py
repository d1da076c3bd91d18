"""The daemon's side of the door (children/door.py): public endpoints are opened here, it carries their connections.

The listening sockets are ours, so a door that dies is replaced and its peers come again; nobody else's socket file is
taken over or removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from telemetry.bus import SOCKET_MODE, is_loopback
from telemetry.errors import BadEndpoint

BACKLOG: Final = 128  # connections that wait to be accepted
RESERVE: Final = 128  # descriptors of the daemon that are not connections: 60 are seen, with a cluster 80
DOOR_RESERVE: Final = 32  # of the door; it needs two for each connection
MOST: Final = 65_536  # descriptors asked for: some programs look at each that there may be
NAMES: Final = 3  # sockets that share the descriptors
RESTART_S: Final = 0.1
RETRY_S: Final = 1.0  # where none can be started
CLOSING_S: Final = 1.5  # a door that was told to end takes a second
RECENT_S: Final = 10.0  # an alarm about refused connections stays for so long after the last one
ALARM: Final = "connections"
SIOCGIFADDR: Final = 0x8915  # linux/sockios.h
FORM: Final = "an endpoint is written as tcp://127.0.0.1:5551 or ipc:///run/x.sock"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class GateEntry:
    """A public endpoint of the daemon's socket `name`, and the path of the private one behind it.

    limits: what a peer may send (door.Entry), by their names there. guarded: asks for keys.
    """

    name: str
    listener: socket.socket
    to: Path
    guarded: bool
    limits: Mapping[str, float]

    @property
    def endpoint(self) -> str:
        """As it is bound."""
        address = self.listener.getsockname()
        if self.listener.family == socket.AF_UNIX:
            return f"ipc://{address}"
        host = f"[{address[0]}]" if self.listener.family == socket.AF_INET6 else address[0]
        return f"tcp://{host}:{address[1]}"


def raise_descriptors() -> int:
    """Raise the limit of descriptors to what this process may have; return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def most_connections(wanted: int, descriptors: int) -> int:
    """Connections that each socket may have: as wanted, as far as descriptors reach."""
    return max(1, min(wanted, (descriptors - RESERVE) // NAMES, (descriptors - DOOR_RESERVE) // (2 * NAMES)))


def listen(endpoint: str, *, guarded: bool) -> socket.socket:
    """Open a public endpoint. Raises BadEndpoint: for tcp beyond loopback without keys, and for one that is in use."""
    try:
        if endpoint.startswith("ipc://"):
            return _listen_ipc(Path(endpoint.removeprefix("ipc://")))
        if endpoint.startswith("tcp://"):
            return _listen_tcp(endpoint, guarded=guarded)
    except OSError as error:
        raise BadEndpoint(f"{endpoint}: {error.strerror or error}") from None
    raise BadEndpoint(f"{endpoint}: {FORM}")


def _listen_ipc(path: Path) -> socket.socket:
    """Listen at a path. A socket file that nobody listens at was left by a daemon that was killed."""
    if not path.name:
        raise BadEndpoint(f"ipc://{path}: {FORM}")
    if path.is_socket():
        if _answers(path):
            raise BadEndpoint(f"ipc://{path}: another daemon listens there; end it, or give this one another endpoint")
        path.unlink()
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        found.bind(str(path))
        path.chmod(SOCKET_MODE)
        found.listen(BACKLOG)
    except OSError:
        found.close()
        raise
    return found


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.setblocking(False)
        try:
            asking.connect(str(path))
        except BlockingIOError:  # its backlog is full: somebody is there
            return True
        except OSError:
            return False
    return True


def _listen_tcp(endpoint: str, *, guarded: bool) -> socket.socket:
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    if not host or not (port == "*" or (port.isascii() and port.isdigit() and int(port) < 1 << 16)):
        raise BadEndpoint(f"{endpoint}: {FORM}")
    if not guarded and not is_loopback(endpoint):
        raise BadEndpoint(f"{endpoint}: tcp beyond this machine needs keys: see 'cosched keys new'")
    number = 0 if port == "*" else int(port)
    if host.startswith("["):
        return socket.create_server((host.strip("[]"), number), family=socket.AF_INET6, backlog=BACKLOG)
    return socket.create_server((_address(host), number), backlog=BACKLOG)


def _address(host: str) -> str:
    """Return an address that can be bound: of `*`, and of an interface by its name."""
    if host == "*":
        return "0.0.0.0"  # noqa: S104  # what was asked for; it needs keys
    if host in {name for _, name in socket.if_nameindex()}:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            found = fcntl.ioctl(any_socket.fileno(), SIOCGIFADDR, host.encode()[:15].ljust(40, b"\0"))
        return socket.inet_ntoa(found[20:24])
    return host


class Gate:
    """Keeps a door open. `attach` has its reports read in an event loop; before that it carries all the same."""

    def __init__(self, entries: Sequence[GateEntry], most: int) -> None:
        self.entries = tuple(entries)
        self.most = most  # connections of each socket
        self.open: dict[str, int] = {}
        self._refused: Counter[tuple[str, str]] = Counter()
        self._earlier: Counter[tuple[str, str]] = Counter()  # of doors that died
        self._recent: dict[tuple[str, str], float] = {}  # when that was last counted, of late
        self._loop: asyncio.AbstractEventLoop | None = None
        self._alarm: Callable[[str, str], None] = lambda _, __: None
        self._due: asyncio.TimerHandle | None = None
        self._received = b""
        self._files = [(Path(e.listener.getsockname()), _inode(Path(e.listener.getsockname())))
                       for e in entries if e.listener.family == socket.AF_UNIX]  # fmt: skip
        self._door = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        entries = [
            {"name": e.name, "fd": e.listener.fileno(), "to": str(e.to), "guarded": e.guarded, **e.limits}
            for e in self.entries
        ]
        spec = json.dumps({"entries": entries, "caps": {e.name: self.most for e in self.entries}})
        return subprocess.Popen(  # noqa: S603  # our own module
            (sys.executable, "-m", "cosched.daemon.children.door", spec),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
            pass_fds=[e.listener.fileno() for e in self.entries],
        )  # fmt: skip

    @property
    def pid(self) -> int:
        """Process id of the door."""
        return self._door.pid

    def attach(self, loop: asyncio.AbstractEventLoop, alarm: Callable[[str, str], None]) -> None:
        """Read reports; `alarm(subject, text)` is told what is wrong, "" when it is over."""
        self._loop, self._alarm = loop, alarm
        self._listen()

    def _listen(self) -> None:
        assert self._loop is not None  # noqa: S101  # attached
        assert self._door.stdout is not None  # noqa: S101  # asked for
        os.set_blocking(self._door.stdout.fileno(), False)
        self._loop.add_reader(self._door.stdout.fileno(), self._hear)

    def _hear(self) -> None:
        assert self._loop is not None  # noqa: S101  # attached
        assert self._door.stdout is not None  # noqa: S101  # asked for
        data = self._door.stdout.read(1 << 16)
        if data is None:
            return
        if not data:
            self._loop.remove_reader(self._door.stdout.fileno())
            self._due = self._loop.call_later(RESTART_S, self._again)
            return
        *lines, self._received = (self._received + data).split(b"\n")
        if lines:
            self._take(json.loads(lines[-1]))

    def _take(self, report: Mapping[str, Any]) -> None:
        self.open = report["open"]
        before, self._refused = self._refused, Counter({(n, r): k for n, r, k in report["refused"]})
        self._recent |= dict.fromkeys(self._refused - before, time.monotonic())
        self._say()

    def _say(self) -> None:
        """Tell what is wrong at present, and look again when that may be over."""
        if self._due is not None:
            self._due.cancel()
            self._due = None
        since_s = time.monotonic() - RECENT_S
        self._recent = {what: at_s for what, at_s in self._recent.items() if at_s > since_s}
        self._alarm(ALARM, "; ".join(f"{name}: {reason}" for name, reason in sorted(self._recent)))
        if self._recent and self._loop is not None:
            self._due = self._loop.call_later(RECENT_S / 2, self._say)

    def _again(self) -> None:
        """Have another door: its peers connect again by themselves."""
        self._due = None
        log.warning("the door ended; another one opens", exit_code=self._door.wait())
        self._shut(self._door)
        self._earlier, self._refused, self._received, self.open = self._earlier + self._refused, Counter(), b"", {}
        try:
            self._door = self._start()
        except OSError as error:  # no memory or process to be had: it passes
            log.warning("no door can be opened", why=str(error))
            assert self._loop is not None  # noqa: S101  # attached
            self._due = self._loop.call_later(RETRY_S, self._again)
            return
        self._listen()

    def counted(self) -> list[tuple[str, str, int]]:
        """(socket, reason, how many) of connections that were turned away or cut."""
        return [(name, reason, n) for (name, reason), n in sorted((self._earlier + self._refused).items())]

    def cut(self, *names: str) -> None:
        """End the connections of these sockets that came with a key: who is still allowed comes again."""
        assert self._door.stdin is not None  # noqa: S101  # asked for
        with contextlib.suppress(OSError):  # a door that died has none
            self._door.stdin.write("".join(f"cut {name}\n" for name in names).encode())

    def shut(self) -> None:
        """Take no new connection; what is under way is carried on for a moment. Socket files of ours are removed."""
        if self._due is not None:
            self._due.cancel()
        if self._loop is not None and self._door.stdout is not None:
            self._loop.remove_reader(self._door.stdout.fileno())
        if self._door.stdin is not None:
            self._door.stdin.close()
        for entry in self.entries:
            entry.listener.close()
        for file, inode in self._files:
            if _inode(file) == inode:
                file.unlink(missing_ok=True)

    def wait(self) -> None:
        """Wait until a door that was shut has carried all."""
        try:
            self._door.wait(CLOSING_S)
        except subprocess.TimeoutExpired:
            self._door.kill()
            self._door.wait()
        self._shut(self._door)

    @staticmethod
    def _shut(door: subprocess.Popen[bytes]) -> None:
        for pipe in (door.stdin, door.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def _inode(path: Path) -> tuple[int, int]:
    try:
        found = path.lstat()
    except OSError:
        return 0, 0
    return found.st_dev, found.st_ino
