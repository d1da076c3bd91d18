"""Solves in worker processes that can be killed: one at work, one warm to take its place.

A solve past its wall budget costs its process its life. The budget never decides what the answer is: a solve either
ends with the answer that it has on every machine, or is reported as failed and journaled as such.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Final

import msgspec
import structlog

from cosched.children.framing import LENGTH_BYTES, framed
from cosched.children.packing import Answer, Ask, pack, solve_packed, unpack_answer
from cosched.children.solve import READY
from cosched.core.commands import Solve
from cosched.errors import CoschedError
from solvers.solution import Solution

INLINE: Final = "local"  # the end of the fallback chain: trivial, solved where the daemon runs
START_S: Final = 60.0  # a worker that has not said by then that it is there is started anew
IDLE_S: Final = 60.0  # ... and one that does nothing for so long while it gets ready
BUSY_S: Final = 3600.0  # ... and one that gets ready for so long: compiling takes minutes, many on a busy machine
LOOK_S: Final = 10.0  # between two looks at what it does
RETRY_S: Final = 1.0  # between two starts
MOST_BYTES: Final = 1 << 30  # of an answer: a plan of 100 000 tasks has some 20 MB
GARBAGE: Final = "its process answered what is no answer"

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


class Worker(asyncio.SubprocessProtocol):
    """One process, one solve at a time.

    A protocol, not streams: an answer is there in the turn of the event loop in which its last byte is, and does not
    wait for two more turns behind telemetry.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._received = bytearray()
        self._answered: Callable[[bytes], None] | None = None  # of the message that is due; b"" when the process died
        self._timer: asyncio.TimerHandle | None = None
        self._lost = False
        self._gone = asyncio.Event()

    @classmethod
    async def start(cls, rehearsal: Sequence[bytes], module: str = "cosched.children.solve") -> Worker:
        """Start a process and have it solve the packed Asks of a rehearsal. Raises SolveLost."""
        loop = asyncio.get_running_loop()
        command = (sys.executable, "-m", module)
        _, worker = await loop.subprocess_exec(cls, *command, stderr=None)
        try:
            await worker.begin()
            for ask in rehearsal:
                await worker.rehearse(ask)
        except SolveLost:
            await worker.kill()
            raise
        return worker

    async def begin(self) -> None:
        """Wait for the process to say that it is there. Raises SolveLost."""
        heard: asyncio.Future[bytes] = self._loop.create_future()
        self._expect(heard.set_result)
        try:
            async with asyncio.timeout(START_S):
                hello = await heard
        except TimeoutError:
            hello = b""
        finally:
            self._forget()  # also where nobody waits any more, for the daemon is ending
        if hello != READY:
            raise SolveLost("the worker did not start")

    async def rehearse(self, ask: bytes) -> None:
        """Have it solve something, for as long as it works at it: it may have to compile first. Raises SolveLost."""
        solving = asyncio.ensure_future(self.solve(ask, BUSY_S))
        try:
            used_s, since_s = 0.0, self._loop.time()
            while not (await asyncio.wait([solving], timeout=LOOK_S))[0]:
                now_s, before_s = self._loop.time(), used_s
                used_s = _cpu_s(self._process.get_pid())
                if used_s > before_s:
                    since_s = now_s
                elif now_s - since_s >= IDLE_S:
                    raise SolveLost(f"the worker did nothing for {IDLE_S:g} s while it was to get ready")
            solving.result()
        finally:
            solving.cancel()

    def ask(self, data: bytes, budget_s: float, done: Callable[[Answer | None, str], None]) -> None:
        """Have a packed Ask solved; `done(answer, "")`, or `done(None, why)` and the process is gone or going."""

        def heard(data: bytes, why: str) -> None:
            try:
                answer = unpack_answer(data) if data else None
            except (msgspec.DecodeError, ValueError, TypeError):
                self.end()
                done(None, GARBAGE)
            else:
                done(answer, why)

        self._send(data, budget_s, heard)

    async def solve(self, data: bytes, budget_s: float) -> Answer:
        """As `ask`, awaited. Raises SolveLost, and the process is then gone or going."""
        answer: asyncio.Future[tuple[Answer | None, str]] = self._loop.create_future()
        self.ask(data, budget_s, lambda *told: None if answer.cancelled() else answer.set_result(told))
        found, why = await answer
        if found is None:
            raise SolveLost(why)
        return found

    async def exchange(self, data: bytes, budget_s: float) -> bytes:
        """Send a message and await the answer. Raises SolveLost, and the process is then gone or going."""
        answer: asyncio.Future[bytes] = self._loop.create_future()

        def done(found: bytes, why: str) -> None:
            if answer.cancelled():
                return
            if found:
                answer.set_result(found)
            else:
                answer.set_exception(SolveLost(why))

        self._send(data, budget_s, done)
        return await answer

    def _send(self, data: bytes, budget_s: float, done: Callable[[bytes, str], None]) -> None:
        """Send a message; `done(answer, "")`, or `done(b"", why)` and the process is gone or going."""

        def late() -> None:
            self.end()
            done(b"", f"over its budget of {1e3 * budget_s:g} ms")

        self._expect(lambda data: done(data, "" if data else "its process died"))
        self._timer = self._loop.call_later(budget_s, late)
        self._stdin.write(framed(data))

    def _expect(self, answered: Callable[[bytes], None]) -> None:
        self._answered = answered
        if self._lost:
            self._loop.call_soon(self._answer, b"")

    def _answer(self, data: bytes) -> None:
        answered = self._answered
        self._forget()
        if answered is not None:
            answered(data)

    def _forget(self) -> None:
        self._answered = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep both ends."""
        assert isinstance(transport, asyncio.SubprocessTransport)  # noqa: S101  # of what is started here
        stdin = transport.get_pipe_transport(0)
        assert isinstance(stdin, asyncio.WriteTransport)  # noqa: S101  # a pipe by default
        self._process, self._stdin = transport, stdin

    def pipe_connection_lost(self, _fd: int, _: Exception | None) -> None:
        """Whoever waits for an answer gets none."""
        self._lost = True
        self._answer(b"")

    def pipe_data_received(self, _fd: int, data: bytes) -> None:
        """Take what came; answer when it is whole."""
        self._received += data
        size = LENGTH_BYTES + int.from_bytes(self._received[:LENGTH_BYTES], "little")
        if size > MOST_BYTES:
            answered = self._answered
            self.end()
            if answered is not None:
                answered(b"")
        elif len(self._received) >= max(size, LENGTH_BYTES + 1):
            whole = bytes(self._received[LENGTH_BYTES:size])
            self._received.clear()  # one message at a time
            self._answer(whole)

    def process_exited(self) -> None:
        """Nothing is left to kill."""
        self._gone.set()

    def end(self) -> None:
        """Kill the process; what it was at is answered no more."""
        self._forget()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def kill(self) -> None:
        """Kill the process and wait until it is gone."""
        self.end()
        await self._gone.wait()
        self._process.close()


def _cpu_s(pid: int) -> float:
    """CPU time of a process; ever more where that is not known."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return asyncio.get_running_loop().time()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Pool:
    """Two workers. `submit` answers through `done(request, solution or None, why not)`, in the event loop."""

    def __init__(self, budget_s: float, done: Callable[[int, Solution | None, str], None]) -> None:
        self.budget_s = budget_s
        self._done = done
        self._ready: list[Worker] = []
        self.rehearsal: Sequence[bytes] = ()  # that each worker solves first
        self._tasks: set[asyncio.Task[None]] = set()
        self._starting = 0
        self._at_work: list[Worker] = []  # on Solves of the core: the open one, and one whose place it took
        self._next: Solve | None = None  # waits for a worker
        self.first = asyncio.Event()  # set once a worker is ready

    @property
    def is_ready(self) -> bool:
        """Whether a worker waits for a solve."""
        return bool(self._ready)

    def start(self, rehearsal: Sequence[bytes] = ()) -> None:
        """Begin to start both workers; each solves the rehearsal's packed Asks before it counts as ready."""
        self.rehearsal = rehearsal
        for _ in range(2 - self._starting - len(self._ready)):
            self._spawn(self._refill())

    def submit(self, command: Solve) -> None:
        """Begin a solve, beside one that is under way: of an earlier Solve, whose place this one takes."""
        loop = asyncio.get_running_loop()
        if command.policy.solver == INLINE:
            answer = solve_packed(pack(ask_of(command)))
            loop.call_soon(self._done, command.request, answer.solution, answer.error)
        elif self._ready:
            self._ask(self._ready.pop(0), command)
        elif self._at_work:
            self._next = command
        else:
            loop.call_soon(self._done, command.request, None, "no worker is ready")

    def _ask(self, worker: Worker, command: Solve) -> None:
        self._at_work.append(worker)
        worker.ask(pack(ask_of(command)), self.budget_s, functools.partial(self._answered, worker, command))

    def _answered(self, worker: Worker, command: Solve, answer: Answer | None, why: str) -> None:
        self._at_work.remove(worker)
        if answer is None:
            log.warning("solve lost", request=command.request, policy=command.policy.name, why=why)
            self._spawn(self._replace(worker))
        else:
            self._ready.insert(0, worker)
        waiting, self._next = self._next, None
        if waiting is not None:
            self.submit(waiting)
        if answer is None:
            self._done(command.request, None, why)
        else:
            self._done(command.request, answer.solution, answer.error)

    async def _replace(self, worker: Worker) -> None:
        await worker.kill()
        await self._refill()

    async def _refill(self) -> None:
        """Start a worker, again and again until one is there."""
        self._starting += 1
        try:
            while True:
                try:
                    worker = await Worker.start(self.rehearsal)
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
        """Kill all workers; what they were at is answered no more."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(worker.kill() for worker in (*self._ready, *self._at_work)))
