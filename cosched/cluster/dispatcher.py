"""The dispatcher: brings plans to node actors, holds their reports against them, notices who is gone.

One task per node of the site: at most one order is under way to it, and what plans follow meanwhile becomes one order
with all their changes. So a slow node delays nobody, and no plan costs a node more than one message.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import msgspec
import numpy as np
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError, RayTaskError

from cosched.api.messages import LayerRange, RayNode
from cosched.cluster import cluster, messages
from cosched.cluster.backoff import Backoff
from cosched.cluster.follow import NodeFollower
from cosched.cluster.messages import (
    Ack,
    Answer,
    Assigned,
    Begin,
    Claim,
    Connected,
    Contested,
    Fenced,
    LayersOrder,
    News,
    NodeNews,
    NodeSpec,
    Refusal,
    Report,
    Session,
    Taken,
    Update,
    runs,
    single,
)
from cosched.cluster.silence import Silent, answered

DISCOVERY_S: Final = 1.0  # between two looks at Ray's nodes
THERE_S: Final = 1.0  # a cluster that works answers within; it needs some milliseconds
START_S: Final = 120.0  # an actor that loads its runtime takes this long at most to answer for the first time
BACKOFF_S: Final = (0.2, 1.0, 2.0, 5.0, 10.0, 30.0)  # between two starts of an actor that dies again and again
NEWS_S: Final = 1.0  # a node is told of this often even when nothing has changed
MOST_WORDS: Final = 200  # characters of what Ray says
UNAVAILABLE: Final = 2  # calls in a row that Ray could not deliver: the node is taken for lost

_answer = msgspec.msgpack.Decoder(Answer)
_encode = msgspec.msgpack.Encoder().encode


class Gone(Exception):
    """A node's actor does not answer any more; the text says what Ray says."""


@dataclass(slots=True)
class DispatchedNode:
    """One node of the site with its actor."""

    spec: NodeSpec
    follower: NodeFollower
    news: NodeNews
    handle: Any = None
    ray_node: RayNode | None = None  # that carries its label
    drained_on: str = ""  # the Ray node that was given up
    backoff: Backoff = field(default_factory=lambda: Backoff(BACKOFF_S))
    began_s: float = math.inf  # when its actor reported for the first time
    pause_s: float = 0.0  # before its actor is started again
    undelivered: int = 0
    refused: int = 0  # of older daemons, as reported
    told_s: float = 0.0
    reported_s: float = 0.0
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    def say(self, state: str, why: str = "") -> None:
        """Change its state."""
        self.news = msgspec.structs.replace(self.news, state=state, why=why)

    def forget(self) -> None:
        """What it held is gone with its actor."""
        self.news = msgspec.structs.replace(self.news, layers=(), loading=False, waits="", orders=0)


class Dispatcher:
    """Works for one daemon. `tell` is given what the daemon should know."""

    def __init__(self, begin: Begin, tell: Callable[[News], None]) -> None:
        self._begin = begin
        self._tell = tell
        self._epoch = 0
        self._is_fenced = False
        self._has_plan = False
        self._assigned: dict[str, Assigned] = {}
        self._told: dict[str, tuple[object, ...]] = {}  # node -> what of it is told at once, as told last
        self._nodes = [
            DispatchedNode(
                spec,
                NodeFollower(begin.unapplied_periods, begin.retries, spec.layers, spec.room_bytes),
                NodeNews(node=spec.id, state=""),
            )
            for spec in begin.nodes
        ]

    # --- command ------------------------------------------------------------------------------------------------

    def take_command(self, address: str) -> None:
        """Ask the cluster for an epoch. Raises NoCluster."""
        begin = self._begin
        asked = Claim(epoch=begin.epoch, who=begin.who, daemon=begin.daemon, since_unix_s=time.time())
        before, after = cluster.claim(asked, begin.least)
        if after.daemon != begin.daemon:
            self._fence(after.epoch, after.who)
            return
        self._epoch = after.epoch
        took_over = before.who if before.daemon not in {"", begin.daemon} else ""
        self._tell(Connected(epoch=after.epoch, address=address, took_over=took_over))

    def release(self) -> None:
        """Give command up when the daemon ends. Raises NoCluster."""
        if self._epoch and not self._is_fenced:
            cluster.release(self._epoch)

    def _fence(self, epoch: int, who: str) -> None:
        if not self._is_fenced:
            self._is_fenced = True
            self._tell(Fenced(epoch=epoch, who=who))

    # --- what the daemon says -----------------------------------------------------------------------------------

    def update(self, update: Update) -> None:
        """Take a plan."""
        self._assigned.update((one.task, one) for one in update.assigned)
        if len(self._assigned) > 2 * len(update.tasks) + 100:
            living = set(update.tasks)
            self._assigned = {task: one for task, one in self._assigned.items() if task in living}
        numbers = [np.frombuffer(column).tolist() for column in (update.weight, update.share, update.pace)]
        step_s = np.frombuffer(update.step_s).tolist() or [0.0] * len(self._nodes)
        tables: list[dict[str, Session]] = [{} for _ in self._nodes]
        for task, w, x, pace_s, promised in zip(update.tasks, *numbers, update.promised, strict=True):
            one = self._assigned.get(task)
            if one is not None and one.node >= 0:
                tables[one.node][task] = Session(
                    task, one.point, one.split, one.precision_bits, w, x, pace_s, promised
                )  # fmt: skip
        self._has_plan = True
        for i, (node, table) in enumerate(zip(self._nodes, tables, strict=True)):
            if update.nodes is not None:
                node.follower.layers, node.follower.room_bytes = update.nodes[i].layers, update.nodes[i].room_bytes
            node.follower.plan(update.generation, table, step_s[i])
            node.wake.set()
        self._tell(Taken(generation=update.generation))

    # --- the nodes ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Tend all nodes until cancelled, or until another daemon has taken over."""
        await self.discover()
        for node in self._nodes:
            node.say(messages.STARTING if node.ray_node else messages.ABSENT, "" if node.ray_node else _absent(node))
            self._tell(node.news)
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(self._watch())
            await asyncio.gather(*(self._tend(node) for node in self._nodes))
            watch.cancel()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(DISCOVERY_S)
            await self.discover()

    async def discover(self) -> None:
        """Look which site nodes have a Ray node."""
        alive = await asyncio.to_thread(cluster.ray_nodes)
        for node in self._nodes:
            before, node.ray_node = node.ray_node, alive.get(node.spec.id)
            if node.ray_node is not None and (before is None or before.id != node.ray_node.id):
                node.backoff, node.pause_s = Backoff(BACKOFF_S), 0.0  # another machine, or the same one again
            node.news = msgspec.structs.replace(node.news, ray=node.ray_node)

    async def _is_cluster_there(self, node: DispatchedNode) -> bool:
        """Whether the cluster answers at once; where it does not, wait until it does. Nodes order and ask it things.

        A network that is cut, or a head that stands still, silences all nodes alike; those that serve go on serving.
        """
        look = asyncio.ensure_future(self.discover())
        if (await asyncio.wait({look}, timeout=THERE_S))[0]:
            look.result()
            return True
        before = node.news.state, node.news.why
        node.say(before[0], "the cluster's head does not answer")
        self._news(node)
        await look
        node.say(*before)
        return False

    async def _tend(self, node: DispatchedNode) -> None:
        while not self._is_fenced:
            try:
                if node.handle is None:
                    await self._start(node)
                await self._speak(node)
            except Gone as gone:
                await self._lose(node, str(gone))
            self._news(node)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._begin.period_s if node.handle is not None else DISCOVERY_S):
                    await node.wake.wait()
            node.wake.clear()

    async def _start(self, node: DispatchedNode) -> None:
        """Have an actor where a Ray node is there for it. Raises Gone."""
        pause_s, node.pause_s = node.pause_s, 0.0
        await asyncio.sleep(pause_s)
        if node.ray_node is None:
            if node.news.state != messages.LOST:
                node.say(messages.ABSENT, _absent(node))
            return
        if node.news.state == messages.DRAINED and node.ray_node.id == node.drained_on:
            return
        executor = self._begin.executor
        try:
            node.handle = await asyncio.to_thread(cluster.node_actor, node.spec, node.ray_node, executor)
        except (RayError, ValueError) as error:
            raise Gone(_cause(error)) from None
        node.follower.fresh()
        node.undelivered = node.refused = 0
        report = await self._ask(node, "report", self._epoch, self._begin.who, patience_s=START_S)
        if not isinstance(report, Report):
            return
        if report.executor != executor:
            handle, node.handle = node.handle, None
            await asyncio.to_thread(cluster.end_actor, handle)
            node.say(messages.STARTING, f"its actor was made for '{report.executor}': made anew for '{executor}'")
            return
        node.refused = report.refused
        node.say(messages.UP)

    async def _speak(self, node: DispatchedNode) -> None:
        """Send what is new, at once; then, once a period, see what is in force. Raises Gone."""
        if node.handle is None or not self._has_plan:
            return
        if (order := node.follower.order(self._epoch, self._begin.who)) is not None:
            answer = await self._ask(node, "apply", _encode(order))
            if isinstance(answer, Ack):
                node.follower.took(answer.generation)
            else:
                node.follower.repeat()
        if time.monotonic() - node.reported_s >= self._begin.period_s:
            node.reported_s = time.monotonic()
            report = await self._ask(node, "report", self._epoch, self._begin.who)
            if isinstance(report, Report):
                await self._reported(node, report)

    async def _reported(self, node: DispatchedNode, report: Report) -> None:
        node.began_s = min(node.began_s, time.monotonic())
        if report.refused > node.refused:
            node.refused = report.refused
            self._tell(Contested(node=node.spec.id, who=report.refused_who))
        outcome = node.follower.reported(report)
        follower = node.follower
        node.news = msgspec.structs.replace(
            node.news, asked=follower.asked, acknowledged=follower.acknowledged, applied=follower.applied,
            sessions=len(report.sessions), used_bytes=report.used_bytes, retries=follower.retries,
            orders=report.orders, endpoint=report.endpoint, public_key=report.public_key, pid=report.pid,
            layers=ranges(report.layers),
            to_hold=ranges(follower.sent_layers), loading=report.loading, waits=report.waits,
            load_bytes_per_s=report.load_bytes_per_s, device=report.device, memory_bytes=report.memory_bytes,
            free_bytes=report.free_bytes,
        )  # fmt: skip
        if outcome.unfit:
            node.drained_on, handle, node.handle = node.ray_node.id if node.ray_node else "", node.handle, None
            node.forget()
            node.say(messages.DRAINED, outcome.why)
            await asyncio.to_thread(cluster.end_actor, handle)  # what it holds by now is nobody's plan
        elif outcome.retry:
            node.say(messages.UP, f"retry {follower.retries}: {outcome.why}")
        elif not follower.retries:
            node.say(messages.UP)

    async def _lose(self, node: DispatchedNode, why: str) -> None:
        handle, node.handle = node.handle, None
        node.pause_s, node.began_s = node.backoff.died(time.monotonic() - node.began_s), math.inf
        node.forget()
        node.say(messages.LOST, why)
        self._news(node)
        if handle is not None:
            await asyncio.to_thread(cluster.end_actor, handle)

    def _news(self, node: DispatchedNode) -> None:
        now_s = time.monotonic()
        told = (node.news.state, node.news.why, node.news.layers, node.news.loading)
        if told != self._told.get(node.spec.id) or now_s - node.told_s >= NEWS_S:
            self._told[node.spec.id] = told
            node.told_s = now_s
            self._tell(node.news)

    async def _ask(
        self, node: DispatchedNode, method: str, *arguments: object, patience_s: float = 0.0
    ) -> Answer | None:
        """Call the actor; None when Ray could not deliver the call this time, or we are not the ones to ask.

        Raises Gone.
        """
        patience_s = patience_s or self._begin.silent_s
        there = partial(self._is_cluster_there, node)
        try:
            asked = getattr(node.handle, method).remote(*arguments)
            answer: Answer = _answer.decode(await answered(asked, patience_s, there))
        except ActorDiedError as error:
            raise Gone(_cause(error)) from None
        except ActorUnavailableError as error:
            node.undelivered = node.undelivered + 1 if await there() else 0
            if node.undelivered >= UNAVAILABLE:
                raise Gone(_cause(error)) from None
            return None
        except Silent:
            raise Gone(f"no answer within {patience_s:g} s") from None
        except RayError as error:
            raise Gone(_cause(error)) from None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Gone(f"its actor's answer cannot be read: {error}") from None
        node.undelivered = 0
        if isinstance(answer, Refusal):
            self._refused(answer)
            return None
        return answer

    def _refused(self, refusal: Refusal) -> None:
        if refusal.reason == messages.OLD_EPOCH:
            self._fence(refusal.epoch, refusal.who)
        else:
            raise Gone(f"its actor takes no order: {refusal.reason}")


def ranges(layers: Iterable[LayersOrder]) -> tuple[LayerRange, ...]:
    """Layers for people."""
    return tuple(LayerRange(model=one.model, first=one.first, last=one.last) for one in runs(single(layers)))


def _absent(node: DispatchedNode) -> str:
    return f"no Ray node with the label {cluster.LABEL}={node.spec.id} is alive"


def _cause(error: Exception) -> str:
    """The line of Ray's message that says why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and (isinstance(error, RayTaskError) or "creation task" in lines[0]):
        # a traceback follows, and then what its executor says
        return lines[-1][:MOST_WORDS]
    because = [line for line in lines if "because" in line or "unavailable" in line]
    return (because or lines or [type(error).__name__])[0].partition(". ")[0][:MOST_WORDS]
