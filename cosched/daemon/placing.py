"""The slow loop: which layers nodes are to hold, and what of it the core may plan with.

Where nodes have room for all models they hold all, and nothing moves. Else every few seconds another process
(children/placement.py) is asked, and nodes are told through the link to the cluster. Layers that sessions run on are
held until those have ended or moved, whatever was chosen. What nodes report to hold is fed to the core, as an event.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Sequence
from typing import Final

import msgspec
import structlog

from cosched.api.messages import PlacementView
from cosched.children.framing import framed
from cosched.cluster import messages
from cosched.config.settings import ClusterSettings
from cosched.core.layers import NodeLayers
from cosched.core.placement import Stock, stock_of
from cosched.daemon.children.placement import NO_DEMAND, Held, PlacementAnswer, PlacementQuestion
from cosched.daemon.cluster_link import ClusterLink
from cosched.daemon.engine import Engine
from cosched.daemon.store import Store, StoreFailed
from solvers.placement import Layers

PATIENCE_S: Final = 60.0  # an answer comes within; CP-SAT itself has 2 deterministic seconds
ANSWER_BYTES: Final = 16 * 1024 * 1024  # of a line: a hundred bytes for each node and model
PLACEMENT: Final = "placement"  # key of what is remembered across restarts

log = structlog.get_logger()


class Placer:
    """What the nodes of one daemon hold."""

    def __init__(self, settings: ClusterSettings, engine: Engine, link: ClusterLink, store: Store) -> None:
        self._settings, self._engine, self._link, self._store = settings, engine, link, store
        self._process: asyncio.subprocess.Process | None = None
        self._known: tuple[NodeLayers, ...] = ()  # as the core was told last
        self._settled: set[str] = set()  # nodes that once held all that they were to hold
        self._rates: dict[str, float] = {}  # bytes a second at which they load
        self._chosen: tuple[Layers, ...] = ()
        self._answer = PlacementAnswer()
        if settings.is_placed:
            self._chosen = _remembered(store)
            self._begin()

    def adopt(self) -> None:
        """Go on with a site that was loaded anew, before its nodes are told to hold all there is."""
        if self._settings.is_placed:
            self._begin()

    def _begin(self) -> None:
        """Take the site as it is: with what was chosen, by an earlier life too, where that is still possible."""
        self._plant, self._short_bytes = self._engine.plant, self._engine.core.state.short_bytes
        self._stock = stock_of(self._plant.profiles, self._short_bytes)
        if self._stock.fits:
            self._chosen = self._stock.everything()
        elif not self._chosen or not self._stock.has_room(self._chosen):
            self._chosen = self._stock.first_fit()
        self._tell()

    def _is_other(self) -> bool:
        """Whether the site, or what its nodes really have, is another by now."""
        engine = self._engine
        return engine.plant is not self._plant or engine.core.state.short_bytes != self._short_bytes

    # --- the loop -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Decide every few seconds, until cancelled; nothing where nodes are to hold all there is."""
        try:
            while self._settings.is_placed:
                await asyncio.sleep(self._settings.placement_s)
                if self._is_other():
                    self._begin()
                if self._link.nodes and not self._link.fenced_by and not self._stock.fits:
                    await self._decide()
                self._tell()
                self.refresh()
        finally:
            await self._end()

    async def _decide(self) -> None:
        """Ask what to hold; no answer leaves all as it is."""
        answer = await self._ask(self._question())
        chosen = tuple(Layers(*one) for one in answer.layers)
        if answer.why or self._is_other() or not self._stock.has_room(chosen):
            if answer.why not in {"", NO_DEMAND}:
                log.warning("nothing placed", why=answer.why)
            return
        self._answer = answer
        if chosen != self._chosen:
            log.info("placed", layers=[f"{x.node}: {x.model} {x.first}..{x.end}" for x in chosen])
            self._chosen = chosen
            with contextlib.suppress(StoreFailed):  # it is only where the next life begins
                self._store.remember(PLACEMENT, msgspec.json.encode(_rows(chosen)).decode())

    def _question(self) -> PlacementQuestion:
        engine = self._engine
        rates = {name: news.load_bytes_per_s for name, news in self._link.nodes.items() if news.load_bytes_per_s > 0}
        self._rates |= rates
        return PlacementQuestion(
            site_toml=self._plant.toml,
            ue_devices=dict(self._plant.ue_devices),
            policy=engine.core.policy.name,
            core=engine.core.settings,
            snapshot=engine.core.snapshot(),
            current=_rows(self._chosen),
            load_bytes_per_s=dict(self._rates),
        )

    async def _ask(self, question: PlacementQuestion) -> PlacementAnswer:
        data = msgspec.msgpack.encode(question)
        try:
            async with asyncio.timeout(PATIENCE_S):
                process = await self._started()
                assert process.stdin is not None  # noqa: S101  # both were asked for
                assert process.stdout is not None  # noqa: S101
                process.stdin.write(framed(data))
                await process.stdin.drain()
                line = await process.stdout.readline()
            return msgspec.json.decode(line, type=PlacementAnswer)
        except (OSError, ValueError, msgspec.DecodeError):  # it did not start, ended, takes too long, says other things
            await self._end()
            return PlacementAnswer(why="the process that decides it gave no answer")

    async def _started(self) -> asyncio.subprocess.Process:
        if self._process is None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "cosched.daemon.children.placement",
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=ANSWER_BYTES,
            )  # fmt: skip
        return self._process

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()

    # --- nodes and core -----------------------------------------------------------------------------------------

    def _tell(self) -> None:
        """Have nodes hold what was chosen, and what sessions run on besides."""
        in_use = self._in_use()
        found: dict[str, tuple[messages.LayersOrder, ...]] = {}
        for node in self._stock.nodes:
            least = {x.model: x.first for x in self._chosen if x.node == node}
            for model, split in in_use.get(node, {}).items():
                least[model] = min(split, least.get(model, split))
            found[node] = tuple(self._range(node, model, first) for model, first in least.items())
        self._link.hold(found, dict(zip(self._stock.nodes, self._stock.room_bytes, strict=True)))

    def _range(self, node: str, model: str, first: int) -> messages.LayersOrder:
        layers = Layers(node, model, first, self._stock.n_layers[model])
        return messages.LayersOrder(model, first, layers.end, self._stock.weight_bytes(layers))

    def _in_use(self) -> dict[str, dict[str, int]]:
        """Node -> model -> first layer that a task runs on, of what the node has."""
        state = self._engine.core.state
        there = {name: _first(self._stock, news) for name, news in self._link.nodes.items()}
        found: dict[str, dict[str, int]] = {}
        for task in state.tasks.values():
            if not task.model or task.point < 0 or (n := int(task.table.node[task.point])) < 0:
                continue
            node, split = self._stock.nodes[n], int(task.table.split[task.point])
            if split >= there.get(node, {}).get(task.model, split + 1):
                mine = found.setdefault(node, {})
                mine[task.model] = min(split, mine.get(task.model, split))
        return found

    def refresh(self) -> None:
        """Feed the core with what nodes report, where that has changed."""
        if not self._settings.is_placed:
            return
        self._settled |= {name for name, news in self._link.nodes.items() if news.orders and not news.loading}
        known = tuple(one for name in self._stock.nodes if (one := self._of(name)) is not None)
        if known != self._known:
            self._known = known
            self._engine.placed(known)

    def _of(self, node: str) -> NodeLayers | None:
        """What is known of a node; None before it has reported for the first time."""
        news = self._link.nodes.get(node)
        if news is None or (not news.orders and node not in self._settled):
            return None
        first = _first(self._stock, news)
        wanted = {x.model: x.first for x in self._chosen if x.node == node}
        keeps = {model: max(k, wanted[model]) for model, k in first.items() if model in wanted}
        return NodeLayers(node=node, holds=first if node in self._settled else None, keeps=keeps)

    def view(self) -> PlacementView:
        """What `status` shows."""
        if not self._settings.is_placed:
            return PlacementView()
        answer = self._answer
        return PlacementView(
            state="all" if self._stock.fits else "chosen", value=answer.value, bound=answer.bound,
            moved_bytes=answer.moved_bytes,
        )  # fmt: skip


def _first(stock: Stock, news: messages.NodeNews) -> dict[str, int]:
    """Model -> first of the layers, up to the last, that a node reports."""
    ends = stock.n_layers
    return {x.model: x.first for x in news.layers if x.last == ends.get(x.model)}


def _rows(layers: Sequence[Layers]) -> tuple[Held, ...]:
    return tuple((x.node, x.model, x.first, x.end) for x in layers)


def _remembered(store: Store) -> tuple[Layers, ...]:
    """What an earlier life of the daemon chose, nothing where it did not or wrote what is not understood."""
    try:
        rows = msgspec.json.decode(store.recall(PLACEMENT) or "[]", type=tuple[Held, ...])
    except msgspec.DecodeError:
        return ()
    return tuple(Layers(*row) for row in rows)
