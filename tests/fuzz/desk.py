"""A daemon without sockets and timers: its own code, engine, state file and capture, a clock that inputs move."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Coroutine
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import msgspec
import structlog
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric

from cosched.api import messages as api
from cosched.children.packing import pack, solve_packed
from cosched.children.pool import ask_of
from cosched.config import wiring as build
from cosched.config.settings import load
from cosched.core.commands import Solve
from cosched.daemon.board import Board
from cosched.daemon.capture import Capture, captures
from cosched.daemon.children import question as question_worker
from cosched.daemon.control import Control
from cosched.daemon.daemon import Daemon
from cosched.daemon.engine import Engine
from cosched.daemon.ingest import Ingest
from cosched.daemon.inquiry import NotAnswered
from cosched.daemon.metrics import families
from cosched.daemon.mode import Mode, Modes
from cosched.daemon.store import Store
from cosched.daemon.verify import verify
from telemetry.bus import BusRequest, Frame
from telemetry.messages import Message, UeReport
from telemetry.wire import Intake

S_NS: Final = 1_000_000_000
MS_NS: Final = 1_000_000
SITE: Final = """
v = 1
name = "fuzzed"
cells = [{ id = "cell0", ul_prbs = 52 }, { id = "cell1", ul_prbs = 52 }]
nodes = [{ id = "edge0", device = "a100", fraction = 0.25 }, { id = "edge1", device = "h100", fraction = 0.25 }]
models = [{ id = "llama-3-8b", config = "llama-3-8b" }]
ues = { count = 4, devices = [{ device = "phone", share = 1.0, max_layers = 16 }] }
"""
EVERY: Final = 20  # accepted inputs between two rounds of the questions that take long
CODECS: Final = (msgspec.msgpack, msgspec.json)


class Defect(AssertionError):
    """What no input may bring about."""


class Frames:
    """Frames that came in, in the place of a socket."""

    def __init__(self) -> None:
        self.waiting: list[Frame] = []
        self.malformed = 0

    def drain(self, limit: int) -> list[Frame]:
        taken, self.waiting = self.waiting[:limit], self.waiting[limit:]
        return taken


class Desk(Daemon):
    """The daemon's parts, wired as it wires them."""

    def __init__(self) -> None:
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
        shm = Path("/dev/shm")  # noqa: S108
        self.folder = tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else None)
        self.loop = asyncio.new_event_loop()
        self.now_ns = 1000 * S_NS
        self.clock = lambda: self.now_ns  # type: ignore[method-assign,assignment]
        self.started_ns = self.now_ns
        self.loaded = load(environ={})
        self.modes = Modes(self.now_ns * 1e-9)
        self.modes.mode = Mode.STEADY
        self.access = None
        self.authenticator = None
        self.policy_chosen = self.loaded.settings.policy
        self.asked: list[Solve] = []
        self.work: list[Coroutine[Any, Any, None]] = []
        self.answers: list[bytes] = []
        self.accepted = 0
        self.frames = Frames()
        empty = SimpleNamespace(malformed=0, unread=0, endpoints=["ipc:///x"], counted=list)
        self.sockets = SimpleNamespace(telemetry=self.frames, control=empty, gate=empty, decisions=empty)
        self.cluster = SimpleNamespace(view=api.ClusterView, memory_notice="", short_bytes={})
        self.placer = SimpleNamespace(view=api.PlacementView)
        self.shadow = SimpleNamespace(view=partial(api.ShadowView, baseline="pf"))
        self.inquiry = SimpleNamespace(ask=_inquire)
        self.intake = Intake()
        self.store = Store(Path(self.folder.name) / "state.sqlite", clock=self.clock)
        self.engine = self._engine()
        self.ingest = Ingest(self.frames, self.intake, self.engine.reports, self._message, self.clock)  # type: ignore[arg-type]
        self.control = Control(self, lambda _, payload: self.answers.append(payload), self.work.append, 100, 1 << 20)
        self.asks = 0

    def _engine(self) -> Engine:
        plant = build.plant(SITE, "the fuzzed site", {})
        engine = Engine(
            plant=plant,
            core=plant.core(self.policy_chosen, self.loaded.settings.core),
            store=self.store,
            capture=Capture(self.loaded.settings.capture, Path(self.folder.name) / "captures"),
            board=Board(plant.site, lambda *_: None),
            clock=self.clock,
            solve=self.asked.append,
            alarm=lambda *_: None,
        )
        engine.restore(self.store.load(self.now_ns).snapshot(self.now_ns))
        engine.begin_capture()
        return engine

    def alarm(self, subject: str, text: str) -> None:
        """A request that failed is a defect."""
        if subject == "request" and text:
            raise Defect(text)

    def _message(self, message: Message, at_ns: int) -> None:
        self.engine.report(message, at_ns)

    def _planned(self, *_: object) -> None:
        """Nothing else to tell."""

    # --- what comes in ------------------------------------------------------------------------------------------

    def radio(self) -> None:
        """Four UEs that anybody may ask for."""
        for i in range(4):
            message = UeReport(
                at_ns=0, source="ran", seq=0, ue=f"ue{i}", cell=f"cell{i % 2}", ul_efficiency_bps_hz=2.0 + i
            )
            self.frames.waiting.append(Frame(b"ran.ue", msgspec.msgpack.encode(message), "", "ran"))
        self.take_in()

    def take_in(self) -> None:
        while self.ingest.drain() or self.frames.waiting:
            self.now_ns += MS_NS  # a peer that has used up its part rests for a while

    def bus(self, topic: bytes, payload: bytes) -> bool:
        """Take one frame from the bus; whether it was accepted."""
        before = self.intake.messages, self.intake.quarantine.counts.total()
        self.frames.waiting.append(Frame(topic, payload, "", "peer"))
        self.take_in()
        return self.intake.quarantine.counts.total() == before[1]

    def request(self, payload: bytes) -> bool:
        """Take one request; whether it was carried out."""
        self.answers.clear()
        self.control.handle(BusRequest((b"client",), payload, ""))
        self.settle()
        if len(self.answers) != 1:
            raise Defect(f"{len(self.answers)} answers to one request")
        codec = msgspec.json if payload[:1] == b"{" else msgspec.msgpack
        response = codec.decode(self.answers[0], type=api.Response)
        if not response.ok and response.error.code == "internal":  # type: ignore[union-attr]
            raise Defect(str(response.error))
        return response.ok

    def settle(self) -> None:
        """Have everything decided that waits, and tasks that were begun run to their end."""
        self.control.flush()
        while self.work or self.asked:
            for coroutine in self._taken():
                self.loop.run_until_complete(coroutine)
            while self.asked:
                command = self.asked.pop(0)
                answer = solve_packed(pack(ask_of(command)))
                if answer.solution is None:
                    raise Defect(f"the solver failed: {answer.error}")
                self.engine.solved(command.request, answer.solution, "")

    def _taken(self) -> list[Coroutine[Any, Any, None]]:
        taken, self.work[:] = list(self.work), []
        return taken

    def tick(self, seconds: float = 0.1) -> None:
        self.now_ns += round(seconds * S_NS)
        self.engine.tick(10.0)
        self.settle()
        self.engine.validate()

    # --- what is asked of it then -------------------------------------------------------------------------------

    def look(self, *, thorough: bool = False) -> None:
        """Ask for everything; it must be answered, and understood."""
        self.accepted += 1
        status = self.status()
        for codec in CODECS:
            codec.decode(codec.encode(status), type=api.Status)
        registry = CollectorRegistry()
        registry.register(_Once(list(families(status))))
        generate_latest(registry)
        self._ask("list", api.TaskList, {})
        if not thorough and self.accepted % EVERY:
            return
        self.tick()
        task = next(iter(self.engine.trackers), "")
        if task:
            self._ask("show", api.TaskView, {"task": task})
            self._ask("explain", api.Explanation, {"task": task})
        self._ask("whatif", api.WhatifResult, {"more_prbs": {"cell0": 1}})

    def _ask(self, verb: str, kind: type, args: dict[str, object]) -> None:
        for codec in CODECS:
            self.answers.clear()
            self.control.handle(
                BusRequest((b"viewer",), codec.encode({"v": 1, "id": 1, "verb": verb, "args": args}), "")
            )
            self.settle()
            response = codec.decode(self.answers[0], type=api.Response)
            if not response.ok:
                raise Defect(f"{verb}: {response.error}")
            codec.decode(response.result, type=kind)

    def close(self) -> None:
        """End it; what it recorded must be what it would decide again."""
        with suppress(StopIteration):
            self.settle()
        self.engine.capture.close(self.now_ns)
        self.store.close()
        self.loop.close()
        for path in captures(Path(self.folder.name) / "captures"):
            if found := verify(path).difference:
                raise Defect(f"its capture does not verify: {found}")
        self.folder.cleanup()


class _Once:
    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        return self._metrics


async def _inquire(question: question_worker.Question, kind: Any) -> Any:  # noqa: ANN401
    """As the process beside the daemon answers: encoded and decoded both ways; a defect there is one here."""
    data = msgspec.msgpack.encode(question)
    reply = msgspec.msgpack.decode(await asyncio.to_thread(question_worker.answer, data), type=question_worker.Reply)
    if reply.fault is not None:
        raise NotAnswered(reply.fault)
    return msgspec.msgpack.decode(reply.result, type=kind)
