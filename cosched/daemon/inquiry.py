"""The daemon's end of what-if and why: one question at a time, in a process that does nothing else."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from cosched.api import messages as api
from cosched.children.pool import SolveLost, Worker
from cosched.core.planner import resource_ids
from cosched.daemon.children.question import Question, Reply, Why
from cosched.daemon.control import RequestRefused
from cosched.errors import CoschedError
from telemetry.messages import TaskOffer

if TYPE_CHECKING:
    from cosched.daemon.daemon import Daemon

MODULE: Final = "cosched.daemon.children.question"
NS: Final = 1e-9
MOST_COPIES: Final = 2_000  # further tasks of a what-if
BUDGET_S: Final = 10.0  # of an answer; then its process is killed


class NotAnswered(CoschedError):
    """A question that was answered with a fault, or not in time."""

    def __init__(self, fault: api.Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


class Inquiry:
    """Asks questions, one after the other. The process is started ahead (`start`), or with the first question."""

    def __init__(self) -> None:
        self._one = asyncio.Lock()
        self._worker: Worker | None = None

    async def start(self, rehearsal: Sequence[bytes]) -> None:
        """Start the process and have it solve packed Asks; where that fails, the next question tries again."""
        async with self._one:
            with contextlib.suppress(SolveLost, OSError):
                self._worker = await Worker.start(rehearsal, MODULE)

    async def ask(self, question: Question, kind: Any) -> Any:  # noqa: ANN401  # msgspec's own signature
        """Return the answer, of type `kind`. Raises NotAnswered."""
        data = msgspec.msgpack.encode(question)
        async with self._one:
            try:
                worker = await self._there()
                reply = msgspec.msgpack.decode(await worker.exchange(data, BUDGET_S), type=Reply)
            except (SolveLost, OSError) as error:
                await self._end()
                raise NotAnswered(api.Fault(code="not_done", message=f"no answer: {error}")) from None
            except asyncio.CancelledError:
                await self._end()  # what it is at would be taken for the next answer
                raise
        if reply.fault is not None or isinstance(reply.result, msgspec.UnsetType):
            raise NotAnswered(reply.fault or api.Fault(code="not_done", message="no answer"))
        return msgspec.msgpack.decode(reply.result, type=kind)

    async def _there(self) -> Worker:
        if self._worker is None:
            self._worker = await Worker.start((), MODULE)
        return self._worker

    async def _end(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            await worker.kill()

    async def close(self) -> None:
        """End the process; what it was at is answered no more."""
        await self._end()


async def whatif(daemon: Daemon, args: api.WhatifArgs) -> api.WhatifResult:
    """Plan a changed site beside the live one. Raises Refused."""
    if not 1 <= args.copies * max(1, len(args.submit)) <= MOST_COPIES:
        raise RequestRefused("bad_args", f"copies: 1 to {MOST_COPIES} further tasks in all")
    offers: list[TaskOffer] = []
    for one in map(daemon.control.sound_offer, args.submit):
        names = [f"{one.task}#{n}" for n in range(args.copies)] if args.copies > 1 else [one.task]
        offers += [msgspec.structs.replace(one, task=name) for name in names]
    if living := [o.task for o in offers if o.task in daemon.engine.trackers]:
        raise RequestRefused("conflict", f"a task '{living[0]}' lives", "give the further ones other ids")
    return cast("api.WhatifResult", await _asked(daemon, api.WhatifResult, whatif=args, offers=tuple(offers)))


async def explain(daemon: Daemon, task: str) -> api.Explanation:
    """Explain a task's decision. Raises Refused."""
    engine, view = daemon.engine, daemon.control.view(task)
    held, ended = engine.trackers.get(task), engine.board.ended(task)
    offer = held.offer if held is not None else ended.offer if ended is not None else None
    assert offer is not None  # noqa: S101  # or there is no view
    fresh = msgspec.structs.replace(offer, at_ns=daemon.clock())  # what it would be decided now
    plan, names = engine.plan, resource_ids(engine.plant.site)
    known = plan is not None and len(plan.planned_use) == len(names)
    planned = tuple(plan.planned_use.tolist()) if known and plan is not None else (0.0,) * len(names)
    why = Why(offer=fresh, lease=view.lease, planned=planned)
    return cast("api.Explanation", await _asked(daemon, api.Explanation, why=why))


async def _asked(daemon: Daemon, kind: type, **asked: Any) -> object:  # noqa: ANN401  # a Question's own fields
    """Have a question answered of the state as it is now. Raises Refused."""
    engine = daemon.engine
    question = Question(
        site_toml=engine.plant.toml,
        ue_devices=dict(engine.plant.ue_devices),
        policy=engine.core.policy.name,
        core=daemon.loaded.settings.core,
        snapshot=msgspec.structs.replace(engine.core.snapshot(), at_s=daemon.clock() * NS),
        **asked,
    )
    try:
        return cast("object", await daemon.inquiry.ask(question, kind))
    except NotAnswered as error:
        raise RequestRefused(error.fault.code, error.fault.message, error.fault.hint) from None
