"""What the live policy gains over the decoupled baseline: both replayed, window by window, on what the daemon heard.

A process of its own, niced, is sent reports (one a second of each UE) and offers; at the end of a window it replays
both policies in the execution model of `cosched replay` and answers with one line. Each window begins with an empty
site, for both alike. `python -m cosched.daemon.children.shadow`
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from typing import BinaryIO, Final

import msgspec
import numpy as np

from cosched.api.messages import ShadowTally
from cosched.children.framing import read_framed
from cosched.config import wiring as build
from cosched.core.policy import policy
from cosched.daemon.shadow_feed import Item, ShadowFrame, ShadowWindow, WindowOutcome
from cosched.errors import CoschedError
from cosched.replay.outcome import outcome
from cosched.replay.replayer import Replayer, Run, Workbook, channel_truth, units_of
from cosched.workloads.base import LOCAL
from cosched.workloads.context import session_memory_bytes
from telemetry.messages import TaskOffer, UeReport

NICE: Final = 10
WORK_S: Final = 0.01  # of processor time at a time, then it rests: without an idle core all else is slower
REST_S: Final = 0.02
NS: Final = 1e-9


def main() -> None:
    """Answer every window with one line, until stdin ends."""
    with contextlib.suppress(PermissionError):  # systemd's filter may not let it
        os.nice(NICE)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, lambda *_: time.sleep(REST_S))
    signal.setitimer(signal.ITIMER_PROF, WORK_S, WORK_S)
    items: list[Item] = []
    while (received := _read(sys.stdin.buffer)) is not None:
        if received.item is not None:
            items.append(received.item)
        elif received.window is not None:
            answer = compare(items, received.window)
            sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
            sys.stdout.buffer.flush()
            items = []


def _read(stream: BinaryIO) -> ShadowFrame | None:
    data = read_framed(stream)
    return None if data is None else msgspec.msgpack.decode(data, type=ShadowFrame)


def compare(items: list[Item], window: ShadowWindow) -> WindowOutcome:
    """Replay both policies on one window."""
    seconds = (window.ended_ns - window.begun_ns) * NS
    try:
        book = _book(items, window)
        names = window.policy, window.baseline
        runs = [Replayer(book, policy(name), window.core, verify=False).run() for name in names]
    except CoschedError as error:
        empty = ShadowTally()
        return WindowOutcome(
            ended_ns=window.ended_ns, window_s=seconds, offered=0, live=empty, shadow=empty, error=str(error)
        )
    live, shadow = (_tally(book, run) for run in runs)
    return WindowOutcome(ended_ns=window.ended_ns, window_s=seconds, offered=len(book.offers), live=live, shadow=shadow)


def _tally(book: Workbook, run: Run) -> ShadowTally:
    met = [
        offer.weight
        for _, offer in book.offers
        if offer.task in run.admitted
        and offer.task not in run.dropped
        and offer.task in run.served
        and outcome(run.served[offer.task], offer) == "met"
    ]
    return ShadowTally(admitted=len(run.admitted), met=len(met), value_met=sum(met))


def _book(items: list[Item], window: ShadowWindow) -> Workbook:
    """Return the window as a trace that begins at 0."""
    plant = build.plant(window.site_toml, "shadow", window.ue_devices)
    cells = {c.id: i for i, c in enumerate(plant.site.cells)}
    asking = {item.offer.ue for item in items if item.offer is not None}  # nobody else decides anything
    heard = [
        (max(0, item.at_ns - window.begun_ns) * NS, item.ue or item.cell or item.node)
        for item in items
        if item.ue is None or item.ue.ue in asking
    ]
    reports = [(at_s, r) for at_s, r in heard if r is not None and getattr(r, "cell", plant.site.cells[0].id) in cells]
    truth, rows = channel_truth(reports)
    first_cell: dict[str, str] = {}
    for _, r in reports:
        if isinstance(r, UeReport):
            first_cell.setdefault(r.ue, r.cell)
    offers = [(o.at_ns * NS, o) for item in items if (o := _moved(item, window)) is not None and o.ue in rows]
    tables = {o.task: plant.points(o, cells[first_cell[o.ue]]) for _, o in offers}
    alone = {task for task, table in tables.items() if (table.node == LOCAL).any()}
    return Workbook(
        site=plant.site,
        reports=tuple(reports),
        offers=tuple((at_s, o) for at_s, o in offers if o.task not in alone),
        local=tuple(o for _, o in offers if o.task in alone),
        units={o.task: units_of(o, None) for _, o in offers},
        tables=tables,
        truth=truth,
        ue_rows=rows,
        node_bytes=session_memory_bytes(plant.profiles, placed=True),
        cell_of_ue=first_cell,
        tx_power_w={},
        node_power_w=np.zeros(len(plant.site.nodes)),
        duration_s=(window.ended_ns - window.begun_ns) * NS,
    )


def _moved(item: Item, window: ShadowWindow) -> TaskOffer | None:
    """Return the item's offer on the window's clock; what waited while the last one was closed comes at its begin."""
    if item.offer is None:
        return None
    return msgspec.structs.replace(item.offer, at_ns=max(0, item.at_ns - window.begun_ns))


if __name__ == "__main__":
    main()
