"""Which waiting requests go into a host's next step, and whether it waits a moment for who will be there at once.

A step is for sessions of one model, `batch` of them at most. First comes whose turn it is (fair.py): nobody is kept out
for good. Then decoders whose promised token is due, those with priority first, of these the least slack; then all
others in turn, for as long as the step stays within the length that is planned for it. A prefill goes in pieces, as
many as the step has room for while others decode, one at least when it is its turn; by itself it runs whole.

Clients send each token when they have the one before, so those of one step come back within a moment of each other. Who
was back soon the last times is waited for, GATHER of a step at most: a step that begins with the first alone would make
all the others wait for a second read of the weights. Time is handed in.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final, NamedTuple

from cosched.runtime.accounts import Account, Who
from cosched.runtime.engine import ModelEngine, StepUnderWay
from cosched.runtime.fair import FairTurns
from cosched.runtime.parts import Part
from cosched.runtime.promises import StepLengths
from cosched.runtime.protocol import Body, Step
from cosched.runtime.sessions import HostSession

PIECE_TOKENS: Final = 16
LATELY_S: Final = 1.0  # who has decoded within is taken to go on
GATHER: Final = 0.15  # of a step's length
AWAY_NEW: Final = 0.3  # of how long a session was away, the latest time's part in its average
SOON: Final = 2.0  # steps; what is due within cannot wait for the step after the next


@dataclass(slots=True, eq=False)
class WaitingRequest:
    """A request that waits for its turn. `payer`: whose turn it is, the owner of the session that it is about."""

    route: bytes
    number: int
    who: Who
    body: Body
    frames: list[bytes]
    payer: Account
    size: int
    session: HostSession | None = None  # of a step
    about: HostSession | None = None  # of any request
    name: str = ""  # of the session, "" = about none
    flow: Hashable = None
    due_s: float = float("inf")  # where its session is promised a pace
    priority: int = 0
    run: StepUnderWay | None = None

    @property
    def is_decode(self) -> bool:
        """Whether it is a step of one token."""
        return isinstance(self.body, Step) and self.body.tokens == 1


class Piece(NamedTuple):
    """Some tokens of a step, or a whole request of another kind."""

    item: WaitingRequest
    tokens: int
    is_last: bool


@dataclass(slots=True)
class _Chosen:
    """A step that is being put together. work: rows, each by the part of all layers that it goes through."""

    part: Part
    tokens: dict[WaitingRequest, int]
    sessions: set[HostSession]
    work: float = 0.0
    prefill: int = 0

    def add(self, piece: Piece, work: float) -> None:
        self.tokens[piece.item] = self.tokens.get(piece.item, 0) + piece.tokens
        if piece.item.session is not None:
            self.sessions.add(piece.item.session)
        self.work += work
        self.prefill += 0 if piece.item.is_decode else piece.tokens


class StepAssembly:
    """Requests that wait, and the steps that are made of them."""

    def __init__(self, engine: ModelEngine) -> None:
        self._engine = engine
        self._queue: FairTurns[Piece] = FairTurns()
        self._lengths: dict[int, StepLengths] = {}  # by id of the part
        self._last: list[HostSession] = []  # in the last step
        self._step_s = 0.0  # of late
        self._other = False  # the last turn was of no step
        self._n = 0

    def __len__(self) -> int:
        """Requests that wait."""
        return self._n

    def waiting(self, flow: Hashable, name: str) -> int:
        """Whether requests of a session, or about none, wait in a flow: their pieces."""
        return self._queue.waiting(flow, name)

    def push(self, item: WaitingRequest, cost: float, weight: float, now_s: float) -> None:
        """Let a request wait in its flow. cost: millions of operations."""
        total, size = 1, 1
        if isinstance(item.body, Step) and item.session is not None:
            total = item.body.tokens
            size = PIECE_TOKENS if self._engine.limits.batch > 1 else total
            self._time(item, item.session, now_s)
        for at in range(0, total, size):
            tokens = min(size, total - at)
            piece = Piece(item, tokens, at + tokens == total)
            self._queue.push(item.flow, item.name, piece, cost * tokens / total, weight)
        self._n += 1

    def _time(self, item: WaitingRequest, session: HostSession, now_s: float) -> None:
        """Say when a step is due, and take note of how long its session was away."""
        away_s = now_s - session.answered_s
        if session.answered_s > float("-inf"):
            before = session.away_s
            session.away_s = away_s if before == float("inf") else before + AWAY_NEW * (away_s - before)
        promise = self._engine.promise(session)
        if promise is not None and item.is_decode:
            session.due_s = item.due_s = max(session.due_s + promise.pace_s, now_s)
            item.priority = promise.priority

    def wait_s(self, now_s: float) -> float:
        """Seconds that the next step waits for those who will be there at once; 0: it may begin."""
        patience_s = GATHER * self._step_s
        if self._engine.limits.batch <= 1 or not self._last:
            return 0.0
        until_s = now_s
        for session in self._last:
            if session.is_open and not session.waits and session.away_s <= patience_s:
                until_s = max(until_s, session.answered_s + min(2 * session.away_s, patience_s))
        return until_s - now_s

    def next(self, now_s: float) -> list[tuple[WaitingRequest, int]]:
        """Take out the next step: requests, and how many of each one's tokens. Something must wait."""
        first = self._first()
        item = first.item
        self._other = item.session is None
        if item.session is None or self._engine.limits.batch <= 1:
            self._last = [] if item.session is None else [item.session]
            return [(item, first.tokens)]
        chosen = _Chosen(item.session.part, {}, set())
        chosen.add(first, _work(first))
        self._add_due(chosen, now_s)
        is_alone = self._is_alone(item.session, now_s)
        while (piece := self._queue.pop_if(lambda held: self._fits(held, chosen, is_alone=is_alone))) is not None:
            chosen.add(self._took(piece), _work(piece))
        for item in chosen.tokens:
            if item.session is not None and item.is_decode:
                item.session.decoded_s = now_s
        self._last = list(chosen.sessions)
        return list(chosen.tokens.items())

    def _first(self) -> Piece:
        """Take whose turn it is; after a request that was no step, a step's turn comes before another's."""
        piece = self._queue.pop_if(lambda held: held.item.session is not None) if self._other else None
        return self._took(piece if piece is not None else self._queue.pop())

    def _took(self, piece: Piece) -> Piece:
        self._n -= piece.is_last
        return piece

    def _add_due(self, chosen: _Chosen, now_s: float) -> None:
        soon_s = now_s + SOON * self._step_s
        due = [
            (-held.item.priority, held.item.due_s, number, flow, name)
            for number, (flow, name, held) in enumerate(self._queue.heads())
            if held.item.due_s < soon_s
        ]
        for *_, flow, name in sorted(due, key=lambda one: one[:3]):
            piece = self._queue.head(flow, name)
            if piece is not None and self._fits(piece, chosen, is_alone=False):
                chosen.add(self._took(self._queue.take(flow, name)), _work(piece))

    def _is_alone(self, session: HostSession, now_s: float) -> bool:
        """Whether nobody else waits for a step or decodes."""
        if any(held.item.session is not session for _, _, held in self._queue.heads()):
            return False
        return not any(s is not session and now_s - s.decoded_s < LATELY_S for s in self._engine.sessions)

    def _fits(self, piece: Piece, chosen: _Chosen, *, is_alone: bool) -> bool:
        """Whether a piece goes into a step beside what is in it."""
        session, limits = piece.item.session, self._engine.limits
        if session is None or session.part is not chosen.part:
            return False
        if session in chosen.sessions:
            if piece.item not in chosen.tokens:
                return False  # the session's next request: after this one
        elif len(chosen.sessions) >= limits.batch:
            return False
        planned_s = self._engine.step_s
        length_s = self.length_s(chosen.part, chosen.work + _work(piece)) if planned_s else 0.0
        if not piece.item.is_decode:
            if is_alone:
                return True
            most = limits.step_tokens if length_s else limits.chunk_tokens
            if chosen.prefill + piece.tokens > most:
                return False
        return length_s <= planned_s

    def length_s(self, part: Part, work: float) -> float:
        """Seconds that a step is expected to take; 0: not known yet."""
        known = self._lengths.get(id(part))
        return known.of(work) if known is not None else 0.0

    def ran(self, step: list[tuple[WaitingRequest, int]], seconds: float) -> None:
        """Take note of how long a step took."""
        first = step[0][0]
        if first.session is None:
            return
        work = sum(_work(Piece(item, tokens, is_last=True)) for item, tokens in step)
        self._lengths.setdefault(id(first.session.part), StepLengths()).saw(work, seconds)
        if any(item.is_decode for item, _ in step):
            self._step_s = seconds if not self._step_s else self._step_s + AWAY_NEW * (seconds - self._step_s)

    def drop(self, item: WaitingRequest) -> None:
        """Take out what is left of a request that has ended early."""
        while (piece := self._queue.head(item.flow, item.name)) is not None and piece.item is item:
            self._took(self._queue.take(item.flow, item.name))


def _work(piece: Piece) -> float:
    session = piece.item.session
    return 0.0 if session is None else piece.tokens * (session.stop - session.start) / session.part.source.n_layers
