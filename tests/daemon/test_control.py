"""What each verb decides: which requests are refused and why, and what the others change."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import msgspec
import pytest
from life_cases import CLIP, S_NS, SESSION, Home

from cosched.api import messages as api
from cosched.api.messages import VERBS, Lease
from cosched.daemon.mode import Mode
from telemetry.bus import BusRequest
from telemetry.messages import TaskProgress

WORK = msgspec.to_builtins(SESSION)
CODECS = pytest.mark.parametrize("codec", [msgspec.json, msgspec.msgpack])


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    found = Home(tmp_path)
    found.report()
    yield found
    found.close()


def args_of(task: str, **changes: object) -> dict[str, object]:
    return {"task": task, "ue": "ue0", "work": WORK, **changes}


# --- requests -------------------------------------------------------------------------------------------------------


@CODECS
def test_an_answer_is_in_the_encoding_of_its_request_and_has_its_number(home: Home, codec: ModuleType):
    view = home.result(api.PolicyView, "policy", codec=codec)
    assert view.policy == "joint"
    (answer,) = home.answers[b"1"]
    assert (answer.v, answer.id, answer.ok) == (api.VERSION, 1, True)


def test_a_request_of_another_version_or_verb_is_refused_before_its_arguments_are_looked_at(home: Home):
    assert home.fault("status", 17, v=2).code == "bad_version"
    fault = home.fault("destroy" * 20, 17)
    assert fault.code == "unknown_verb"
    assert "destroy" in fault.message
    assert len(fault.message) < 60, "what a client sends is not echoed at length"
    assert "submit" in fault.hint
    assert home.fault("release", {}).code == "bad_args"
    assert home.fault("release", {"task": 5}).code == "bad_args"


@pytest.mark.parametrize("payload", [b"", b"{", b"\xff\xff", b'{"verb": 5}', b"[1]", b"{" + b"[" * 5_000])
def test_what_is_no_request_is_answered_all_the_same(home: Home, payload: bytes):
    home.control.handle(BusRequest((b"x",), payload, ""))
    (answer,) = home.answers[b"x"]
    assert isinstance(answer.error, api.Fault)
    assert answer.error.code == "bad_request"
    assert home.control.counts["bad_request"] == 1


def test_a_request_is_as_large_as_may_be_and_no_larger(home: Home):
    most = home.life.loaded.settings.control.max_message_bytes
    request = msgspec.json.encode({"verb": "watch"})
    for size, ok in ((most, True), (most + 1, False)):
        home.control.handle(BusRequest((b"x",), request.ljust(size), ""))
        answer = home.answers[b"x"].pop()
        assert answer.ok == ok
    assert isinstance(answer.error, api.Fault)
    assert answer.error.code == "bad_request"


def test_who_may_not_call_or_not_act_for_a_task_or_a_ue_is_told_so(home: Home, monkeypatch: pytest.MonkeyPatch):
    calls: list[tuple[str, str]] = []
    abouts: list[tuple[str, list[tuple[str, str]]]] = []
    monkeypatch.setattr(home.life, "may_call", lambda user, role: calls.append((user, role)) or "")
    monkeypatch.setattr(home.life, "may_act", lambda user, about: abouts.append((user, list(about))) or "")
    home.ask("submit", args_of("a"), user="phone")
    home.ask("release", {"task": "a"}, user="phone")
    home.ask("status", user="phone")
    assert calls == [("phone", VERBS[verb].role) for verb in ("submit", "release", "status")]
    assert abouts == [("phone", [("task", "a"), ("UE", "ue0")]), ("phone", [("task", "a")])]
    monkeypatch.setattr(home.life, "may_call", lambda *_: "not you")
    assert home.fault("submit", args_of("b")).code == "not_allowed"
    monkeypatch.setattr(home.life, "may_call", lambda *_: "")
    monkeypatch.setattr(home.life, "may_act", lambda *_: "not that one")
    fault = home.fault("submit", args_of("b"), user="phone")
    assert (fault.code, fault.message) == ("not_allowed", "not that one")
    assert home.fault("release", {"task": "a"}).code == "not_allowed"
    assert home.ask("status").ok, "is about no task"
    assert not home.engine.trackers


# --- submit ---------------------------------------------------------------------------------------------------------


def test_submits_that_come_together_are_decided_together(home: Home):
    for name in "abc":
        home.send("submit", args_of(name))
    assert not home.asked
    home.control.flush()
    assert len(home.asked) == 1
    assert home.engine.counts["offered"] == 3
    home.settle()
    assert [answers[0].ok for answers in home.answers.values()] == [True] * 3
    assert set(home.engine.trackers) == {"a", "b", "c"}


@pytest.mark.parametrize("decided", ["not handed over", "asked for", "decided"])
def test_the_same_submit_again_is_the_same_task_and_another_of_its_id_is_refused(home: Home, decided: str):
    routes = [home.send("submit", args_of("a"))]
    if decided != "not handed over":
        home.control.flush()
    if decided == "decided":
        home.settle()
    routes.append(home.send("submit", args_of("a")))
    for other in ({"weight": 2.0}, {"ue": "ue1"}, {"fallback": "drop"}, {"work": {**WORK, "ttft_s": 3.0}}):
        assert home.fault("submit", args_of("a", **other)).code == "conflict"
    home.settle()
    leases = [msgspec.json.decode(home.answers[r][0].result, type=Lease) for r in routes]
    assert leases[0].plan == leases[1].plan
    assert leases[0].point == leases[1].point != ""
    assert home.engine.counts["offered"] == 1


def test_the_same_submit_again_is_a_sign_of_life_and_answered_with_what_is_left_of_the_lease(home: Home):
    (first,) = home.submit("a")
    home.now_ns += S_NS // 5
    (again,) = home.submit("a")
    assert again.valid_for_ms == pytest.approx(first.valid_for_ms - 200.0)
    assert home.engine.trackers["a"].heard_s == home.now_ns * 1e-9


def test_after_a_restart_the_lease_comes_with_the_first_plan(tmp_path: Path):
    before = Home(tmp_path)
    before.report()
    before.submit("a")
    before.close()
    home = Home(tmp_path, now_ns=before.now_ns + S_NS)
    assert "first plan" in home.fault("submit", args_of("a")).message
    home.report()
    home.life.tick()
    home.settle()
    assert home.submit("a")[0].point
    home.close()


@pytest.mark.parametrize(
    ("mode", "code"),
    [
        (Mode.STARTING, "not_done"), (Mode.DRAINING, "draining"), (Mode.FENCED, "draining"), (Mode.STOPPED, "draining"),
        (Mode.DEGRADED, ""),
    ],
)  # fmt: skip
def test_who_is_taken_depends_on_the_mode_and_who_is_there_is_answered(home: Home, mode: Mode, code: str):
    home.submit("there")
    home.life.modes.mode = mode
    answer = home.ask("submit", args_of("new"))
    assert answer.ok == (code == "")
    if code:
        assert isinstance(answer.error, api.Fault)
        assert answer.error.code == code
    again = home.ask("submit", args_of("there"))
    assert again.ok == (mode is not Mode.STARTING)
    home.life.modes.mode = Mode.STEADY


def test_only_so_many_submits_wait(tmp_path: Path):
    home = Home(tmp_path, {"control.max_waiting": "3"})
    home.report()
    home.send("submit", args_of("a"))
    home.control.flush()
    for name in "bc":
        home.send("submit", args_of(name))
    route = home.send("submit", args_of("d"))
    assert isinstance(home.answers[route][0].error, api.Fault)
    assert home.answers[route][0].error.code == "busy"
    home.settle()
    assert home.submit("d")[0].point
    home.close()


def test_a_quota_counts_tasks_that_run_that_are_asked_for_and_that_are_to_be(tmp_path: Path):
    home = Home(tmp_path, {"quota.ue_tasks": "3"})
    home.report()
    home.report("ue1")
    home.submit("runs")
    home.send("submit", args_of("asked"))
    home.control.flush()
    home.send("submit", args_of("to be"))
    route = home.send("submit", args_of("beyond"))
    other = home.send("submit", args_of("other", ue="ue1"))
    fault = home.answers[route][0].error
    assert isinstance(fault, api.Fault)
    assert (fault.code, "UE 'ue0' has 3 tasks" in fault.message) == ("quota", True)
    home.settle()
    assert home.answers[other][0].ok
    home.close()


LONG = {**WORK, "max_output_tokens": 40_000}  # 4 002 s


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"task": ""}, "1 to 128 characters"),
        ({"task": "x" * 129}, "1 to 128 characters"),
        ({"ue": ""}, "1 to 128 characters"),
        ({"ue": "x" * 129}, "1 to 128 characters"),
        ({"fallback": "hope"}, "one of local, drop, keep"),
        ({"weight": 0.0}, "weight outside"),
        ({"work": {**WORK, "ttft_s": -1.0}}, "ttft_s outside"),
        ({"work": {**WORK, "model": "gpt-5"}}, "gpt-5"),
        ({"work": LONG}, "lease.life_s"),
    ],
)
def test_a_task_that_cannot_be_is_refused_with_the_reason(home: Home, changes: dict[str, object], what: str):
    fault = home.fault("submit", args_of("a") | changes)
    assert fault.code == "bad_args"
    assert what in fault.message
    assert not home.engine.waiting
    assert not home.control.submits


def test_ids_and_lives_may_be_as_long_as_is_said(home: Home):
    home.report("u" * 128)
    most = round((home.life.loaded.settings.lease.life_s - 2.0) / 0.1)
    for tokens, ok in ((most, True), (most + 1, False)):
        args = args_of("x" * 128, ue="u" * 128, work={**WORK, "max_output_tokens": tokens})
        assert home.ask("submit", args).ok == ok
        home.ask("release", {"task": "x" * 128})


def test_an_offer_is_stamped_with_now_and_with_who_it_is_of(home: Home):
    home.now_ns += 7
    offers = [home.control.offer_of(api.SubmitArgs(task="a", ue="ue0", work=SESSION), user) for user in ("", "phone")]
    assert [o.source for o in offers] == ["control", "control/phone"]
    assert [o.at_ns for o in offers] == [home.now_ns] * 2
    assert offers[0].seq < offers[1].seq


# --- the other verbs ------------------------------------------------------------------------------------------------


def test_a_release_ends_a_task_and_says_whether_there_was_one(home: Home):
    home.submit("a")
    home.send("submit", args_of("b"))
    home.control.flush()
    assert home.fault("release", {"task": "b"}).code == "busy", "it is being decided"
    assert home.result(api.Released, "release", {"task": "a"}).released
    assert not home.result(api.Released, "release", {"task": "a"}).released
    assert set(home.engine.trackers) == {"b"}
    assert home.published[-1].reason == "released"
    assert home.published[-1].task == "a"
    assert [row for (row,) in home.life.store._db.execute("SELECT task FROM tasks")] == ["b"]


def test_a_list_has_those_that_begin_so_and_counts_all_of_them(home: Home, monkeypatch: pytest.MonkeyPatch):
    home.submit("a1", "a2", "b1")
    home.submit("a3")
    for args, total, names in (
        ({}, 4, ["a1", "a2", "b1", "a3"]),
        ({"prefix": "a"}, 3, ["a1", "a2", "a3"]),
        ({"prefix": "a", "limit": 2}, 3, ["a1", "a2"]),
        ({"limit": 0}, 4, []),
        ({"limit": -5}, 4, []),
    ):
        found = home.result(api.TaskList, "list", args)
        assert (found.total, [view.task for view in found.tasks]) == (total, names)
    monkeypatch.setattr(home.life, "may_act", lambda _, about: "" if about[0][1].startswith("b") else "not yours")
    assert home.result(api.TaskList, "list", {}, user="phone").total == 1
    assert home.result(api.TaskList, "list", {}).total == 4, "without keys nothing is hidden"


def test_a_view_says_how_far_a_task_is_and_who_says_so(home: Home):
    home.submit("llm", weight=2.0)
    home.submit("film", work=CLIP)
    home.now_ns += S_NS
    view = home.result(api.TaskView, "show", {"task": "llm"})
    assert (view.kind, view.ue, view.weight, view.phase, view.done, view.reported) == ("llm", "ue0", 2.0, 0, 0, False)
    assert view.age_s == pytest.approx(1.0)
    assert view.lease.valid_for_ms == 0.0, "nobody has planned for a second"
    film = home.result(api.TaskView, "show", {"task": "film"})
    assert (film.kind, film.done) == ("video", 2)
    home.engine.report(TaskProgress(at_ns=0, source="r", seq=1, task="llm", done=5, decoding_s=0.3), home.now_ns)
    home.life.tick()
    home.settle()
    view = home.result(api.TaskView, "show", {"task": "llm"})
    assert (view.phase, view.done, view.reported) == (1, 5, True)
    home.ask("release", {"task": "llm"})
    ended = home.result(api.TaskView, "show", {"task": "llm"})
    assert (ended.lease.reason, ended.done, ended.reported, ended.phase) == ("released", 0, False, 0)
    assert home.fault("show", {"task": "nobody"}).code == "unknown_task"


def test_a_policy_is_asked_for_and_changed_for_good(home: Home):
    assert home.fault("policy", {"policy": "magic"}).code == "bad_args"
    assert home.result(api.PolicyView, "policy", {}).policy == "joint"
    view = home.result(api.PolicyView, "policy", {"policy": "greedy"})
    assert (view.policy, view.chosen) == ("greedy", "greedy")
    assert "joint" in view.available
    assert home.life.store._meta["policy"] == "greedy"


def test_a_drain_is_begun_once_and_ended(home: Home):
    assert home.fault("resume").code == "not_done"
    assert home.result(api.ModeView, "drain").mode == "DRAINING"
    fault = home.fault("drain")
    assert (fault.code, "DRAINING" in fault.message) == ("not_done", True)
    assert home.result(api.ModeView, "resume").mode == "STEADY"


def test_a_failed_reload_is_a_fault_and_not_a_defect(home: Home):
    home.write(state__dir='"/elsewhere"')
    fault = home.fault("reload")
    assert (fault.code, "state.dir" in fault.message) == ("refused_configuration", True)
    assert home.control.counts["internal"] == 0
