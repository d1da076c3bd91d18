"""The daemon's end of what-if and why: one question at a time, in a process that does nothing else."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final

import msgspec

from cosched import control_messages as api
from cosched.drivers.pool import SolveLost, Worker
from cosched.drivers.question_worker import Question, Reply
from cosched.errors import CoschedError

MODULE: Final = "cosched.drivers.question_worker"
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

    async def start(self) -> None:
        """Start the process; where that fails, the next question tries again."""
        async with self._one:
            with contextlib.suppress(SolveLost, OSError):
                await self._there()

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
