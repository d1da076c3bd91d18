"""Python client of the control API for an event loop (docs/control-api.md): the verbs of client.py, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self

from cosched.api import messages as api
from cosched.api.client import Connection, answer, leases, result
from telemetry.bus import Pump
from telemetry.messages import LlmSession, VideoClip


class AsyncClient(Connection):
    """Client for an event loop, used with `async with`; any number of calls may be under way."""

    async def __aenter__(self) -> Self:
        self._open: dict[int, asyncio.Future[api.Response]] = {}
        self._pump = Pump(asyncio.get_running_loop(), self.socket, self._receive)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._pump.stop()
        self.close()

    def _receive(self) -> bool:
        payloads = self.socket.drain()
        for response in map(answer, payloads):
            waiting = self._open.pop(response.id, None) if isinstance(response.id, int) else None
            if waiting is not None and not waiting.done():
                waiting.set_result(response)
        return bool(payloads)

    async def call(self, verb: str, args: api.Args) -> Any:  # noqa: ANN401  # each verb has its type
        """Ask and await the answer. Raises Refused and NoAnswer."""
        number, payload = self.request(verb, args)
        waiting: asyncio.Future[api.Response] = asyncio.get_running_loop().create_future()
        self._open[number] = waiting
        self.socket.send(payload)
        self._pump.again()
        try:
            async with asyncio.timeout(self.timeout_s):  # wait_for of Python 3.11 swallows a cancellation at times
                return result(verb, await waiting)
        except TimeoutError:
            raise self.silence(verb) from None
        finally:
            self._open.pop(number, None)

    async def status(self) -> api.Status:
        """See Client.status, as for all below."""
        found: api.Status = await self.call("status", api.NoArgs())
        return found

    async def submit(
        self, task: str, ue: str, work: LlmSession | VideoClip, *, weight: float = 1.0, fallback: str = "local"
    ) -> api.Lease:
        """Offer a task."""
        args = api.SubmitArgs(task=task, ue=ue, work=work, weight=weight, fallback=fallback)
        found: api.Lease = await self.call("submit", args)
        return found

    async def release(self, task: str) -> api.Released:
        """Let a task go."""
        found: api.Released = await self.call("release", api.TaskArgs(task=task))
        return found

    async def list(self, prefix: str = "", limit: int = 1000) -> api.TaskList:
        """Accepted tasks."""
        found: api.TaskList = await self.call("list", api.ListArgs(prefix=prefix, limit=limit))
        return found

    async def show(self, task: str) -> api.TaskView:
        """One accepted task."""
        found: api.TaskView = await self.call("show", api.TaskArgs(task=task))
        return found

    async def explain(self, task: str) -> api.Explanation:
        """Why a task has what it has."""
        found: api.Explanation = await self.call("explain", api.TaskArgs(task=task))
        return found

    async def whatif(self, args: api.WhatifArgs) -> api.WhatifResult:
        """Plan a changed site."""
        found: api.WhatifResult = await self.call("whatif", args)
        return found

    async def policy(self, name: str = "") -> api.PolicyView:
        """Ask for the policy, or change it."""
        found: api.PolicyView = await self.call("policy", api.PolicyArgs(policy=name))
        return found

    async def drain(self) -> api.ModeView:
        """Take no new task."""
        found: api.ModeView = await self.call("drain", api.NoArgs())
        return found

    async def resume(self) -> api.ModeView:
        """Take tasks again."""
        found: api.ModeView = await self.call("resume", api.NoArgs())
        return found

    async def reload(self) -> api.Reloaded:
        """Read the configuration anew."""
        found: api.Reloaded = await self.call("reload", api.NoArgs())
        return found

    async def follow(self, *tasks: str) -> AsyncIterator[api.Lease]:
        """Yield the present decision of each task (none named: of all), then every change, without end."""
        follower = self.follower(await self.call("watch", api.NoArgs()), tasks)
        waiting = asyncio.Event()

        def wake() -> bool:
            waiting.set()
            return False

        pump = Pump(asyncio.get_running_loop(), follower, wake)
        try:
            while True:
                await waiting.wait()
                waiting.clear()
                while messages := follower.drain():
                    for lease in leases(messages, tasks):
                        yield lease
        finally:
            pump.stop()
            follower.close()
