"""Where adapters' payloads come from: a WebSocket, a UDP port, a foreign ZeroMQ publisher, or lines on stdin.

Each source is an iterator of payloads that waits for the next one. A WebSocket or publisher that goes away is connected
to again.
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator
from typing import Final

from telemetry.bus import Foreign
from telemetry.errors import BadEndpoint

SUBSCRIBE: Final = '{"cmd": "metrics_subscribe"}'  # what srsRAN's WebSocket wants to hear first
DATAGRAM: Final = 65_536  # largest UDP payload
LARGEST: Final = 1 << 24  # of a WebSocket message: a period of a thousand UEs is 1 MB
AGAIN_S: Final = 1.0  # between two attempts to connect
LONG_S: Final = 3600.0


def payloads(url: str) -> Iterator[bytes]:
    """Yield payloads from `ws://`, `wss://`, `udp://HOST:PORT` (bound here), `ipc://` or `tcp://`, or `-` for stdin.

    Raises BadEndpoint at once for a URL that is none of these, or a UDP port that cannot be had.
    """
    if url == "-":
        return (line.strip() for line in sys.stdin.buffer if line.strip())
    scheme, _, rest = url.partition("://")
    if scheme in {"ws", "wss"} and rest:
        return _websocket(url)
    if scheme == "udp":
        return _datagrams(_udp_socket(url, rest))
    if scheme in {"ipc", "tcp"} and rest:
        return _published(Foreign(url))
    raise BadEndpoint(f"{url}: a source is ws://, wss://, udp://HOST:PORT, ipc://, tcp:// or - for stdin")


def _udp_socket(url: str, address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise BadEndpoint(f"{url}: give udp://HOST:PORT")
    host = host.strip("[]")
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    try:
        bound.bind((host, int(port)))
    except (OSError, OverflowError) as error:
        bound.close()
        raise BadEndpoint(f"{url}: {getattr(error, 'strerror', None) or error}") from None
    return bound


def _datagrams(bound: socket.socket) -> Iterator[bytes]:
    with bound:
        while True:
            yield bound.recv(DATAGRAM)


def _published(bus: Foreign) -> Iterator[bytes]:
    try:
        while True:
            if bus.wait(LONG_S):
                yield from bus.drain()
    finally:
        bus.close()


def _websocket(url: str) -> Iterator[bytes]:
    from websockets.exceptions import WebSocketException
    from websockets.sync.client import connect

    while True:
        try:
            with connect(url, max_size=LARGEST, compression=None) as peer:
                peer.send(SUBSCRIBE)
                for message in peer:
                    yield message.encode() if isinstance(message, str) else message
        except (OSError, WebSocketException):  # it is not there yet, or went away
            pass
        time.sleep(AGAIN_S)
