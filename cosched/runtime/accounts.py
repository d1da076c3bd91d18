"""Who asks a host, and what each has had of it: rates, what waits, what was refused and why.

An identity is the user that the authenticator names (CURVE), or a connection where there is none. Everything kept here
is bounded: the identities remembered, and the reasons, which are codes of ours. Time is handed in.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from cosched.runtime.errors import HostRefused
from cosched.runtime.limits import HostLimits

REMEMBERED: Final = 4_096  # identities; those with sessions or requests are kept beyond that, and bounded by theirs
NAMED: Final = 256  # in reports, those with the most refusals
OTHERS: Final = "others"  # counts of identities that are forgotten


class Who(NamedTuple):
    """An identity: by user, or by the route to its connection."""

    user: str
    route: bytes = b""


@dataclass(slots=True)
class Account:
    """One identity at this host."""

    who: Who
    label: str  # for people: the user, or a number in order of appearance; a connection's route is not told
    left: float  # of the bucket of requests
    at_s: float
    requests: int = 0  # that wait or are under way
    waiting_bytes: int = 0
    unread_bytes: int = 0
    refused: Counter[str] = field(default_factory=Counter)


class Accounts:
    """All identities. sessions: how many one has open."""

    def __init__(self, limits: HostLimits, sessions: Callable[[Who], int]) -> None:
        self._limits, self._sessions = limits, sessions
        self._known: OrderedDict[Who, Account] = OrderedDict()
        self._forgotten: Counter[str] = Counter()
        self._seen = 0
        self.waiting_bytes = 0
        self.unread_bytes = 0

    def __len__(self) -> int:
        return len(self._known)

    def of(self, who: Who, now_s: float) -> Account:
        """Return the account of an identity, a new one where it is not known (any more)."""
        found = self._known.get(who)
        if found is None:
            self._seen += 1
            label = who.user or f"connection {self._seen}"
            found = self._known[who] = Account(who, label, self._limits.requests_per_s, now_s)
            self._forget()
        else:
            self._known.move_to_end(who)
        return found

    def known(self, who: Who) -> Account | None:
        """Return the account of an identity that is known."""
        return self._known.get(who)

    def _forget(self) -> None:
        if len(self._known) <= REMEMBERED:
            return
        for who, account in self._known.items():  # the one that was silent for longest
            if not (account.requests or account.unread_bytes or self._sessions(who)):
                self._forgotten.update(account.refused)
                del self._known[who]
                return

    def may_ask(self, account: Account, now_s: float) -> bool:
        """Take one request from the bucket of an identity; False: it is empty."""
        rate = self._limits.requests_per_s
        account.left = min(max(1.0, rate), account.left + rate * max(0.0, now_s - account.at_s))
        account.at_s = now_s
        if account.left < 1.0:
            return False
        account.left -= 1.0
        return True

    def begin(self, account: Account, size: int) -> None:
        """Let a request of `size` bytes wait. Raises Refused("busy")."""
        limits = self._limits
        if account.requests >= limits.requests_each:
            raise HostRefused("busy", f"{account.requests} requests of this identity wait already")
        if account.waiting_bytes and account.waiting_bytes + size > limits.waiting_bytes_each:
            raise HostRefused("busy", f"{account.waiting_bytes} bytes of this identity wait already")
        if self.waiting_bytes and self.waiting_bytes + size > limits.waiting_bytes:
            raise HostRefused("busy", f"{self.waiting_bytes} bytes wait already")
        account.requests += 1
        account.waiting_bytes += size
        self.waiting_bytes += size

    def taken(self, account: Account, size: int) -> None:
        """Take note that a request's frames wait no more."""
        account.waiting_bytes -= size
        self.waiting_bytes -= size

    def ended(self, account: Account) -> None:
        """Take note that a request is answered."""
        account.requests -= 1

    def may_send(self, account: Account, size: int) -> None:
        """Raise Refused("busy") where answers of an identity are not read, and `size` bytes more would pile up."""
        limits = self._limits
        if account.unread_bytes and account.unread_bytes + size > limits.unread_bytes_each:
            raise HostRefused("busy", f"{account.unread_bytes} bytes of answers to this identity are not read yet")
        if self.unread_bytes and self.unread_bytes + size > limits.unread_bytes:
            raise HostRefused("busy", f"{self.unread_bytes} bytes of answers are not read yet")

    def unread(self, account: Account, size: int) -> None:
        """Take note that `size` bytes (negative: no longer) are on their way."""
        account.unread_bytes += size
        self.unread_bytes += size

    def refused(self) -> dict[str, dict[str, int]]:
        """Counts by identity and reason; those of few, or of who is forgotten, are `others`."""
        others = self._forgotten.copy()
        refusing = [a for a in tuple(self._known.values()) if a.refused]
        refusing.sort(key=lambda account: -account.refused.total())
        for account in refusing[NAMED:]:
            others.update(account.refused)
        found = {account.label: dict(account.refused) for account in refusing[:NAMED]}
        return found | ({OTHERS: dict(others)} if others else {})
