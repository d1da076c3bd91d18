"""Floods of connections, subscriptions, handshakes and hang-ups, on raw sockets: what no ZeroMQ client would send.

Each takes endpoints (`tcp://127.0.0.1:5551`, `ipc:///run/x.sock`), is bounded in count and seconds, and returns how far
it got. As a program: `python -m cosched.bench.attacks.connections ATTACK ENDPOINT,... COUNT SECONDS`; it prints that.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import resource
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Final

GREETING_BYTES: Final = 64
CONNECT_S: Final = 0.2
BLOCK: Final = 200  # messages, or topics, in one go
COMMAND: Final = 4  # a frame's flags (ZMTP 3.1, RFC 37)
MORE: Final = 1
LONG: Final = 2


@dataclass
class Told:
    """What an attack has done. `lost`: connections that the other side had ended by the end."""

    opened: int = 0
    refused: int = 0
    lost: int = 0
    sent: int = 0


def connect(endpoint: str) -> socket.socket:
    """Open a raw connection. Raises OSError."""
    if endpoint.startswith("ipc://"):
        found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        found.settimeout(CONNECT_S)
        try:
            found.connect(endpoint.removeprefix("ipc://"))
        except OSError:
            found.close()
            raise
        return found
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=CONNECT_S)


def greeting(mechanism: bytes = b"NULL") -> bytes:
    """Return ZMTP's first 64 bytes, version 3.0, as a client."""
    return b"\xff" + bytes(8) + b"\x7f\x03\x00" + mechanism.ljust(20, b"\0") + bytes(32)


def frame(flags: int, body: bytes) -> bytes:
    """Return one ZMTP frame."""
    size = len(body)
    return bytes((flags, size)) + body if size < 1 << 8 else bytes((flags | LONG,)) + size.to_bytes(8, "big") + body


def ready(kind: bytes) -> bytes:
    """Return the command that ends a NULL handshake. kind: of our socket, such as `PUB`."""
    properties = b"".join(bytes((len(k),)) + k + len(v).to_bytes(4, "big") + v for k, v in ((b"Socket-Type", kind),))
    return frame(COMMAND, b"\x05READY" + properties)


def plain(endpoint: str, kind: bytes) -> socket.socket:
    """Open a connection and shake hands, without keys. Raises OSError."""
    found = connect(endpoint)
    found.settimeout(5.0)
    found.sendall(greeting() + ready(kind))
    _read(found, GREETING_BYTES)
    _read(found, _read(found, 2)[1])
    return found


def flood_connections(endpoints: Sequence[str], count: int, seconds: float, say: bytes = b"") -> Told:
    """Open `count` connections one after the other, hold them, and send `say` on each.

    b"": not a byte; a greeting: a handshake that never ends. A connection that ends is opened again.
    """
    told, held, end_s = Told(), list[socket.socket](), time.monotonic() + seconds
    targets = itertools.cycle(endpoints)
    while time.monotonic() < end_s:
        if len(held) < count:
            try:
                held.append(connect(next(targets)))
                told.opened += 1
                if say:
                    held[-1].sendall(say)
                    told.sent += 1
            except OSError:
                told.refused += 1
                time.sleep(0.002)  # as any client rests before it tries again
        else:
            time.sleep(0.05)
            gone = [one for one in held if _is_gone(one)]
            told.lost += len(gone)
            for one in gone:
                one.close()
            held = [one for one in held if one.fileno() >= 0]
    told.lost += sum(map(_is_gone, held))
    for one in held:
        one.close()
    return told


def flood_curve_handshakes(endpoints: Sequence[str], count: int, seconds: float) -> Told:
    """Begin CURVE handshakes with a HELLO that opens nothing, and never go on."""
    hello = frame(COMMAND, b"\x05HELLO\x01\x00" + bytes(72) + os.urandom(32) + os.urandom(8) + os.urandom(80))
    return flood_connections(endpoints, count, seconds, greeting(b"CURVE") + hello)


def flood_garbage(endpoints: Sequence[str], count: int, seconds: float) -> Told:
    """Connect and send what is no ZMTP."""
    return flood_connections(endpoints, count, seconds, b"GET / HTTP/1.1\r\n\r\n" * 20)


def flood_subscriptions(endpoints: Sequence[str], count: int, seconds: float) -> Told:
    """Subscribe to `count` topics on one connection after the other; a new one when it is cut."""
    told, end_s = Told(), time.monotonic() + seconds
    for endpoint, blocks in zip(itertools.cycle(endpoints), _topics(count), strict=False):
        try:
            with plain(endpoint, b"SUB") as one:
                told.opened += 1
                for block in blocks:
                    if time.monotonic() > end_s:
                        return told
                    one.sendall(block)
                    told.sent += BLOCK
                while time.monotonic() < end_s and not _is_gone(one):
                    time.sleep(0.05)
                told.lost += 1
        except OSError:
            told.lost += 1
            time.sleep(0.02)
        if time.monotonic() > end_s:
            return told
    return told


def hang_up_when_full(endpoints: Sequence[str], count: int, seconds: float) -> Told:
    """Publish until the daemon takes no more, with PINGs between, and hang up: what libzmq aborts at."""
    told, end_s = Told(), time.monotonic() + seconds
    message = frame(MORE, b"ran.ue") + frame(0, b"x" * 20)
    block = message * BLOCK + frame(COMMAND, b"\x04PING" + bytes(2))
    for endpoint in itertools.islice(itertools.cycle(endpoints), count):
        if time.monotonic() > end_s:
            break
        with contextlib.suppress(OSError), plain(endpoint, b"PUB") as one:
            told.opened += 1
            one.settimeout(0.3)
            while time.monotonic() < end_s and told.sent < told.opened * 2_000_000:
                one.sendall(block)
                told.sent += BLOCK
    return told


ATTACKS: Final[dict[str, Callable[[Sequence[str], int, float], Told]]] = {
    one.__name__: one
    for one in (flood_connections, flood_curve_handshakes, flood_garbage, flood_subscriptions, hang_up_when_full)
}


def _topics(count: int) -> Iterator[list[bytes]]:
    """Per connection the same topics, each its own, as frames."""
    blocks = [
        b"".join(frame(0, b"\x01decision/%07d" % n) for n in range(first, first + BLOCK))
        for first in range(0, count, BLOCK)
    ]
    return itertools.repeat(blocks)


def _read(source: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = source.recv(size - len(data))
        if not more:
            raise ConnectionResetError("closed")
        data += more
    return data


def _is_gone(one: socket.socket) -> bool:
    """Whether the other side has ended a connection; what it said is passed over."""
    one.settimeout(0.0)
    try:
        while data := one.recv(1 << 16):
            del data
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def main() -> None:
    """Run one attack."""
    name, endpoint, count, seconds = sys.argv[1:]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    told = ATTACKS[name](endpoint.split(","), int(count), float(seconds))
    sys.stdout.write(json.dumps(asdict(told)) + "\n")


if __name__ == "__main__":
    main()
