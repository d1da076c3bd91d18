"""Which requests go into a step: least slack first, everybody in turn, no longer than planned. Times are handed in."""

from __future__ import annotations

import itertools

import pytest

torch = pytest.importorskip("torch", reason="the extra [llm] is not installed")

import runtime_cases as cases
from hypothesis import given, settings
from hypothesis import strategies as st

from cosched.runtime.accounts import Account, Who
from cosched.runtime.assembly import PIECE_TOKENS, StepAssembly, WaitingRequest
from cosched.runtime.engine import HostLimits, ModelEngine
from cosched.runtime.model import ModelSource
from cosched.runtime.promises import Promise, StepLengths
from cosched.runtime.protocol import Look, Open, Step

L = cases.LAYERS


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return cases.seeded(tmp_path_factory.mktemp("model"))


class Waiting:
    """A host's waiting room without the host."""

    def __init__(self, source: ModelSource, limits: HostLimits) -> None:
        self.source, self.engine = source, ModelEngine([source], limits)
        self.engine.load(source.name, 0, L)
        self.steps = StepAssembly(self.engine)
        self._n = 0

    def open(self, user: str, *names: str) -> None:
        for name in names:
            asked = Open(
                session=name, task=name, model=self.source.name, fingerprint=self.source.fingerprint, start=0, stop=L
            )  # fmt: skip
            self.engine.open(Who(user), asked, 0.0)

    def ask(self, user: str, name: str, now_s: float, tokens: int = 1) -> WaitingRequest:
        session = self.engine.sessions.the(Who(user), name)
        self._n += 1
        step, account = Step(session=name, position=0, tokens=tokens), Account(Who(user), user, 1, 0)
        item = WaitingRequest(b"", self._n, Who(user), step, [], account, 0)
        weight = self.engine.weight(session)
        item.session, item.name, item.flow = session, name, (Who(user), "" if weight is None else name)
        self.steps.push(item, float(tokens), weight or 1.0, now_s)
        return item

    def look(self, user: str) -> None:
        item = WaitingRequest(b"", 0, Who(user), Look(), [], Account(Who(user), user, 1, 0), 0, flow=(Who(user), ""))
        self.steps.push(item, 1.0, 1.0, 0.0)

    def next(self, now_s: float) -> dict[str, int]:
        return {item.name: tokens for item, tokens in self.steps.next(now_s)}


def test_least_slack_to_the_promise_goes_first(source: ModelSource) -> None:
    """Three places, seven that wait: one in turn, and of those who are due the two with the least slack."""
    room = Waiting(source, HostLimits(batch=3))
    paces = {"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.2, "e": 0.1, "f": 0.3}
    room.open("ann", "turn", *paces)
    room.engine.apply_promises({name: Promise(pace) for name, pace in paces.items()}, 0.0)
    for name in ("turn", *paces):
        room.ask("ann", name, 0.0)
    while len(room.steps):
        room.steps.ran(room.steps.next(0.0), 1.0)  # a step takes a second: whatever is due within two is urgent
    for name in ("turn", *paces):  # each one's second token is due a pace after the first
        room.ask("ann", name, 0.05)
    assert room.next(0.05) == {"turn": 1, "d": 1, "e": 1}
    second, third = room.next(0.05), room.next(0.05)
    assert "f" in second
    assert len(second) == 3
    assert len(third) == 1
    for name, pace in paces.items():  # asked for before it is due: who is ahead is not urgent
        session = room.engine.sessions.the(Who("ann"), name)
        assert session.due_s == pytest.approx(max(pace, 0.05))


def test_priority_goes_before_slack(source: ModelSource) -> None:
    room = Waiting(source, HostLimits(batch=2))
    room.open("ann", "turn", "late", "promised")
    room.engine.apply_promises({"late": Promise(0.1), "promised": Promise(0.4, 1)}, 0.0)
    room.steps.ran([(room.ask("ann", "turn", -9.0), 1)], 1.0)
    room.next(-9.0)
    for now_s in (-0.3, 0.0):
        for name in ("turn", "late", "promised"):
            room.ask("ann", name, now_s)
    assert "promised" in room.next(0.0)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 6), st.integers(5, 30), st.integers(1, 3))
def test_whoever_opens_many_sessions_keeps_nobody_out(batch: int, greedy: int, modest: int) -> None:
    """Property: with steps of one identity waiting all the time, another's session is in every second step at least."""
    room = Waiting(source_of(), HostLimits(batch=batch))
    room.open("greedy", *(f"g{i}" for i in range(greedy)))
    room.open("modest", *(f"m{i}" for i in range(modest)))
    for i in range(greedy):
        for _ in range(20):
            room.ask("greedy", f"g{i}", 0.0)
    had = []
    for turn in range(12):
        for i in range(modest):
            if not room.steps.waiting((Who("modest"), ""), f"m{i}"):
                room.ask("modest", f"m{i}", float(turn))
        step = room.next(float(turn))
        assert 1 <= len(step) <= batch
        had.append(sum(name.startswith("m") for name in step))
    assert all(a + b > 0 for a, b in itertools.pairwise(had))


_source: list[ModelSource] = []


def source_of() -> ModelSource:
    """One model for all examples of a property."""
    import tempfile
    from pathlib import Path

    if not _source:
        _source.append(cases.seeded(Path(tempfile.mkdtemp())))
    return _source[0]


def test_a_prefill_goes_in_pieces_while_others_decode_and_whole_by_itself(source: ModelSource) -> None:
    room = Waiting(source, HostLimits(chunk_tokens=32))
    room.open("ann", "decode", "long")
    room.ask("ann", "long", 0.0, tokens=300)
    assert room.next(0.0) == {"long": 300}
    room.ask("ann", "decode", 1.0)
    assert room.next(1.0) == {"decode": 1}
    room.ask("ann", "long", 1.1, tokens=100)
    sizes = []
    for turn in range(4):
        room.ask("ann", "decode", 1.2 + 0.1 * turn)
        step = room.next(1.2 + 0.1 * turn)
        assert step.pop("decode") == 1
        sizes.append(step.pop("long", 0))
        assert not step
    assert max(sizes) <= 32
    assert sum(sizes) == 100
    assert len(room.steps) == 0
    room.ask("ann", "long", 5.0, tokens=100)  # nobody has decoded for long
    assert room.next(5.0) == {"long": 100}


def test_a_step_keeps_to_its_planned_length(source: ModelSource) -> None:
    """1 ms and 1 ms a row, planned 40 ms: 39 rows, whatever is asked; a prefill whose turn it is has a piece."""
    room = Waiting(source, HostLimits(batch=64, chunk_tokens=512))
    names = [f"d{i}" for i in range(50)]
    room.open("ann", *names, "long")
    room.engine.apply_promises({}, 0.0405)
    for rows in (1, 10, 20, 30, 5, 15):
        item = WaitingRequest(b"", 0, Who("ann"), Step(session="d0", position=0, tokens=rows), [], None, 0)  # type: ignore[arg-type]
        item.session = room.engine.sessions.the(Who("ann"), "d0")
        room.steps.ran([(item, rows)], 0.001 + 0.001 * rows)
    for name in names:
        room.ask("ann", name, 1.0)
    assert len(room.next(1.0)) == 39
    assert len(room.next(1.0)) == 11
    room.ask("ann", "long", 1.0, tokens=200)
    for name in names[:20]:
        room.ask("ann", name, 1.1)
    total = 0
    while len(room.steps):
        step = room.next(1.2)
        total += step.get("long", 0)
        assert sum(step.values()) <= 39 + PIECE_TOKENS
    assert total == 200


def test_steps_come_between_other_requests(source: ModelSource) -> None:
    room = Waiting(source, HostLimits())
    room.open("ann", "a", "b")
    for i in range(6):
        room.look(f"stranger {i}")
    for name in ("a", "b"):
        room.ask("ann", name, 0.0)
    turns = [room.next(0.0) for _ in range(7)]
    assert {"a": 1, "b": 1} in turns[:2]


def test_who_comes_back_soon_is_waited_for_and_nobody_else(source: ModelSource) -> None:
    room = Waiting(source, HostLimits())
    room.open("ann", "near", "far")
    now_s = 0.0
    for _ in range(20):  # near is away for 2 ms, far for 50; a step takes 100
        items = [room.ask("ann", "near", now_s), room.ask("ann", "far", now_s + 0.048)]
        taken = room.steps.next(now_s + 0.05)
        room.steps.ran(taken, 0.1)
        now_s += 0.15
        for item in items:
            assert item.session is not None
            item.session.answered_s = now_s
        now_s += 0.002
    now_s -= 0.002
    assert 0.0 < room.steps.wait_s(now_s) <= 0.015
    room.ask("ann", "near", now_s + 0.002).session.waits = 1  # type: ignore[union-attr]
    assert room.steps.wait_s(now_s + 0.002) == 0.0


@given(st.floats(1e-4, 1.0), st.floats(1e-5, 1e-1), st.lists(st.integers(1, 200), min_size=4, max_size=60))
def test_lengths_of_steps_are_learnt(base_s: float, row_s: float, rows: list[int]) -> None:
    lengths = StepLengths()
    for n in rows:
        lengths.saw(n, base_s + row_s * n)
    for n in rows:
        assert lengths.of(n) == pytest.approx(base_s + row_s * n, rel=0.02)
