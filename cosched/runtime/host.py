"""A host: serves its parts of models to UEs and to other hosts, from one thread with its sockets.

    host = Host("edge0", [model], bind=["tcp://127.0.0.1:0"])
    host.start(); host.load("llama", 4, 32); host.apply_weights({"t1": 2.0}); host.report(); host.stop()

It installs no signal handler and has no global state: an object inside an actor as well as a process of its own
(`cosched host`). Sessions are opened and closed as requests come; all that costs more waits for its turn, which goes
round among identities (accounts.py, fair.py). Nothing that a peer sends ends the thread: what is refused is answered
with a code and counted by identity, and a defect of ours that it meets is answered `internal`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

import msgspec
import torch

from cosched.api.access import OPERATOR, Access
from cosched.errors import BadInput, CoschedError
from cosched.runtime.accounts import Account, Accounts, Who
from cosched.runtime.assembly import StepAssembly, WaitingRequest
from cosched.runtime.engine import ModelEngine, Stepped, StepUnderWay, check_key
from cosched.runtime.errors import BadFrame, HostLost, HostRefused
from cosched.runtime.limits import HostLimits
from cosched.runtime.model import ModelSource
from cosched.runtime.news import News
from cosched.runtime.parts import LoadedLayers
from cosched.runtime.peers import Peers, Then
from cosched.runtime.promises import Promise
from cosched.runtime.protocol import (
    TEXT,
    Body,
    Close,
    Export,
    HostAnswer,
    HostReport,
    HostRequest,
    Import,
    Look,
    Open,
    Pull,
    Step,
    frames_of,
    request_of,
)
from cosched.runtime.sessions import HostSession
from telemetry.bus import Curve
from telemetry.calls import Call, Guard, Sent, ServedCall, wait_for
from telemetry.errors import BadEndpoint

IDLE_S: Final = 0.1  # how long the loop sleeps at most: then it looks whether it is to stop
PATIENCE_S: Final = 30.0  # with another host that says nothing
TAKEN_IN: Final = 64  # requests, and bytes of them, between two turns
TAKEN_BYTES: Final = 32 << 20
HOPELESS: Final = 100  # turns in a row in which nothing can be received: then the thread ends after all
AFTER_DEFECT_S: Final = 0.002


class HostGuard(Guard, Protocol):
    """Who answers handshakes, and by which list (cosched/api/zap.py)."""

    access: Access


class LayerHost:
    """Parts of models, served. `models`: those that layers may be loaded of; `keys`: CURVE, for tcp beyond loopback.

    `guard`: answers handshakes (cosched.api.zap); with keys and without it, whoever knows the public key may connect.
    Raises BadEndpoint, from `start`, for an endpoint that cannot be bound.
    """

    def __init__(
        self,
        name: str,
        models: Sequence[ModelSource],
        *,
        bind: Sequence[str],
        limits: HostLimits | None = None,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        keys: Curve | None = None,
        guard: HostGuard | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.name = name
        self.engine = ModelEngine(models, limits or HostLimits(), dtype=dtype, device=device)
        self._bind, self._keys, self._guard, self._patience_s = list(bind), keys, guard, patience_s
        self.accounts = Accounts(self.engine.limits, self.engine.sessions.count)
        self.news = News()
        self._queue = StepAssembly(self.engine)
        self._unread: deque[tuple[Account, Sent]] = deque()
        self._refused = self._failed = self._unsent = self._failed_turns = 0
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self.endpoints: list[str] = []

    @property
    def endpoint(self) -> str:
        """The first endpoint, with the port that was chosen."""
        return self.endpoints[0]

    def start(self) -> None:
        """Bind and serve, in a thread of its own. Raises BadEndpoint.

        tcp alone: out of descriptors, libzmq's ipc listener aborts the process (ipc_listener.cpp), its tcp one waits.
        """
        for endpoint in self._bind:
            if not endpoint.startswith("tcp://"):
                raise BadEndpoint(f"{endpoint}: a host serves over tcp, such as tcp://127.0.0.1:5561")
        max_bytes = self.engine.frame_bytes
        self._served = ServedCall(self._keys, max_bytes)
        try:
            self._served.bind(self._bind)
        except BadEndpoint:
            self._served.close()
            raise
        self.endpoints = list(self._served.endpoints)
        self._peers = Peers(self._keys, max_bytes, self._patience_s, self.engine.limits)
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

    def load(self, model: str, start: int, stop: int) -> LoadedLayers:
        """Load layers [start, stop), in the caller's thread; sessions go on meanwhile. Raises BadModel."""
        return self.engine.load(model, start, stop)

    def unload(self, model: str, start: int, stop: int) -> None:
        """Forget layers. Raises Refused("in_use") while sessions run on them, and BadModel."""
        self.engine.unload(model, start, stop)

    def apply_weights(self, weights: Mapping[str, float]) -> None:
        """Share the node among tasks by weight; tasks not named have 1. Raises BadModel for a weight that is none."""
        self.engine.apply_weights(weights)

    def apply_promises(self, promises: Mapping[str, Promise], step_s: float = 0.0) -> None:
        """Keep these tasks' paces, in steps of this length (0: of any). Raises BadModel for a pace that is none."""
        self.engine.apply_promises(promises, step_s)

    def report(self, who: Who | None = None) -> HostReport:
        """Say what is held and what was done. who: for whose eyes; None: all sessions, and refusals of everybody."""
        account = None if who is None else self.accounts.known(who)
        sees_all = who is None or not who.user or self._is_operator(who)
        refused = self.accounts.refused() if sees_all else {}
        if not refused and account is not None and account.refused:
            refused = {account.label: dict(account.refused)}
        return msgspec.structs.replace(
            self.engine.report(self.name, who),
            refused=self._refused,
            refused_by=refused,
            failed=self._failed,
            unsent=self._unsent,
            waiting=len(self._queue),
        )

    def _is_operator(self, who: Who) -> bool:
        return self._guard is not None and not self._guard.access.call(who.user, OPERATOR)

    def _serve(self) -> None:
        sockets: list[ServedCall | Guard] = [self._served, *([self._guard] if self._guard else [])]
        try:
            while not self._stopping.is_set():
                wait_for([*sockets, *self._peers.callers], self._idle_s(time.monotonic()))
                self._turn(time.monotonic())
        finally:  # whoever waits for an answer sees the connection close
            self._peers.close()
            self._served.close(linger_ms=100)

    def _idle_s(self, now_s: float) -> float:
        """How long to sleep unless something comes."""
        return min(IDLE_S, self._queue.wait_s(now_s)) if len(self._queue) else IDLE_S

    def _turn(self, now_s: float) -> None:
        """Do a little of everything; a part that fails keeps none of the others from its turn."""
        if self._guard is not None:
            self._attempt(self._guard.drain)
        self._attempt(lambda: self._clean_up(now_s))
        is_well = self._attempt(lambda: self._take_in(now_s))
        self._attempt(lambda: self._peers.turn(now_s))
        if len(self._queue) and not self._queue.wait_s(time.monotonic()) > 0:
            self._attempt(lambda: self._serve_next(now_s))
        self._failed_turns = 0 if is_well else self._failed_turns + 1
        if self._failed_turns >= HOPELESS:
            raise HostLost(f"{self.name}: nothing can be received any more")

    def _attempt(self, part: Callable[[], object]) -> bool:
        """Do a part of a turn; False: it met a defect, outside of any one request."""
        try:
            part()
        except Exception as error:  # noqa: BLE001  # a defect is counted and said, and never ends the thread
            self._defect(error)
            self._stopping.wait(AFTER_DEFECT_S)  # what fails again at once must not fill the time
            return False
        return True

    def _clean_up(self, now_s: float) -> None:
        """Close what nobody uses, let go of what has been sent, say what was refused."""
        self.news.closed(len(self.engine.expire(now_s)), self.engine.limits.idle_s, now_s)
        for _ in range(min(len(self._unread), TAKEN_IN)):
            account, sent = self._unread.popleft()
            if sent.left:
                self.accounts.unread(account, -sent.n_bytes)
            else:
                self._unread.append((account, sent))
        self.news.refused(self.accounts.refused, self._refused, now_s)

    def _take_in(self, now_s: float) -> None:
        size = 0
        for _ in range(TAKEN_IN):
            calls = self._served.drain(1)
            for call in calls:
                size += sum(map(len, call.frames))
                self._receive(call, now_s)
            if not calls or size > TAKEN_BYTES:
                return

    def _receive(self, call: Call, now_s: float) -> None:
        who = Who(call.user) if call.user else Who("", call.route)
        account = self.accounts.of(who, now_s)
        try:
            request = request_of(call.frames)
        except BadFrame as error:
            self._count(account, "bad_request")
            if self.accounts.may_ask(account, now_s):
                self._answer(call.route, HostAnswer(id=0, error="bad_request", message=str(error)), account)
            return
        self._guarded(call.route, request.id, account, lambda: self._admit(call, request, who, account, now_s))

    def _guarded(self, route: bytes, number: int, account: Account, work: Callable[[], bool]) -> bool:
        """Do it, and turn what is refused or fails into an answer. Returns what it returns, False where it fails."""
        try:
            return work()
        except CoschedError as error:
            code = code_of(error)
            self._count(account, code)
            answer = HostAnswer(id=number, error=code, message=f"{self.name}: {error}"[:TEXT])
        except Exception as error:  # noqa: BLE001  # a defect is answered, and never ends the thread
            self._count(account, "internal")
            self._defect(error)
            answer = HostAnswer(
                id=number, error="internal", message=f"{self.name}: a defect here: {type(error).__name__}"
            )
        self._answer(route, answer, account)
        return False

    def _count(self, account: Account, code: str) -> None:
        self._refused += 1
        account.refused[code] += 1

    def _defect(self, error: Exception) -> None:
        self._failed += 1
        self.news.defect(error)

    def _admit(self, call: Call, request: HostRequest, who: Who, account: Account, now_s: float) -> bool:
        """Do at once what costs nothing, let the rest wait. Raises Refused and BadFrame."""
        body, frames = request.body, call.frames[1:]
        session = self._about(who, body)
        payer = account if session is None else self.accounts.of(session.owner, now_s)
        if not self.accounts.may_ask(payer, now_s):
            raise HostRefused("too_many", f"more than {self.engine.limits.requests_per_s:g} requests a second")
        match body:
            case Open():
                self._check_task(who, body.task)
                self.engine.open(who, body, now_s)
                self._answer(call.route, HostAnswer(id=request.id), account)
            case Close():
                self.engine.close(who, body.session)
                self._answer(call.route, HostAnswer(id=request.id), account)
            case _:
                size = sum(map(len, frames))
                self._check(who, body, frames, payer)
                self._enqueue(WaitingRequest(call.route, request.id, who, body, frames, payer, size), session, now_s)
        return False

    def _about(self, who: Who, body: Body) -> HostSession | None:
        """Return the session that a request is about, if `who` may use it."""
        if isinstance(body, Step | Export):
            return self.engine.sessions.find(who, body.session, body.grant)
        return self.engine.sessions.find(who, body.session) if isinstance(body, Import | Pull) else None

    def _check_task(self, who: Who, task: str) -> None:
        why = self._guard.access.may_run(who.user, task) if self._guard is not None else ""
        if why:
            raise HostRefused("not_allowed", f"task '{task}': {why}")

    def _check(self, who: Who, body: Body, frames: list[bytes], payer: Account) -> None:
        """Refuse what can be refused before it waits."""
        match body:
            case Step():
                self.engine.sessions.the(who, body.session, body.grant)
                self.engine.check_tokens(body)
                if len(frames) != 1:
                    raise BadFrame(f"a step has one frame of input, not {len(frames)}")
                self.accounts.may_send(payer, 0)
            case Export():
                self.accounts.may_send(payer, self.engine.export_bytes(who, body))
            case Import():
                self.engine.check_import(who, body, frames)
            case Pull():
                self.engine.sessions.the(who, body.session)
                check_key(body.server_key)

    def _enqueue(self, item: WaitingRequest, session: HostSession | None, now_s: float) -> None:
        weight, cost, item.flow = None, 1.0, (item.who, "")
        if session is not None:
            weight, cost = self.engine.weight(session), self.engine.cost(session, item.body, item.size)
            item.name, item.flow = session.name, (session.owner, "" if weight is None else session.task)
            item.session = session if isinstance(item.body, Step) else None
            if session.flow is not None and self._queue.waiting(session.flow, item.name):
                item.flow = session.flow  # in the order in which they came, whatever its weight has become
            session.flow = item.flow
        waits = session.waits if session is not None else self._queue.waiting(item.flow, "")
        if waits >= self.engine.limits.waiting:
            raise HostRefused("busy", f"{waits} requests of session '{item.name}' wait already")
        self.accounts.begin(item.payer, item.size)
        self._queue.push(item, cost, 1.0 if weight is None else weight, now_s)
        item.about = session
        if session is not None:
            session.waits += 1

    def _serve_next(self, now_s: float) -> None:
        """Run the next step, or whatever else has its turn."""
        step, began_s = self._queue.next(now_s), time.monotonic()
        item, tokens = step[0]
        if len(step) == 1 and item.run is None and not (isinstance(item.body, Step) and tokens < item.body.tokens):
            self._serve_one(item, now_s)
        else:
            self._serve_several(step, now_s)
        self._queue.ran(step, time.monotonic() - began_s)

    def _serve_one(self, item: WaitingRequest, now_s: float) -> None:
        self.accounts.taken(item.payer, item.size)
        self._end(item, lambda: self._carry_out(item, now_s))

    def _serve_several(self, step: Sequence[tuple[WaitingRequest, int]], now_s: float) -> None:
        """Run pieces of steps as one; who is refused or fails leaves the others as they are."""
        live: list[tuple[WaitingRequest, StepUnderWay, int]] = []
        for item, tokens in step:
            if item.run is None:
                self.accounts.taken(item.payer, item.size)
                self._begin(item, now_s)
            if item.run is not None:
                live.append((item, item.run, tokens))
        if not live:
            return
        errors = self.engine.advance([(run, tokens) for _, run, tokens in live])
        done: list[tuple[WaitingRequest, StepUnderWay]] = []
        for (item, run, _), error in zip(live, errors, strict=True):
            if error is not None:
                self._queue.drop(item)
                self._end(item, lambda item=item, error=error: self._told(item, error, now_s))  # type: ignore[misc]
            elif run.done == run.asked.tokens:
                done.append((item, run))
        found = self.engine.finish([run for _, run in done])
        for (item, _), stepped in zip(done, found, strict=True):
            self._end(item, lambda item=item, stepped=stepped: self._told(item, stepped, now_s))  # type: ignore[misc]

    def _begin(self, item: WaitingRequest, now_s: float) -> None:
        """Take a step in; where it is refused, that is its answer."""
        assert isinstance(item.body, Step)  # noqa: S101  # nothing else comes in pieces
        try:
            item.run = self.engine.begin(item.who, item.body, item.frames, now_s)
        except Exception as error:  # noqa: BLE001  # answered by its code, or as a defect
            refused = error
            self._queue.drop(item)
            self._end(item, lambda: self._told(item, refused, now_s))
        item.frames = []

    def _end(self, item: WaitingRequest, work: Callable[[], bool]) -> None:
        """Answer a request, by `work`; True of it: another host is asked before it has ended."""
        if not self._guarded(item.route, item.number, item.payer, work):
            self.accounts.ended(item.payer)
        if item.about is not None:
            item.about.waits -= 1
            item.about.answered_s = time.monotonic()

    def _told(self, item: WaitingRequest, stepped: Stepped | Exception, now_s: float) -> bool:
        """Answer a step with what it gave, or hand it on. Raises what went wrong with it."""
        if isinstance(stepped, Exception):
            raise stepped
        assert isinstance(item.body, Step)  # noqa: S101
        return self._hand_on(item, item.body, stepped, now_s)

    def _carry_out(self, item: WaitingRequest, now_s: float) -> bool:
        """Do it; True: another host is asked, and its answer will be this one's."""
        engine, body, tensors = self.engine, item.body, list[bytes]()
        answer = HostAnswer(id=item.number)
        match body:
            case Step():
                return self._hand_on(item, body, engine.step(item.who, body, item.frames, now_s), now_s)
            case Pull() if body.endpoint:
                return self._pull(item, body, now_s)
            case Pull():
                engine.adopt(item.who, body, now_s)
            case Import():
                engine.take(item.who, body, item.frames, now_s)
            case Export():
                self.accounts.may_send(item.payer, engine.export_bytes(item.who, body))
                tensors = engine.export(item.who, body, now_s)
            case Look():
                answer = HostAnswer(id=item.number, report=self.report(item.who))
        self._answer(item.route, answer, item.payer, tensors)
        return False

    def _hand_on(self, item: WaitingRequest, asked: Step, stepped: Stepped, now_s: float) -> bool:
        """Answer, or ask the next host of the route; True: that one's answer will be this one's."""
        number, node_s, onward = item.number, stepped.seconds, stepped.onward
        if onward is None:
            answer = HostAnswer(id=number, token=stepped.token, node_s=node_s)
            self._answer(item.route, answer, item.payer, stepped.frames)
            return False
        body = Step(
            session=onward.session, position=asked.position, tokens=asked.tokens, choose=asked.choose,
            logits=asked.logits, grant=onward.grant,
        )  # fmt: skip
        route, payer = item.route, item.payer  # and not `item`, whose frames may go

        def relay(answer: HostAnswer, tensors: list[bytes]) -> bool:
            told = msgspec.structs.replace(answer, id=number, node_s=answer.node_s + node_s, report=None)
            self._answer(route, told, payer, tensors)
            return False

        self._ask(item, onward.endpoint, onward.server_key, body, stepped.frames, relay, now_s)
        return True

    def _pull(self, item: WaitingRequest, body: Pull, now_s: float) -> bool:
        """Fetch KV from another host, and answer when it is in."""
        number, who, route, payer = item.number, item.who, item.route, item.payer

        def put(answer: HostAnswer, tensors: list[bytes]) -> bool:
            if not answer.error:
                taken = Import(session=body.session, start=body.start, stop=body.stop)
                self.engine.take(who, taken, tensors, time.monotonic())
            self._answer(route, msgspec.structs.replace(answer, id=number, report=None), payer)
            return False

        asked = Export(session=body.source, start=body.start, stop=body.stop, grant=body.grant)
        self._ask(item, body.endpoint, body.server_key, asked, (), put, now_s)
        return True

    def _ask(
        self, item: WaitingRequest, endpoint: str, key: str, body: Body, tensors: Sequence[bytes],
        then: Callable[[HostAnswer, list[bytes]], bool], now_s: float,
    ) -> None:  # fmt: skip
        """Ask another host for the sake of `item`, which has ended when `then` is called with its answer."""
        route, number, payer = item.route, item.number, item.payer

        def ended(answer: HostAnswer, tensors: list[bytes]) -> None:
            self.accounts.ended(payer)
            self._guarded(route, number, payer, lambda: then(answer, tensors))

        hand_on: Then = ended
        try:
            self._peers.ask(payer.who, endpoint, key, body, tensors, hand_on, now_s)
        except BadEndpoint as error:
            raise HostRefused("bad_route", str(error)) from None

    def _answer(self, route: bytes, answer: HostAnswer, account: Account, tensors: Sequence[bytes] = ()) -> None:
        sent = self._served.answer(route, frames_of(answer, list(tensors)))
        if sent is None:
            self._unsent += 1
        elif not sent.left:
            self.accounts.unread(account, sent.n_bytes)
            self._unread.append((account, sent))


def code_of(error: CoschedError) -> str:
    """Return the code that a refusal goes by."""
    if isinstance(error, HostRefused):
        return error.code
    if isinstance(error, BadFrame):
        return "bad_frame"
    return "bad_request" if isinstance(error, BadInput) else "not_done"
