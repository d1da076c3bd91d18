"""The daemon's side of dispatch: a process of its own does the work, so that Ray can never hold the event loop up.

A cluster that cannot be reached is an alarm and is tried again; scheduling goes on. Plans are handed over when the
dispatcher has taken the one before: what piles up is the newest plan alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import secrets
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Protocol

import msgspec
import numpy as np
import structlog

from cosched.api import messages as api
from cosched.children.framing import LENGTH_BYTES, framed
from cosched.cluster import capacity, messages
from cosched.cluster.backoff import Backoff
from cosched.cluster.messages import (
    Assigned,
    Begin,
    Connected,
    Contested,
    Fenced,
    LayersOrder,
    News,
    NodeNews,
    NodeSpec,
    Taken,
    Update,
)
from cosched.config.settings import ClusterSettings
from cosched.config.wiring import Plant
from cosched.core.commands import Plan
from cosched.daemon.store import Store, StoreFailed
from cosched.workloads.base import PointTable
from telemetry.messages import NodeReport

OFF: Final = "off"
RETRY_S: Final = (1.0, 2.0, 5.0, 10.0, 30.0)  # between two tries to reach a cluster
CONNECT_S: Final = 180.0  # a dispatcher that has no cluster by then is started anew
END_S: Final = 3.0  # a dispatcher that was told to end takes less; then it is killed
CONTEST_S: Final = 60.0  # an alarm about another daemon stays this long after its last command
ALARM: Final = "cluster"
EPOCH: Final = "epoch"  # keys of what is remembered across restarts
DAEMON: Final = "daemon"

_news = msgspec.msgpack.Decoder(News)
_encode = msgspec.msgpack.Encoder().encode

log = structlog.get_logger()


class RunningTask(Protocol):
    """What of a running task is looked at (cosched/core/state.py)."""

    @property
    def point(self) -> int: ...  # noqa: D102
    @property
    def table(self) -> PointTable: ...  # noqa: D102


class ClusterLink:
    """Dispatch as the daemon sees it. `changed(barred, fenced)` is called when nodes or command are lost or won."""

    def __init__(
        self,
        settings: ClusterSettings,
        plant: Plant,
        store: Store,
        period_s: float,
        note: Path,
        changed: Callable[[], None],
        alarm: Callable[[str, str], None],
    ) -> None:
        self._settings = settings
        self._plant = plant
        self._store = store
        self._id = secrets.token_hex(8)  # of this daemon, where none is stored
        self._period_s = period_s
        self._note = note
        self._changed = changed
        self._alarm = alarm
        self.state = OFF
        self.why = ""
        self.epoch = 0
        self.address = ""
        self.fenced_by = ""
        self.nodes: dict[str, NodeNews] = {}
        self._agents: dict[str, NodeReport] = {}  # node -> the latest report of its agent
        self._contest = ""
        self._contest_until_s = 0.0
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._connected_s = math.inf  # when this dispatcher had a cluster
        self._ready = False  # for the next Update
        self._waiting = False  # there is one
        self._known: dict[str, tuple[int, Assigned]] = {}  # task -> row of its point, and what the dispatcher was told
        self._newest: Update | None = None
        self._fresh: dict[str, Assigned] = {}  # not handed over yet
        self._to_hold: Mapping[str, tuple[LayersOrder, ...]] = {}  # by node; all layers where nothing is said
        self._room_bytes: Mapping[str, float] = {}  # for them
        self._holds_anew = False  # that is not handed over yet

    # --- beginning and end --------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin, unless it is off; what an earlier life has left is ended in any case."""
        self.state = OFF if self._settings.mode == OFF else "starting"
        self._task = asyncio.get_running_loop().create_task(self._keep())
        self._task.add_done_callback(_ended)

    async def close(self) -> None:
        """End the dispatcher and, where it is local, the cluster."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._end_process()

    async def adopt(self, plant: Plant) -> None:
        """Go on with a site that was loaded anew; with other nodes or models the dispatcher begins anew."""
        same, self._plant = node_specs(plant) == node_specs(self._plant), plant
        if not same:
            self._to_hold, self._room_bytes = {}, {}
        if not same and self._task is not None and not self.fenced_by:
            await self.close()
            self.nodes = {}
            self._known.clear()
            self.start()

    async def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            async with asyncio.timeout(END_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        await self._clean()

    async def _clean(self) -> None:
        """End what a local cluster of an earlier life has left."""
        if self._note.exists():
            from cosched.cluster import processes

            if killed := await asyncio.to_thread(processes.clean, self._note):
                log.warning("ended what an earlier local cluster had left", processes=killed)

    # --- the dispatcher's process -------------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Have a dispatcher; when it ends, another one after a while."""
        await self._clean()
        backoff, loop = Backoff(RETRY_S), asyncio.get_running_loop()
        while self._settings.mode != OFF and not self.fenced_by:
            self._connected_s = math.inf
            try:
                await self._work()
            except OSError as error:  # no process to be had, for one: the machine has no memory for it
                self.why = f"no dispatcher: {error}"
            await self._end_process()
            if self.fenced_by:
                return
            self.why = self.why or "the dispatcher ended; the log says why"
            self._say("unreachable")
            await asyncio.sleep(backoff.died(loop.time() - self._connected_s))

    async def _work(self) -> None:
        """Start a dispatcher and listen to it until it ends. Raises OSError where it cannot be started."""
        process = self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "cosched.cluster.process",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        self._ready = False
        self._send(self._begin())
        with contextlib.suppress(TimeoutError, asyncio.IncompleteReadError):
            while True:
                async with asyncio.timeout(CONNECT_S if math.isinf(self._connected_s) else None):
                    news = await self._read(process)
                self._hear(news)

    async def _read(self, process: asyncio.subprocess.Process) -> News:
        assert process.stdout is not None  # noqa: S101  # it was asked for
        head = await process.stdout.readexactly(LENGTH_BYTES)
        news: News = _news.decode(await process.stdout.readexactly(int.from_bytes(head, "little")))
        return news

    def _send(self, message: Begin | Update) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.write(framed(_encode(message)))

    def _specs(self) -> tuple[NodeSpec, ...]:
        """Nodes with what they are to hold at present."""
        specs, self._holds_anew = node_specs(self._plant), False
        room, held = self._room_bytes, self._to_hold
        return tuple(
            msgspec.structs.replace(spec, layers=held.get(spec.id, spec.layers), room_bytes=room.get(spec.id, 0.0))
            for spec in specs
        )

    def hold(self, layers: Mapping[str, tuple[LayersOrder, ...]], room_bytes: Mapping[str, float]) -> None:
        """Have nodes hold these layers from here on, and no others; room_bytes: for weights, by node."""
        if (layers, room_bytes) != (self._to_hold, self._room_bytes):
            self._to_hold, self._room_bytes, self._holds_anew = dict(layers), dict(room_bytes), True
            self._waiting = self._newest is not None
            self._hand_over()

    def _begin(self) -> Begin:
        settings = self._settings
        return Begin(
            mode=settings.mode,
            address=settings.address,
            token_file=settings.token_file,
            executor=settings.executor,
            nodes=self._specs(),
            who=f"{socket.gethostname()}:{os.getpid()}",
            daemon=self._daemon(),
            epoch=self.epoch if settings.mode == "join" else 0,
            least=max(int(self._store.recall(EPOCH) or 0), self.epoch),
            period_s=self._period_s,
            unapplied_periods=settings.unapplied_periods,
            retries=settings.retries,
            silent_s=settings.silent_s,
            processes=str(self._note),
        )

    def _daemon(self) -> str:
        """Id of this daemon's state, made at first: after a restart it is the same daemon."""
        found = self._store.recall(DAEMON) or self._id
        if not self._store.recall(DAEMON):
            self._remember(DAEMON, found)
        return found

    def _remember(self, name: str, value: str) -> None:
        try:
            self._store.remember(name, value)
        except StoreFailed as error:
            log.warning("not stored", what=name, why=str(error))

    # --- what it says -------------------------------------------------------------------------------------------

    def _hear(self, news: News) -> None:
        if isinstance(news, Taken):
            self._ready = True
            self._hand_over()
        elif isinstance(news, NodeNews):
            before, self.nodes[news.node] = self.nodes.get(news.node), news
            if before is None or (before.state, before.why) != (news.state, news.why):
                self._node_changed(news)
            elif _shown(before) != _shown(news):
                self._say(self.state)
                self._changed()
        elif isinstance(news, Connected):
            self._connected(news)
        elif isinstance(news, Contested):
            self._contested(f"an older daemon, {news.who}, still commands {news.node}: refused")
        elif isinstance(news, Fenced):
            self.fenced_by = f"{news.who or 'another daemon'}, epoch {news.epoch}"
            self._say("fenced")
            self._changed()
        else:
            self.why = news.why

    def _connected(self, news: Connected) -> None:
        self.epoch, self.address, self.why = news.epoch, news.address, ""
        self._connected_s = asyncio.get_running_loop().time()
        self._remember(EPOCH, str(news.epoch))
        log.info("in command of the cluster", epoch=news.epoch, address=news.address)
        if news.took_over:
            self._contested(f"took over from {news.took_over}, whose commands are refused from here on")
        self._fresh = {task: one for task, (_, one) in self._known.items()}
        self._ready, self._waiting = True, self._newest is not None
        self._say("connected")
        self._hand_over()

    def _node_changed(self, news: NodeNews) -> None:
        (log.info if news.state in {messages.UP, messages.STARTING} and not news.why else log.warning)(
            "node", node=news.node, state=news.state, why=news.why
        )
        self._say(self.state)
        self._changed()

    def _contested(self, text: str) -> None:
        log.warning("cluster contested", what=text)
        loop = asyncio.get_running_loop()
        self._contest, self._contest_until_s = text, loop.time() + CONTEST_S
        loop.call_later(CONTEST_S + 1.0, self._say_again)
        self._say(self.state)

    def _say_again(self) -> None:
        self._say(self.state)

    def _say(self, state: str) -> None:
        """Take on a state, and put what is wrong into one alarm."""
        self.state = state
        wrong = [f"fenced: {self.fenced_by} has taken over; nothing is dispatched from here"] if self.fenced_by else []
        if state == "unreachable":
            wrong.append(f"unreachable, decisions are not dispatched: {self.why}")
        if self._contest and asyncio.get_running_loop().time() < self._contest_until_s:
            wrong.append(self._contest)
        bad = [n for n in self.nodes.values() if n.state not in {messages.UP, messages.STARTING} or n.why]
        if state == "connected":
            wrong += [f"{n.node} {n.state}: {n.why}" for n in bad]
            if self._settings.mode == "join":  # a local cluster's nodes only stand for those of the site
                wrong += capacity.without_gpu(self._plant.profiles, self.nodes)
        self._alarm(ALARM, "; ".join(wrong))

    def heard(self, report: NodeReport) -> None:
        """Take in what the agent of a node reports; nodes that the site does not have are somebody else's."""
        if any(node.id == report.node for node in self._plant.site.nodes):
            self._agents[report.node] = report

    # --- what it is told ----------------------------------------------------------------------------------------

    @property
    def short_bytes(self) -> dict[str, float]:
        """Node -> memory that it lacks of what the site says, as far as is known."""
        return capacity.short_bytes(self._plant.profiles, self.nodes, self._agents)

    @property
    def memory_notice(self) -> str:
        """Which nodes have far less memory than the site says, "" = none."""
        return capacity.memory_notice(self._plant.profiles, self.nodes, self._agents)

    @property
    def barred(self) -> tuple[str, ...]:
        """Nodes that are not to be planned with, as far as is known; in order of the site."""
        unusable = {messages.ABSENT, messages.LOST, messages.DRAINED}
        return tuple(n.id for n in self._plant.site.nodes if n.id in self.nodes and self.nodes[n.id].state in unusable)

    @property
    def endpoints(self) -> Mapping[str, tuple[str, str]]:
        """Node -> where clients send activations and its CURVE public key, of nodes that serve."""
        return {name: _served(news) for name, news in self.nodes.items() if news.endpoint}

    def plan(self, plan: Plan, running: Mapping[str, RunningTask]) -> None:
        """Bring a plan into force. running: the tasks that are, by name."""
        if self._settings.mode == OFF or self.fenced_by:
            return
        for task in plan.tasks:
            held, now = self._known.get(task), running.get(task)
            if now is not None and (held is None or held[0] != now.point):
                one = _assigned(task, now.table, now.point)
                self._known[task] = now.point, one
                self._fresh[task] = one
        if len(self._known) > len(plan.tasks):  # who comes back under his old name is told of anew
            living = set(plan.tasks)
            self._known = {task: one for task, one in self._known.items() if task in living}
            self._fresh = {task: one for task, one in self._fresh.items() if task in living}
        step_s = np.where(np.isfinite(plan.step_s), plan.step_s, 0.0)
        self._offer(
            Update(
                generation=plan.generation, tasks=plan.tasks, weight=plan.node_weight.tobytes(),
                share=plan.share[:, 1].tobytes(), pace=plan.pace_s.tobytes(),
                promised=plan.promised.astype(np.uint8).tobytes(), step_s=step_s.tobytes(), assigned=(),
            )
        )  # fmt: skip

    def nothing(self, generation: int) -> None:
        """No task runs: nodes are to hold none."""
        if self._settings.mode != OFF and (self._newest is None or self._newest.tasks):
            self._known.clear()
            self._fresh.clear()
            nothing = b""
            self._offer(
                Update(
                    generation=generation, tasks=(), weight=nothing, share=nothing, pace=nothing, promised=nothing,
                    step_s=nothing, assigned=(),
                )
            )  # fmt: skip

    def _offer(self, update: Update) -> None:
        self._newest = update
        self._waiting = True
        self._hand_over()

    def _hand_over(self) -> None:
        if self._ready and self._waiting and self._newest is not None:
            self._ready = self._waiting = False
            nodes = self._specs() if self._holds_anew else None
            self._send(msgspec.structs.replace(self._newest, assigned=tuple(self._fresh.values()), nodes=nodes))
            self._fresh = {}

    def view(self) -> api.ClusterView:
        """Return what `status` shows."""
        return api.ClusterView(
            mode=self._settings.mode,
            state=self.state,
            address=self.address,
            epoch=self.epoch,
            why=self.fenced_by or self.why,
            nodes=self._views(),
        )

    def _views(self) -> tuple[api.ClusterNode, ...]:
        short_bytes = self.short_bytes
        return tuple(_view(n, self._agents.get(name), short_bytes.get(name, 0.0)) for name, n in self.nodes.items())


def _ended(task: asyncio.Task[None]) -> None:
    """A defect must not vanish in a task."""
    if not task.cancelled() and (error := task.exception()) is not None:
        task.get_loop().call_exception_handler({"message": "in the link to the cluster", "exception": error})


def _assigned(task: str, table: PointTable, point: int) -> Assigned:
    return Assigned(
        task, int(table.node[point]), table.point_ids[point], int(table.split[point]), int(table.precision_bits[point])
    )


def _served(news: NodeNews) -> tuple[str, str]:
    return news.endpoint, news.public_key


def _view(news: NodeNews, agent: NodeReport | None, short_bytes: float) -> api.ClusterNode:
    shared = {name: getattr(news, name) for name in api.ClusterNode.__struct_fields__}
    return api.ClusterNode(**{**shared, "agent": agent, "short_bytes": short_bytes})


def _shown(news: NodeNews) -> tuple[object, ...]:
    """What of a node that is up matters to leases, to the plan and to people at once."""
    return news.endpoint, news.public_key, news.layers, news.loading, news.ray


def node_specs(plant: Plant) -> tuple[NodeSpec, ...]:
    """Nodes of a site; each is to hold all layers of all models, as the site's arithmetic of memory has it."""
    profiles = plant.profiles
    return tuple(
        NodeSpec(
            id=node.id,
            fraction=node.fraction,
            layers=tuple(
                LayersOrder(
                    name,
                    0,
                    served.model.n_layers,
                    served.model.weight_bytes(served.ref.weight_bits, device.weight_format),
                )
                for name, served in profiles.models.items()
            ),
        )
        for node, device in zip(plant.site.nodes, profiles.node_devices, strict=True)
    )
