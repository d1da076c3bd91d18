"""Following a lease: which route the scheduler wants, until when it holds, and what to do past it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from cosched.api.client import leases
from cosched.api.messages import Lease
from cosched.errors import BadInput
from cosched.runtime.chain import Hop, Route
from cosched.runtime.move import MoveCosts

ASKING_S: Final = 0.05  # how long the decisions are waited for at a time

Clock = Callable[[], float]
Point = tuple[int, int, str]  # split layer, precision, node


class Decisions(Protocol):
    """Where published decisions come from: a subscription (telemetry.bus.Follower), or whoever shares one out."""

    def drain(self) -> Sequence[tuple[bytes, bytes]]:
        """Return (topic, payload) of what has arrived."""
        ...

    def wait(self, timeout_s: float) -> bool:
        """Wait for something; False after `timeout_s`."""
        ...


class Following:
    """The latest lease of one task, from its subscription. A lease counts from its receipt, on this clock."""

    def __init__(self, lease: Lease, follower: Decisions, clock: Clock = time.monotonic) -> None:
        self._follower, self._clock = follower, clock
        self._take(lease)

    def _take(self, lease: Lease) -> None:
        self.lease = lease
        self._until_s = self._clock() + 1e-3 * lease.valid_for_ms

    def look(self) -> Lease:
        """Take what has arrived; return the latest."""
        for lease in leases(self._follower.drain(), [self.lease.task]):
            self._take(lease)
        return self.lease

    @property
    def is_over(self) -> bool:
        """Whether the lease has ended, by the daemon's word or by its time."""
        return not self.lease.point or self._clock() > self._until_s

    def wait_for_other(self, point: Point, patience_s: float) -> bool:
        """Wait for a lease at another operating point; False: none came."""
        until_s = time.monotonic() + patience_s
        while not self.look().point or point_of(self.lease) == point:
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                return False
            self._follower.wait(min(left_s, ASKING_S))
        return True


def point_of(lease: Lease) -> Point:
    """What a route is made of."""
    return lease.split_layer, lease.precision_bits, lease.node


def route_of(point: Point, nodes: Mapping[str, Hop], n_layers: int) -> Route:
    """Return the route of an operating point. nodes: hops by node id; their `stop` is not read.

    Raises BadInput for a node whose endpoint nobody told.
    """
    split, bits, node = point
    if not node:
        return Route(n_layers)
    if node not in nodes:
        raise BadInput(f"node '{node}' of the lease has no endpoint; give --node {node}=tcp://HOST:PORT")
    return Route(split, (nodes[node]._replace(stop=n_layers),), bits or 16)


def hops_of(lease: Lease, nodes: Mapping[str, Hop]) -> Mapping[str, Hop]:
    """Hops by node id: those that are known here first, else where the lease says that its node serves."""
    if not lease.node_endpoint or lease.node in nodes:
        return nodes
    return {**nodes, lease.node: Hop(lease.node_endpoint, 0, lease.node_key)}


def costs_of(lease: Lease, device_layer_s: float, node_layer_s: float, down_bps: float, peer_bps: float) -> MoveCosts:
    """What moving costs by a lease: its uplink is the bandwidth granted at the efficiency that it was planned with."""
    up_bps = max(1.0, lease.bandwidth_hz * lease.efficiency_bps_hz)
    return MoveCosts(up_bps, down_bps, peer_bps, device_layer_s, node_layer_s)
