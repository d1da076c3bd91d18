"""A host's connections to other hosts: a request goes out, what is to happen with its answer waits here.

Where they go is what a client asked for, so it is bounded: which endpoints, how many in all and for the sake of one
identity. What comes back may be of anybody and is decoded as such.
"""

from __future__ import annotations

import ipaddress
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Final

from cosched.runtime.accounts import Who
from cosched.runtime.errors import BadFrame, HostRefused
from cosched.runtime.limits import HostLimits
from cosched.runtime.protocol import Body, HostAnswer, HostRequest, answer_of, frames_of
from telemetry.bus import Curve
from telemetry.calls import Caller

LOST: Final = "host_lost"
TAKEN_IN: Final = 64  # answers of one host between two turns
STRAYS: Final = 100  # answers to what nobody asked, or that are none, before its connection is given up
_TCP: Final = re.compile(r"tcp://(\[?[0-9A-Fa-f.:]+\]?):([0-9]{1,5})")

Then = Callable[[HostAnswer, list[bytes]], None]  # the answer and its tensors


@dataclass(slots=True)
class _Peer:
    endpoint: str
    caller: Caller
    who: Who  # for whose sake it was connected to
    heard_s: float
    strays: int = 0
    waiting: dict[int, tuple[Then, float]] = field(default_factory=dict)  # request -> what then, and until when


class Peers:
    """Connections by endpoint and key, made when first needed. A peer that has gone answers all that waits with LOST.

    keys: this host's, for peers with a public key of their own.
    """

    def __init__(self, keys: Curve | None, max_bytes: int, patience_s: float, limits: HostLimits) -> None:
        self._keys, self._max_bytes, self._patience_s, self._limits = keys, max_bytes, patience_s, limits
        self._peers: dict[tuple[str, str], _Peer] = {}
        self._numbers = itertools.count(1)

    def __len__(self) -> int:
        return len(self._peers)

    @property
    def callers(self) -> list[Caller]:
        """Sockets to wait for."""
        return [peer.caller for peer in self._peers.values()]

    def ask(
        self, who: Who, endpoint: str, server_key: str, body: Body, tensors: Sequence[bytes], then: Then, now_s: float
    ) -> None:
        """Send a request on behalf of `who`; `then` is called from `turn`.

        Raises BadEndpoint (malformed) and Refused (too many, or an endpoint that is not to be reached).
        """
        place = endpoint, server_key
        peer = self._peers.get(place)
        if peer is None:
            check_endpoint(endpoint, self._limits.reach)
            self._make_room(who)
            keys = Curve(self._keys.public, self._keys.secret, server_key) if self._keys and server_key else None
            peer = self._peers[place] = _Peer(endpoint, Caller(endpoint, keys, self._max_bytes), who, now_s)
        number = next(self._numbers)
        if not peer.waiting:
            peer.heard_s = now_s  # nothing was due before
        peer.waiting[number] = (then, now_s + self._patience_s)
        if not peer.caller.send(frames_of(HostRequest(id=number, body=body), list(tensors))):
            self._drop(place, "takes nothing any more")

    def _make_room(self, who: Who) -> None:
        """Let idle connections go where there are too many. Raises Refused("full"): none is idle."""
        own = [place for place, peer in self._peers.items() if peer.who == who]
        for places, most in ((own, self._limits.hosts_each), (list(self._peers), self._limits.hosts)):
            if len(places) < most:
                continue
            idle = next((place for place in places if not self._peers[place].waiting), None)
            if idle is None:
                raise HostRefused("full", f"{len(places)} other hosts are connected to: no more are")
            self._peers.pop(idle).caller.close()

    def turn(self, now_s: float) -> None:
        """Hand out the answers that have arrived, and the bad news."""
        for place, peer in list(self._peers.items()):
            for frames in peer.caller.drain(TAKEN_IN):
                peer.heard_s = now_s
                self._handle(peer, frames)
            if peer.strays > STRAYS:
                self._drop(place, "answers what nobody asked")
                continue
            if peer.caller.lost():
                self._drop(place, "cannot be reached (any more)")
                continue
            late = [number for number, (_, until_s) in peer.waiting.items() if until_s < now_s]
            if late and peer.heard_s + self._patience_s < now_s:
                self._drop(place, f"has been silent for {self._patience_s:g} s")
                continue
            for number in late:  # the others are answered
                self._tell(peer, number, f"did not answer within {self._patience_s:g} s")

    def _handle(self, peer: _Peer, frames: list[bytes]) -> None:
        try:
            answer = answer_of(frames)
        except BadFrame:  # its request runs out of patience
            peer.strays += 1
            return
        then, _ = peer.waiting.pop(answer.id, (None, 0.0))
        if then is None:
            peer.strays += 1
        else:
            then(answer, frames[1:])

    def _drop(self, place: tuple[str, str], why: str) -> None:
        peer = self._peers.pop(place)
        peer.caller.close()
        for number in list(peer.waiting):
            self._tell(peer, number, why)

    def _tell(self, peer: _Peer, number: int, why: str) -> None:
        then, _ = peer.waiting.pop(number)
        then(HostAnswer(id=number, error=LOST, message=f"the host at {peer.endpoint} {why}"), [])

    def close(self) -> None:
        """Close all connections."""
        for peer in self._peers.values():
            peer.caller.close()
        self._peers.clear()


def check_endpoint(endpoint: str, reach: str) -> None:
    """Raise Refused for an endpoint that a client must not make a host connect to.

    tcp with an address in numbers alone: what is local to this host (ipc, inproc) is not a client's to talk to, and a
    name would have to be looked up, for which all of ZeroMQ's traffic waits.
    """
    found = _TCP.fullmatch(endpoint)
    try:
        if found is None or not 0 < int(found[2]) < 1 << 16:
            raise ValueError  # noqa: TRY301  # the same end as below
        ipaddress.ip_address(found[1].strip("[]"))
    except ValueError:
        raise HostRefused("bad_route", f"'{endpoint}': another host is tcp://ADDRESS:PORT, in numbers") from None
    if not fnmatchcase(endpoint, reach):
        raise HostRefused("bad_route", f"'{endpoint}': this host reaches others at '{reach}' alone")
