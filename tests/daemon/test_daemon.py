"""What the daemon does when: input falls silent, nodes go, a tick comes, somebody asks for too much, it ends.

Its own code on its own engine, without sockets, workers and timers: what those would be notes what it is told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import msgspec
import pytest
from desk import S_NS, Desk
from two_nodes import WORK

from cosched.api.access import Access, Identity, IdentityLimits
from cosched.children.packing import pack, solve_packed
from cosched.children.pool import ask_of
from cosched.daemon import daemon as module
from cosched.daemon.control import RequestRefused
from cosched.daemon.daemon import SLICE, Daemon
from cosched.daemon.engine import Waiting
from cosched.daemon.mode import Mode
from cosched.daemon.upkeep import StoreFailed
from cosched.errors import BadInput
from telemetry.bus import BusRequest
from telemetry.messages import NodeReport, TaskOffer


class Parts(Desk):
    """A daemon whose notifier, cluster, placer, pool and sockets note what they are told."""

    alarm = Daemon.alarm
    _planned = Daemon._planned

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []
        self.loop.run_until_complete(self._made())
        self.engine.alarm, self.engine.on_plan = self.alarm, self._planned
        self._exit_code, self._tasks, self._barred = 0, set(), ()
        self._planned_ns = self.now_ns
        note = self.note
        self._decisions_pump = SimpleNamespace(again=lambda: None)
        self.pool = SimpleNamespace(is_ready=True, close=note("pool closed", wait=True))
        self.inquiry = SimpleNamespace(close=note("inquiry closed", wait=True))
        self.placer = SimpleNamespace(refresh=note("placer refreshed"))
        names = ("ready", "reloading", "stopping", "alive")
        self.notifier = SimpleNamespace(watchdog_s=0.0, **{name: note(name) for name in names})
        self.greeter = SimpleNamespace(stop=note("greeter stopped"))
        self.exporter = None
        self.nodes_of_plans: list[list[str]] = []
        self.cluster = SimpleNamespace(
            memory_notice="", short_bytes={}, endpoints={}, barred=(), fenced_by="", heard=self.told.append,
            plan=lambda plan, _: self.nodes_of_plans.append(list(plan.tasks)),
            nothing=lambda generation: self.told.append(f"nothing at {generation}"),
            close=note("cluster closed", wait=True),
        )  # fmt: skip
        self.arrived: list[BusRequest] = []
        self.sockets = SimpleNamespace(
            control=SimpleNamespace(drain=self._drained, endpoints=["ipc:///c"]),
            decisions=SimpleNamespace(endpoints=["ipc:///d"]),
            close=note("sockets closed", wait=True),
        )
        self.radio()

    async def _made(self) -> None:
        self._ended, self._reloading = asyncio.Event(), asyncio.Lock()

    def note(self, what: str, *, wait: bool = False) -> Callable[..., object]:
        """Note that it was called; `wait`: it is awaited."""

        def told(*_: object) -> object:
            self.told.append(what)
            return asyncio.sleep(0) if wait else None

        return told

    def _drained(self, limit: int) -> list[BusRequest]:
        taken, self.arrived = self.arrived[:limit], self.arrived[limit:]
        return taken

    def submit(self, *tasks: str, ue: str = "ue0", source: str = "control") -> None:
        self.engine.offer([Waiting(self.an_offer(task, ue, source), [lambda *_: None]) for task in tasks])
        self.settle()

    def an_offer(self, task: str, ue: str = "ue0", source: str = "control") -> TaskOffer:
        work = msgspec.structs.replace(WORK, max_output_tokens=4000)
        return TaskOffer(at_ns=self.now_ns, source=source, seq=0, task=task, ue=ue, work=work)

    def pass_s(self, seconds: float) -> None:
        self.now_ns += round(seconds * S_NS)

    def ticks(self, seconds: float, *, heard: bool = True) -> None:
        """Ticks of 0.1 s, with or without a radio."""
        for _ in range(round(seconds / 0.1)):
            self.pass_s(0.1)
            if heard:
                self.radio()
            self._tick()
            self.settle()
            self.engine.validate()
            self.modes.validate()

    def settle_now(self) -> None:
        """Answer what is asked, inside of the loop."""
        while self.asked:
            command = self.asked.pop(0)
            self.engine.solved(command.request, solve_packed(pack(ask_of(command))).solution, "")

    def alarms(self) -> set[str]:
        return {alarm.split(":")[0] for alarm in self.modes.alarms}


@pytest.fixture
def parts() -> Iterator[Parts]:
    found = Parts()
    yield found
    if found.engine.capture.path:
        found.engine.capture.close(found.now_ns)
        found.store.close()
    found.loop.close()
    found.folder.cleanup()


# --- input ----------------------------------------------------------------------------------------------------------


def test_without_input_the_baseline_decides_until_there_is_some(parts: Parts):
    settings = parts.loaded.settings
    parts.submit("a")
    parts.ticks(0.5)
    assert parts.engine.core.policy.name == settings.policy == "joint"
    parts.ticks(settings.telemetry.stale_input_s, heard=False)
    assert "telemetry" not in parts.alarms()
    parts.ticks(0.2, heard=False)
    assert "telemetry" in parts.alarms()
    assert parts.mode is Mode.DEGRADED
    assert parts.engine.core.policy.name == settings.shadow.baseline
    view = parts.policy_view()
    assert (view.policy, view.chosen) == (settings.shadow.baseline, "joint")
    parts.ticks(0.1)
    assert parts.engine.core.policy.name == "joint"
    assert parts.mode is Mode.STEADY


def test_a_daemon_that_never_heard_of_anybody_waits_as_long_from_its_start(parts: Parts):
    parts.engine.last_sample_s = -1.0
    parts.started_ns = parts.now_ns
    parts.pass_s(parts.loaded.settings.telemetry.stale_input_s - 0.01)
    parts._watch_input(parts.now_ns)
    assert "telemetry" not in parts.alarms()
    parts.pass_s(0.02)
    parts._watch_input(parts.now_ns)
    assert "telemetry" in parts.alarms()


def test_a_policy_is_changed_for_good_and_not_while_the_baseline_decides(parts: Parts):
    with pytest.raises(BadInput, match="policy 'magic': there are joint"):
        parts.change_policy("magic")
    parts.change_policy("greedy")
    assert parts.engine.core.policy.name == parts.policy_chosen == parts.store._meta["policy"] == "greedy"
    parts.pass_s(60.0)
    parts.change_policy("joint")
    assert parts.policy_chosen == "joint"
    assert parts.engine.core.policy.name == parts.loaded.settings.shadow.baseline


def test_a_policy_that_cannot_be_stored_is_not_changed(parts: Parts, monkeypatch: pytest.MonkeyPatch):
    def refuse(_: str) -> None:
        raise StoreFailed("no space left")

    monkeypatch.setattr(parts.store, "set_policy", refuse)
    with pytest.raises(RequestRefused, match="no space left") as caught:
        parts.change_policy("greedy")
    assert caught.value.fault.code == "not_done"
    assert parts.engine.core.policy.name == parts.policy_chosen == "joint"


# --- what somebody may hold -----------------------------------------------------------------------------------------


def with_quota(parts: Parts, **quota: float) -> None:
    settings = parts.loaded.settings
    changed = msgspec.structs.replace(settings, quota=msgspec.structs.replace(settings.quota, **quota))
    parts.loaded = SimpleNamespace(settings=changed)  # type: ignore[assignment]


def test_who_runs_waits_and_is_to_be_asked_for_counts(parts: Parts):
    with_quota(parts, ue_tasks=3)
    parts.submit("runs")
    parts.engine.offer([Waiting(parts.an_offer("waits"), [lambda *_: None])])
    assert parts.may_hold(parts.an_offer("x")) == ""
    offer = parts.an_offer("to be")
    parts.control.submits["to be"] = Waiting(offer, [lambda *_: None])
    assert parts.may_hold(parts.an_offer("x")) == "UE 'ue0' has 3 tasks, and may not have more"
    assert parts.may_hold(parts.an_offer("x", "ue1")) == ""
    parts.settle()


def test_all_together_have_a_bound(parts: Parts):
    with_quota(parts, tasks=2)
    parts.submit("a", "b")
    assert parts.may_hold(parts.an_offer("x", "ue1")) == "there are 2 tasks, and there may not be more"


def test_an_identity_has_its_own_limits(parts: Parts):
    phone = Identity(name="phone", public="a" * 40, role="client", limits=IdentityLimits(tasks=1, share=0.001))
    parts.access = Access([phone])
    parts.submit("a", source="control/phone")
    assert parts.may_hold(parts.an_offer("x", "ue1", "control/phone")).startswith("this identity has 1 tasks")
    assert parts.may_hold(parts.an_offer("x", "ue1", "control/other")) == ""
    parts.access = Access([msgspec.structs.replace(phone, limits=IdentityLimits(share=0.001))])
    assert "this identity holds" in parts.may_hold(parts.an_offer("x", "ue1", "control/phone"))
    parts.access = Access([msgspec.structs.replace(phone, limits=IdentityLimits())])
    assert parts.may_hold(parts.an_offer("x", "ue1", "control/phone")) == ""


def test_a_ue_holds_no_more_than_its_part_of_any_resource(parts: Parts):
    parts.submit("a")
    with_quota(parts, ue_share=0.001)
    assert "UE 'ue0' holds" in parts.may_hold(parts.an_offer("x"))
    assert parts.may_hold(parts.an_offer("x", "ue1")) == ""


# --- ticks ----------------------------------------------------------------------------------------------------------


def test_the_alarm_of_a_solver_ends_with_a_tick_that_has_nothing_to_plan_where_somebody_is_ready(parts: Parts):
    parts.alarm("solver", "its process died")
    parts.pool.is_ready = False
    parts.ticks(0.1)
    assert "solver" in parts.alarms()
    parts.pool.is_ready = True
    parts.ticks(0.1)
    assert "solver" not in parts.alarms()


def test_the_watchdog_hears_only_while_plans_are_made(parts: Parts):
    parts.notifier.watchdog_s = 4.0
    parts.submit("a")
    parts.ticks(1.0)
    assert parts.told.count("alive") == 10
    parts.told.clear()
    for _ in range(30):  # nobody answers
        parts.pass_s(0.1)
        parts.radio()
        parts._tick()
    assert 15 <= parts.told.count("alive") <= 20, "for half of its patience"
    parts.asked.clear()


def test_without_a_task_nodes_are_told_so(parts: Parts):
    parts.ticks(0.1)
    assert parts.told[-1] == f"nothing at {parts.engine.core.generation}"
    parts.submit("a")
    parts.told.clear()
    parts.ticks(0.3)
    assert parts.told == []
    assert parts.nodes_of_plans[-1] == ["a"]


def test_memory_that_nodes_lack_is_planned_with_and_told_of(parts: Parts):
    parts.cluster.short_bytes, parts.cluster.memory_notice = {"edge0": 1e9}, "edge0 has less than it should"
    parts.ticks(0.1)
    assert parts.engine.core.state.short_bytes == {"edge0": 1e9}
    assert "capacity" in parts.alarms()
    assert parts.mode is Mode.STEADY, "decisions are as good"
    version = parts.engine.core.state.version
    parts.ticks(0.1)
    assert parts.engine.core.state.version == version, "once is enough"


def test_a_message_about_a_node_is_the_cluster_s_too(parts: Parts):
    parts.shadow = SimpleNamespace(heard=lambda *_: None, reported=lambda *_: None)  # type: ignore[assignment]
    report = NodeReport(at_ns=0, source="n", seq=0, node="edge0")
    Daemon._report(parts, report, parts.now_ns)
    assert parts.told == [report]


# --- the cluster ----------------------------------------------------------------------------------------------------


def test_nodes_that_are_gone_are_barred_once_and_back_when_they_are(parts: Parts):
    parts.submit("a", "b")
    parts.cluster.barred, parts.cluster.endpoints = ("edge1",), {"edge0": ("tcp://x", "k")}
    parts._cluster_changed()
    assert parts.engine.core.state.places.barred == {1}
    assert parts.engine.board.endpoints == {"edge0": ("tcp://x", "k")}
    assert parts.told == ["placer refreshed"]
    parts.settle()
    version = parts.engine.core.state.version
    parts._cluster_changed()
    assert parts.engine.core.state.version == version
    parts.cluster.barred = ()
    parts._cluster_changed()
    assert parts.engine.core.state.places.barred == frozenset()
    parts.settle()


def test_where_another_daemon_commands_all_ends_and_nothing_begins(parts: Parts):
    parts.submit("a", "b")
    parts.cluster.fenced_by = "another"
    parts._cluster_changed()
    assert parts.mode is Mode.FENCED
    parts._cluster_changed()  # told of it again
    parts.ticks(0.1)
    assert not parts.engine.trackers
    assert parts.engine.reasons["fenced"] == 2
    assert [t for (t,) in parts.store._db.execute("SELECT task FROM tasks")] == []
    assert parts.mode is Mode.FENCED


# --- requests -------------------------------------------------------------------------------------------------------


def request(n: int = 0, user: str = "") -> BusRequest:
    return BusRequest((str(n).encode(),), msgspec.json.encode({"verb": "watch", "id": n}), user)


def test_requests_are_carried_out_and_looked_for_again_where_there_may_be_more(parts: Parts):
    parts.arrived = [request(n) for n in range(SLICE + 1)]
    parts._router_pump = SimpleNamespace(again=lambda: None)
    assert parts._serve() > 0
    while parts._serve():
        parts.pass_s(0.1)
    assert len(parts.answers) == SLICE + 1
    assert msgspec.json.decode(parts.answers[0])["result"]["endpoints"] == ["ipc:///d"]


def test_who_sends_too_much_is_not_heard_and_is_counted(parts: Parts):
    limits = IdentityLimits(messages_per_s=2)
    parts.access = Access([Identity(name="phone", public="a" * 40, role="client", limits=limits)])
    parts.arrived = [request(n, "phone") for n in range(5)] + [request(9, "stranger")]
    parts._serve()
    assert len(parts.answers) == 2
    assert parts.intake.quarantine.counts["phone", "too many messages"] == 3
    assert parts.intake.quarantine.counts["stranger", "not allowed any more"] == 1


def test_roles_and_patterns_are_asked_where_there_are_keys(parts: Parts):
    assert parts.may_call("phone", "operator") == parts.may_act("phone", [("task", "a")]) == ""
    parts.access = Access([Identity(name="phone", public="a" * 40, role="client", tasks=("p-*",))])
    assert parts.may_call("phone", "operator")
    assert parts.may_call("phone", "client") == ""
    assert parts.may_act("phone", [("task", "a")])
    assert parts.may_act("phone", [("task", "p-1")]) == ""


def test_modes_are_told_with_since_when_and_why(parts: Parts):
    parts.drain()
    parts.pass_s(3.0)
    parts.alarm("solver", "late")
    view = parts.mode_view()
    assert (view.mode, view.alarms) == ("DRAINING", ("solver: late",))
    assert view.since_s == pytest.approx(3.0)
    parts.resume()
    assert parts.mode is Mode.DEGRADED


# --- waiting, defects, the end --------------------------------------------------------------------------------------


def test_quiet_is_waited_for_and_not_for_ever(parts: Parts, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "QUIET_S", 0.02)
    parts.loop.run_until_complete(parts.quiet())
    parts.engine.offer([Waiting(parts.an_offer("a"), [lambda *_: None])])
    with pytest.raises(BadInput, match="a solve is always open"):
        parts.loop.run_until_complete(parts.quiet())
    monkeypatch.setattr(module, "QUIET_S", 10.0)
    parts.loop.call_soon(parts.settle_now)
    parts.loop.run_until_complete(parts.quiet())
    assert parts.engine.core.is_quiet


def test_a_signal_to_reload_tells_systemd_that_it_is_over_even_where_it_is_refused(parts: Parts):
    async def refuse() -> None:
        raise RequestRefused("refused_configuration", "a mistake")

    parts.reload = refuse  # type: ignore[method-assign,assignment]
    parts.loop.run_until_complete(parts._hang_up())
    assert parts.told == ["reloading", "ready"]


def test_a_defect_beside_the_loop_ends_the_daemon_with_1_and_an_end_by_itself_does_not(parts: Parts):
    async def ends() -> None:
        pass

    async def fails() -> None:
        raise ZeroDivisionError

    async def spawned(*work: Callable[[], object]) -> None:
        for one in work:
            Daemon.spawn(parts, one())  # type: ignore[arg-type]
        await asyncio.sleep(0)
        for task in list(parts._tasks):
            task.cancel()
        await asyncio.sleep(0.01)

    async def waits() -> None:
        await asyncio.sleep(60)

    parts.loop.set_exception_handler(parts._defect)
    parts.loop.run_until_complete(spawned(ends, waits))
    assert (parts._exit_code, parts._ended.is_set(), parts._tasks) == (0, False, set())
    parts.loop.run_until_complete(spawned(fails))
    assert (parts._exit_code, parts._ended.is_set(), parts._tasks) == (1, True, set())


def test_at_the_end_who_waits_is_answered_leases_are_short_and_all_is_on_disk(parts: Parts):
    parts.submit("a", "b")
    parts.engine.end("b", "released")
    answers: list[str] = []
    parts.engine.offer([Waiting(parts.an_offer("waits"), [lambda _, why: answers.append(why)])])
    parts.loop.run_until_complete(parts._stop([SimpleNamespace(stop=parts.note("pump stopped"))]))  # type: ignore[list-item]
    assert answers == ["the daemon is ending"]
    assert parts.mode is Mode.STOPPED
    lease = parts.engine.board.current("a", parts.now_ns)
    assert lease is not None
    assert lease.valid_for_ms == pytest.approx(1e3 * parts.loaded.settings.shutdown.lease_s)
    assert parts.told[:2] == ["stopping", "pump stopped"]
    assert set(parts.told[2:]) == {
        "cluster closed", "pool closed", "inquiry closed", "greeter stopped", "sockets closed",
    }  # fmt: skip
    assert parts.engine.capture.path == ""
    assert not parts.engine._drops
