"""A host's connections to other hosts: a request goes out, what is to happen with its answer waits here."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from cosched.runtime.errors import BadFrame, Refused
from cosched.runtime.protocol import Answer, Body, Request, answer_of, frames_of
from telemetry.bus import Curve
from telemetry.calls import Caller

LOST: Final = "host_lost"
MOST: Final = 64  # other hosts connected to

Then = Callable[[Answer, list[bytes]], None]  # the answer and its tensors


@dataclass(slots=True)
class _Peer:
    caller: Caller
    waiting: dict[int, tuple[Then, float]] = field(default_factory=dict)  # request -> what then, and until when


class Peers:
    """Connections by endpoint, made when first needed. A peer that has gone answers all that waits with LOST.

    keys: this host's, for peers with a public key of their own.
    """

    def __init__(self, keys: Curve | None, max_bytes: int, patience_s: float) -> None:
        self._keys, self._max_bytes, self._patience_s = keys, max_bytes, patience_s
        self._peers: dict[str, _Peer] = {}
        self._numbers = itertools.count(1)

    @property
    def callers(self) -> list[Caller]:
        """Sockets to wait for."""
        return [peer.caller for peer in self._peers.values()]

    def ask(
        self, endpoint: str, server_key: str, body: Body, tensors: Sequence[bytes], then: Then, now_s: float
    ) -> None:
        """Send a request; `then` is called from `turn`. Raises BadEndpoint (malformed) and Refused (too many)."""
        peer = self._peers.get(endpoint)
        if peer is None:
            if len(self._peers) >= MOST:
                raise Refused("full", f"{MOST} other hosts are connected to: no more are")
            keys = Curve(self._keys.public, self._keys.secret, server_key) if self._keys and server_key else None
            peer = self._peers[endpoint] = _Peer(Caller(endpoint, keys, self._max_bytes))
        number = next(self._numbers)
        peer.waiting[number] = (then, now_s + self._patience_s)
        if not peer.caller.send(frames_of(Request(id=number, body=body), list(tensors))):
            self._drop(endpoint, "takes nothing any more")

    def turn(self, now_s: float) -> None:
        """Hand out the answers that have arrived, and the bad news."""
        for endpoint, peer in list(self._peers.items()):
            for frames in peer.caller.drain():
                self._handle(peer, frames)
            if peer.caller.lost():
                self._drop(endpoint, "cannot be reached (any more)")
            elif any(until_s < now_s for _, until_s in peer.waiting.values()):
                self._drop(endpoint, f"has been silent for {self._patience_s:g} s")

    def _handle(self, peer: _Peer, frames: list[bytes]) -> None:
        try:
            answer = answer_of(frames)
        except BadFrame:
            return  # its request runs out of patience
        then, _ = peer.waiting.pop(answer.id, (None, 0.0))
        if then is not None:
            then(answer, frames[1:])

    def _drop(self, endpoint: str, why: str) -> None:
        peer = self._peers.pop(endpoint)
        peer.caller.close()
        for number, (then, _) in peer.waiting.items():
            then(Answer(id=number, error=LOST, message=f"the host at {endpoint} {why}"), [])

    def close(self) -> None:
        """Close all connections."""
        for peer in self._peers.values():
            peer.caller.close()
        self._peers.clear()
