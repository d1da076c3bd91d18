"""The live part of `cosched demo`: a daemon of its own, the player, and what a terminal or a pipe is shown of it."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import typer

from cosched.api.async_client import AsyncClient
from cosched.api.messages import Lease, Status
from cosched.demo.child import child
from cosched.demo.player import Player
from cosched.replay.replayer import Workbook
from cosched.simulate.offers import assign_devices
from cosched.top import view
from telemetry.bus import Publisher
from telemetry.messages import Message, UeReport, UeReportBatch
from telemetry.trace import read_trace

PATIENCE_S: Final = 60.0  # for an answer: a daemon that compiles its kernels first says nothing meanwhile
SLOW_START_S: Final = 10.0  # after this long a user is told why
LINE_S: Final = 1.0  # between two lines on a pipe ...
SCREEN_S: Final = 0.25  # ... and between two pictures on a terminal
LATEST: Final = 8  # decisions on the screen


@dataclass(slots=True)
class PlayedLive:
    """What the live part left behind: the answer to each submit, the daemon's last status."""

    answers: list[Lease] = field(default_factory=list)
    latest: deque[Lease] = field(default_factory=lambda: deque(maxlen=LATEST))
    status: Status | None = None

    def told(self, lease: Lease) -> None:
        """Take an answer to a submit."""
        self.answers.append(lease)
        self.latest.append(lease)

    @property
    def admitted(self) -> int:
        """How many submits were answered with a place."""
        return sum(bool(lease.point) for lease in self.answers)


@dataclass(frozen=True, slots=True)
class LiveStage:
    """Where the live part takes place: the daemon's folder, its configuration, the trace's messages."""

    folder: Path
    config: Path
    messages: Sequence[Message]


def prepare(folder: Path, trace: Path, book: Workbook) -> LiveStage:
    """Write the configuration of a daemon for the trace's site, with the devices that replay gives to its UEs."""
    read = read_trace(trace)
    (folder / "site.toml").write_text(read.site_toml or "")
    share = assign_devices(book.site, sorted(_ues(read.messages)))
    devices = {ue: book.site.ues.devices[i].device for ue, i in share.items()}
    config = folder / "cosched.toml"
    config.write_text(
        "\n".join(
            [
                f"site = '{folder / 'site.toml'}'",
                "[ue_devices]",
                *(f"{ue} = '{device}'" for ue, device in devices.items()),
                "[telemetry]",
                "bind = ['ipc://{run}/telemetry.sock']",
                "[cluster]",
                "mode = 'off'",
                "[shadow]",
                "enabled = false  # its first comparison would come after a minute",
            ]
        )
    )
    return LiveStage(folder, config, read.messages)


def _ues(messages: Sequence[Message]) -> set[str]:
    return {m.ue for m in messages if isinstance(m, UeReport)}.union(
        *(m.ue for m in messages if isinstance(m, UeReportBatch))
    )


async def play_live(stage: LiveStage, book: Workbook, speed: float) -> PlayedLive:
    """Start the daemon, play the trace into it, show what it does, end it. Raises DaemonEnded, NoAnswer."""
    played = PlayedLive()
    async with child(stage.folder, stage.config) as daemon:
        await daemon.unless_it_ends(daemon.listening())
        publisher = Publisher(daemon.telemetry)
        try:
            async with AsyncClient(daemon.control, timeout_s=PATIENCE_S) as client:
                offers = [offer for _, offer in book.offers]
                player = Player(stage.messages, offers, book.units, speed, publisher, client, played.told)
                await daemon.unless_it_ends(_play(player, played))
        finally:
            publisher.close()
    return played


async def _play(player: Player, played: PlayedLive) -> None:
    loop = asyncio.get_running_loop()
    patience = loop.call_later(SLOW_START_S, typer.echo, SLOW_START)
    ready = await player.tune_in()
    patience.cancel()
    typer.echo(f"   The daemon is ready after {ready.uptime_s:.1f} s, policy {ready.policy}.\n{LEGEND}")
    begun_s = loop.time()
    playing = asyncio.ensure_future(player.play())
    with _screen() as (show, every_s):
        try:
            while not playing.done():
                await asyncio.wait([playing], timeout=every_s)
                show(loop.time() - begun_s, await player.daemon.status(), played)
            playing.result()
        finally:
            playing.cancel()


LEGEND: Final = """\
   A decision 'k=7/4bit/edge1: 2.0 PRBs, 30 %; 215/500, 47/50 ms': 7 of the model's layers on the device, activations
   in 4 bit over 2 PRBs of the cell, the rest on 30 % of edge1; first token predicted after 215 ms of at most 500, each
   further one after 47 of 50. 's=25%': a quarter of a video frame's work on the device."""
SLOW_START: Final = "   It compiles its kernels first: once, for a minute or more; 'make setup' does that beforehand."

Show = Callable[[float, Status, PlayedLive], None]


@contextlib.contextmanager
def _screen() -> Iterator[tuple[Show, float]]:
    """Yield what shows the state, and how often it wants to be called: a picture on a terminal, else lines."""
    if not sys.stdout.isatty():
        yield _print_line, LINE_S
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    def draw(at_s: float, found: Status, played: PlayedLive) -> None:
        played.status = found
        live.update(Text(picture(at_s, found, played), no_wrap=True, overflow="ellipsis"), refresh=True)

    with Live(console=Console(), auto_refresh=False) as live:
        yield draw, SCREEN_S


def _print_line(at_s: float, found: Status, played: PlayedLive) -> None:
    if played.status is None:
        typer.echo(head(found))
    played.status = found
    typer.echo(line(at_s, found, played))


def head(found: Status) -> str:
    """What stands above the lines."""
    names = " ".join(f"{name:>6}" for name, _ in _planned(found))
    return f"{'':15}{'planned, % of each':>{len(names)}}\n   time  tasks {names}  admitted  the latest decision"


def line(at_s: float, found: Status, played: PlayedLive) -> str:
    """The state in a line, with the latest decision; the mode only where it is not what it should be."""
    used = " ".join(f"{100 * planned:6.0f}" for _, planned in _planned(found))
    newest = decision(played.latest[-1]) if played.latest else ""
    mode = "" if found.mode == "STEADY" else f"{found.mode}: {'; '.join(found.alarms)}; "
    return f"  {at_s:3.0f} s  {found.tasks:5} {used}  {played.admitted:3}/{len(played.answers):<4}  {mode}{newest}"


def _planned(found: Status) -> list[tuple[str, float]]:
    """Cells and nodes with the planned part of each."""
    return [(r.id.removesuffix("/ul"), r.planned) for r in found.resources if r.kind != "memory"]


def picture(at_s: float, found: Status, played: PlayedLive) -> str:
    """The state as a dashboard shows it: `cosched top` has more."""
    answered = f"{at_s:.0f} s: {played.admitted} of {len(played.answers)} tasks admitted so far"
    beside = zip(view.cells(found), view.nodes(found), strict=False)
    return "\n".join(
        [
            "",
            *(view.mode(found), view.held(found), view.delays(found)),
            *view.alarms(found),
            "",
            *(f"{cell:44}{node}" for cell, node in beside),
            "",
            answered,
            *(f"  {decision(lease)}" for lease in played.latest),
            "",
        ]
    )


def decision(lease: Lease) -> str:
    """Who got what, or why not."""
    if not lease.point:
        return f"{lease.task} refused: {lease.reason.removeprefix('rejected_').replace('_', ' ')}"
    limits = zip(lease.predicted_s, lease.slack_s, strict=True)
    phases = ", ".join("never" if p is None or s is None else f"{1e3 * p:.0f}/{1e3 * (p + s):.0f}" for p, s in limits)
    return f"{lease.task} {lease.point}: {lease.weight_prb:.1f} PRBs, {100 * lease.reserved.node:.0f} %; {phases} ms"


def summary(played: PlayedLive) -> str:
    """What the daemon did, in words."""
    found = played.status
    refused = Counter(
        lease.reason.removeprefix("rejected_").replace("_", " ") for lease in played.answers if not lease.point
    )
    why = ", ".join(f"{n} {reason}" for reason, n in sorted(refused.items()))
    said = f"   {len(played.answers)} tasks asked, {played.admitted} admitted, {sum(refused.values())} refused ({why})."
    if found is None:
        return said
    lost = sum(found.ingest.lost.values())
    return (
        f"{said}\n   From a submit to its decision, stored and sent: {found.submit_ms.p50:.1f} ms (median), "
        f"{found.submit_ms.p99:.1f} ms (p99). {found.ingest.reports} radio reports, {lost} lost."
    )
