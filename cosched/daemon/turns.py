"""What peers have sent and is not worked on yet: a bounded queue for each peer, served in turns.

A peer pays for its work in seconds of processor time. Whoever has had more than its part lately comes after those who
have not, and after a piece of its work rests for some times as long: so one peer, whatever it sends, delays nobody by
more than a piece, and leaves most of the loop to others. (Deficit round robin: Shreedhar, Varghese 1996; the quantum is
time, for sizes do not tell what a message costs.)
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, Generic, TypeVar

from cosched.errors import hold

T = TypeVar("T")

PART: Final = 0.25  # of the loop's time that a peer may use before it comes after the others
BURST_S: Final = 0.02  # that it may use at once
DEEPEST_S: Final = 1.0  # no peer is held to have used more than this beyond its part
LOOKED_AT: Final = 32  # peers, for one that has not used up its part
REMEMBERED: Final = 4_096  # peers whose use is remembered; then those are forgotten that were silent longest


@dataclass(slots=True)
class _PeerQueue(Generic[T]):
    """One peer's queue, and what it may use (s) as of an instant."""

    at_s: float
    credit_s: float = BURST_S
    queue: deque[tuple[T, int]] = field(default_factory=deque)
    n_bytes: int = 0

    def refill(self, now_s: float) -> None:
        self.credit_s = min(BURST_S, self.credit_s + PART * max(0.0, now_s - self.at_s))
        self.at_s = now_s


class Turns(Generic[T]):
    """Queues of at most `most` items and `most_bytes` a peer, `all_bytes` in all; beyond, what comes is not taken.

    rest: who has used up his part rests so many times as long as he worked, and all who have so together; 0: none does.
    """

    def __init__(self, most: int, most_bytes: int, all_bytes: int, rest: float = 0.0) -> None:
        self._most, self._most_bytes, self._all_bytes = most, most_bytes, all_bytes
        self._rest, self._resting_until_s = rest, 0.0
        self._peers: OrderedDict[str, _PeerQueue[T]] = OrderedDict()  # least recently heard first
        self._waiting: OrderedDict[str, _PeerQueue[T]] = (
            OrderedDict()
        )  # with something in the queue, next in turn first
        self._held: set[str] = set()
        self._n = self._n_bytes = 0

    def __len__(self) -> int:
        return self._n

    @property
    def n_bytes(self) -> int:
        """Bytes that wait."""
        return self._n_bytes

    def put(self, name: str, item: T, n_bytes: int, now_s: float) -> bool:
        """Queue an item; False where its peer, or all together, have too much waiting already."""
        peer = self._peer(name, now_s)
        full = len(peer.queue) >= self._most or peer.n_bytes + n_bytes > self._most_bytes
        if peer.queue and (full or self._n_bytes + n_bytes > self._all_bytes):
            return False  # one item is always taken: a peer that has nothing waiting is never shut out by others
        peer.queue.append((item, n_bytes))
        self._count(peer, 1, n_bytes)
        if name not in self._held:
            self._waiting[name] = peer
        return True

    def put_back(self, name: str, item: T, n_bytes: int, now_s: float) -> None:
        """Queue what is left of an item that was taken, before the peer's others."""
        peer = self._peer(name, now_s)
        peer.queue.appendleft((item, n_bytes))
        self._count(peer, 1, n_bytes)
        self._waiting[name] = peer

    def take(self, now_s: float) -> tuple[str, T] | None:
        """Return the next item and whose it is; None where nothing waits, or who does rests (`pause_s`).

        Charge its peer with what it cost.
        """
        if not self._waiting:
            return None
        for _ in range(min(LOOKED_AT, len(self._waiting))):
            name, peer = next(iter(self._waiting.items()))
            if self._is_due(peer, now_s):
                break
            self._waiting.move_to_end(name)  # it has used up its part: the others first
        name, peer = next(iter(self._waiting.items()))
        if now_s < self._resting_until_s and not self._is_due(peer, now_s):
            return None
        item, n_bytes = peer.queue.popleft()
        self._count(peer, -1, -n_bytes)
        if peer.queue:
            self._waiting.move_to_end(name)
        else:
            del self._waiting[name]
        return name, item

    def hold(self, name: str) -> None:
        """Let nothing of this peer's be taken until `release`."""
        self._held.add(name)
        self._waiting.pop(name, None)

    def release(self, name: str) -> None:
        """Let this peer's items be taken again."""
        self._held.discard(name)
        if (peer := self._peers.get(name)) is not None and peer.queue:
            self._waiting[name] = peer

    def pause_s(self, now_s: float) -> float:
        """For how long nothing of what waits may be taken; 0: something may, or nothing waits."""
        return max(0.0, self._resting_until_s - now_s) if self._waiting and not self._next_due(now_s) else 0.0

    def _next_due(self, now_s: float) -> bool:
        return any(self._is_due(peer, now_s) for peer in islice(self._waiting.values(), LOOKED_AT))

    def charge(self, name: str, cost_s: float, now_s: float = 0.0) -> None:
        """Note what an item of a peer has cost, and when it was done."""
        peer = self._peer(name, now_s)
        peer.credit_s = max(peer.credit_s - cost_s, -DEEPEST_S)
        if peer.credit_s <= 0:
            self._resting_until_s = max(self._resting_until_s, now_s + self._rest * cost_s)

    def has_overdrawn(self, name: str, now_s: float) -> bool:
        """Whether the peer has used more than its part lately."""
        peer = self._peers.get(name)
        return peer is not None and not self._is_due(peer, now_s)

    def validate(self) -> None:
        """Hold the counts and the order of turns against the queues. Raises Broken."""
        for name, peer in self._peers.items():
            hold(peer.n_bytes == sum(n for _, n in peer.queue), "peer", name, "is counted", peer.n_bytes, "bytes")
            hold(-DEEPEST_S <= peer.credit_s <= BURST_S, "peer", name, "may use", peer.credit_s, "s")
        n = sum(len(peer.queue) for peer in self._peers.values())
        hold(self._n == n, "counted:", self._n, "items that wait, there are:", n)
        hold(self._n_bytes == sum(p.n_bytes for p in self._peers.values()), "counted:", self._n_bytes, "bytes in all")
        due = {name for name, peer in self._peers.items() if peer.queue and name not in self._held}
        hold(self._waiting.keys() == due, "whose turn it may be:", list(self._waiting), "who waits:", sorted(due))

    def _is_due(self, peer: _PeerQueue[T], now_s: float) -> bool:
        peer.refill(now_s)
        return peer.credit_s > 0

    def _count(self, peer: _PeerQueue[T], n: int, n_bytes: int) -> None:
        peer.n_bytes += n_bytes
        self._n_bytes += n_bytes
        self._n += n

    def _peer(self, name: str, now_s: float) -> _PeerQueue[T]:
        peer = self._peers.get(name)
        if peer is not None:
            self._peers.move_to_end(name)
            return peer
        peer = self._peers[name] = _PeerQueue(now_s)
        if len(self._peers) > REMEMBERED:
            oldest = next((n for n, p in self._peers.items() if not p.queue and n not in self._held), None)
            if oldest is not None:
                del self._peers[oldest]
        return peer
