"""The control socket's verbs: requests in, answers out. What a verb does to the daemon stands in daemon.py.

A submit is answered when its decision is on disk, what takes longer when it is done, everything else at once. Clients
are served in turns (turns.py): however much one of them asks, another's request waits for one piece of that work.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

import msgspec
import structlog

from cosched.api import messages as api
from cosched.api.messages import VERBS, Fault, Lease
from cosched.config.settings import LoadedSettings
from cosched.core.reasons import Reason
from cosched.daemon.engine import Engine, Waiting
from cosched.daemon.holders import Held
from cosched.daemon.jobs import Jobs
from cosched.daemon.mode import IllegalMove, Mode
from cosched.daemon.progress import lasts_s
from cosched.daemon.sound import sound
from cosched.daemon.turns import Turns
from cosched.errors import CoschedError
from cosched.profiles.calibration import about
from solvers.errors import SolverError
from telemetry import quality
from telemetry.bus import BusRequest
from telemetry.messages import TaskOffer, VideoClip

NS: Final = 1e-9
SOURCE: Final = "control"  # of offers; an identity's own is `control/<name>`
BUDGET_S: Final = 0.004  # of the loop's time for requests, before others have their turn
REST: Final = 2.0  # times as long as it worked rests who has used up its part (turns.py)
MOST_WAITING: Final = 2_000  # requests of one client
MOST_WAITING_BYTES: Final = 4 << 20
ALL_WAITING_BYTES: Final = 32 << 20
MOST_LONG: Final = 16  # of its requests that take longer
LISTS: Final = 4  # under way at a time, one of a client
QUESTIONS: Final = 1  # likewise: each has a core to itself
FORGOTTEN_S: Final = 300.0  # after which a request that failed is no alarm any more
SHOWN: Final = 40  # characters of what a client sent, in an error
ID_CHARS: Final = 128
LISTED: Final = 1_000  # tasks in an answer
PIECE: Final = 25  # tasks of a list made in one go: a millisecond

Answer = Callable[[object], None]  # of a result struct, or a Fault

log = structlog.get_logger()


class ControlCall(NamedTuple):
    """A request that was decoded and may be carried out."""

    verb: str
    args: Any
    user: str
    answer: Answer


class ControlHost(Protocol):
    """What the verbs need of the daemon."""

    engine: Engine

    @property
    def mode(self) -> Mode: ...  # noqa: D102
    def status(self) -> api.Status: ...  # noqa: D102
    def mode_view(self) -> api.ModeView: ...  # noqa: D102
    def endpoints(self) -> tuple[str, ...]: ...  # noqa: D102
    def drain(self) -> None: ...  # noqa: D102
    def resume(self) -> None: ...  # noqa: D102
    def change_policy(self, name: str) -> None: ...  # noqa: D102
    def policy_view(self) -> api.PolicyView: ...  # noqa: D102
    def may_call(self, user: str, role: str) -> str: ...  # noqa: D102
    def may_act(self, user: str, about: Sequence[tuple[str, str]]) -> str: ...  # noqa: D102
    def may_hold(self, offer: TaskOffer) -> str: ...  # noqa: D102
    @property
    def loaded(self) -> LoadedSettings: ...  # noqa: D102
    def alarm(self, subject: str, text: str) -> None: ...  # noqa: D102
    async def reload(self) -> api.Reloaded: ...  # noqa: D102
    async def whatif(self, args: api.WhatifArgs) -> api.WhatifResult: ...  # noqa: D102
    async def explain(self, task: str) -> api.Explanation: ...  # noqa: D102


class RequestRefused(CoschedError):
    """A request that is answered with a fault."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.fault = Fault(code=code, message=message, hint=hint)


class Control:
    """Decodes requests, calls the daemon, encodes answers. `send(route, payload)`; `spawn` runs what takes longer."""

    def __init__(
        self,
        host: ControlHost,
        send: Callable[[tuple[bytes, ...], bytes], None],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        max_waiting: int,
        max_bytes: int,
    ) -> None:
        self._host = host
        self._send = send
        self._spawn = spawn
        self._max_waiting = max_waiting
        self._max_bytes = max_bytes
        self.submits: Held[Waiting] = Held()  # that came together
        self._sequence = 0
        self._turns: Turns[BusRequest] = Turns(MOST_WAITING, MOST_WAITING_BYTES, ALL_WAITING_BYTES, REST)
        lists, questions = Jobs(LISTS, MOST_LONG, spawn), Jobs(QUESTIONS, MOST_LONG, spawn)
        self._jobs = {"list": lists, "whatif": questions, "explain": questions}
        self.failed_s = -FORGOTTEN_S  # when a request failed last for a reason that nobody foresaw
        self.counts: Counter[str] = Counter()  # requests that were not carried out, by the code of their fault
        self._now: dict[str, Callable[[Any], object]] = {
            "status": lambda _: host.status(),
            "watch": lambda _: api.Watching(endpoints=host.endpoints()),
            "release": self._release,
            "policy": self._policy,
            "drain": self._drain,
            "resume": self._resume,
        }
        self._later: dict[str, Callable[[ControlCall], Coroutine[Any, Any, object]]] = {
            "list": self._list,
            "reload": lambda _: host.reload(),
            "whatif": lambda call: host.whatif(call.args),
            "explain": lambda call: host.explain(call.args.task),
        }

    # --- whose turn it is ---------------------------------------------------------------------------------------

    def queue(self, asked: BusRequest, now_s: float) -> None:
        """Take a request; a client that has too many waiting is told `busy`."""
        if not self._turns.put(_peer(asked), asked, len(asked.payload), now_s):
            self._fault(asked, Fault(code="busy", message=f"{MOST_WAITING} requests of yours wait", hint="ask fewer"))

    def work(self, now_s: float) -> float:
        """Carry out what waits, in turns, as far as the budget goes.

        Returns whether more waits: 0 = no, 1 = yes, less = seconds until it may be taken (telemetry.bus.Pump).
        """
        end_s, before_s = time.perf_counter() + BUDGET_S, time.thread_time()
        while time.perf_counter() < end_s and (taken := self._turns.take(now_s)) is not None:
            peer, asked = taken
            self.handle(asked)
            after_s = time.thread_time()
            self._turns.charge(peer, after_s - before_s, now_s)
            before_s = after_s
        self.flush()
        pause_s = self._turns.pause_s(now_s)
        return min(0.5, pause_s) if pause_s else float(bool(self._turns))

    def watch(self, now_s: float) -> None:
        """Let the alarm of a failed request go after a while."""
        if now_s - self.failed_s > FORGOTTEN_S:
            self._host.alarm("request", "")

    # --- one request --------------------------------------------------------------------------------------------

    def handle(self, asked: BusRequest) -> None:
        """Carry one request out. Submits wait for `flush`, so that those that came together are decided together."""
        codec, number = _codec_of(asked), 0

        def answer(result: object) -> None:
            self._answer(asked, codec, number, result)

        if len(asked.payload) > self._max_bytes:
            answer(Fault(code="bad_request", message=f"a request has at most {self._max_bytes} bytes"))
            return
        try:
            request = _decode(codec, asked.payload, api.Request, "bad_request")
            number = request.id
            self._call(request, asked, codec, answer)
        except Exception as error:  # noqa: BLE001  # whatever a client asks, the daemon goes on
            answer(self._fault_of(error, "bad_args"))

    def _fault(self, asked: BusRequest, fault: Fault) -> None:
        """Answer a request with a fault before anything of it is looked at but its number."""
        codec = _codec_of(asked)
        try:
            number = _decode(codec, asked.payload, _Numbered, "bad_request").id
        except RequestRefused:
            number = 0
        self._answer(asked, codec, number, fault)

    def _answer(self, asked: BusRequest, codec: Any, number: str | int, result: object) -> None:  # noqa: ANN401
        """Encode and send; what cannot be encoded is answered as the defect that it is."""
        try:
            data = _encode(codec, number, result)
        except Exception as error:  # noqa: BLE001
            result = self._fault_of(error, "internal")
            data = _encode(codec, number, result)
        if isinstance(result, Fault):
            self.counts[result.code] += 1
        self._send(asked.route, data)

    def _fault_of(self, error: Exception, code: str) -> Fault:
        """Return what a client is told of an error; one that nobody foresaw is logged, counted and an alarm."""
        if isinstance(error, RequestRefused):
            return error.fault
        if isinstance(error, CoschedError | SolverError):
            return Fault(code=code, message=str(error))
        log.error("a request failed", exc_info=error)
        self.failed_s = self._host.engine.clock() * NS
        text = f"{type(error).__name__} in the daemon: its log says where"
        self._host.alarm("request", f"{self.counts['internal'] + 1} requests failed: {text}")
        return Fault(code="internal", message=text, hint="a defect of cosched: please report it")

    def _call(self, request: api.Request, asked: BusRequest, codec: Any, answer: Answer) -> None:  # noqa: ANN401
        if request.v != api.VERSION:
            raise RequestRefused("bad_version", f"v = {request.v}: this daemon speaks v = {api.VERSION}")
        verb = VERBS.get(request.verb)
        if verb is None:
            raise RequestRefused("unknown_verb", f"no verb '{request.verb[:SHOWN]}'", f"there are: {', '.join(VERBS)}")
        if reason := self._host.may_call(asked.user, verb.role):
            raise RequestRefused("not_allowed", reason)
        raw = request.args
        data = codec.encode({}) if isinstance(raw, msgspec.UnsetType) else raw
        args: Any = _decode(codec, data, verb.args, "bad_args")
        if isinstance(args, api.SubmitArgs | api.TaskArgs) and (reason := self._host.may_act(asked.user, _about(args))):
            raise RequestRefused("not_allowed", reason)
        if request.verb == "submit":
            self._submit(args, asked.user, answer)
        elif request.verb == "show":
            answer(self.view(args.task))
        elif request.verb in self._later:
            self._begin(ControlCall(request.verb, args, asked.user, answer), _peer(asked))
        else:
            answer(self._now[request.verb](args))

    def _begin(self, call: ControlCall, peer: str) -> None:
        """Begin what takes longer, or have it wait for its turn."""
        jobs = self._jobs.get(call.verb)
        if jobs is None:
            self._spawn(self._finish(call))
        elif not jobs.put(peer, partial(self._finish, call)):
            raise RequestRefused("busy", f"{MOST_LONG} long requests of yours wait", "await their answers")

    async def _finish(self, call: ControlCall) -> None:
        try:
            call.answer(await self._later[call.verb](call))
        except Exception as error:  # noqa: BLE001  # as in `handle`
            call.answer(self._fault_of(error, "not_done"))

    # --- submit -------------------------------------------------------------------------------------------------

    def _submit(self, args: api.SubmitArgs, user: str, answer: Answer) -> None:
        offer = self.offer_of(args, user)
        engine = self._host.engine
        if self._host.mode is Mode.STARTING:
            raise RequestRefused(
                "not_done", "the daemon is starting: its solver is not ready yet", "try again in a second"
            )
        waiting = self.submits.get(offer.task) or engine.waiting.get(offer.task)
        if waiting is not None:
            _refuse_other(waiting.offer, offer)
            waiting.replies.append(_reply(answer))
        elif (tracker := engine.trackers.get(offer.task)) is not None:
            _refuse_other(tracker.offer, offer)
            tracker.hear(engine.clock() * NS)
            lease = engine.board.current(offer.task, engine.clock())
            if lease is None:  # it is of before a restart, and the first plan is still to come
                raise RequestRefused("not_done", "the first plan with it is still to come", "ask again in a moment")
            answer(lease)
        elif self._host.mode in {Mode.DRAINING, Mode.STOPPED}:
            raise RequestRefused("draining", "no new task is taken at present", "'cosched ctl resume' ends a drain")
        elif self._host.mode is Mode.FENCED:
            raise RequestRefused(
                "draining", "another daemon has taken over the cluster", "ask that one, or restart this one"
            )
        elif len(engine.waiting) + len(self.submits) >= self._max_waiting:
            raise RequestRefused("busy", f"{self._max_waiting} submits wait for their decisions", "try again later")
        elif reason := self._host.may_hold(offer):
            raise RequestRefused("quota", reason, "let some of the tasks end first, or ask the operator for more")
        else:
            self.submits[offer.task] = Waiting(offer, [_reply(answer)])

    def offer_of(self, args: api.SubmitArgs, user: str = "") -> TaskOffer:
        """Return a well-formed offer stamped with now. Raises Refused, BadInput."""
        offer = self.sound_offer(args, user)
        cell = self._host.engine.core.state.cell_of_ue.get(args.ue, 0)
        self._host.engine.plant.points(offer, cell)  # what is wrong in the work is said here
        return offer

    def sound_offer(self, args: api.SubmitArgs, user: str = "") -> TaskOffer:
        """Return an offer each of whose values is possible; not whether it fits the site. Raises Refused."""
        self._sequence += 1
        offer = TaskOffer(
            at_ns=self._host.engine.clock(),
            source=f"{SOURCE}/{user}" if user else SOURCE,
            seq=self._sequence,
            task=args.task,
            ue=args.ue,
            work=args.work,
            weight=args.weight,
            fallback=args.fallback,
        )
        if not 0 < len(args.task) <= ID_CHARS or not 0 < len(args.ue) <= ID_CHARS:
            raise RequestRefused("bad_args", f"ids of tasks and UEs have 1 to {ID_CHARS} characters")
        if args.fallback not in {"local", "drop", "keep"}:
            raise RequestRefused("bad_args", f"fallback '{args.fallback[:SHOWN]}': one of local, drop, keep")
        clean, reasons = quality.inspect(offer)
        if clean is None:
            raise RequestRefused("bad_args", "; ".join(reasons))
        longest_s, most_s = lasts_s(offer.work), self._host.loaded.settings.lease.life_s
        if longest_s > most_s:
            raise RequestRefused(
                "bad_args", f"it could last {longest_s:.3g} s, and a task may last {most_s:g} s (lease.life_s)"
            )
        return offer

    def flush(self) -> None:
        """Have the submits since the last call decided."""
        if self.submits:
            submits = list(self.submits.values())
            self.submits.clear()
            self._host.engine.offer(submits)

    # --- the other verbs ----------------------------------------------------------------------------------------

    def _release(self, args: api.TaskArgs) -> api.Released:
        engine = self._host.engine
        if args.task in engine.waiting:
            raise RequestRefused("busy", f"'{args.task}' is being decided", "try again in a moment")
        done = engine.end(args.task, Reason.RELEASED)
        engine.flush()
        return api.Released(task=args.task, released=done)

    async def _list(self, call: ControlCall) -> api.TaskList:
        """Put a list together piece by piece: others have their turns in between."""
        args, engine = call.args, self._host.engine
        names = [n for n in list(engine.trackers) if n.startswith(args.prefix) and not self._hides(call.user, n)]
        views: list[api.TaskView] = []
        wanted = names[: min(max(0, args.limit), LISTED)]
        for first in range(0, len(wanted), PIECE):
            views += [self.view(name) for name in wanted[first : first + PIECE] if name in engine.trackers]
            await asyncio.sleep(0)
        return api.TaskList(total=len(names), tasks=tuple(views))

    def _hides(self, user: str, task: str) -> bool:
        """Whether a task is none of this client's business."""
        return bool(user) and bool(self._host.may_act(user, [("task", task)]))

    def view(self, name: str) -> api.TaskView:
        """One task as an operator sees it. Raises Refused for one that is not known."""
        engine = self._host.engine
        now_ns = engine.clock()
        lease = engine.board.current(name, now_ns)
        tracker = engine.trackers.get(name)
        offer = engine.board.offer(name)
        if lease is None or offer is None:
            raise RequestRefused(
                "unknown_task", f"no task '{name}' is known", "'cosched ctl list' names those that live"
            )
        running = engine.core.state.tasks.get(name)
        now_s = now_ns * NS
        return api.TaskView(
            task=name,
            ue=offer.ue,
            kind="video" if isinstance(offer.work, VideoClip) else "llm",
            weight=offer.weight,
            age_s=now_s - offer.at_ns * NS,
            phase=running.phase if running is not None else 0,
            done=tracker.units_done(now_s) if tracker is not None else 0,
            reported=tracker is not None and tracker.is_reported(now_s),
            lease=lease,
            calibration=about(engine.core.state.calibration.factors, running.table.owners) if running else {},
        )

    def _policy(self, args: api.PolicyArgs) -> api.PolicyView:
        if args.policy:
            self._host.change_policy(args.policy)
        return self._host.policy_view()

    def _drain(self, _: api.NoArgs) -> api.ModeView:
        return self._moved(self._host.drain)

    def _resume(self, _: api.NoArgs) -> api.ModeView:
        return self._moved(self._host.resume)

    def _moved(self, move: Callable[[], None]) -> api.ModeView:
        try:
            move()
        except IllegalMove as error:
            raise RequestRefused("not_done", str(error)) from None
        return self._host.mode_view()


def _about(args: api.SubmitArgs | api.TaskArgs) -> list[tuple[str, str]]:
    """Whom a client needs leave to act for."""
    return [("task", args.task), *([("UE", args.ue)] if isinstance(args, api.SubmitArgs) else [])]


def _refuse_other(known: TaskOffer, offer: TaskOffer) -> None:
    """Let a client ask again for the very task that is known. Raises Refused for another one of its id."""
    if (known.ue, known.work, known.weight, known.fallback) != (offer.ue, offer.work, offer.weight, offer.fallback):
        raise RequestRefused("conflict", f"another task '{offer.task}' lives", "give the new one another id")


def _reply(answer: Answer) -> Callable[[Lease | None, str], None]:
    """Return what the engine calls with a decision."""

    def reply(lease: Lease | None, why: str) -> None:
        answer(Fault(code="not_done", message=why) if lease is None else lease)

    return reply


class _Numbered(msgspec.Struct, frozen=True, kw_only=True):
    """A request of which only the number matters."""

    id: str | int = 0


def _peer(asked: BusRequest) -> str:
    """Whom a request is counted to: the identity, or the connection where there is none."""
    return asked.user or asked.route[0].hex()


def _codec_of(asked: BusRequest) -> Any:  # noqa: ANN401
    return msgspec.json if asked.payload[:1] == b"{" else msgspec.msgpack


def _decode(codec: Any, data: bytes | msgspec.Raw, kind: Any, code: str) -> Any:  # noqa: ANN401  # msgspec's own signature
    try:
        return codec.decode(data, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise RequestRefused(code, str(error)) from None


def _encode(codec: Any, number: str | int, result: object) -> bytes:  # noqa: ANN401
    if isinstance(result, Fault):
        return _encoded(codec, api.Response(v=api.VERSION, id=number, ok=False, error=result))
    raw = msgspec.Raw(_encoded(codec, result))
    return _encoded(codec, api.Response(v=api.VERSION, id=number, ok=True, result=raw))


def _encoded(codec: Any, value: object) -> bytes:  # noqa: ANN401
    try:
        return bytes(codec.encode(value))
    except OverflowError:  # a number that this encoding does not hold
        return bytes(codec.encode(sound(value)))
