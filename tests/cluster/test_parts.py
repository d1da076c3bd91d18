"""Dispatch without Ray: fencing, what is sent and compared, executors, the note of processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cosched.cluster import executor, processes
from cosched.cluster.fence import Mark, claimed, question_refusal, refusal
from cosched.cluster.follow import NodeFollower
from cosched.cluster.messages import Claim, LayersOrder, Order, Report, Session, order_of
from cosched.config.wiring import plant
from cosched.daemon.cluster_link import node_specs
from cosched.errors import BadInput
from cosched.runtime.errors import HostLost

PATIENCE, RETRIES = 2, 2


def order(epoch: int, generation: int, **changes: object) -> Order:
    return msgspec.structs.replace(Order(epoch=epoch, generation=generation, who="me"), **changes)


def table(**weights: float) -> dict[str, Session]:
    return {task: Session(task, "p", 4, 8, weight, weight) for task, weight in weights.items()}


def report(generation: int, layers: tuple[LayersOrder, ...] = (), **weights: float) -> Report:
    return Report(generation=generation, sessions=weights, layers=layers)


# --- fencing --------------------------------------------------------------------------------------------------------


@given(st.tuples(*[st.integers(0, 4)] * 4))
def test_an_order_is_taken_unless_a_younger_daemon_or_a_later_plan_was_here(numbers: tuple[int, int, int, int]):
    epoch, generation, seen_epoch, seen_generation = numbers
    refused = refusal(Mark(seen_epoch, seen_generation, "it"), order(epoch, generation))
    assert (refused is None) == ((epoch, generation) >= (seen_epoch, seen_generation))
    if refused is not None:
        assert (refused.epoch, refused.generation, refused.who) == (seen_epoch, seen_generation, "it")
        assert refused.reason == ("old_epoch" if epoch < seen_epoch else "old_generation")
    assert (question_refusal(Mark(seen_epoch, 0, "it"), epoch) is None) == (epoch >= seen_epoch)


def test_an_order_of_another_version_is_refused():
    refused = refusal(Mark(), order(1, 1, v=2))
    assert refused is not None
    assert refused.reason == "other_version"


@pytest.mark.parametrize(
    ("what", "why"),
    [
        (b"\x91" * 100_000, "cannot be read"),
        (b"\x81\xa1x" + b"\x91" * 100_000, "nested too deeply"),
        (b"\xdf\xff\xff\xff\xff", "truncated"),
        (order(1, 1, hold=(Session("t", "p", 1, 8, float("nan"), 0.1),)), "hold"),
        (order(1, 1, hold=(Session("t", "p", 1, 8, 0.1, float("inf")),)), "hold"),
        (order(1, 1, hold=(Session("t", "p", 1, 8, 0.1, 0.1, -1.0),)), "hold"),
        (order(1, 1, hold=(Session("t", "p", 1, 8, 0.1, 0.1, 0.1, 1000),)), "hold"),
        (order(1, 1, step_s=float("nan")), "step_s"),
        (order(1, 1, load=(LayersOrder("m", 0, 2**60),)), "load"),
        (order(1, 1, load=(LayersOrder("m", -1, 2),)), "load"),
        (order(1, 1, unload=(LayersOrder("m", 3, 3),)), r"layers \[3, 3\) of 'm'"),
        (order(1, 1, room_bytes=float("-inf")), "room_bytes"),
    ],
)
def test_what_is_no_order_is_bad_input(what: bytes | Order, why: str):
    with pytest.raises(BadInput, match=why):
        order_of(what if isinstance(what, bytes) else msgspec.msgpack.encode(what))


def test_epochs_grow_with_every_claim_and_a_lost_one_does_not_come_back():
    first = claimed(Claim(epoch=0), Claim(epoch=0, daemon="a"), least=0)
    second = claimed(first, Claim(epoch=0, daemon="b"), least=0)
    assert (first.epoch, second.epoch, second.daemon) == (1, 2, "b")
    assert claimed(second, first, least=0) == second  # a's dispatcher was started anew: b stays
    assert claimed(second, second, least=0) == second
    assert claimed(Claim(epoch=0), second, least=0) == second  # the cluster has forgotten, the daemon has not
    assert claimed(Claim(epoch=0), Claim(epoch=0, daemon="b"), least=7).epoch == 8


# --- what is sent, and what is held against it ----------------------------------------------------------------------


def test_pace_and_steps_come_with_orders_and_older_ones_have_none():
    """A daemon or a node of before knows neither: what is not said is 0."""
    follower = NodeFollower(PATIENCE, RETRIES)
    follower.plan(1, {"a": Session("a", "p", 4, 8, 1.0, 1.0, 0.05, 1)}, 0.02)
    first = follower.order(1, "me")
    assert first is not None
    told = order_of(msgspec.msgpack.encode(first))
    assert (told.hold[0].pace_s, told.hold[0].priority, told.step_s) == (0.05, 1, 0.02)
    follower.plan(2, follower.wanted, 0.03)
    second = follower.order(1, "me")
    assert second is not None
    assert (second.hold, second.step_s) == ((), 0.03)
    assert follower.order(1, "me") is None
    old = msgspec.to_builtins(order(1, 1, hold=(Session("t", "p", 1, 8, 0.1, 0.1),)))
    old["hold"] = [old["hold"][0][:6]]
    del old["step_s"]
    told = order_of(msgspec.msgpack.encode(old))
    assert (told.hold[0].pace_s, told.hold[0].priority, told.step_s) == (0.0, 0, 0.0)


def test_the_first_order_says_everything_and_the_next_ones_what_changed():
    follower = NodeFollower(PATIENCE, RETRIES, (LayersOrder("m", 0, 4),))
    follower.plan(3, table(a=1.0, b=2.0))
    first = follower.order(1, "me")
    assert first is not None
    assert first.whole
    assert [s.task for s in first.hold] == ["a", "b"]
    assert first.load == (LayersOrder("m", 0, 4),)
    assert follower.order(1, "me") is None
    follower.plan(4, table(b=2.0, c=1.0))
    second = follower.order(1, "me")
    assert second is not None
    assert (second.whole, second.generation, second.end) == (False, 4, ("a",))
    assert [s.task for s in second.hold] == ["c"]
    follower.fresh()
    third = follower.order(1, "me")
    assert third is not None
    assert third.whole


def sent(follower: NodeFollower, generation: int, **weights: float) -> None:
    follower.plan(generation, table(**weights))
    assert follower.order(1, "me") is not None
    follower.took(generation)


def test_a_node_one_order_behind_is_on_its_way():
    follower = NodeFollower(PATIENCE, RETRIES)
    sent(follower, 1, a=1.0)
    for generation in range(2, 40):
        sent(follower, generation, a=float(generation))
        outcome = follower.reported(report(generation - 1, a=float(generation - 1)))
        assert outcome == (False, False, "")
    assert follower.retries == 0


def test_a_dropped_change_is_sent_again_and_then_the_node_is_unfit():
    follower = NodeFollower(PATIENCE, RETRIES)
    sent(follower, 1, a=1.0, b=1.0)
    seen = []
    for _ in range((PATIENCE + 1) * (RETRIES + 1)):
        outcome = follower.reported(report(1, a=1.0))
        seen.append("unfit" if outcome.unfit else "retry" if outcome.retry else "")
        if outcome.retry:
            again = follower.order(1, "me")
            assert again is not None
            assert again.whole
            follower.took(1)
            assert "1 sessions (b)" in outcome.why
    assert seen == ["", "", "retry", "", "", "retry", "", "", "unfit"]


def test_a_retry_that_helps_is_forgotten():
    follower = NodeFollower(PATIENCE, RETRIES)
    sent(follower, 1, a=1.0)
    while not follower.reported(report(0)).retry:
        pass
    follower.order(1, "me")
    follower.took(1)
    assert follower.retries == 1
    follower.reported(report(1, a=1.0))
    assert follower.retries == 0


def test_a_node_that_stands_still_behind_its_acknowledgement_is_found():
    follower = NodeFollower(PATIENCE, RETRIES)
    sent(follower, 1, a=1.0)
    follower.reported(report(1, a=1.0))
    sent(follower, 2, a=2.0)
    outcomes = [follower.reported(report(1, a=1.0)) for _ in range(PATIENCE + 1)]
    assert outcomes[-1].retry
    assert outcomes[-1].why == "plan 2 is acknowledged, and 1 is in force"


def test_layers_have_time_while_they_are_loaded_and_none_afterwards():
    wanted = (LayersOrder("m", 0, 4), LayersOrder("m", 8, 12))
    follower = NodeFollower(PATIENCE, RETRIES, wanted)
    sent(follower, 1, a=1.0)
    loading = msgspec.structs.replace(report(1, wanted[:1], a=1.0), loading=True)
    assert not any(follower.reported(loading).retry for _ in range(50))
    assert any(follower.reported(report(1, wanted[:1], a=1.0)).retry for _ in range(PATIENCE + 1))


@settings(max_examples=60)
@given(st.lists(st.dictionaries(st.sampled_from("abcde"), st.floats(0, 4), max_size=5), min_size=1, max_size=12),
       st.sets(st.integers(0, 11)), st.sets(st.integers(0, 11)))  # fmt: skip
def test_orders_bring_a_ledger_to_the_newest_plan_whatever_was_skipped_or_lost(
    plans: list[dict[str, float]], busy: set[int], crashed: set[int]
):
    """busy: plans that came while an order was under way; crashed: a new actor took over before them."""
    follower, ledger = NodeFollower(PATIENCE, RETRIES), executor.Ledger("edge0")
    for i, weights in enumerate(plans):
        if i in crashed:
            ledger = executor.Ledger("edge0")
            follower.fresh()
        follower.plan(i + 1, table(**weights))
        if i in busy and i + 1 < len(plans):
            continue
        if (one := follower.order(1, "me")) is not None:
            ledger.hold(whole=one.whole, sessions=one.hold, end=one.end)
            follower.took(one.generation)
        assert ledger.in_force().sessions == weights
        assert follower.reported(report(follower.acknowledged, **ledger.in_force().sessions)).why == ""


# --- executors ------------------------------------------------------------------------------------------------------


def test_the_ledger_counts_what_it_has():
    ledger = executor.make("ledger", "edge0")
    ledger.load(LayersOrder("m", 0, 8, 1e9))
    ledger.load(LayersOrder("m", 8, 12, 5e8))
    ledger.unload(LayersOrder("m", 0, 8, 1e9))
    ledger.hold(whole=False, sessions=list(table(a=1.0, b=2.0).values()), end=())
    ledger.hold(whole=False, sessions=(), end=("b", "never"))
    assert ledger.in_force() == ({"a": 1.0}, (LayersOrder("m", 8, 12, 5e8),), 5e8)


@pytest.mark.parametrize("name", ["legder", "cosched.nowhere:X", "cosched.site:Nothing"])
def test_an_executor_that_there_is_not_is_named(name: str):
    with pytest.raises(BadInput, match=f"cluster.executor '{name}'.*ledger, host, or module:class"):
        executor.make(name, "edge0")


def test_a_node_is_to_hold_all_layers_that_the_site_s_arithmetic_gives_it():
    text = (Path(__file__).parents[2] / "config" / "sites" / "balanced.toml").read_text()
    (spec,) = node_specs(plant(text, "balanced", {}))
    (layers,) = spec.layers
    assert (layers.model, layers.first, layers.last) == ("llama-3-8b", 0, 32)
    assert 4e9 < layers.weight_bytes < 7e9


# --- the note of processes ------------------------------------------------------------------------------------------


def test_an_actor_whose_executor_has_failed_is_given_up_with_the_reason():
    from ray.exceptions import RayError, RayTaskError

    from cosched.cluster import dispatcher

    why = "its host has ended; the log of its actor says why"
    trace = f"\x1b[36mray::NodeActor.report()\x1b[39m (pid=7)\n  File x. y\ncosched.runtime.errors.HostLost: {why}"
    error = RayTaskError("NodeActor.report", trace, HostLost(why)).as_instanceof_cause()
    assert isinstance(error, RayError), "what a call of an actor is given up for"
    assert dispatcher._cause(error) == f"cosched.runtime.errors.HostLost: {why}"


def test_what_the_note_names_is_ended_and_nothing_else(tmp_path: Path):
    note, folder = tmp_path / "cluster.json", tmp_path / "files"
    folder.mkdir()
    code = (
        "import subprocess, sys\n"
        "from pathlib import Path\n"
        "from cosched.cluster import processes\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"processes.note(Path({str(note)!r}), {str(folder)!r})\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    child = int(owner.stdout.readline())
    left = msgspec.json.decode(note.read_bytes(), type=processes.Left)
    assert set(left.processes) == {owner.pid, child}
    bystander = os.getpid()  # as if its id had been used again: it began at another time
    left.processes[bystander] = time.time() - 3600
    left.processes[2**22 + 7] = 1.0  # no such process
    note.write_bytes(msgspec.json.encode(left))
    assert processes.clean(note) == 2
    assert owner.wait(10) != 0
    assert not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split(")")[1]
    assert not note.exists()
    assert not folder.exists()
    assert processes.clean(note) == 0
    owner.stdout.close()
