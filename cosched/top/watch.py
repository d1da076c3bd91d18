"""Follows a daemon for the dashboard: asks every so often, hears of refusals at once, comes back when it comes back."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import msgspec

from cosched.api import messages as api
from cosched.api.async_client import AsyncClient
from cosched.api.client import NoAnswer
from cosched.errors import CoschedError
from telemetry.errors import TelemetryError

RETRY_S: Final = 1.0  # between two tries to reach a daemon that has gone
MOST_TASKS: Final = 500  # asked for: more is no list that anybody reads, and the daemon has other things to do
MOST_AWAY: Final = 20  # refused and dropped tasks that are remembered ...
AWAY_S: Final = 60.0  # ... for so long
GOES_WELL: Final = frozenset({"finished", "released"})  # reasons to end that are worth no row


class Watch:
    """What is known of a daemon. `connect` makes a client; `changed` is called whenever there is something new."""

    def __init__(self, connect: Callable[[], AsyncClient], every_s: float, changed: Callable[[], None]) -> None:
        self.status: api.Status | None = None
        self.tasks = api.TaskList(total=0, tasks=())
        self.trouble = "not connected yet"
        self._connect = connect
        self._every_s = every_s
        self._changed = changed
        self._daemon: AsyncClient | None = None
        self._away: OrderedDict[str, tuple[float, api.Lease]] = OrderedDict()

    @property
    def turned_away(self) -> list[api.Lease]:
        """Tasks that were refused or dropped lately, the latest first."""
        now_s = time.monotonic()
        return [lease for at_s, lease in reversed(self._away.values()) if now_s - at_s <= AWAY_S]

    async def run(self) -> None:
        """Follow without end: a daemon that is not there, or no more, is tried again."""
        while True:
            try:
                async with self._connect() as daemon:
                    self._daemon = daemon
                    await self._follow(daemon)
            except (CoschedError, TelemetryError, msgspec.MsgspecError) as error:  # the last: of another version
                self.trouble = str(error)
                self._changed()
            finally:
                self._daemon = None
            await asyncio.sleep(RETRY_S)

    async def explain(self, task: str) -> api.Explanation:
        """Ask why a task has what it has. Raises Refused, NoAnswer."""
        if self._daemon is None:
            raise NoAnswer(self.trouble)
        return await self._daemon.explain(task)

    async def _follow(self, daemon: AsyncClient) -> None:
        listening = asyncio.create_task(self._listen(daemon))
        try:
            while True:
                self.status, self.tasks = await daemon.status(), await daemon.list(limit=MOST_TASKS)
                self.trouble = ""
                self._changed()
                await asyncio.wait([listening], timeout=self._every_s)
                if listening.done():
                    listening.result()
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    async def _listen(self, daemon: AsyncClient) -> None:
        async for lease in daemon.follow():
            self._away.pop(lease.task, None)
            if not lease.point and lease.reason not in GOES_WELL:
                self._away[lease.task] = (time.monotonic(), lease)
                if len(self._away) > MOST_AWAY:
                    self._away.popitem(last=False)
