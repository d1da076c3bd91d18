"""Solves in worker processes that can be killed: one at work, one warm to take its place.

A solve past its wall budget costs its process its life. The budget never decides what the answer is: a solve either
ends with the answer that it has on every machine, or is reported as failed and journaled as such.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from cosched.core.commands import Solve
from cosched.drivers.packing import Answer, Ask, pack, solve_packed, unpack_answer
from cosched.drivers.worker import LENGTH_BYTES, READY
from cosched.errors import CoschedError
from solvers.solution import Solution

INLINE: Final = "local"  # the end of the fallback chain: trivial, solved where the daemon runs
START_S: Final = 60.0  # a worker that is not ready by then (cold cache: it compiles) is started anew
STEP_S: Final = 0.02  # between two looks for a spare worker
RETRY_S: Final = 1.0  # between two starts
MAX_ANSWER_BYTES: Final = 1 << 28

log = structlog.get_logger()


class SolveLost(CoschedError):
    """A solve without an answer: over its budget, or its process died."""


def ask_of(command: Solve) -> Ask:
    """Return the command as it travels."""
    return Ask(
        request=command.request,
        solver=command.policy.solver,
        options=dict(command.policy.options),
        warm=command.warm,
        problem=command.problem,
    )


@dataclass(eq=False, slots=True)
class Worker:
    """One process. `solve` may not be called while another solve of it is under way."""

    process: asyncio.subprocess.Process

    @classmethod
    async def start(cls, rehearsal: Sequence[bytes]) -> Worker:
        """Start a process and have it solve the packed Asks of a rehearsal. Raises SolveLost."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "cosched.drivers.worker",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=MAX_ANSWER_BYTES,
        )  # fmt: skip
        worker = cls(process)
        try:
            async with asyncio.timeout(START_S):
                hello = await worker._read()
        except TimeoutError:
            hello = b""
        if hello != READY:
            await worker.kill()
            raise SolveLost("the worker did not start")
        for ask in rehearsal:
            await worker.solve(ask, START_S)
        return worker

    async def solve(self, data: bytes, budget_s: float) -> Answer:
        """Have a packed Ask solved. Raises SolveLost, and the process is then gone."""
        stdin = self.process.stdin
        assert stdin is not None  # noqa: S101  # it was asked for
        try:
            async with asyncio.timeout(budget_s):
                stdin.write(len(data).to_bytes(LENGTH_BYTES, "little") + data)
                answer = await self._read()
        except (TimeoutError, OSError):
            answer = b""
        if not answer:
            died = self.process.returncode is not None or (stdin.is_closing())
            await self.kill()
            raise SolveLost("its process died" if died else f"over its budget of {1e3 * budget_s:g} ms")
        return unpack_answer(answer)

    async def _read(self) -> bytes:
        stdout = self.process.stdout
        assert stdout is not None  # noqa: S101  # it was asked for
        try:
            head = await stdout.readexactly(LENGTH_BYTES)
            return await stdout.readexactly(int.from_bytes(head, "little"))
        except asyncio.IncompleteReadError:
            return b""

    async def kill(self) -> None:
        """End the process at once."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()


class Pool:
    """Two workers. `submit` answers through `done(request, solution or None, why not)`, in the event loop."""

    def __init__(self, budget_s: float, done: Callable[[int, Solution | None, str], None]) -> None:
        self.budget_s = budget_s
        self._done = done
        self._ready: list[Worker] = []
        self._rehearsal: Sequence[bytes] = ()
        self._tasks: set[asyncio.Task[None]] = set()
        self._starting = 0
        self._at_work = 0  # 1 while a Solve of the core is under way
        self._aside = asyncio.Lock()
        self.first = asyncio.Event()  # set once a worker is ready

    def start(self, rehearsal: Sequence[bytes] = ()) -> None:
        """Begin to start both workers; each solves the rehearsal's packed Asks before it counts as ready."""
        self._rehearsal = rehearsal
        for _ in range(2 - self._starting - len(self._ready)):
            self._spawn(self._refill())

    def submit(self, command: Solve) -> None:
        """Begin a solve. One at a time: the core has at most one open."""
        if command.policy.solver == INLINE:
            answer = solve_packed(pack(ask_of(command)))
            asyncio.get_running_loop().call_soon(self._done, command.request, answer.solution, answer.error)
        elif not self._ready:
            asyncio.get_running_loop().call_soon(self._done, command.request, None, "no worker is ready")
        else:
            self._at_work = 1
            self._spawn(self._solve(self._ready.pop(0), command))

    async def aside(self, command: Solve, budget_s: float) -> Solution:
        """Solve beside what is in force, on the spare worker. Raises SolveLost."""
        async with self._aside:
            for _ in range(round(START_S / STEP_S)):
                if len(self._ready) + self._at_work >= 2:
                    break
                await asyncio.sleep(STEP_S)
            else:
                raise SolveLost("no spare worker is ready")
            worker = self._ready.pop()
            try:
                answer = await worker.solve(pack(ask_of(command)), budget_s)
            except SolveLost:
                self._spawn(self._refill())
                raise
            self._ready.append(worker)
        if answer.solution is None:
            raise SolveLost(answer.error)
        return answer.solution

    async def _solve(self, worker: Worker, command: Solve) -> None:
        try:
            answer = await worker.solve(pack(ask_of(command)), self.budget_s)
        except SolveLost as error:
            self._at_work = 0
            log.warning("solve lost", request=command.request, policy=command.policy.name, why=str(error))
            self._spawn(self._refill())
            self._done(command.request, None, str(error))
            return
        self._at_work = 0
        self._ready.insert(0, worker)
        self._done(command.request, answer.solution, answer.error)

    async def _refill(self) -> None:
        """Start a worker, again and again until one is there."""
        self._starting += 1
        try:
            while True:
                try:
                    worker = await Worker.start(self._rehearsal)
                except (SolveLost, OSError) as error:
                    log.warning("no worker", why=str(error))
                    await asyncio.sleep(RETRY_S)
                else:
                    self._ready.append(worker)
                    self.first.set()
                    return
        finally:
            self._starting -= 1

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A defect in what an answer sets off must not vanish in a task."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            task.get_loop().call_exception_handler({"message": "after a solve", "exception": error})

    async def close(self) -> None:
        """Kill all workers."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(worker.kill() for worker in self._ready))
        self._ready.clear()
