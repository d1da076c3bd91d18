"""One life of a daemon without sockets, processes and clocks: all else is the daemon's code, wired as there.

It is a `Host` of the control verbs and what status and reload need of a daemon.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec

from cosched.api import messages as api
from cosched.api.messages import ShadowView
from cosched.config.settings import LoadedSettings
from cosched.core.commands import Plan, Solve
from cosched.core.planner import resource_ids
from cosched.core.policy import POLICIES
from cosched.core.reasons import Reason
from cosched.daemon import endpoints as places
from cosched.daemon import reload, status
from cosched.daemon.board import Board
from cosched.daemon.capture import Capture
from cosched.daemon.children import question as question_worker
from cosched.daemon.children.question import Question, Reply, Why
from cosched.daemon.control import Control, RequestRefused
from cosched.daemon.engine import Engine
from cosched.daemon.holders import over_quota, over_share
from cosched.daemon.ingest import Ingest
from cosched.daemon.mode import Mode, Modes, Move
from cosched.daemon.store import Kept, Store, StoreFailed
from cosched.errors import BadInput
from telemetry.bus import Frame
from telemetry.messages import TaskOffer
from telemetry.wire import Intake

NS = 1e-9


class Crash(BaseException):  # nothing of the daemon may catch it
    """The process is no more."""


class WatchedStore(Store):
    """Tells the world of what is on disk; the process may end before and after."""

    point: Callable[[], None] = staticmethod(lambda: None)
    stored: Callable[[Iterable[str], Iterable[str]], None] = staticmethod(lambda _, __: None)
    not_stored: Callable[[Iterable[str]], None] = staticmethod(lambda _: None)

    def commit(self, put: Iterable[Kept], drop: Iterable[str], generation: int) -> None:
        puts, drops = list(put), list(drop)
        self.point()
        try:
            super().commit(puts, drops, generation)
        except StoreFailed:
            self.not_stored(drops)
            raise
        self.stored([k.row.offer.task for k in puts], drops)
        self.point()


class WatchedCapture(Capture):
    """The process may end before anything is recorded."""

    point: Callable[[], None] = staticmethod(lambda: None)

    def add(self, topic: str, record: msgspec.Struct, at_ns: int, source_ns: int | None = None) -> None:
        self.point()
        super().add(topic, record, at_ns, source_ns)


class Bus:
    """Frames that have arrived on the telemetry socket."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.malformed = 0

    def drain(self, limit: int = 100) -> list[Frame]:
        taken, self.frames = self.frames[:limit], self.frames[limit:]
        return taken


class Life:
    """From a start to a crash or an orderly end."""

    def __init__(
        self,
        loaded: LoadedSettings,
        folder: Path,
        clock: Callable[[], int],
        wall: Callable[[], int],
        boot: Callable[[], str],
        point: Callable[[], None],
        publish: Callable[[bytes, bytes], None],
        send: Callable[[tuple[bytes, ...], bytes], None],
        solve: Callable[[Solve], None],
        on_plan: Callable[[Plan], None],
    ) -> None:
        self.loaded, self.clock, self.folder = loaded, clock, folder
        self.started_ns = clock()
        self.modes = Modes(self.started_ns * NS)
        self.access = self.authenticator = None
        settings = loaded.settings
        plant = places.plant(loaded)
        self.store = WatchedStore(folder / "state" / "state.sqlite", clock=clock, wall=wall, boot=boot)
        stored = self.store.load(clock())
        self.policy_chosen = stored.policy if stored.policy in POLICIES else settings.policy
        self.bus = Bus()
        gate = SimpleNamespace(counted=lambda: ())
        self.sockets = SimpleNamespace(telemetry=self.bus, control=SimpleNamespace(malformed=0, unread=0), gate=gate)
        self.shadow = SimpleNamespace(view=lambda: ShadowView(baseline=""))
        self.cluster = SimpleNamespace(view=api.ClusterView, adopt=_nothing)
        self.placer = SimpleNamespace(view=api.PlacementView, adopt=lambda: None)
        self.pool = SimpleNamespace(budget_s=settings.solver.budget_s)
        self.intake = Intake(settings.telemetry.max_message_bytes)
        self.engine = Engine(
            plant=plant,
            core=plant.core(self.policy_chosen, settings.core),
            store=self.store,
            capture=WatchedCapture(settings.capture, folder / "captures"),
            board=Board(plant.site, publish),
            clock=clock,
            solve=solve,
            alarm=self.alarm,
            on_plan=on_plan,
        )
        self.engine.capture.point = point
        self.engine.restore(stored.snapshot(clock()))
        self.store.point = point
        takers = (self.engine.reports, self.engine.report)
        self.ingest = Ingest(self.bus, self.intake, *takers, clock)
        self.control = Control(self, send, self.spawn, settings.control.max_waiting, settings.control.max_message_bytes)
        self.engine.begin_capture()

    # --- what happens -------------------------------------------------------------------------------------------

    def tick(self) -> None:
        self.engine.beat()
        self.watch_input()
        self.engine.tick(self.loaded.settings.telemetry.stale_ue_s, self.loaded.settings.lease.silent_s)
        if self.modes.mode is Mode.FENCED:
            for task in list(self.engine.trackers):
                self.engine.end(task, Reason.FENCED)
            self.engine.flush()

    def watch_input(self) -> None:
        settings = self.loaded.settings
        age_s = (self.clock() * NS) - max(self.engine.last_sample_s, self.started_ns * NS)
        stale = age_s > settings.telemetry.stale_input_s
        self.alarm("telemetry", "no valid radio report" if stale else "")
        self.engine.switch(settings.shadow.baseline if stale else self.policy_chosen)

    def stop(self) -> None:
        """As `Daemon._stop` does."""
        self.modes.move(Move.STOP, self.clock() * NS)
        self.engine.give_up("the daemon is ending")
        self.engine.board.shorten(self.loaded.settings.shutdown.lease_s, self.clock())
        self.engine.capture.close(self.clock())
        self.engine.flush()
        self.store.close()

    # --- what the verbs need ------------------------------------------------------------------------------------

    @property
    def mode(self) -> Mode:
        return self.modes.mode

    def alarm(self, subject: str, text: str) -> None:
        self.modes.alarm(subject, text, self.clock() * NS)

    def status(self) -> api.Status:
        return status.of(self)

    def mode_view(self) -> api.ModeView:
        since_s = self.clock() * NS - self.modes.since_s
        return api.ModeView(mode=str(self.modes.mode), since_s=since_s, alarms=self.modes.alarms)

    def endpoints(self) -> tuple[str, ...]:
        return ()

    def drain(self) -> None:
        self.modes.move(Move.DRAIN, self.clock() * NS)

    def resume(self) -> None:
        self.modes.move(Move.RESUME, self.clock() * NS)

    def change_policy(self, name: str) -> None:
        if name not in POLICIES:
            raise BadInput(f"policy '{name}'")
        try:
            self.store.set_policy(name)
        except StoreFailed as error:
            raise RequestRefused("not_done", str(error)) from None
        self.policy_chosen = name
        self.watch_input()

    def policy_view(self) -> api.PolicyView:
        return api.PolicyView(
            policy=self.engine.core.policy.name, chosen=self.policy_chosen, baseline="", available=tuple(POLICIES)
        )

    def may_call(self, _user: str, _role: str) -> str:
        return ""

    def may_act(self, _user: str, _about: Sequence[tuple[str, str]]) -> str:
        return ""

    def may_hold(self, offer: TaskOffer) -> str:
        quota, engine = self.loaded.settings.quota, self.engine
        if len(engine.trackers) >= quota.tasks:
            return "there are enough"
        held = (engine.trackers.of, engine.waiting.of, self.control.submits.of)
        return over_quota(offer, held, quota.ue_tasks, quota.tasks) or over_share(
            offer, engine.core, engine.plan, quota.ue_share, 1.0
        )

    async def reload(self) -> api.Reloaded:
        return await reload.reload(self)

    async def quiet(self) -> None:
        if not self.engine.core.is_quiet:
            raise BadInput("the daemon is too busy: a solve is always open")

    async def whatif(self, args: api.WhatifArgs) -> api.WhatifResult:
        offers = tuple(map(self.control.sound_offer, args.submit))
        if living := [o.task for o in offers if o.task in self.engine.trackers]:
            raise RequestRefused("conflict", f"a task '{living[0]}' lives")
        return self._inquire(api.WhatifResult, whatif=args, offers=offers)

    async def explain(self, task: str) -> api.Explanation:
        view = self.control.view(task)
        held, ended = self.engine.trackers.get(task), self.engine.board.ended(task)
        offer = held.offer if held is not None else ended.offer
        fresh = msgspec.structs.replace(offer, at_ns=self.clock())
        plan, names = self.engine.plan, resource_ids(self.engine.plant.site)
        known = plan is not None and len(plan.planned_use) == len(names)
        planned = tuple(plan.planned_use.tolist()) if known else (0.0,) * len(names)
        return self._inquire(api.Explanation, why=Why(offer=fresh, lease=view.lease, planned=planned))

    def _inquire(self, kind: type, **asked: Any) -> Any:  # noqa: ANN401  # a Question's own fields
        engine = self.engine
        question = Question(
            site_toml=engine.plant.toml,
            ue_devices=dict(engine.plant.ue_devices),
            policy=engine.core.policy.name,
            core=self.loaded.settings.core,
            snapshot=msgspec.structs.replace(engine.core.snapshot(), at_s=self.clock() * NS),
            **asked,
        )
        reply = msgspec.msgpack.decode(question_worker.answer(msgspec.msgpack.encode(question)), type=Reply)
        if reply.fault is not None:
            raise RequestRefused(reply.fault.code, reply.fault.message)
        return msgspec.msgpack.decode(reply.result, type=kind)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run it to its end: nothing that is spawned here waits for more than its turn."""
        try:
            for _ in range(10_000):
                work.send(None)
        except StopIteration:
            return
        raise AssertionError("it waits")


async def _nothing(*_: object) -> None:
    pass
