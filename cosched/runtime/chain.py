"""The route of a generation: which layers run where, and the sessions that it has at hosts.

The UE talks to every host of the route; the data of a step pass from host to host, and the token comes back the same
way.
"""

from __future__ import annotations

import contextlib
import itertools
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from cosched.runtime.errors import BadModel, HostLost, HostRefused, Interrupted
from cosched.runtime.link import PATIENCE_S, Link
from cosched.runtime.model import ModelSource
from cosched.runtime.protocol import Close, HostAnswer, Onward, Open, Step
from cosched.runtime.sampling import Sampling
from telemetry.bus import Curve

CLOSING_MS: Final = 200  # for the last message to a host to go out
GRANT_BYTES: Final = 16  # of randomness


class Hop(NamedTuple):
    """A host that runs layers up to `stop`. `server_key`: its CURVE public key, "" on a plain connection."""

    endpoint: str
    stop: int
    server_key: str = ""


@dataclass(frozen=True, slots=True)
class Route:
    """Layers [0, split) on the device, then those of each hop; activations in `precision_bits`."""

    split: int
    hops: tuple[Hop, ...] = ()
    precision_bits: int = 16

    def check(self, n_layers: int) -> None:
        """Raise BadModel where the route does not run every layer once, in order."""
        stops = [self.split, *(hop.stop for hop in self.hops)]
        rising = all(a < b for a, b in itertools.pairwise(stops))
        if self.split < 0 or not rising or stops[-1] != n_layers:
            raise BadModel(f"a route over layers {stops} does not end with the last of {n_layers} layers")


Connect = Callable[[str, Curve | None, float], Link]


class Links:
    """Connections by endpoint; one that was lost is made anew when asked for. keys: this device's."""

    def __init__(self, keys: Curve | None = None, patience_s: float = PATIENCE_S, connect: Connect = Link) -> None:
        self._keys, self._patience_s, self._connect = keys, patience_s, connect
        self._links: dict[str, Link] = {}

    def to(self, hop: Hop) -> Link:
        """Return the connection to a hop's host. Raises BadEndpoint, and HostLost where it asks for keys in vain."""
        if hop.server_key and self._keys is None:
            raise HostLost(f"the host at {hop.endpoint} lets in known keys alone, and this device has none (--key)")
        link = self._links.get(hop.endpoint)
        if link is None or link.is_lost:
            if link is not None:
                link.close()
            keys = (
                Curve(self._keys.public, self._keys.secret, hop.server_key) if self._keys and hop.server_key else None
            )
            link = self._links[hop.endpoint] = self._connect(hop.endpoint, keys, self._patience_s)
        return link

    def close(self) -> None:
        """Close all; what was sent last still goes out."""
        for link in self._links.values():
            link.close(CLOSING_MS)
        self._links.clear()


class Leg(NamedTuple):
    """Layers [start, stop) of a route, at one host."""

    hop: Hop
    link: Link
    session: str
    start: int
    stop: int
    grant: str  # what lets the host before it run its steps, and the one that comes after it fetch its KV cache


class Chain:
    """Open sessions along a route that has hops. Opens them last host first. Raises Refused, HostLost, BadEndpoint."""

    def __init__(
        self, source: ModelSource, route: Route, links: Links, *, task: str, name: str, sampling: Sampling
    ) -> None:
        self.legs = list(_legs(route, links, name))
        self._posted: list[int] = []
        opened: list[Leg] = []
        onward: Onward | None = None
        try:
            for leg in reversed(self.legs):
                asked = Open(
                    session=leg.session, task=task, model=source.name, fingerprint=source.fingerprint,
                    start=leg.start, stop=leg.stop, grant=leg.grant, onward=onward, sampling=sampling,
                )  # fmt: skip
                opened.append(leg)  # before it is: whoever waits no longer for the answer closes it all the same
                leg.link.ask(asked)
                onward = Onward(
                    endpoint=leg.hop.endpoint, session=leg.session, precision_bits=route.precision_bits,
                    server_key=leg.hop.server_key, grant=leg.grant,
                )  # fmt: skip
        except (HostRefused, HostLost, Interrupted):
            _close(opened)
            raise

    def step(self, position: int, tokens: int, frame: bytes, *, choose: bool, logits: bool = False) -> None:
        """Send a step off and go on. Raises HostLost."""
        first = self.legs[0]
        body = Step(session=first.session, position=position, tokens=tokens, choose=choose, logits=logits)
        self._posted.append(first.link.post(body, [frame]))

    def finish(self) -> tuple[HostAnswer, list[bytes], float]:
        """Wait for all steps sent; return the last one's answer, its frames, and the hosts' seconds of all.

        Raises Refused (of the first that went wrong) and HostLost.
        """
        posted, self._posted = self._posted, []
        node_s = 0.0
        for number in posted:
            answer, frames = self.legs[0].link.wait(number)
            node_s += answer.node_s
        return answer, frames, node_s

    def close(self) -> None:
        """End the sessions, without waiting."""
        _close(self.legs)


def _legs(route: Route, links: Links, name: str) -> Iterator[Leg]:
    start = route.split
    for i, hop in enumerate(route.hops):
        yield Leg(hop, links.to(hop), f"{name}.{i}", start, hop.stop, secrets.token_hex(GRANT_BYTES))
        start = hop.stop


def _close(legs: Sequence[Leg]) -> None:
    for leg in legs:
        with contextlib.suppress(HostLost):
            leg.link.post(Close(session=leg.session))
