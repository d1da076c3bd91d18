"""A few decisions on a made-up day at the same site, before the first real one: compiled code is then loaded.

Loading takes a second or two, once per process; no user should wait for it. Nothing of a rehearsal stays.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from cosched.children.packing import pack, solve_packed
from cosched.children.pool import ask_of
from cosched.config.wiring import Plant
from cosched.core.commands import Command, Solve
from cosched.core.core import Core
from cosched.core.events import Event, Offered, Progress, Progressed, Solved, Tick
from cosched.core.settings import Settings
from telemetry.messages import LlmSession, TaskOffer, UeReport, VideoClip

WORTH_SAYING_S: Final = 2.0  # a start that takes longer says why ...
SAID_AGAIN_S: Final = 10.0  # ... again and again

log = structlog.get_logger()


def rehearse(plant: Plant, settings: Settings, policies: Sequence[str]) -> list[bytes]:
    """Decide for some tasks by each policy, here; return the problems (packed Asks) for workers to rehearse with."""
    asks: list[bytes] = []
    for name in dict.fromkeys(policies):
        core = plant.core(name, settings)
        for at_s, event in _day(plant):
            asks += _carry_out(core, event, at_s)
    return asks


def _carry_out(core: Core, event: Event, at_s: float) -> list[bytes]:
    asks = []
    todo: list[Command] = core.handle(event, at_s)
    while todo:
        command = todo.pop(0)
        if isinstance(command, Solve):
            asks.append(pack(ask_of(command)))
            answer = solve_packed(asks[-1])
            if answer.solution is not None:
                todo += core.handle(Solved(command.request, solution=answer.solution), at_s)
    return asks


def _day(plant: Plant) -> list[tuple[float, Event]]:
    """A good channel, a bad one, one task of each kind on each, and a period later the first token."""
    cell = plant.site.cells[0].id
    reports: list[tuple[float, Event]] = [
        (0.0, UeReport(at_ns=0, source="", seq=0, ue=f"r{i}", cell=cell, ul_efficiency_bps_hz=value))
        for i, value in enumerate((4.0, 0.5))
    ]
    session: LlmSession | VideoClip = LlmSession(
        model=plant.site.models[0].id, context_tokens=100, new_tokens=32, max_output_tokens=100, ttft_s=2.0, tpot_s=0.2
    )
    clip: LlmSession | VideoClip = VideoClip(frame_flop=60e9, frame_bits=5e5, fps=2.0, deadline_s=0.5, frames=20)
    offers = tuple(
        TaskOffer(at_ns=0, source="", seq=0, task=f"r{ue}-{kind}", ue=f"r{ue}", work=work)
        for ue in range(2)
        for kind, work in enumerate((session, clip))
    )
    progress = tuple(Progress(f"r{ue}-0", 1, 1, 0, 0.1, 0.1, 0.0, 0.0, 0.0) for ue in range(2))
    return [*reports, (0.0, Offered(offers)), (0.1, Tick()), (0.2, Progressed(progress)), (0.2, Tick())]


async def say_until(ready: asyncio.Event, who: Callable[[], str]) -> None:
    """Say again and again what a start waits for that takes long; `who`: is at it now."""
    loop = asyncio.get_running_loop()
    began_s, next_s = loop.time(), WORTH_SAYING_S
    while True:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ready.wait(), next_s)
        if ready.is_set():
            return
        why = f"{who()} load the solvers' compiled code, and make it where it is not there: minutes, once"
        log.info("starting", for_s=round(loop.time() - began_s), why=why)
        next_s = SAID_AGAIN_S
