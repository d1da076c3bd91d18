"""A host: serves its parts of models to UEs and to other hosts, from one thread with its sockets.

    host = Host("edge0", [model], bind=["tcp://127.0.0.1:0"])
    host.start(); host.load("llama", 4, 32); host.apply_weights({"t1": 2.0}); host.report(); host.stop()

It installs no signal handler and has no global state: an object inside an actor as well as a process of its own
(`cosched host`). Requests that cost nothing are answered as they come; steps wait in a fair queue by weight.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec
import torch

from cosched.errors import BadInput, CoschedError
from cosched.runtime.engine import Engine, Limits
from cosched.runtime.errors import BadFrame, Refused
from cosched.runtime.fair import FairQueue
from cosched.runtime.model import ModelSource
from cosched.runtime.parts import Loaded
from cosched.runtime.peers import Peers, Then
from cosched.runtime.protocol import (
    Answer,
    Body,
    Close,
    Export,
    HostReport,
    Import,
    Look,
    Open,
    Pull,
    Request,
    Step,
    frames_of,
    request_of,
)
from telemetry.bus import Curve
from telemetry.calls import Call, Guard, Served, wait_for
from telemetry.errors import BadEndpoint

IDLE_S: Final = 0.1  # how long the loop sleeps at most: then it looks whether it is to stop
PATIENCE_S: Final = 30.0  # with another host that says nothing


class _Waiting(NamedTuple):
    """A step that waits for its turn."""

    route: bytes
    number: int
    step: Step
    frames: list[bytes]


class Host:
    """Parts of models, served. `models`: those that layers may be loaded of; `keys`: CURVE, for tcp beyond loopback.

    `guard`: answers handshakes (drivers/zap.py); with keys and without it, whoever knows the public key may connect.
    Raises BadEndpoint, from `start`, for an endpoint that cannot be bound.
    """

    def __init__(
        self,
        name: str,
        models: Sequence[ModelSource],
        *,
        bind: Sequence[str],
        limits: Limits | None = None,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        keys: Curve | None = None,
        guard: Guard | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.name = name
        self.engine = Engine(models, limits or Limits(), dtype=dtype, device=device)
        self._bind, self._keys, self._guard, self._patience_s = list(bind), keys, guard, patience_s
        self._queue: FairQueue[_Waiting] = FairQueue()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self.endpoints: list[str] = []

    @property
    def endpoint(self) -> str:
        """The first endpoint, with the port that was chosen."""
        return self.endpoints[0]

    def start(self) -> None:
        """Bind and serve, in a thread of its own. Raises BadEndpoint."""
        max_bytes = self.engine.limits.frame_bytes
        self._served = Served(self._keys, max_bytes)
        try:
            self._served.bind(self._bind)
        except BadEndpoint:
            self._served.close()
            raise
        self.endpoints = list(self._served.endpoints)
        self._peers = Peers(self._keys, max_bytes, self._patience_s)
        self._thread = threading.Thread(target=self._serve, name=f"cosched-host-{self.name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop serving; those connected see the connection close."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    @property
    def is_serving(self) -> bool:
        """Whether the serving thread lives."""
        return self._thread is not None and self._thread.is_alive()

    def load(self, model: str, start: int, stop: int) -> Loaded:
        """Load layers [start, stop), in the caller's thread; sessions go on meanwhile. Raises BadModel."""
        return self.engine.load(model, start, stop)

    def unload(self, model: str, start: int, stop: int) -> None:
        """Forget layers. Raises Refused("in_use") while sessions run on them, and BadModel."""
        self.engine.unload(model, start, stop)

    def apply_weights(self, weights: Mapping[str, float]) -> None:
        """Share the node among tasks by weight; tasks not named have 1. Raises BadModel for a weight that is none."""
        self.engine.apply_weights(weights)

    def report(self) -> HostReport:
        """Say what is held and what was done."""
        return self.engine.report(self.name)

    def _serve(self) -> None:
        sockets: list[Served | Guard] = [self._served, *([self._guard] if self._guard else [])]
        try:
            while not self._stopping.is_set():
                wait_for([*sockets, *self._peers.callers], 0.0 if len(self._queue) else IDLE_S)
                self._turn()
        finally:  # a fault of ours closes the sockets, so that nobody waits for an answer
            self._peers.close()
            self._served.close(linger_ms=100)

    def _turn(self) -> None:
        now_s = time.monotonic()
        if self._guard is not None:
            self._guard.drain()
        for session in self.engine.expire(now_s):
            self._queue.forget(session)
        for call in self._served.drain():
            self._receive(call, now_s)
        self._peers.turn(now_s)
        if len(self._queue):
            self._step(self._queue.pop())

    def _receive(self, call: Call, now_s: float) -> None:
        try:
            request = request_of(call.frames)
        except BadFrame as error:
            self._answer(call.route, Answer(id=0, error="bad_request", message=str(error)))
            return
        self._guarded(call.route, request.id, lambda: self._do(call.route, request, call.frames[1:], now_s))

    def _guarded(self, route: bytes, number: int, work: Callable[[], None]) -> None:
        """Do it, and turn what is refused into an answer."""
        try:
            work()
        except CoschedError as error:
            self.engine.count_refused()
            self._answer(route, Answer(id=number, error=code_of(error), message=f"{self.name}: {error}"))

    def _do(self, route: bytes, request: Request, frames: list[bytes], now_s: float) -> None:
        body, engine = request.body, self.engine
        if isinstance(body, Step):
            self._enqueue(_Waiting(route, request.id, body, frames))
            return
        if isinstance(body, Pull) and body.endpoint:
            self._pull(route, request.id, body, now_s)
            return
        tensors, report = self._at_once(engine, body, frames, now_s)
        self._answer(route, Answer(id=request.id, report=report), tensors)

    def _at_once(
        self, engine: Engine, body: Body, frames: list[bytes], now_s: float
    ) -> tuple[Sequence[bytes], HostReport | None]:
        """Do what needs neither a turn nor another host."""
        match body:
            case Open():
                engine.open(body, now_s)
            case Close():
                engine.close(body.session)
                self._queue.forget(body.session)
            case Export():
                return engine.export(body), None
            case Import():
                engine.take(body, frames)
            case Pull():
                engine.adopt(body.session, body.source, body.start, body.stop)
            case Look():
                return (), self.report()
        return (), None

    def _enqueue(self, item: _Waiting) -> None:
        session = item.step.session
        if self._queue.waiting(session) >= self.engine.limits.waiting:
            raise Refused("busy", f"{self.engine.limits.waiting} steps of session '{session}' wait already")
        self._queue.push(session, item, self.engine.cost(item.step), self.engine.weight(session))

    def _step(self, item: _Waiting) -> None:
        self._guarded(item.route, item.number, lambda: self._run(item))

    def _run(self, item: _Waiting) -> None:
        now_s = time.monotonic()
        stepped = self.engine.step(item.step, item.frames, now_s)
        if stepped.onward is None:
            answer = Answer(id=item.number, token=stepped.token, node_s=stepped.seconds)
            self._answer(item.route, answer, stepped.frames)
            return
        onward, asked = stepped.onward, item.step
        body = Step(
            session=onward.session, position=asked.position, tokens=asked.tokens, choose=asked.choose,
            logits=asked.logits,
        )  # fmt: skip

        def relay(answer: Answer, tensors: list[bytes]) -> None:
            node_s = answer.node_s + stepped.seconds
            self._answer(item.route, msgspec.structs.replace(answer, id=item.number, node_s=node_s), tensors)

        self._ask(onward.endpoint, onward.server_key, body, stepped.frames, relay, now_s)

    def _pull(self, route: bytes, number: int, body: Pull, now_s: float) -> None:
        """Fetch KV from another host, and answer when it is in."""

        def put(answer: Answer, tensors: list[bytes]) -> None:
            if answer.error:
                self._answer(route, msgspec.structs.replace(answer, id=number))
                return
            taken = Import(session=body.session, start=body.start, stop=body.stop)

            def take() -> None:
                self.engine.take(taken, tensors)
                self._answer(route, Answer(id=number))

            self._guarded(route, number, take)

        asked = Export(session=body.source, start=body.start, stop=body.stop)
        self._ask(body.endpoint, body.server_key, asked, (), put, now_s)

    def _ask(self, endpoint: str, key: str, body: Body, tensors: Sequence[bytes], then: Then, now_s: float) -> None:
        try:
            self._peers.ask(endpoint, key, body, tensors, then, now_s)
        except BadEndpoint as error:
            raise Refused("bad_route", str(error)) from None

    def _answer(self, route: bytes, answer: Answer, tensors: Sequence[bytes] = ()) -> None:
        self._served.answer(route, frames_of(answer, list(tensors)))


def code_of(error: CoschedError) -> str:
    """Return the code that a refusal goes by."""
    if isinstance(error, Refused):
        return error.code
    if isinstance(error, BadFrame):
        return "bad_frame"
    return "bad_request" if isinstance(error, BadInput) else "not_done"
