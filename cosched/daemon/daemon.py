"""The daemon: sockets, timers, signals and workers around one engine, in one event loop.

What is decided stands in cosched/core, what is done about it in engine.py; here is what happens when.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
from collections.abc import Coroutine, Sequence
from typing import Any, Final

import msgspec
import structlog

from cosched.api import messages as api
from cosched.api.zap import Authenticator
from cosched.children.pool import Pool
from cosched.config import wiring as build
from cosched.config.log import flush, unblock
from cosched.config.settings import LoadedSettings
from cosched.core.commands import Plan
from cosched.core.policy import FALLBACK, POLICIES
from cosched.core.reasons import Reason
from cosched.daemon import endpoints as places
from cosched.daemon import inquiry, memory, reload, status
from cosched.daemon.board import Board
from cosched.daemon.capture import Capture
from cosched.daemon.cluster_link import ClusterLink
from cosched.daemon.control import Control, RequestRefused
from cosched.daemon.engine import Engine
from cosched.daemon.greeter import Greeter
from cosched.daemon.holders import over_quota, over_share
from cosched.daemon.ingest import Ingest
from cosched.daemon.inquiry import Inquiry
from cosched.daemon.mode import Mode, Modes, Move
from cosched.daemon.notify import Notifier
from cosched.daemon.placing import Placer
from cosched.daemon.rehearsal import rehearse, say_until
from cosched.daemon.shadow_feed import ShadowFeed, ShadowWindow
from cosched.daemon.store import Store, StoreFailed
from cosched.errors import BadInput, CoschedError
from solvers.solution import Solution
from telemetry import bus
from telemetry.messages import Message, NodeReport, TaskOffer, UeReport
from telemetry.wire import Intake

NS: Final = 1e-9
QUIET_S: Final = 5.0  # a reload waits for an open solve at most this long
QUIET_STEP_S: Final = 0.002
LINGER_MS: Final = 500  # what the sockets still send when the daemon ends
SLICE: Final = 200  # requests received in one go
STATUS_S: Final = 1.0  # between two publications of the status
IO_THREADS: Final = 3  # of ZeroMQ: what one peer's connection brings, decrypted or not, holds no other's up
REST_S: Final = 0.005  # between two looks at the telemetry: each has its fixed cost, and a tick comes every 100 ms
YIELDS: Final = 10  # looks at submits that are being decided, for which a tick waits ...
YIELD_S: Final = 0.001  # ... so long each

log = structlog.get_logger()


class Daemon:
    """One daemon from its configuration to its end. `run` returns the exit code."""

    def __init__(self, loaded: LoadedSettings) -> None:
        self.loaded = loaded
        self.clock = time.monotonic_ns
        self.started_ns = self.clock()
        self.modes = Modes(self.started_ns * NS)
        self.notifier = Notifier()
        self.policy_chosen = loaded.settings.policy
        self._ended: asyncio.Event = asyncio.Event()
        self._exit_code = 0
        self.is_compiling = False  # also when `run` was ended meanwhile: the compiler cannot be
        self._tasks: set[asyncio.Task[None]] = set()
        self._reloading = asyncio.Lock()
        self._barred: tuple[str, ...] = ()  # nodes that are not planned with
        self._planned_ns = self.started_ns  # the latest tick that led to a plan, or had nothing to plan
        settings = loaded.settings
        places.own(loaded)
        plant = places.plant(loaded)
        keys, self.access = places.security(loaded)
        self.store = Store(places.place(settings.state.dir) / "state.sqlite")  # refuses a second daemon
        self.authenticator = Authenticator(self.access) if self.access is not None else None
        self.sockets = places.bind(loaded, keys)
        self.exporter = places.exporter(loaded)
        for line in places.warnings(loaded):
            log.warning("configuration", what=line)
        self.pool = Pool(settings.solver.budget_s, self._solved)
        self.inquiry = Inquiry()
        self.intake = Intake(settings.telemetry.max_message_bytes)
        self.engine = self._first_engine(plant)
        self.cluster = self._cluster_link(plant)
        self.placer = Placer(settings.cluster, self.engine, self.cluster, self.store)
        takers = (self._reports, self._report)
        self.ingest = Ingest(self.sockets.telemetry, self.intake, *takers, self.clock)
        self.ingest.access = self.access
        self.shadow = ShadowFeed(settings.shadow.window_s, self._shadow_window)
        self.greeter = Greeter(self.sockets.decisions, self.engine.board, self.clock)
        self.control = Control(
            self, self._answer, self.spawn, settings.control.max_waiting, settings.control.max_message_bytes
        )

    # --- beginning ----------------------------------------------------------------------------------------------

    def _first_engine(self, plant: build.Plant) -> Engine:
        now_ns = self.clock()
        stored = self.store.load(now_ns)
        self.alarm("storage", self.store.notice)
        if stored.policy in POLICIES:
            self.policy_chosen = stored.policy
        settings = self.loaded.settings
        engine = Engine(
            plant=plant,
            core=plant.core(self.policy_chosen, settings.core),
            store=self.store,
            capture=Capture(settings.capture, places.place(settings.capture.dir)),
            board=Board(plant.site, self.sockets.decisions.send),
            clock=self.clock,
            solve=self.pool.submit,
            alarm=self.alarm,
            on_plan=self._planned,
            on_offer=lambda offer: self.shadow.offered(offer),  # noqa: PLW0108  # made after the engine
        )
        engine.restore(stored.snapshot(now_ns))
        return engine

    def _cluster_link(self, plant: build.Plant) -> ClusterLink:
        settings = self.loaded.settings
        note = places.place(settings.state.dir) / "cluster.json"
        return ClusterLink(
            settings.cluster, plant, self.store, settings.core.period_s, note, self._cluster_changed, self.alarm
        )

    async def run(self) -> int:
        """Serve until a signal ends it; return the exit code."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._defect)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ended.set)
        loop.add_signal_handler(signal.SIGHUP, lambda: self.spawn(self._hang_up()))
        self.engine.begin_capture()
        pumps = self._pumps(loop)
        self.spawn(self._become_ready())
        self.spawn(self._ticks())
        self.spawn(self._publish_status())
        self.spawn(memory.give_back())
        if self.loaded.settings.shadow.enabled:
            self.spawn(self.shadow.run(self.clock))
        await self._ended.wait()
        await self._stop(pumps)
        return self._exit_code

    def _pumps(self, loop: asyncio.AbstractEventLoop) -> list[bus.Pump]:
        self._router_pump = bus.Pump(loop, self.sockets.control, self._serve)
        pumps = [
            bus.Pump(loop, self.sockets.telemetry, self.ingest.drain, REST_S),
            self._router_pump,
            bus.Pump(loop, self.sockets.decisions, self.greeter.drain),
        ]
        self._decisions_pump = pumps[-1]
        self.greeter.again = self._decisions_pump.again
        self.sockets.gate.attach(loop, self.alarm)
        if self.authenticator is not None:
            pumps.append(bus.Pump(loop, self.authenticator, self.authenticator.drain))
        return pumps

    async def _become_ready(self) -> None:
        settings = self.loaded.settings
        policies = (self.policy_chosen, settings.shadow.baseline, *FALLBACK)
        self.spawn(say_until(self.pool.first, lambda: "this process" if self.is_compiling else "the solve workers"))
        # in a thread: without a cache of compiled code this takes minutes, and `status` should say so
        self.is_compiling = True
        self.pool.start(await asyncio.to_thread(rehearse, self.engine.plant, settings.core, policies))
        self.is_compiling = False
        gc.collect()
        gc.freeze()  # what is loaded by now stays: a full collection would look through half a million objects
        await self.pool.first.wait()
        now_s = self.clock() * NS
        if self.modes.mode is Mode.STARTING:
            self.engine.tick(
                settings.telemetry.stale_ue_s, settings.lease.silent_s
            )  # restored tasks get their leases first
            await self.quiet()
            self.modes.move(Move.READY, now_s)
        self.notifier.ready()
        self.cluster.start()  # now: its seconds of processor time are not to be missed above
        self.spawn(self.placer.run())
        self.spawn(self.inquiry.start(self.pool.rehearsal))
        log.info(
            "ready",
            site=self.engine.plant.site.name,
            policy=self.policy_chosen,
            telemetry=self.sockets.telemetry.endpoints,
            control=self.sockets.control.endpoints,
            restored=self.engine.counts["restored"],
        )

    # --- what the sockets bring ---------------------------------------------------------------------------------

    def _reports(self, reports: Sequence[UeReport], at_ns: int) -> None:
        self.engine.reports(reports, at_ns)
        self.shadow.reported(reports, at_ns)

    def _report(self, message: Message, at_ns: int) -> None:
        self.engine.report(message, at_ns)
        if isinstance(message, NodeReport):
            self.cluster.heard(message)
        self.shadow.heard(message, at_ns)

    def _shadow_window(self, begun_ns: int, ended_ns: int) -> ShadowWindow:
        engine, settings = self.engine, self.loaded.settings
        return ShadowWindow(
            site_toml=engine.plant.toml,
            ue_devices=dict(engine.plant.ue_devices),
            core=settings.core,
            policy=self.policy_chosen,
            baseline=settings.shadow.baseline,
            begun_ns=begun_ns,
            ended_ns=ended_ns,
        )

    def _serve(self) -> float:
        """Drain the control socket, and carry out what waits for its turn; returns when to come again (Pump)."""
        now_s = self.clock() * NS
        asked = self.sockets.control.drain(SLICE)
        for request in asked:
            user, size = request.user, len(request.payload)
            if self.access is not None and (reason := self.access.receive(user, size, now_s)):
                self.intake.refuse(user, reason)
            else:
                self.control.queue(request, now_s)
        return self.control.work(now_s) or float(len(asked) == SLICE)

    def _answer(self, route: tuple[bytes, ...], payload: bytes) -> None:
        self.sockets.control.answer(route, payload)
        self._router_pump.again()

    # --- time ---------------------------------------------------------------------------------------------------

    async def _ticks(self) -> None:
        """The near-RT loop: on a grid, so that a late tick does not make all later ones late."""
        loop = asyncio.get_running_loop()
        await self.pool.first.wait()
        due = loop.time()
        while True:
            period_s = self.loaded.settings.core.period_s
            due = max(due + period_s, loop.time())
            await asyncio.sleep(due - loop.time())
            for _ in range(YIELDS):
                if not self.engine.waiting:
                    break
                await asyncio.sleep(YIELD_S)
            self._tick()

    def _tick(self) -> None:
        settings, now_ns = self.loaded.settings, self.clock()
        self.engine.beat()
        self._watch_input(now_ns)
        self.control.watch(now_ns * NS)
        idle = self.engine.core.is_quiet
        self.engine.tick(settings.telemetry.stale_ue_s, settings.lease.silent_s)
        if idle and self.engine.core.is_quiet:
            self._planned_ns = now_ns  # nothing to plan
            if self.pool.is_ready:
                self.alarm("solver", "")  # a solve that failed is over, and there is who solves the next one
        self._tick_cluster()
        if self.notifier.watchdog_s and (now_ns - self._planned_ns) * NS < self.notifier.watchdog_s / 2:
            self.notifier.alive()
        self._decisions_pump.again()

    def _tick_cluster(self) -> None:
        """Take in what nodes have, say to them that nobody is served any more, and end all where command is lost."""
        if (short_bytes := self.cluster.short_bytes) != self.engine.core.state.short_bytes:
            self.engine.shrink(short_bytes)
        self.alarm("capacity", self.cluster.memory_notice)
        if self.modes.mode is Mode.FENCED:
            for task in list(self.engine.trackers):
                self.engine.end(task, Reason.FENCED)
            self.engine.flush()
        if not self.engine.core.state.tasks:
            self.cluster.nothing(self.engine.core.generation)

    def _cluster_changed(self) -> None:
        """Nodes or command of the cluster are lost or won: plan with the nodes that there are."""
        self.engine.board.endpoints = self.cluster.endpoints
        if self.cluster.fenced_by and self.modes.mode not in {Mode.FENCED, Mode.STOPPED}:
            self.modes.move(Move.FENCE, self.clock() * NS)
        if self.cluster.barred != self._barred:
            self._barred = self.cluster.barred
            self.engine.bar(self._barred)
        self.placer.refresh()

    def _planned(self, plan: Plan) -> None:
        self._planned_ns = self.clock()
        self.cluster.plan(plan, self.engine.core.state.tasks)
        self._decisions_pump.again()

    def _watch_input(self, now_ns: int) -> None:
        """Let the decoupled baseline decide while nothing valid comes in: coordination on old input is worse."""
        settings = self.loaded.settings
        since_s = max(self.engine.last_sample_s, self.started_ns * NS)
        age_s = now_ns * NS - since_s
        stale = age_s > settings.telemetry.stale_input_s
        text = f"no valid radio report for {settings.telemetry.stale_input_s:g} s" if stale else ""
        self.alarm("telemetry", text)
        self.engine.switch(settings.shadow.baseline if stale else self.policy_chosen)

    async def _publish_status(self) -> None:
        while True:
            await asyncio.sleep(STATUS_S)
            found = self.status()
            self.sockets.decisions.send(api.STATUS_TOPIC.encode(), msgspec.json.encode(found))
            if self.exporter is not None:
                self.exporter.latest = found
            self.notifier.status(f"{self.modes.mode}, {len(self.engine.trackers)} tasks")

    def _solved(self, request: int, solution: Solution | None, why: str) -> None:
        self.engine.solved(request, solution, why)

    # --- what the verbs do --------------------------------------------------------------------------------------

    @property
    def mode(self) -> Mode:
        """Present mode."""
        return self.modes.mode

    def status(self) -> api.Status:
        """What `status` answers."""
        return status.of(self)

    def mode_view(self) -> api.ModeView:
        """Return the mode with its alarms."""
        return api.ModeView(
            mode=str(self.modes.mode), since_s=self.clock() * NS - self.modes.since_s, alarms=self.modes.alarms
        )

    def endpoints(self) -> tuple[str, ...]:
        """Where decisions are published."""
        return tuple(self.sockets.decisions.endpoints)

    def alarm(self, subject: str, text: str) -> None:
        """Turn an alarm on, or off with an empty text."""
        if self.modes.alarm(subject, text, self.clock() * NS):
            (log.warning if text else log.info)("alarm", subject=subject, text=text or "over", mode=str(self.mode))

    def drain(self) -> None:
        """Take no new task. Raises IllegalMove."""
        self.modes.move(Move.DRAIN, self.clock() * NS)
        log.info("draining")

    def resume(self) -> None:
        """Take new tasks again. Raises IllegalMove."""
        self.modes.move(Move.RESUME, self.clock() * NS)
        log.info("resumed")

    def change_policy(self, name: str) -> None:
        """Plan by another policy, after a restart too. Raises BadInput, Refused."""
        if name not in POLICIES:
            raise BadInput(f"policy '{name}': there are {', '.join(POLICIES)}")
        try:
            self.store.set_policy(name)
        except StoreFailed as error:
            raise RequestRefused("not_done", str(error)) from None
        self.policy_chosen = name
        self._watch_input(self.clock())
        log.info("policy", policy=name)

    def policy_view(self) -> api.PolicyView:
        """Return the policy in force."""
        return api.PolicyView(
            policy=self.engine.core.policy.name,
            chosen=self.policy_chosen,
            baseline=self.loaded.settings.shadow.baseline,
            available=tuple(POLICIES),
        )

    def may_call(self, user: str, role: str) -> str:
        """Why `user` may not call a verb that needs `role`, "" when he may."""
        return self.access.call(user, role) if self.access is not None else ""

    def may_act(self, user: str, about: Sequence[tuple[str, str]]) -> str:
        """Why `user` may not do that to these tasks and UEs, "" when he may."""
        return self.access.act(user, about) if self.access is not None else ""

    def may_hold(self, offer: TaskOffer) -> str:
        """Why a task of this UE and identity may not come in beside those that they have, "" when it may."""
        quota, user, engine = self.loaded.settings.quota, offer.source.partition("/")[2], self.engine
        if len(engine.trackers) >= quota.tasks:
            return f"there are {quota.tasks} tasks, and there may not be more"
        limits = self.access.limits(user) if user and self.access is not None else None
        most = (quota.ue_tasks, limits.tasks if limits is not None else quota.tasks)
        share = (quota.ue_share, limits.share if limits is not None else 1.0)
        held = (engine.trackers.of, engine.waiting.of, self.control.submits.of)
        return over_quota(offer, held, *most) or over_share(offer, engine.core, engine.plan, *share)

    async def whatif(self, args: api.WhatifArgs) -> api.WhatifResult:
        """Plan a changed site beside the live one. Raises Refused."""
        return await inquiry.whatif(self, args)

    async def explain(self, task: str) -> api.Explanation:
        """Explain a task's decision. Raises Refused."""
        return await inquiry.explain(self, task)

    # --- reload -------------------------------------------------------------------------------------------------

    async def _hang_up(self) -> None:
        """SIGHUP."""
        self.notifier.reloading()
        try:
            await self.reload()
        except CoschedError as error:
            log.warning("reload refused", why=str(error))
        finally:
            self.notifier.ready()

    async def reload(self) -> api.Reloaded:
        """Put the configuration file into force as a whole, or not at all. Raises Refused."""
        async with self._reloading:
            return await reload.reload(self)

    async def quiet(self) -> None:
        """Wait until no solve is open. Raises BadInput when one always is."""
        for _ in range(round(QUIET_S / QUIET_STEP_S)):
            if self.engine.core.is_quiet:
                return
            await asyncio.sleep(QUIET_STEP_S)
        raise BadInput("the daemon is too busy: a solve is always open")

    # --- the end ------------------------------------------------------------------------------------------------

    async def _stop(self, pumps: list[bus.Pump]) -> None:
        """Leases run out soon, state is on disk, sockets are closed; well under 5 s."""
        self.notifier.stopping()
        now_ns = self.clock()
        self.modes.move(Move.STOP, now_ns * NS)
        for task in list(self._tasks):
            task.cancel()
        self.engine.give_up("the daemon is ending")
        for pump in pumps:
            pump.stop()
        self.engine.board.shorten(self.loaded.settings.shutdown.lease_s, now_ns)
        await self.cluster.close()
        await self.pool.close()
        await self.inquiry.close()
        self.engine.capture.close(self.clock())
        self.engine.flush()
        self.store.close()
        self.greeter.stop()
        await self.sockets.close(LINGER_MS)
        if self.authenticator is not None:
            self.authenticator.close()
        if self.exporter is not None:
            self.exporter.close()
        log.info("stopped", tasks=len(self.engine.trackers))

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something beside the loop's other work."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._spawned)

    def _spawned(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            task.get_loop().call_exception_handler({"message": "in a task", "exception": error})

    def _defect(self, _: asyncio.AbstractEventLoop, about: dict[str, Any]) -> None:
        """A defect of ours: say so and end; a restart goes on from what is on disk."""
        log.critical("defect", exc_info=about.get("exception"), where=about.get("message"))
        self._exit_code = 1
        self._ended.set()


def serve(loaded: LoadedSettings) -> int:
    """Run a daemon until it is told to end. Raises BadInput, BadEndpoint when it cannot begin."""
    unblock()
    bus.io_threads(IO_THREADS)
    os.umask(0o007)  # sockets, state and captures: owner and group

    async def main() -> int:
        daemon = Daemon(loaded)
        code = await daemon.run()
        if daemon.is_compiling:  # all is closed and on disk; Python would wait for the compiler, a minute and more
            flush()
            os._exit(code)
        return code

    return asyncio.run(main())
