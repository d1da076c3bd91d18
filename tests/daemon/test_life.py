"""A daemon in a real process, on real sockets: decisions, leases, verbs. The tests share one daemon."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import msgspec
import pytest
from daemon_cases import CLIP, PATIENCE_S, SESSION, Daemon, Place, Radio, mode, radio, repeated, until

from cosched.api.client import Client, Refused, whatif_args
from cosched.api.messages import NoArgs, SubmitArgs, Watching
from telemetry.bus import Dealer, Follower
from telemetry.messages import CellReport, LinkReport, LlmSession, TaskProgress


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Place(tmp_path_factory.mktemp("daemon"), {"TELEMETRY_STALE_INPUT_S": "1000"}).daemon() as started:
        yield started


@pytest.fixture(scope="module")
def client(daemon: Daemon) -> Iterator[Client]:
    with daemon.ready() as connected:
        yield connected


@pytest.fixture(scope="module")
def source(daemon: Daemon, client: Client) -> Iterator[Radio]:
    with radio(daemon.place, client) as connected:
        yield connected


def following(client: Client, topic: str) -> Follower:
    watching: Watching = client.call("watch", NoArgs())
    return Follower(watching.endpoints[0], [topic.encode()])


def heard(follower: Follower) -> dict[str, object]:
    """Next message."""
    assert follower.wait(PATIENCE_S)
    _, payload = follower.drain(1)[0]
    told: dict[str, object] = json.loads(payload)
    return told


@pytest.mark.usefixtures("source")
def test_a_submit_is_answered_with_its_decision(client: Client):
    lease = client.submit("t1", "ue1", SESSION, fallback="drop")
    assert (lease.reason, lease.ue, lease.promised, lease.fallback) == ("admitted", "ue1", True, "drop")
    assert lease.point
    assert lease.valid_for_ms == pytest.approx(500)
    assert lease.valid_until_ns - lease.at_ns == pytest.approx(5e8)
    view = client.show("t1")
    assert (view.kind, view.phase, view.done, view.reported) == ("llm", 0, 0, False)
    assert client.status().counts["offered"] >= 1


@pytest.mark.usefixtures("source")
def test_a_lease_is_renewed_before_half_of_it_is_over(client: Client):
    client.submit("renewed", "ue1", SESSION)
    follower = following(client, "decision/renewed")
    first, *later = [heard(follower) for _ in range(4)]
    ends = [first["valid_until_ns"], *(m["valid_until_ns"] for m in later)]
    assert ends == sorted(ends)
    assert all(m["valid_for_ms"] > 0 for m in later)
    assert [m["plan"] for m in later] == sorted({m["plan"] for m in later})
    follower.close()


@pytest.mark.usefixtures("source")
def test_asking_twice_gives_the_same_task_once(client: Client):
    first = client.submit("twice", "ue1", SESSION)
    again = client.submit("twice", "ue1", SESSION)
    assert (again.task, again.point) == (first.task, first.point)
    assert client.list(prefix="twice").total == 1
    with pytest.raises(Refused, match="another task 'twice' lives") as refused:
        client.submit("twice", "ue2", SESSION)
    assert refused.value.code == "conflict"


@pytest.mark.usefixtures("source")
def test_submits_that_come_together_are_decided_together(daemon: Daemon):
    dealer = Dealer(daemon.place.control)
    args = [{"task": f"together{i}", "ue": f"ue{i % 4}", "work": msgspec.to_builtins(SESSION)} for i in range(20)]
    for i, a in enumerate(args):
        dealer.send(msgspec.msgpack.encode({"verb": "submit", "id": i, "args": a}))
    answers: dict[int, dict[str, object]] = {}

    def answered() -> bool:
        answers.update((a["id"], a["result"]) for a in map(msgspec.msgpack.decode, dealer.drain()))
        return len(answers) == 20

    until(answered)
    assert len({a["plan"] for a in answers.values()}) < 20
    for ue in range(4):  # what is left of a UE's device depends on what its tasks of before take
        plans = [answers[i]["plan"] for i in range(ue, 20, 4)]
        assert plans == sorted(set(plans)), "of one UE one a plan, in order of arrival"
    dealer.close()


@pytest.mark.usefixtures("source")
def test_json_in_is_json_out(daemon: Daemon):
    dealer = Dealer(daemon.place.control)
    dealer.send(b'{"v": 1, "id": "x", "verb": "list", "args": {"prefix": "t", "unknown": 1}, "also": 2}')
    assert dealer.wait(PATIENCE_S)
    (payload,) = dealer.drain()
    answer = json.loads(payload)
    assert (answer["v"], answer["id"], answer["ok"]) == (1, "x", True)
    assert set(answer["result"]) == {"total", "tasks"}
    dealer.close()


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (b"{", "bad_request"),
        (b"\xc1", "bad_request"),
        (b"{" * 60_000, "bad_request"),
        (b" " * 70_000, "bad_request"),
        (b'{"verb": "dance"}', "unknown_verb"),
        (b'{"verb": "status", "v": 2}', "bad_version"),
        (b'{"verb": "show"}', "bad_args"),
        (b'{"verb": "show", "args": {"task": "nobody"}}', "unknown_task"),
        (b'{"verb": "submit", "args": {"task": "x", "ue": "ue1", "work": {"kind": "knit"}}}', "bad_args"),
        (b'{"verb": "policy", "args": {"policy": "best"}}', "bad_args"),
        (b'{"verb": "resume"}', "not_done"),
    ],
    ids=["open", "reserved", "deep", "large", "verb", "version", "args", "task", "work", "policy", "mode"],
)
def test_bad_requests_are_answered_with_a_reason(daemon: Daemon, client: Client, request_: bytes, code: str):
    dealer = Dealer(daemon.place.control)
    dealer.send(request_)
    assert dealer.wait(PATIENCE_S)
    (payload,) = dealer.drain()
    answer = (json.loads if request_[:1] == b"{" else msgspec.msgpack.decode)(payload)
    assert (answer["ok"], answer["error"]["code"]) == (False, code)
    assert answer["error"]["message"]
    assert client.status().mode == "STEADY"
    dealer.close()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"work": msgspec.structs.replace(SESSION, tpot_s=-1.0)}, "tpot_s"),
        ({"work": msgspec.structs.replace(SESSION, model="oracle")}, "oracle"),
        ({"weight": 0.0}, "weight"),
        ({"weight": float("nan")}, "weight"),
        ({"task": ""}, "1 to 128"),
        ({"fallback": "cry"}, "fallback"),
    ],
    ids=["tpot", "model", "weight", "nan", "task", "fallback"],
)
def test_impossible_tasks_are_refused_with_the_reason(client: Client, change: dict[str, object], text: str):
    task = {"task": "odd", "ue": "ue1", "work": SESSION, **change}
    with pytest.raises(Refused, match=text) as refused:
        client.submit(**task)  # type: ignore[arg-type]
    assert refused.value.code == "bad_args"


def test_a_user_without_a_channel_is_rejected(client: Client):
    lease = client.submit("far", "ue-nobody-heard-of", SESSION)
    assert (lease.reason, lease.point, lease.valid_for_ms) == ("rejected_no_channel", "", 0.0)
    assert client.show("far").lease.reason == "rejected_no_channel"
    assert client.list(prefix="far").total == 0


def test_a_runtime_tells_how_far_its_task_is(client: Client, source: Radio):
    client.submit("told", "ue1", SESSION)
    stamp = {"at_ns": 0, "source": "runtime", "task": "told"}
    source.send(TaskProgress(**stamp, seq=1, done=7, decoding_s=0.6))
    until(lambda: client.show("told").done == 7)
    assert client.show("told").reported
    until(lambda: client.show("told").phase == 1)
    source.send(TaskProgress(**stamp, seq=2, done=8, finished=True))
    until(lambda: client.show("told").lease.reason == "finished")
    assert client.list(prefix="told").total == 0


def test_other_load_and_strange_cells_are_taken_in(client: Client, source: Radio):
    def background() -> float:
        return next(r.background for r in client.status().resources if r.id == "cell0/ul")

    stamp = {"at_ns": 0, "source": "oam", "seq": 0}
    source.send(CellReport(**stamp, cell="cell0", background_ul_fraction=0.2))
    source.send(CellReport(**stamp, cell="another operator's", background_ul_fraction=0.9))
    source.send(LinkReport(**stamp, link="l", one_way_s=0.001))
    until(lambda: background() == 0.2)
    source.send(CellReport(**stamp, cell="cell0", background_ul_fraction=0.0))
    until(lambda: background() == 0.0)


def test_garbage_on_the_bus_is_counted_and_changes_nothing(client: Client, source: Radio):
    source.publisher.send(b"ran.ue", b"\xc1\xc1")
    source.publisher.send(b"gossip", b"{}")
    source.report(99.0)
    until(lambda: sum(c.n for c in client.status().ingest.refused) >= 3)
    reasons = {c.reason for c in client.status().ingest.refused}
    assert {"not a MessagePack or JSON map", "unknown topic", "ul_efficiency_bps_hz outside 0..29.7"} <= reasons


@pytest.mark.usefixtures("source")
def test_a_new_subscriber_first_hears_the_present(client: Client):
    client.submit("known", "ue1", SESSION)
    client.submit("gone", "ue1", CLIP)
    client.release("gone")
    for task, reason in (("known", "admitted"), ("gone", "released")):
        follower = following(client, f"decision/{task}")
        assert heard(follower)["reason"] == reason
        follower.close()


@pytest.mark.usefixtures("source")
def test_a_drain_takes_no_new_task_and_lets_the_others_be(client: Client):
    client.submit("before", "ue1", SESSION)
    assert client.drain().mode == "DRAINING"
    with pytest.raises(Refused) as refused:
        client.submit("during", "ue1", SESSION)
    assert refused.value.code == "draining"
    assert client.submit("before", "ue1", SESSION).reason in {"admitted", "moved"}
    assert client.resume().mode == "STEADY"
    assert client.submit("after", "ue1", SESSION).task == "after"


@pytest.mark.usefixtures("source")
def test_the_policy_changes_from_one_plan_to_the_next(client: Client):
    assert client.policy("greedy").policy == "greedy"
    assert client.submit("greedily", "ue1", SESSION).task == "greedily"
    assert client.status().policy == "greedy"
    assert client.policy("joint").policy == "joint"


def filled(client: Client, prefix: str) -> tuple[str, LlmSession]:
    """Submit demanding tasks until one is refused for want of room; return its id and its work."""
    # its first token has time: a prefill that runs late needs more room from period to period
    work = msgspec.structs.replace(SESSION, ttft_s=20.0, tpot_s=0.07, new_tokens=256, private=True)
    for n in range(200):
        name = f"{prefix}{n}"
        if client.submit(name, f"ue{n % 4}", work).reason == "rejected_no_capacity":
            return name, work
    raise AssertionError("nobody was refused")


def emptied(client: Client, prefix: str) -> None:
    for view in client.list(prefix=prefix).tasks:
        client.release(view.task)


@pytest.mark.usefixtures("source")
def test_a_refusal_is_explained_and_its_counterfactuals_hold(client: Client):
    emptied(client, "")  # devices that are busy with those of before leave some no point at all
    name, work = filled(client, "fill")
    why = client.explain(name)
    assert why.lease.reason == "rejected_no_capacity"
    assert why.lease.binding_resource in why.planned
    assert why.points
    assert any(p.needs for p in why.points)
    assert [p.point for p in why.points if p.cost is None] == [p.point for p in why.points if not p.needs]
    changes = {c.kind: c for c in why.counterfactuals}
    if (prbs := changes.get("more_prbs")) is not None:
        more = {"cell0": int(prbs.amount)}
        args = whatif_args(more_prbs=more, submit=[SubmitArgs(task="if", ue=why.lease.ue, work=work)])
        assert [lease.reason for lease in client.whatif(args).leases] == ["admitted"]
    longer = [c for c in why.counterfactuals if c.kind in {"more_ttft_s", "more_tpot_s"}]
    assert longer or prbs is not None, why
    for c in longer:
        key = c.kind.removeprefix("more_")
        eased = msgspec.structs.replace(work, **{key: getattr(work, key) + c.amount})
        assert client.submit(f"fill-{key}", why.lease.ue, eased).reason == "admitted", c
        client.release(f"fill-{key}")
    emptied(client, "fill")


def test_what_if_plans_another_site_and_leaves_this_one(client: Client, source: Radio):
    emptied(client, "")  # those of before are near their ends
    more = [SubmitArgs(task="w", ue="ue1", work=SESSION)]
    source.report(2.0, 2.0, 2.0, 2.0)
    with repeated(lambda: source.report(2.0, 2.0, 2.0, 2.0), 1.0):  # or their leases run out on a busy machine
        for n in range(3):
            client.submit(f"here{n}", "ue1", SESSION)
        before = client.list()
        wide = client.whatif(whatif_args(more_hz={"cell0": 20e6}, submit=more, copies=5))
        narrow = client.whatif(whatif_args(more_prbs={"cell0": -40}))
    assert [lease.reason for lease in wide.leases] == ["admitted"] * 5
    assert len(wide.unpromised) <= len(narrow.unpromised)
    assert {view.task for view in client.list().tasks} == {view.task for view in before.tasks}
    for bad in (
        whatif_args(nodes_gone=["edge0"]),
        whatif_args(nodes_gone=["x"]),
        whatif_args(more_prbs={"cell0": -48}),
        whatif_args(more_hz={"cell0": math.inf}),
        whatif_args(more_hz={"cell0": math.nan}),
    ):
        with pytest.raises(Refused):
            client.whatif(bad)


def test_an_admitted_task_is_explained_too(client: Client, source: Radio):
    source.report(2.0, 2.0)
    client.submit("clear", "ue1", SESSION)
    why = client.explain("clear")
    assert why.counterfactuals == ()
    assert why.lease.point in [p.point for p in why.points]
    with pytest.raises(Refused, match="no task 'unheard'"):
        client.explain("unheard")


def test_status_adds_up(client: Client):
    status = mode(client, "STEADY")
    assert status.alarms == ()
    assert "solves_failed" not in status.counts
    assert {r.id for r in status.resources} == {"cell0/ul", "edge0", "edge0/mem"}
    assert all(-1e-9 <= r.planned <= 1 + 1e-6 for r in status.resources)
    assert status.bound >= status.value - 1e-9
    assert status.tasks == client.list().total
    assert status.submit_ms.n > 0


def test_the_end_shortens_leases_and_comes_soon(daemon: Daemon, client: Client):
    client.submit("last", "ue1", SESSION)
    follower = following(client, "decision/last")
    heard(follower)
    code, took_s = daemon.stop()
    assert code == 0, daemon.log()
    assert took_s < 5
    until(lambda: 0 < heard(follower)["valid_for_ms"] <= 200)
    assert "Traceback" not in daemon.log()
    follower.close()
