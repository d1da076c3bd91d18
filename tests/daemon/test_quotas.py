"""What a UE may hold, how long a task may last, and that a task nobody cares for gives its share back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from daemon_cases import CLIP, SESSION, Place, Radio, radio, repeated, until
from hypothesis import given
from hypothesis import strategies as st

from cosched.api.client import Client, Refused
from cosched.daemon.holders import Held, over_quota
from cosched.daemon.progress import Tracker
from telemetry.messages import LlmSession, TaskOffer, TaskProgress

DEAD = LlmSession(
    model="llama-3-8b", context_tokens=0, new_tokens=64, max_output_tokens=4000, ttft_s=2.0, tpot_s=0.1, private=True
)  # 402 s when nobody reports it


@contextmanager
def site(folder: Path, **settings: str) -> Iterator[tuple[Client, Radio]]:
    place = Place(folder, {"TELEMETRY_STALE_INPUT_S": "1000", **settings})
    with (
        place.daemon() as daemon,
        daemon.ready() as client,
        radio(place, client) as source,
        repeated(lambda: source.report(2.0, 2.0, 2.0, 2.0), 0.5),
    ):
        yield client, source


def refused(ask: Callable[[], object]) -> Refused:
    with pytest.raises(Refused) as caught:
        ask()
    return caught.value


def test_a_ue_has_so_many_tasks_and_a_task_lasts_so_long(tmp_path: Path) -> None:
    with site(tmp_path, QUOTA_UE_TASKS="3", QUOTA_TASKS="5") as (client, _):
        for n in range(3):
            assert client.submit(f"a{n}", "ue0", SESSION).point
        error = refused(lambda: client.submit("a3", "ue0", SESSION))
        assert (error.code, "UE 'ue0' has 3 tasks" in str(error)) == ("quota", True)
        assert client.submit("a0", "ue0", SESSION).point, "the same submit again is no further task"
        assert client.submit("b0", "ue1", SESSION).point, "another UE is not touched"
        client.release("a0")
        assert client.submit("a3", "ue0", SESSION).point
        assert client.submit("b1", "ue1", SESSION).point
        assert refused(lambda: client.submit("c", "ue2", SESSION)).code == "quota", "all together have a bound too"
        for endless in (
            msgspec.structs.replace(CLIP, frames=10**12),
            msgspec.structs.replace(CLIP, frames=7_300),
            msgspec.structs.replace(SESSION, max_output_tokens=2**40),
        ):
            error = refused(lambda work=endless: client.submit("long", "ue3", work))  # type: ignore[misc]
            assert (error.code, "lease.life_s" in str(error)) == ("bad_args", True)


def test_a_ue_is_planned_with_a_part_of_the_site_alone(tmp_path: Path) -> None:
    hungry = msgspec.structs.replace(SESSION, tpot_s=0.05, private=True)
    with site(tmp_path, QUOTA_UE_SHARE="0.1") as (client, _):

        def fill() -> None:
            for n in range(60):
                assert client.submit(f"t{n}", "ue0", hungry).point

        error = refused(fill)
        assert (error.code, "UE 'ue0' holds" in str(error)) == ("quota", True)
        assert client.submit("other", "ue1", hungry).point, "there is room for others"


def test_a_task_that_nobody_cares_for_gives_its_share_back(tmp_path: Path) -> None:
    with site(tmp_path, LEASE_SILENT_S="2") as (client, source):
        held = []
        while (lease := client.submit(f"dead{len(held)}", "ue0", DEAD)).point:
            held.append(lease.task)
            assert len(held) < 60
        seq = iter(range(1, 10**9))

        def care() -> None:
            """One is reported, one is renewed."""
            report = TaskProgress(at_ns=time.monotonic_ns(), source="s", seq=next(seq), task="dead0", done=1)
            source.send(report)

        with repeated(care, 0.3):
            until(lambda: client.submit("dead1", "ue0", DEAD) and client.list().total == 2)
        assert {view.task for view in client.list().tasks} == {"dead0", "dead1"}
        assert client.submit("new", "ue0", DEAD).point
        ended = client.show("dead2").lease
        assert (ended.reason, ended.point) == ("silent", "")
        assert "nobody" in ended.text
        assert client.status().reasons["silent"] == len(held) - 2


def offer(task: str, ue: str, source: str) -> TaskOffer:
    return TaskOffer(at_ns=0, source=source, seq=0, task=task, ue=ue, work=SESSION)


Step = st.tuples(st.sampled_from("sdup"), st.integers(0, 5), st.sampled_from("ab"), st.sampled_from("xy"))


@given(st.lists(Step, max_size=60))
def test_counts_are_those_of_a_recount(steps: list[tuple[str, int, str, str]]) -> None:
    held: Held[Tracker] = Held()
    for act, n, ue, source in steps:
        task = f"t{n}"
        tracker = Tracker(offer(task, ue, source))
        if act == "s":
            held[task] = tracker
        elif act == "d":
            held.setdefault(task, tracker)
        elif act == "u":
            held.update([(task, tracker)])
        else:
            held.pop(task, None)
        for kind in ("ue", "source"):
            names = [getattr(t.offer, kind) for t in held.values()]
            assert {k[1]: c for k, c in held.of.items() if k[0] == kind} == {n: names.count(n) for n in set(names)}
    held.clear()
    assert not held.of


def test_an_identity_is_counted_over_all_its_ues() -> None:
    held: Held[Tracker] = Held()
    for n in range(4):
        held[f"t{n}"] = Tracker(offer(f"t{n}", f"ue{n}", "control/phone"))
    mine, other = offer("t9", "ue9", "control/phone"), offer("t9", "ue9", "control/else")
    assert over_quota(mine, [held.of], of_ue=2, of_source=4) == "this identity has 4 tasks, and may not have more"
    assert over_quota(mine, [held.of], of_ue=2, of_source=5) == ""
    assert over_quota(other, [held.of], of_ue=2, of_source=4) == ""
