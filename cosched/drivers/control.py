"""The control socket's verbs: requests in, answers out. What a verb does to the daemon stands in live.py.

A submit is answered when its decision is on disk, everything else at once; nothing waits for anything else.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, Protocol

import msgspec

from cosched import control_messages as api
from cosched.access import CLIENT
from cosched.control_messages import VERBS, Fault, Lease
from cosched.core.reasons import Reason
from cosched.drivers.engine import Engine, Waiting
from cosched.drivers.mode import IllegalMove, Mode
from cosched.drivers.sound import sound
from cosched.errors import CoschedError
from cosched.profiles.calibration import about
from solvers.errors import SolverError
from telemetry import quality
from telemetry.bus import Asked
from telemetry.messages import TaskOffer, VideoClip

NS: Final = 1e-9
SOURCE: Final = "control"

Answer = Callable[[object], None]  # of a result struct, or a Fault


class Host(Protocol):
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
    async def reload(self) -> api.Reloaded: ...  # noqa: D102
    async def whatif(self, args: api.WhatifArgs) -> api.WhatifResult: ...  # noqa: D102
    async def explain(self, task: str) -> api.Explanation: ...  # noqa: D102


class Refused(CoschedError):
    """A request that is answered with a fault."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.fault = Fault(code=code, message=message, hint=hint)


class Control:
    """Decodes requests, calls the daemon, encodes answers. `send(route, payload)`; `spawn` runs what takes longer."""

    def __init__(
        self,
        host: Host,
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
        self._submits: dict[str, Waiting] = {}  # that came together
        self._sequence = 0
        self._now: dict[str, Callable[[Any], object]] = {
            "status": lambda _: host.status(),
            "list": self._list,
            "show": self._show,
            "watch": lambda _: api.Watching(endpoints=host.endpoints()),
            "release": self._release,
            "policy": self._policy,
            "drain": self._drain,
            "resume": self._resume,
        }
        self._later: dict[str, Callable[[Any], Coroutine[Any, Any, object]]] = {
            "reload": lambda _: host.reload(),
            "whatif": host.whatif,
            "explain": lambda args: host.explain(args.task),
        }

    def handle(self, asked: Asked) -> None:
        """Take one request. Submits wait for `flush`, so that those that came together are decided together."""
        as_json = asked.payload[:1] == b"{"
        codec = msgspec.json if as_json else msgspec.msgpack
        number: str | int = 0

        def answer(result: object) -> None:
            self._send(asked.route, _encode(codec, number, result))

        if len(asked.payload) > self._max_bytes:
            answer(Fault(code="bad_request", message=f"a request has at most {self._max_bytes} bytes"))
            return
        try:
            request = _decode(codec, asked.payload, api.Request, "bad_request")
            number = request.id
            self._call(request, asked.user, codec, answer)
        except Refused as refused:
            answer(refused.fault)
        except CoschedError as error:
            answer(Fault(code="bad_args", message=str(error)))

    def _call(self, request: api.Request, user: str, codec: Any, answer: Answer) -> None:  # noqa: ANN401
        if request.v != api.VERSION:
            raise Refused("bad_version", f"v = {request.v}: this daemon speaks v = {api.VERSION}")
        verb = VERBS.get(request.verb)
        if verb is None:
            raise Refused("unknown_verb", f"no verb '{request.verb}'", f"there are: {', '.join(VERBS)}")
        if reason := self._host.may_call(user, verb.role):
            raise Refused("not_allowed", reason)
        raw = request.args
        data = codec.encode({}) if isinstance(raw, msgspec.UnsetType) else raw
        args: Any = _decode(codec, data, verb.args, "bad_args")
        if verb.role == CLIENT and (reason := self._host.may_act(user, _about(args))):
            raise Refused("not_allowed", reason)
        if request.verb == "submit":
            self._submit(args, answer)
        elif request.verb in self._later:
            self._spawn(self._finish(self._later[request.verb](args), answer))
        else:
            answer(self._now[request.verb](args))

    async def _finish(self, work: Coroutine[Any, Any, object], answer: Answer) -> None:
        try:
            answer(await work)
        except Refused as refused:
            answer(refused.fault)
        except (CoschedError, SolverError) as error:
            answer(Fault(code="not_done", message=str(error)))

    # --- submit -------------------------------------------------------------------------------------------------

    def _submit(self, args: api.SubmitArgs, answer: Answer) -> None:
        offer = self.offer_of(args)
        engine = self._host.engine
        if self._host.mode is Mode.STARTING:
            raise Refused("not_done", "the daemon is starting: its solver is not ready yet", "try again in a second")
        waiting = self._submits.get(offer.task) or engine.waiting.get(offer.task)
        if waiting is not None:
            _refuse_other(waiting.offer, offer)
            waiting.replies.append(_reply(answer))
        elif (tracker := engine.trackers.get(offer.task)) is not None:
            _refuse_other(tracker.offer, offer)
            answer(engine.board.current(offer.task, engine.clock()))
        elif self._host.mode in {Mode.DRAINING, Mode.STOPPED}:
            raise Refused("draining", "no new task is taken at present", "'cosched ctl resume' ends a drain")
        elif self._host.mode is Mode.FENCED:
            raise Refused("draining", "another daemon has taken over the cluster", "ask that one, or restart this one")
        elif len(engine.waiting) + len(self._submits) >= self._max_waiting:
            raise Refused("busy", f"{self._max_waiting} submits wait for their decisions", "try again later")
        else:
            self._submits[offer.task] = Waiting(offer, [_reply(answer)])

    def offer_of(self, args: api.SubmitArgs) -> TaskOffer:
        """Return a well-formed offer stamped with now. Raises Refused, BadInput."""
        self._sequence += 1
        offer = TaskOffer(
            at_ns=self._host.engine.clock(),
            source=SOURCE,
            seq=self._sequence,
            task=args.task,
            ue=args.ue,
            work=args.work,
            weight=args.weight,
            fallback=args.fallback,
        )
        if not 0 < len(args.task) <= 128 or not 0 < len(args.ue) <= 128:
            raise Refused("bad_args", "ids of tasks and UEs have 1 to 128 characters")
        if args.fallback not in {"local", "drop", "keep"}:
            raise Refused("bad_args", f"fallback '{args.fallback}': one of local, drop, keep")
        clean, reasons = quality.inspect(offer)
        if clean is None:
            raise Refused("bad_args", "; ".join(reasons))
        cell = self._host.engine.core.state.cell_of_ue.get(args.ue, 0)
        self._host.engine.plant.points(offer, cell)  # what is wrong in the work is said here
        return offer

    def flush(self) -> None:
        """Have the submits since the last call decided."""
        if self._submits:
            submits, self._submits = list(self._submits.values()), {}
            self._host.engine.offer(submits)

    # --- the other verbs ----------------------------------------------------------------------------------------

    def _release(self, args: api.TaskArgs) -> api.Released:
        engine = self._host.engine
        if args.task in engine.waiting:
            raise Refused("busy", f"'{args.task}' is being decided", "try again in a moment")
        done = engine.end(args.task, Reason.RELEASED)
        engine.flush()
        return api.Released(task=args.task, released=done)

    def _list(self, args: api.ListArgs) -> api.TaskList:
        names = [name for name in self._host.engine.trackers if name.startswith(args.prefix)]
        views = tuple(self.view(name) for name in names[: max(0, args.limit)])
        return api.TaskList(total=len(names), tasks=views)

    def _show(self, args: api.TaskArgs) -> api.TaskView:
        return self.view(args.task)

    def view(self, name: str) -> api.TaskView:
        """One task as an operator sees it. Raises Refused for one that is not known."""
        engine = self._host.engine
        now_ns = engine.clock()
        lease = engine.board.current(name, now_ns)
        tracker = engine.trackers.get(name)
        ended = engine.board.ended(name)
        offer = tracker.offer if tracker is not None else ended.offer if ended is not None else None
        if lease is None or offer is None:
            raise Refused("unknown_task", f"no task '{name}' is known", "'cosched ctl list' names those that live")
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
            raise Refused("not_done", str(error)) from None
        return self._host.mode_view()


def _about(args: api.SubmitArgs | api.TaskArgs) -> list[tuple[str, str]]:
    """Whom a client needs leave to act for."""
    return [("task", args.task), *([("UE", args.ue)] if isinstance(args, api.SubmitArgs) else [])]


def _refuse_other(known: TaskOffer, offer: TaskOffer) -> None:
    """Let a client ask again for the very task that is known. Raises Refused for another one of its id."""
    if (known.ue, known.work, known.weight, known.fallback) != (offer.ue, offer.work, offer.weight, offer.fallback):
        raise Refused("conflict", f"another task '{offer.task}' lives", "give the new one another id")


def _reply(answer: Answer) -> Callable[[Lease | None, str], None]:
    """Return what the engine calls with a decision."""

    def reply(lease: Lease | None, why: str) -> None:
        answer(Fault(code="not_done", message=why) if lease is None else lease)

    return reply


def _decode(codec: Any, data: bytes | msgspec.Raw, kind: Any, code: str) -> Any:  # noqa: ANN401  # msgspec's own signature
    try:
        return codec.decode(data, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise Refused(code, str(error)) from None


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
