"""Frames on their way to the core: in their order, within budgets and permissions; what is refused is counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import pytest

from cosched.daemon import ingest as module
from cosched.daemon.ingest import (
    BUDGET_S,
    MOST_WAITING,
    PAUSE_S,
    REST,
    ROWS,
    RUN,
    SINGLE_BYTES,
    SLICE,
    TOO_FAST,
    Ingest,
)
from cosched.daemon.turns import BURST_S
from telemetry.bus import Frame
from telemetry.messages import CellReport, Message, UeReport, UeReportBatch
from telemetry.wire import Intake

S_NS = 1_000_000_000


@dataclass
class Access:
    """Refuses what it is told to; keeps what it was asked."""

    too_much: set[str] = field(default_factory=set)  # users who have sent too much
    foreign: set[str] = field(default_factory=set)  # UEs and cells that nobody may speak for
    asked: list[tuple[str, str]] = field(default_factory=list)

    def receive(self, user: str, _size: int, _now_s: float) -> str:
        self.asked.append(("receive", user))
        return "too many messages" if user in self.too_much else ""

    def publish(self, user: str, message: Message) -> str:
        self.asked.append(("publish", user))
        if isinstance(message, UeReportBatch):
            named = set(message.ue)
        else:
            named = {message.ue if isinstance(message, UeReport) else getattr(message, "cell", "")}
        return "speaks for others" if named & self.foreign else ""


class Bench:
    """An Ingest on a list of frames, with clocks that stand still unless work is said to take time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ns, self.spent_s, self.each_s = 1000 * S_NS, 0.0, 0.0
        self.frames: list[Frame] = []
        self.malformed = 0
        self.taken: list[tuple[str, object]] = []  # in the order in which they were handed over
        self.intake = Intake()
        self.ingest = Ingest(self, self.intake, self._reports, self._report, lambda: self.now_ns)  # type: ignore[arg-type]
        self.access = Access()
        self.refused = self.intake.quarantine.counts
        monkeypatch.setattr(module, "time", self)

    def drain(self, limit: int) -> list[Frame]:
        """As the socket does."""
        taken, self.frames = self.frames[:limit], self.frames[limit:]
        return taken

    def perf_counter(self) -> float:
        return self.spent_s

    thread_time = perf_counter

    def _reports(self, reports: Sequence[UeReport], at_ns: int) -> None:
        assert at_ns == self.now_ns, "all of one instant"
        self.spent_s += self.each_s * len(reports)
        self.taken.append(("reports", [report.ue for report in reports]))

    def _report(self, message: Message, at_ns: int) -> None:
        assert at_ns == self.now_ns
        rows = list(message.ue) if isinstance(message, UeReportBatch) else getattr(message, "cell", "")
        self.spent_s += self.each_s * (len(rows) if isinstance(rows, list) else 1)
        self.taken.append((type(message).__name__.removeprefix("_"), rows))

    def send(self, *messages: Message, peer: str = "p", user: str = "") -> None:
        for message in messages:
            topic = {"UeReport": b"ran.ue", "UeReportBatch": b"ran.ue.batch", "CellReport": b"ran.cell"}
            payload = msgspec.msgpack.encode(message)
            self.frames.append(Frame(topic[type(message).__name__], payload, user, peer))

    def all(self) -> None:
        """Take in all that waits, as time goes on."""
        while more := self.ingest.drain():
            self.now_ns += round(min(more, 0.1) * S_NS)

    def ues(self) -> list[str]:
        """UEs in the order in which their reports were taken in."""
        return [ue for kind, rows in self.taken if kind in {"reports", "UeReportBatch"} for ue in rows]  # type: ignore[attr-defined]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


def report(ue: str) -> UeReport:
    return UeReport(at_ns=0, source="ran", seq=0, ue=ue, cell="cell0", ul_efficiency_bps_hz=2.0)


def cell(name: str) -> CellReport:
    return CellReport(at_ns=0, source="ran", seq=0, cell=name)


def batch(n: int, name: str = "u", **more: tuple[float | None, ...]) -> UeReportBatch:
    ues = tuple(f"{name}{i}" for i in range(n))
    return UeReportBatch(at_ns=0, source="ran", seq=0, ue=ues, cell=("c",) * n, ul_efficiency_bps_hz=(1.0,) * n, **more)


def test_nothing_is_nothing(bench: Bench):
    assert bench.ingest.drain() == 0
    assert bench.taken == []


def test_messages_are_taken_in_in_their_order_and_reports_that_follow_each_other_together(bench: Bench):
    bench.send(report("a"), report("b"), cell("x"), report("c"), cell("y"))
    assert bench.ingest.drain() == 0
    assert [(kind, rows) for kind, rows in bench.taken] == [
        ("reports", ["a", "b"]), ("CellReport", "x"), ("reports", ["c"]), ("CellReport", "y"),
    ]  # fmt: skip


def test_what_is_no_message_is_counted_and_the_others_go_on(bench: Bench):
    bench.send(report("a"))
    bench.frames += [Frame(b"ran.ue", b"\xc1", "radio"), Frame(b"nonsense", b"x", "radio")]
    bench.send(report("b"))
    bench.ingest.drain()
    assert bench.ues() == ["a", "b"]
    assert bench.refused["radio", "unknown topic"] == 1
    assert bench.refused.total() == 2


def test_a_full_slice_may_not_be_all(bench: Bench):
    for n in range(SLICE + 1):
        bench.send(report(f"u{n}"))
    assert bench.ingest.drain() == 1.0
    assert bench.ues() == [f"u{n}" for n in range(SLICE)]
    assert bench.ingest.drain() == 0.0
    assert len(bench.ues()) == SLICE + 1


def test_frames_that_are_none_count_for_whether_there_may_be_more(bench: Bench):
    def drain(limit: int) -> list[Frame]:
        bench.malformed += limit - 1
        return [Frame(b"ran.ue", msgspec.msgpack.encode(report("a")), "")]

    bench.drain = drain  # type: ignore[method-assign]
    assert bench.ingest.drain() == 1.0


def test_once_the_budget_is_used_up_the_rest_waits_for_its_turn_and_keeps_its_order(bench: Bench):
    bench.each_s = BUDGET_S * 0.6
    names = [f"c{n}" for n in range(12)]
    bench.send(*map(cell, names))
    assert bench.ingest.drain() > 0
    assert 0 < len(bench.taken) <= 4, "two as they came, two by turns"
    bench.all()
    assert [rows for _, rows in bench.taken] == names


def test_a_large_batch_is_taken_in_in_pieces_with_all_its_rows_and_columns(bench: Bench):
    n = 2 * ROWS + 7
    sent = batch(n, ul_sinr_db=tuple(float(i % 50) for i in range(n)))
    pieces: list[UeReportBatch] = []
    bench.ingest._report = lambda message, _: pieces.append(message)  # type: ignore[assignment,arg-type,return-value]
    bench.send(sent)
    bench.all()
    assert [len(p.ue) for p in pieces] == [ROWS, ROWS, 7]
    for name in ("ue", "cell", "ul_efficiency_bps_hz", "ul_sinr_db"):
        assert sum((getattr(p, name) for p in pieces), ()) == getattr(sent, name)
    assert {p.prb_used_ul for p in pieces} == {()}, "a column that is not there stays away"


def test_others_come_between_the_pieces_of_a_batch(bench: Bench):
    bench.each_s = BUDGET_S / ROWS
    bench.send(batch(4 * ROWS), peer="large")
    bench.ingest.drain()
    bench.send(cell("small"), peer="small")
    bench.all()
    assert bench.taken.index(("CellReport", "small")) <= 2, "after one more piece at most"
    assert len(bench.ues()) == 4 * ROWS


def test_who_has_used_up_his_part_rests_and_is_come_back_to(bench: Bench):
    bench.each_s = BURST_S / ROWS
    bench.send(batch(2 * ROWS), peer="large")
    pause_s = bench.ingest.drain()
    assert PAUSE_S <= pause_s <= min(0.5, REST * 2 * BURST_S)
    assert len(bench.ues()) == ROWS
    assert bench.ingest.drain() > 0
    assert len(bench.ues()) == ROWS, "it rests"
    bench.now_ns += round(pause_s * S_NS) + S_NS
    bench.ingest.drain()
    assert len(bench.ues()) == 2 * ROWS


def test_who_has_used_up_his_part_queues_with_small_messages_too(bench: Bench):
    bench.each_s = 2 * BURST_S
    bench.send(cell("a"), peer="loud")
    bench.ingest.drain()
    bench.send(cell("b"), peer="loud")
    bench.ingest.drain()
    assert [rows for _, rows in bench.taken] == ["a"]
    bench.send(cell("c"), peer="quiet")
    bench.ingest.drain()
    assert [rows for _, rows in bench.taken] == ["a", "c"]
    bench.all()
    assert [rows for _, rows in bench.taken] == ["a", "c", "b"]


def test_only_so_much_waits_and_what_is_beyond_is_counted(bench: Bench):
    bench.each_s = 100 * BURST_S
    bench.send(cell("first"), peer="flood", user="flood")
    bench.ingest.drain()
    for n in range(MOST_WAITING + 50):
        bench.send(cell(f"c{n}"), peer="flood", user="flood")
    bench.each_s = 0.0
    while bench.frames:
        bench.ingest.drain()
    assert bench.refused["flood", TOO_FAST] == 50
    assert len(bench.taken) == 1


@pytest.mark.parametrize("waits", [False, True])
def test_without_a_key_nobody_is_asked_and_with_one_each_message_is(bench: Bench, waits: bool):
    bench.ingest.access = bench.access  # type: ignore[assignment]
    if waits:  # what is large has to queue, and all behind it
        bench.send(batch(ROWS), peer="x")
    bench.access.too_much, bench.access.foreign = {"loud"}, {"theirs"}
    bench.send(report("a"), cell("theirs"))
    bench.send(report("theirs"), report("mine"), cell("theirs"), user="phone")
    bench.send(report("b"), cell("x"), user="loud")
    bench.all()
    taken = {ue for ue in bench.ues() if not ue.startswith("u")}
    assert taken == {"a", "mine"}
    assert [rows for kind, rows in bench.taken if kind == "CellReport"] == ["theirs"], "of nobody's"
    assert bench.refused["phone", "speaks for others"] == 2
    assert bench.refused["loud", "too many messages"] == 2
    assert ("publish", "loud") not in bench.access.asked
    assert {user for _, user in bench.access.asked} == {"phone", "loud"}


def test_each_piece_of_a_batch_is_asked_for_by_itself(bench: Bench):
    bench.ingest.access = bench.access  # type: ignore[assignment]
    bench.access.foreign = {f"u{ROWS + 3}"}
    bench.send(batch(3 * ROWS), user="radio")
    bench.all()
    assert bench.ues() == [f"u{n}" for n in (*range(ROWS), *range(2 * ROWS, 3 * ROWS))]
    assert bench.refused["radio", "speaks for others"] == 1
    assert [what for what, _ in bench.access.asked] == ["receive", *["publish"] * 3]


def test_in_one_go_no_more_reports_are_handed_over_than_take_a_millisecond_and_a_half(bench: Bench):
    bench.each_s = 100 * BURST_S
    bench.send(cell("first"), peer="p")
    bench.ingest.drain()
    bench.each_s = 0.0
    for n in range(2 * RUN):
        bench.send(report(f"u{n}"), peer="p")
    bench.all()
    runs = [len(rows) for kind, rows in bench.taken if kind == "reports"]  # type: ignore[arg-type]
    assert sum(runs) == 2 * RUN
    assert max(runs) <= RUN
    assert bench.ues() == [f"u{n}" for n in range(2 * RUN)]
    assert len(msgspec.msgpack.encode(report("u0"))) < SINGLE_BYTES


def test_a_batch_is_charged_to_its_peer_and_not_to_those_who_came_with_it(bench: Bench):
    bench.each_s = 2 * BURST_S / ROWS
    bench.send(report("a"), peer="quiet")
    bench.send(batch(ROWS), peer="large")
    bench.ingest.drain()
    now_s = bench.now_ns * 1e-9
    assert bench.ingest._turns.has_overdrawn("large", now_s)
    assert not bench.ingest._turns.has_overdrawn("quiet", now_s)
    bench.ingest._turns.validate()
