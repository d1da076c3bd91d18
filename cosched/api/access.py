"""Who may do what: identities by CURVE public key, their roles, what a publisher may speak for, and limits of each.

Pure: no socket, no clock. `cosched/api/keys.py` reads and writes it, `cosched/api/zap.py` asks it at each handshake,
the daemon for each message. On a plain connection (ipc, guarded by its file mode, or loopback tcp) there is no
identity, and everything is allowed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Final, Literal

import msgspec

from telemetry.messages import (
    CellReport,
    LinkReport,
    Message,
    NodeReport,
    TaskProgress,
    TaskTiming,
    UeReport,
    UeReportBatch,
)

VIEWER: Final = "viewer"
PUBLISHER: Final = "publisher"
CLIENT: Final = "client"
OPERATOR: Final = "operator"
Role = Literal["viewer", "publisher", "client", "operator"]
SCOPED: Final = frozenset({PUBLISHER, CLIENT})  # speak and act only for what their patterns allow

# What each role includes. A publisher cannot look; a client submits and releases tasks of its own and reports on them;
# whoever operates does not publish under the same key.
INCLUDES: Final[dict[str, frozenset[str]]] = {
    VIEWER: frozenset({VIEWER}),
    PUBLISHER: frozenset({PUBLISHER}),
    CLIENT: frozenset({CLIENT, VIEWER}),
    OPERATOR: frozenset({OPERATOR, CLIENT, VIEWER}),
}
# Who may connect to which socket; the name is its ZAP domain (RFC 27).
DOMAINS: Final[dict[str, frozenset[str]]] = {
    "telemetry": SCOPED,
    "control": frozenset({VIEWER, CLIENT, OPERATOR}),
    "decisions": frozenset({VIEWER, CLIENT, OPERATOR}),
    "runtime": frozenset({PUBLISHER, CLIENT, OPERATOR}),  # a host of cosched.runtime: UEs and other hosts
}

_SPEAKS_FOR: Final = {
    CellReport: "cell",
    NodeReport: "node",
    LinkReport: "link",
    TaskProgress: "task",
    TaskTiming: "task",
}

KNOWN_SUBJECTS: Final = 100_000  # per identity, remembered as allowed: then the patterns are matched anew


class IdentityLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one identity may send; a burst of one second's worth is let through."""

    messages_per_s: float = 20_000.0  # 1000 UEs reporting one by one every 100 ms are 10 000
    bytes_per_message: int = 1 << 20  # a columnar batch of 10 000 UEs is 300 kB
    bytes_per_s: float = 16e6  # of those, one every 100 ms are 3 MB/s
    connections_per_min: float = 60.0  # new ones: a client that reconnects in a loop is held off
    tasks: int = 2_000  # accepted at a time
    share: float = 1.0  # part of a cell or node that its tasks may be planned with; 1: all of it


class Identity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One public key that is let in. The five lists are of shell patterns (`ue-*`), for publishers and clients."""

    name: str
    public: str  # Z85, 40 characters
    role: Role
    ues: tuple[str, ...] = ()
    cells: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    limits: IdentityLimits = IdentityLimits()


class Allowed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole list, as it is kept in `allowed.toml`."""

    v: int = 1
    allow: tuple[Identity, ...] = ()


@dataclass(slots=True)
class _Bucket:
    """Token bucket: `rate_hz` on average, at most `burst` at once."""

    rate_hz: float
    burst: float
    tokens: float
    at_s: float

    def take(self, now_s: float, cost: float = 1.0) -> bool:
        self.tokens = min(self.burst, self.tokens + self.rate_hz * max(0.0, now_s - self.at_s))
        self.at_s = now_s
        if self.tokens < cost:
            return False
        self.tokens -= cost
        return True


@dataclass(slots=True)
class _State:
    """What is kept of one identity between messages."""

    identity: Identity
    messages: _Bucket
    n_bytes: _Bucket
    connections: _Bucket
    known: set[tuple[str, str]] = field(default_factory=set)  # (kind, subject) found allowed


class Access:
    """Answers for one list of identities; a reload makes a new one. Reasons are fixed sentences, "" is yes."""

    def __init__(self, identities: Iterable[Identity], now_s: float = 0.0) -> None:
        self._states = {i.name: _state(i, now_s) for i in identities}
        self._by_key = {state.identity.public: state for state in self._states.values()}

    @property
    def holders(self) -> frozenset[tuple[str, str, str]]:
        """(key, name, role) of everybody who is let in."""
        return frozenset((s.identity.public, s.identity.name, s.identity.role) for s in self._states.values())

    def connect(self, public: str, domain: str, now_s: float) -> tuple[str, str]:
        """Answer a handshake on the socket `domain`: (name, "") or ("", reason)."""
        state = self._by_key.get(public)
        if state is None:
            return "", "unknown key"
        if state.identity.role not in DOMAINS.get(domain, frozenset()):
            return "", "role may not use this socket"
        if not state.connections.take(now_s):
            return "", "too many connections"
        return state.identity.name, ""

    def receive(self, user: str, size: int, now_s: float) -> str:
        """Whether a message of `size` bytes from `user` is within his limits."""
        if not user:
            return ""
        state = self._states.get(user)
        if state is None:
            return "not allowed any more"
        if size > state.identity.limits.bytes_per_message:
            return "too large"
        if not state.messages.take(now_s):
            return "too many messages"
        return "" if state.n_bytes.take(now_s, size) else "too many bytes"

    def limits(self, user: str) -> IdentityLimits:
        """Return the limits of an identity; of one that is not there, the usual ones."""
        state = self._states.get(user)
        return IdentityLimits() if state is None else state.identity.limits

    def call(self, user: str, role: str) -> str:
        """Whether `user` may call a verb that needs `role`."""
        if not user:
            return ""
        state = self._states.get(user)
        if state is None:
            return "not allowed any more"
        held = state.identity.role
        return "" if role in INCLUDES[held] else f"needs the role {role}, this key has {held}"

    def act(self, user: str, about: Iterable[tuple[str, str]]) -> str:
        """Whether `user`, whose role is enough, may do it to these: ("task", id), ("UE", id)."""
        state = self._states.get(user)
        if state is None or state.identity.role not in SCOPED:
            return ""
        return _speak_for(state, about, "act")

    def may_run(self, user: str, task: str) -> str:
        """Whether `user` may run a task at a host of cosched.runtime; who has no patterns of tasks may run any."""
        if not user:
            return ""
        state = self._states.get(user)
        if state is None:
            return "not allowed any more"
        if state.identity.role not in SCOPED or not state.identity.tasks:
            return ""
        return _speak_for(state, [("task", task)], "run")

    def publish(self, user: str, message: Message) -> str:
        """Whether `user` may speak for everything that a telemetry message is about."""
        if not user:
            return ""
        state = self._states.get(user)
        if state is None:
            return "not allowed any more"
        if state.identity.role not in SCOPED:
            return "this key may not publish"
        return _speak_for(state, _subjects(message), "speak")


def _state(identity: Identity, now_s: float) -> _State:
    limits = identity.limits
    connections_hz = limits.connections_per_min / 60
    messages = _Bucket(limits.messages_per_s, limits.messages_per_s, limits.messages_per_s, now_s)
    burst = max(limits.bytes_per_s, float(limits.bytes_per_message))  # or its largest message would never pass
    n_bytes = _Bucket(limits.bytes_per_s, burst, burst, now_s)
    connections = _Bucket(connections_hz, limits.connections_per_min, limits.connections_per_min, now_s)
    return _State(identity, messages, n_bytes, connections)


def _subjects(message: Message) -> list[tuple[str, str]]:
    """What a message is about; a kind that nobody may publish is about nothing that can be allowed."""
    if isinstance(message, UeReport):
        return [("UE", message.ue), ("cell", message.cell)]
    if isinstance(message, UeReportBatch):
        return [*(("UE", ue) for ue in message.ue), *(("cell", cell) for cell in set(message.cell))]
    for kind, what in _SPEAKS_FOR.items():
        if isinstance(message, kind):
            return [(what, getattr(message, what))]
    return [("kind of message", type(message).__name__)]


def _speak_for(state: _State, subjects: Iterable[tuple[str, str]], verb: str) -> str:
    """Why not, "" when every subject is allowed."""
    for subject in subjects:
        if subject not in state.known and not _allow(state, subject):
            return f"may not {verb} for this {subject[0]}"
    return ""


def _allow(state: _State, subject: tuple[str, str]) -> bool:
    identity, (kind, name) = state.identity, subject
    patterns = {
        "UE": identity.ues,
        "cell": identity.cells,
        "node": identity.nodes,
        "link": identity.links,
        "task": identity.tasks,
    }
    if not any(fnmatchcase(name, pattern) for pattern in patterns.get(kind, ())):
        return False
    if len(state.known) < KNOWN_SUBJECTS:
        state.known.add(subject)
    return True
