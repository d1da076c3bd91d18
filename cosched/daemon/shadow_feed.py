"""The daemon's end of the shadow comparison: sends what it hears, keeps the outcomes of the latest windows."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import structlog

from cosched.api.messages import ShadowTally, ShadowView
from cosched.children.framing import framed
from cosched.core.settings import Settings
from telemetry.messages import CellReport, Message, NodeReport, TaskOffer, UeReport, UeReportBatch

NS: Final = 1e-9
WINDOW_S: Final = 60.0  # replayed at once: longer than most tasks
MOST_UES: Final = 5_000  # that are compared in a window; beyond, those with tasks: the others may be invented
EVERY_NS: Final = 1_000_000_000  # of each UE's reports
WRITTEN_BYTES: Final = 32 << 10  # at once: a write of its own for each UE would hold the event loop up
MOST_QUEUED_BYTES: Final = 8 << 20  # that wait for a shadow that is behind; then the window is given up
BEHIND: Final = "more was reported than could be replayed beside it"

log = structlog.get_logger()


class Item(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that was heard, at the daemon's instant `at_ns`; of the kinds below one is set."""

    at_ns: int
    ue: UeReport | None = None
    cell: CellReport | None = None
    node: NodeReport | None = None
    offer: TaskOffer | None = None


class ShadowWindow(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a window: by which policies and on which site it is to be replayed."""

    site_toml: str
    ue_devices: dict[str, str]
    core: Settings
    policy: str
    baseline: str
    begun_ns: int
    ended_ns: int


class ShadowFrame(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What travels."""

    item: Item | None = None
    window: ShadowWindow | None = None


class WindowOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a window's tasks under both policies."""

    ended_ns: int
    window_s: float
    offered: int
    live: ShadowTally
    shadow: ShadowTally
    error: str = ""


def frame(item: Item | ShadowWindow) -> bytes:
    """Return it as it travels, behind its length."""
    whole = ShadowFrame(item=item) if isinstance(item, Item) else ShadowFrame(window=item)
    return framed(msgspec.msgpack.encode(whole))


class ShadowFeed:
    """`window` makes the head of a window that ends now. Does nothing until `run` is under way."""

    def __init__(self, keep_s: float, window: Callable[[int, int], ShadowWindow]) -> None:
        self._keep_s = keep_s
        self._window = window
        self._stdin: asyncio.StreamWriter | None = None
        self._pending = bytearray()
        self._sent_ns: dict[str, int] = {}  # of the UEs that are compared in this window
        self._is_given_up = False  # this window
        self._given_up_ns: set[int] = set()  # ends of windows whose outcomes are still to come
        self._outcomes: deque[WindowOutcome] = deque()

    async def run(self, clock: Callable[[], int]) -> None:
        """Start the process, close a window every minute, take the outcomes; ends when the process does."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "cosched.daemon.children.shadow",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        self._stdin = process.stdin
        closing = asyncio.create_task(self._close_windows(clock))
        try:
            assert process.stdout is not None  # noqa: S101  # it was asked for
            while line := await process.stdout.readline():
                self._take(msgspec.json.decode(line, type=WindowOutcome))
            log.warning("the shadow comparison has ended", code=await process.wait())
        finally:
            self._stdin = None
            closing.cancel()
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def _close_windows(self, clock: Callable[[], int]) -> None:
        begun_ns = clock()
        while self._stdin is not None:
            await asyncio.sleep(WINDOW_S)
            begun_ns = self._close_window(self._window(begun_ns, clock()))

    def _close_window(self, window: ShadowWindow) -> int:
        """Have it replayed, a given up one too: that empties the shadow. Return when it ended."""
        if self._is_given_up:
            self._given_up_ns.add(window.ended_ns)
        self._pending += frame(window)
        self._write()
        self._is_given_up = False
        self._sent_ns.clear()
        return window.ended_ns

    def _take(self, outcome: WindowOutcome) -> None:
        is_whole = outcome.ended_ns not in self._given_up_ns
        self._given_up_ns.discard(outcome.ended_ns)
        if outcome.error or not is_whole:
            log.warning("shadow window left out", why=outcome.error or BEHIND)
            return
        self._outcomes.append(outcome)
        while (outcome.ended_ns - self._outcomes[0].ended_ns) * NS >= self._keep_s:
            self._outcomes.popleft()

    def reported(self, reports: Sequence[UeReport], at_ns: int) -> None:
        """Send the reports of UEs whose next one is due."""
        if self._stdin is not None:
            for report in reports:
                self._ue(report, at_ns)

    def heard(self, message: Message, at_ns: int) -> None:
        """Send any other report; of a batch, of UEs whose next one is due."""
        if self._stdin is None:
            return
        if isinstance(message, UeReportBatch):
            for ue, cell, value in zip(message.ue, message.cell, message.ul_efficiency_bps_hz, strict=True):
                report = UeReport(at_ns=0, source="", seq=0, ue=ue, cell=cell, ul_efficiency_bps_hz=value)
                self._ue(report, at_ns)
        elif isinstance(message, CellReport):
            self._send(Item(at_ns=at_ns, cell=message))
        elif isinstance(message, NodeReport):
            self._send(Item(at_ns=at_ns, node=message))

    def offered(self, offer: TaskOffer) -> None:
        """Send an offer; its UE is compared from now on."""
        if self._stdin is None:  # no window would ever clear what is remembered
            return
        self._sent_ns.setdefault(offer.ue, offer.at_ns - EVERY_NS)
        self._send(Item(at_ns=offer.at_ns, offer=offer))

    def _ue(self, report: UeReport, at_ns: int) -> None:
        sent_ns = self._sent_ns.get(report.ue)
        if at_ns - sent_ns >= EVERY_NS if sent_ns is not None else len(self._sent_ns) < MOST_UES:
            self._sent_ns[report.ue] = at_ns
            self._send(Item(at_ns=at_ns, ue=report))

    def _send(self, item: Item) -> None:
        """Hand over with the next full write, or with the end of the window."""
        if self._stdin is None or self._is_given_up:
            return
        self._pending += frame(item)
        if len(self._pending) >= WRITTEN_BYTES:
            self._is_given_up = self._stdin.transport.get_write_buffer_size() >= MOST_QUEUED_BYTES
            self._write()

    def _write(self) -> None:
        if self._stdin is not None:
            self._stdin.write(bytes(self._pending))
        self._pending.clear()

    def view(self) -> ShadowView:
        """What the latest windows add up to."""
        return ShadowView(
            baseline="",
            window_s=sum(o.window_s for o in self._outcomes),
            offered=sum(o.offered for o in self._outcomes),
            live=_sum([o.live for o in self._outcomes]),
            shadow=_sum([o.shadow for o in self._outcomes]),
        )


def _sum(tallies: list[ShadowTally]) -> ShadowTally:
    return ShadowTally(
        admitted=sum(t.admitted for t in tallies),
        met=sum(t.met for t in tallies),
        value_met=sum(t.value_met for t in tallies),
    )
