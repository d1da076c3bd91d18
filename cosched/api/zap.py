"""ZeroMQ's authentication (ZAP, RFC 27) for the daemon's CURVE sockets, and making CURVE keys.

libzmq asks at each handshake, over an inproc REQ/REP in the same context, before the peer can send a byte. The answer
names the identity (User-Id), which then comes with every message of that connection. The socket must be bound before
any CURVE socket is, and drained by the event loop: a handshake waits for its answer.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Final

import zmq
from zmq.utils import z85

from cosched.api.access import Access
from cosched.api.keys import KeyPair, check_name, folder, read_allowed, read_pair
from cosched.errors import BadInput
from telemetry.bus import Bus, Curve

ENDPOINT: Final = "inproc://zeromq.zap.01"
_VERSION: Final = b"1.0"
_OK: Final = b"200"
_LATER: Final = b"300"  # temporary: the peer may try again
_REFUSED: Final = b"400"
_REQUEST_FRAMES: Final = 7  # version, request id, domain, address, identity, mechanism, the key


def new_pair(name: str) -> KeyPair:
    """Make a key pair from the system's randomness. Raises BadInput for a name that is none."""
    public, secret = zmq.curve_keypair()
    while public.startswith(b"-"):  # one in 85: a shell command would take it for an option
        public, secret = zmq.curve_keypair()
    return KeyPair(name=check_name(name), public=public.decode(), secret=secret.decode())


def guarded(key: str, allowed: Path) -> tuple[Curve, Authenticator]:
    """Return the keys of a server, and who answers its handshakes by the list `allowed`.

    key: a file, or a name in the keys folder. Raises BadInput.
    """
    pair = read_pair(Path(key) if key.endswith(".key") else folder() / f"{key}.key")
    if not allowed.is_file():  # an empty list would let nobody in
        raise BadInput(f"{allowed}: no such list of who may connect; 'cosched keys allow' writes it")
    return Curve(pair.public, pair.secret), Authenticator(Access(read_allowed(allowed)))


class Authenticator(Bus):
    """Answers handshakes by `access`, which a reload may replace. `refused` counts reasons, `let_in` identities."""

    def __init__(self, access: Access) -> None:
        super().__init__(zmq.ROUTER, None)
        self.access = access
        self.refused: Counter[str] = Counter()
        self.let_in: Counter[str] = Counter()
        self.socket.bind(ENDPOINT)

    def close(self, linger_ms: int = 0) -> None:
        """Close; the name is free at once, for the next authenticator in this process."""
        self.socket.unbind(ENDPOINT)
        super().close(linger_ms)

    def drain(self) -> bool:
        """Answer every handshake that waits; False, for there are no more (telemetry.bus.Pump)."""
        while (frames := self._take()) is not None:
            route = frames[: frames.index(b"") + 1] if b"" in frames else frames[:1]
            self.socket.send_multipart([*route, *self._answer(frames[len(route) :])])
        return False

    def _answer(self, request: list[bytes]) -> list[bytes]:
        number = request[1] if len(request) > 1 else b""
        user, reason = "", "not CURVE"
        if len(request) == _REQUEST_FRAMES and request[0] == _VERSION and request[5] == b"CURVE":
            public = z85.encode(request[6]).decode()
            user, reason = self.access.connect(public, request[2].decode("ascii", "replace"), time.monotonic())
        if reason:
            self.refused[reason] += 1
            status = _LATER if reason == "too many connections" else _REFUSED
            return [_VERSION, number, status, reason.encode(), b"", b""]
        self.let_in[user] += 1
        return [_VERSION, number, _OK, b"", user.encode(), b""]
