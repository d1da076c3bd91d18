"""A host's sessions: each belongs to the identity that opened it, and is found by nobody else.

Names are apart by owner. Whoever is to run steps of a session or to fetch its KV cache on the owner's behalf (the host
before it on a route, the host that a generation moves to) shows the session's grant, a secret that its owner made up
and handed to that host.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from cosched.runtime.accounts import Who
from cosched.runtime.errors import HostRefused
from cosched.runtime.kv import KvCache, paged
from cosched.runtime.parts import Part
from cosched.runtime.protocol import Onward, Step
from cosched.runtime.sampling import Sampling


@dataclass(slots=True, eq=False)
class HostSession:
    """One generation's part at this host."""

    owner: Who
    name: str
    task: str
    grant: str  # "": nobody but its owner
    part: Part
    start: int
    stop: int
    onward: Onward | None
    sampling: Sampling
    has_weight: bool = False  # whether it goes by its task's weight
    cache: KvCache = field(default_factory=KvCache)
    length: int = 0  # tokens in the cache
    used_s: float = 0.0  # when it was last used
    flow: tuple[Who, str] | None = None  # that its requests waited in the last time
    coming: int = 0  # tokens that a step under way brings
    waits: int = 0  # requests of it that wait, or are under way
    due_s: float = -math.inf  # when its latest token was due, where it is promised a pace
    decoded_s: float = -math.inf  # when it was last in a step with one token
    answered_s: float = -math.inf  # ... and that was answered
    away_s: float = math.inf  # from an answer to its next step, on average
    is_open: bool = True

    @property
    def kv_bytes(self) -> int:
        """Bytes of its cache, in whole pages, with what a step under way needs."""
        return paged(self.length + self.coming) * self.bytes_per_token

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one more token adds."""
        return (self.stop - self.start) * self.part.kv_layout.bytes_per_token


@dataclass(slots=True, eq=False)
class StepUnderWay:
    """A step that is taken in. hidden: (1, tokens, hidden) into the session's first layer, `done` tokens of it run."""

    session: HostSession
    asked: Step
    hidden: torch.Tensor
    done: int = 0
    out: list[torch.Tensor] = field(default_factory=list)  # (n, hidden) of each piece; its last row where none go on
    seconds: float = 0.0

    def back(self) -> None:
        """Cut the cache back to what it was before the piece that went wrong."""
        self.session.cache.truncate(self.session.length + self.done)

    def give_up(self) -> None:
        """It is not finished: its session is as it was before."""
        self.session.cache.truncate(self.session.length)
        self.session.coming = 0

    def closed(self) -> HostRefused:
        """Why it ends where its session is open no more."""
        return HostRefused("unknown_session", f"session '{self.session.name}' was closed while its step was under way")


class Sessions:
    """Sessions by owner and name. `lock`: for whoever looks at all of them from another thread."""

    def __init__(self) -> None:
        self._open: dict[tuple[Who, str], HostSession] = {}
        self._granted: dict[str, HostSession] = {}
        self.lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[HostSession]:
        return iter(list(self._open.values()))

    def find(self, who: Who, name: str, grant: str = "") -> HostSession | None:
        """Return a session that `who` may use: its own, or one whose grant it shows."""
        found = self._open.get((who, name))
        if found is None and grant:
            found = self._granted.get(grant)
            return found if found is not None and found.name == name else None
        return found

    def the(self, who: Who, name: str, grant: str = "") -> HostSession:
        """Return it, as `find`. Raises Refused("unknown_session"): for another's as for one that is not there."""
        found = self.find(who, name, grant)
        if found is None:
            raise HostRefused("unknown_session", f"session '{name}' is not open here for you")
        return found

    def add(self, session: HostSession) -> None:
        """Take one in. Raises Refused("conflict"): its owner has one of that name, or the grant is in use."""
        if (session.owner, session.name) in self._open:
            raise HostRefused("conflict", f"session '{session.name}' is open already")
        if session.grant and session.grant in self._granted:
            raise HostRefused("conflict", f"session '{session.name}': its grant is in use")
        with self.lock:
            session.has_weight = not any(
                s.has_weight for s in self if s.task == session.task and s.owner != session.owner
            )
            self._open[session.owner, session.name] = session
        if session.grant:
            self._granted[session.grant] = session

    def remove(self, session: HostSession) -> None:
        """Let one go."""
        with self.lock:
            self._open.pop((session.owner, session.name), None)
        session.is_open = False
        if session.grant:
            self._granted.pop(session.grant, None)

    def count(self, who: Who) -> int:
        """Sessions of one identity."""
        return sum(owner == who for owner, _ in self._open)

    def kv_bytes(self, who: Who) -> tuple[int, int]:
        """Bytes of all caches, and of those of one identity."""
        all_bytes = own = 0
        for session in self._open.values():
            size = session.kv_bytes
            all_bytes += size
            own += size if session.owner == who else 0
        return all_bytes, own

    def places(self, who: Who) -> list[HostSession]:
        """Sessions that make room for one more of `who`: of those with two more than it has, least used first."""
        counts = Counter(owner for owner, _ in self._open)
        found = [s for s in self._open.values() if counts[s.owner] >= counts[who] + 2]
        return sorted(found, key=lambda s: s.used_s)[:1]

    def rooms(self, who: Who, more_bytes: int, lacking_bytes: int) -> list[HostSession]:
        """Sessions that make room for `more_bytes` of KV of `who`: of those who have more than that makes it have.

        Least used first, as many as have `lacking_bytes` together; none where they do not reach.
        """
        held: Counter[Who] = Counter()
        for session in self._open.values():
            held[session.owner] += session.kv_bytes
        own, found, freed = held[who] + more_bytes, list[HostSession](), 0
        for session in sorted(self._open.values(), key=lambda s: s.used_s):
            if freed >= lacking_bytes:
                break
            if session.owner != who and session.kv_bytes and held[session.owner] > own:
                found.append(session)
                freed += session.kv_bytes
                held[session.owner] -= session.kv_bytes
        return found if freed >= lacking_bytes else []

    def lengths(self, who: Who | None = None) -> dict[str, int]:
        """Tokens in the caches by name, of all (None) or of one identity."""
        found: dict[str, int] = {}
        for session in self:
            if who is None or session.owner == who:
                name = session.name if session.name not in found else f"{session.name} ({len(found)})"
                found[name] = session.length
        return found
