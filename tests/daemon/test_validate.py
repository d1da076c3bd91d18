"""Each invariant of the engine's books, broken alone in a healthy daemon: `validate` says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from engine_cases import Bench
from two_nodes import TWO, WORK, offer

from cosched.daemon.board import ENDED, HeldLease
from cosched.daemon.engine import Engine, Waiting
from cosched.daemon.mode import Mode, Modes, Move
from cosched.daemon.progress import Tracker
from cosched.daemon.turns import Turns
from cosched.errors import Broken
from telemetry.messages import TaskOffer, TaskProgress


def task(name: str, bench: Bench) -> TaskOffer:
    return msgspec.structs.replace(offer(name, 0.0), at_ns=bench.now_ns, ue="ue0", work=WORK)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """Two tasks that live, one reported; one that waits; one whose end is still to be stored and told."""
    bench = Bench(tmp_path, TWO)
    bench.report()
    bench.submit(*(task(name, bench) for name in ("a", "b", "ends")))
    bench.solve()
    bench.wait(0.1)
    bench.engine.report(TaskProgress(at_ns=0, source="r", seq=1, task="a", done=5), bench.now_ns)
    bench.tick()
    bench.solve()
    bench.submit(task("waits", bench))
    bench.engine.end("ends", "released")
    engine = bench.engine
    engine.validate()
    assert engine._ends
    assert set(engine.trackers) == {"a", "b"}
    assert set(engine.waiting) == {"waits"}
    yield engine
    engine.capture.close(bench.now_ns)
    bench.store.close()


def refuse(broken: object, what: str, *about: object) -> None:
    with pytest.raises(Broken, match=what):
        broken.validate(*about)  # type: ignore[attr-defined]


def runs_without_a_tracker(engine: Engine) -> None:
    engine.trackers.pop("b")


def followed_and_not_run(engine: Engine) -> None:
    engine.core.state.remove("b")


def an_end_that_is_not_to_be_stored(engine: Engine) -> None:
    engine._drops.clear()


def without_a_lease(engine: Engine) -> None:
    del engine.board.held["a"]


def a_lease_of_the_ended(engine: Engine) -> None:
    engine._ends.clear()


def nobody_waits(engine: Engine) -> None:
    engine.waiting.clear()


def waited_for_and_not_asked(engine: Engine) -> None:
    waiting = engine.waiting["waits"]
    engine.waiting["more"] = Waiting(msgspec.structs.replace(waiting.offer, task="more"), waiting.replies)


def lives_and_waits(engine: Engine) -> None:
    engine.trackers["waits"] = Tracker(engine.waiting["waits"].offer)
    engine.board.held["waits"] = replace(engine.board.held["a"], offer=engine.waiting["waits"].offer)
    held = engine.board.held["waits"]
    held.decision, held.lease = replace(held.decision, task="waits"), None
    engine.core._dropped.append(replace(held.decision, point=-1))


def nobody_is_answered(engine: Engine) -> None:
    engine.waiting["waits"].replies.clear()


def a_count_below_nothing(engine: Engine) -> None:
    engine.counts["solves"] = -1


def a_plan_to_come(engine: Engine) -> None:
    assert engine.plan is not None
    engine.plan = replace(engine.plan, generation=engine.core.generation + 1)


def a_report_to_come(engine: Engine) -> None:
    engine.reported_s["ue0"] += 1.0


def a_sample_to_come(engine: Engine) -> None:
    engine.last_sample_s += 1.0


def a_core_that_is_broken(engine: Engine) -> None:
    engine.core.state.prices[0] = -1.0


def heard_in_the_future(engine: Engine) -> None:
    engine.trackers["a"].heard_s += 1.0


def told_of_another(engine: Engine) -> None:
    engine.trackers["a"].told = TaskProgress(at_ns=0, source="r", seq=1, task="b", done=5)


def told_later_than_heard(engine: Engine) -> None:
    engine.trackers["a"].heard_s = 0.0


def planned_beyond_its_deadlines(engine: Engine) -> None:
    engine.trackers["a"].margin = 1.1


def followed_under_another_name(engine: Engine) -> None:
    dict.__setitem__(engine.trackers, "c", dict.pop(engine.trackers, "b"))


def miscounted(engine: Engine) -> None:
    engine.waiting.of["ue", "ue0"] += 1


def counted_as_none(engine: Engine) -> None:
    engine.trackers.of["ue", "somebody"] = 0


def a_lease_filed_elsewhere(engine: Engine) -> None:
    engine.board.held["c"] = engine.board.held.pop("b")


def held_of(engine: Engine) -> HeldLease:
    return engine.board.held["a"]


def a_lease_without_a_point(engine: Engine) -> None:
    held_of(engine).decision = replace(held_of(engine).decision, point=-1)


def a_lease_of_no_cell(engine: Engine) -> None:
    held_of(engine).decision = replace(held_of(engine).decision, cell=1)


def a_lease_on_no_node(engine: Engine) -> None:
    decision = held_of(engine).decision
    held_of(engine).decision = replace(decision, table=replace(decision.table, node=decision.table.node + 2))


def needs_of_before(engine: Engine) -> None:
    needs = engine.board.held["a"].needs
    assert needs is not None
    held_of(engine).needs = needs._replace(ul_prbs=1.0)


def told_of_an_end(engine: Engine) -> None:
    lease = held_of(engine).lease
    assert lease is not None
    held_of(engine).lease = msgspec.structs.replace(lease, point="")


def told_out_of_number(engine: Engine) -> None:
    lease = held_of(engine).lease
    assert lease is not None
    held_of(engine).lease = msgspec.structs.replace(lease, seq=lease.plan + 1)


def the_ended_for_ever(engine: Engine) -> None:
    engine.board._ended.update((str(n), b"") for n in range(ENDED + 1))


BREAKS: list[tuple[Callable[[Engine], None], str]] = [
    (runs_without_a_tracker, "the core runs what nobody follows: \\['b'\\]"),
    (followed_and_not_run, "followed, and not run: \\['b'\\]"),
    (an_end_that_is_not_to_be_stored, "an end that is not to be stored: \\['ends'\\]"),
    (without_a_lease, "no lease of \\['a'\\]"),
    (a_lease_of_the_ended, "leases of the ended: \\['ends'\\]"),
    (nobody_waits, "asked for, and nobody waits: \\['waits'\\]"),
    (waited_for_and_not_asked, "waited for, and not asked: \\['more'\\]"),
    (lives_and_waits, "lives, and waits: \\['waits'\\]"),
    (nobody_is_answered, "somebody waits whom nobody answers"),
    (a_count_below_nothing, "a count below 0"),
    (a_plan_to_come, "the plan in force is still to come"),
    (a_report_to_come, "a report is of the future"),
    (a_sample_to_come, "a report is of the future"),
    (a_core_that_is_broken, "prices is not a number"),
    (heard_in_the_future, "task a was heard of in the future"),
    (told_of_another, "task a was told what task b has done"),
    (told_later_than_heard, "task a was told of after"),
    (planned_beyond_its_deadlines, "task a is planned at 1.1"),
    (followed_under_another_name, "task b is held as c"),
    (miscounted, "counted: .* there are:"),
    (counted_as_none, "counted: .* there are:"),
    (a_lease_filed_elsewhere, "the lease of b is filed as c"),
    (a_lease_without_a_point, "task a holds a lease without a point"),
    (a_lease_of_no_cell, "task a is decided in cell 1 of 1"),
    (a_lease_on_no_node, "task a is decided on no node"),
    (needs_of_before, "task a needs what another point does"),
    (told_of_an_end, "task a was told of another, or of an end"),
    (told_out_of_number, "was told plan 4 as number 5"),
    (the_ended_for_ever, "the ended are not forgotten"),
]


@pytest.mark.parametrize(("breaks", "what"), BREAKS, ids=[b.__name__ for b, _ in BREAKS])
def test_a_broken_engine_says_what_is_broken(breaks: Callable[[Engine], None], what: str, engine: Engine):
    breaks(engine)
    refuse(engine, what)


# --- turns and modes ------------------------------------------------------------------------------------------------


def turns() -> Turns[str]:
    """Two peers with something waiting, one of them held; one with nothing."""
    found: Turns[str] = Turns(10, 100, 1000)
    for peer, item in (("a", "x"), ("a", "y"), ("b", "x"), ("c", "x")):
        found.put(peer, item, 5, 1.0)
    found.hold("b")
    while (taken := found.take(1.0)) is not None and taken[0] != "c":
        found.charge(taken[0], 0.001, 1.0)
    found.put("a", "z", 5, 1.0)
    found.validate()
    return found


@pytest.mark.parametrize(
    ("breaks", "what"),
    [
        (lambda t: setattr(t._peers["a"], "n_bytes", 1), "peer a is counted 1 bytes"),
        (lambda t: setattr(t._peers["c"], "credit_s", 5.0), "peer c may use 5.0 s"),
        (lambda t: setattr(t, "_n", 9), "counted: 9 items"),
        (lambda t: setattr(t, "_n_bytes", 9), "counted: 9 bytes in all"),
        (lambda t: t._waiting.pop("a"), "whose turn it may be"),
        (lambda t: t._waiting.update(b=t._peers["b"]), "whose turn it may be"),
    ],
)
def test_broken_turns_say_what_is_broken(breaks: Callable[[Turns[str]], None], what: str):
    found = turns()
    breaks(found)
    refuse(found, what)


def test_a_broken_mode_says_what_is_broken():
    modes = Modes(0.0)
    modes.move(Move.READY, 0.0)
    modes.alarm("calibration", "a node is slow", 1.0)
    modes.validate()
    modes.mode = Mode.DEGRADED
    refuse(modes, "the mode is DEGRADED with the alarms \\['calibration'\\]")
    modes.mode = Mode.STEADY
    modes._alarms["solver"] = "late"
    refuse(modes, "the mode is STEADY with the alarms")
    modes._alarms = {"calibration": ""}
    refuse(modes, "an alarm is on, and says nothing")


def test_a_tracker_is_held_against_the_clock():
    tracker = Tracker(offer("a", 0.0))
    tracker.hear(5.0)
    tracker.validate(5.0)
    refuse(tracker, "heard of in the future", 4.0)
