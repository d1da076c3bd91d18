"""The front end's way to the daemon: the control API, one subscription to decisions, and telemetry.

It is made as soon as the daemon is there and made again by itself: until then, and while the daemon is silent, requests
are answered 503.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

import structlog

from cosched.api.async_client import AsyncClient
from cosched.api.client import NoAnswer, Refused, curve
from cosched.api.messages import Lease, NoArgs, Status, SubmitArgs
from cosched.errors import CoschedError
from cosched.serve.faults import ServeFault, unavailable
from cosched.serve.feed import LeaseFeeds
from cosched.serve.settings import ServeSettings
from telemetry.bus import Follower, Publisher, Pump
from telemetry.messages import Message, UeReport
from telemetry.wire import encode

log = structlog.get_logger()
AGAIN_S: Final = 0.5  # between two attempts to reach the daemon
ANSWER_S: Final = 5.0  # for an answer of it
STATUS_S: Final = 0.5  # a status is asked for no more often
CLOSING_MS: Final = 500  # for the last reports to go out
TRIES: Final = 20  # of a release of a task that is being decided
TRY_S: Final = 0.05

FAULT_STATUS: Final = {"quota": 429, "busy": 429, "bad_args": 400, "not_allowed": 403}


class DaemonLink:
    """Used in one event loop, between `start` and `stop`. prefix: what the tasks of this process begin with."""

    def __init__(self, settings: ServeSettings, prefix: str) -> None:
        """Read the keys. Raises BadInput."""
        self._settings, self._prefix = settings, prefix
        self.keys = curve(settings.daemon.key, settings.daemon.server)
        self.feeds = LeaseFeeds()
        self._client: AsyncClient | None = None
        self._follower: Follower | None = None
        self._pump: Pump | None = None
        self._status: tuple[float, Status] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._seq = 0

    async def start(self) -> None:
        """Connect; what cannot be reached yet is tried again in the background."""
        endpoint = self._settings.daemon.telemetry
        self._publisher = Publisher(endpoint, self.keys if endpoint.startswith("tcp://") else None)
        self.spawn(self._connect)
        if self._settings.wired.ues:
            self.spawn(self._report_wired)

    def spawn(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do something beside, until `stop`."""
        task = asyncio.ensure_future(work())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """Close everything."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._pump is not None and self._follower is not None:
            self._pump.stop()
            self._follower.close()
        if self._client is not None:
            await self._client.__aexit__(None, None, None)
        self._publisher.close(CLOSING_MS)

    async def _connect(self) -> None:
        """Connect and subscribe. ZeroMQ connects again by itself from then on."""
        said = ""
        while self._follower is None:
            try:
                if self._client is None:
                    client = AsyncClient(self._settings.daemon.control, self.keys, ANSWER_S)
                    self._client = await client.__aenter__()
                self._subscribe(self._client, await self._client.call("watch", NoArgs()))
            except CoschedError as error:
                if str(error) != said:
                    said = str(error)
                    log.warning("the daemon is not reached", error=said)
                await asyncio.sleep(AGAIN_S)
        log.info("the daemon is reached", endpoint=self._client.endpoint if self._client else "")

    def _subscribe(self, client: AsyncClient, watching: object) -> None:
        follower = client.follower(watching, [self._prefix])  # type: ignore[arg-type]  # of the verb

        def take() -> bool:
            messages = follower.drain()
            self.feeds.put(messages)
            return bool(messages)

        self._follower = follower
        self._pump = Pump(asyncio.get_running_loop(), follower, take)

    @property
    def _reached(self) -> AsyncClient:
        if self._client is None or self._follower is None:
            raise unavailable("daemon_unreachable", "the daemon is not reached (yet); is 'cosched run' running?")
        return self._client

    async def status(self) -> Status:
        """Return the daemon's status, at most STATUS_S old. Raises ServeFault 503."""
        now_s = time.monotonic()
        if self._status is None or now_s - self._status[0] > STATUS_S:
            try:
                self._status = now_s, await self._reached.status()
            except (NoAnswer, Refused) as error:
                raise unavailable("daemon_unreachable", str(error)) from None
        return self._status[1]

    async def submit(self, asked: SubmitArgs) -> Lease:
        """Offer a task. Whoever is cancelled meanwhile leaves nothing behind. Raises ServeFault."""
        asking = asyncio.ensure_future(self._submit(asked))
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            self.spawn(lambda: self._withdraw(asking, asked.task))
            raise

    async def _submit(self, asked: SubmitArgs) -> Lease:
        try:
            return await self._reached.submit(
                asked.task, asked.ue, asked.work, weight=asked.weight, fallback=asked.fallback
            )
        except Refused as error:
            status = FAULT_STATUS.get(error.code, 503)
            if status == 503:
                raise unavailable(error.code, str(error)) from None
            raise ServeFault(
                status, error.code, str(error), kind="rate_limit_error" if status == 429 else "invalid_request_error",
                again_s=1.0 if status == 429 else 0.0,
            ) from None  # fmt: skip
        except NoAnswer as error:
            raise unavailable("daemon_unreachable", str(error)) from None

    async def _withdraw(self, asking: asyncio.Future[Lease], task: str) -> None:
        with contextlib.suppress(ServeFault):
            if (await asking).point:
                await self.release(task)

    async def release(self, task: str) -> None:
        """Let a task go; where the daemon cannot be told, the task ends by its silence."""
        for _ in range(TRIES):
            try:
                await self._reached.release(task)
            except Refused as error:
                if error.code != "busy":
                    log.warning("not released", task=task, error=str(error))
                    return
                await asyncio.sleep(TRY_S)
            except (NoAnswer, ServeFault) as error:
                log.warning("not released", task=task, error=str(error))
                return
            else:
                return

    def publish(self, message: Message) -> None:
        """Send telemetry, in the event loop."""
        self._publisher.send(*encode(message))

    async def _report_wired(self) -> None:
        """Report UEs that have no radio as ones with a steady channel, in the cell that stands for their network."""
        wired = self._settings.wired
        while True:
            for ue in wired.ues:
                self.publish(
                    UeReport(
                        at_ns=time.monotonic_ns(), source=f"{self._settings.name}/{ue}", seq=self._seq, ue=ue,
                        cell=wired.cell, ul_efficiency_bps_hz=wired.efficiency_bps_hz,
                    )
                )  # fmt: skip
            self._seq += 1
            await asyncio.sleep(wired.period_s)
