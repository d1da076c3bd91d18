"""Plays scripts, and shrinks those that fail to the few steps that it takes."""

from __future__ import annotations

import contextlib
import functools
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import structlog
from sim_script import Script, Step
from sim_world import World

from cosched.config import wiring as build
from cosched.daemon import board as leases
from cosched.daemon import capture, control, ingest
from cosched.errors import Broken
from telemetry import trace

MEMORY = Path("/dev/shm")  # noqa: S108  # a disk that takes no time, where there is one


@dataclass
class Played:
    """What came of a script; `error` is "" where everything held."""

    world: World
    error: str = ""
    trace: str = ""

    @property
    def kind(self) -> str:
        """What went wrong, without names and numbers."""
        return "".join(c for c in self.error if not c.isdigit())[:60]


@functools.cache
def _plant(text: str, where: str, devices: tuple[tuple[str, str], ...]) -> build.Plant:
    return PLANT(text, where, dict(devices))


_json_schema = functools.cache(trace.json_schema)
PLANT = build.plant
PROFILES = build.profiles_sha256()


async def _at_once(work: Callable[..., object], *args: object) -> object:
    return work(*args)


@contextlib.contextmanager
def virtual(world: World) -> Iterator[None]:
    """Clocks of the world's; what is pure and slow is done once; no log."""
    clock = SimpleNamespace(
        time=lambda: world.wall_ns * 1e-9, time_ns=lambda: world.wall_ns, monotonic_ns=lambda: world.now_ns,
        perf_counter=lambda: world.now_ns * 1e-9, thread_time=lambda: world.now_ns * 1e-9,
        strftime=time.strftime,
        gmtime=lambda: time.gmtime(min(world.wall_ns * 1e-9, 4e9)),
    )  # fmt: skip
    held = structlog.get_config()
    structlog.configure(
        logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""], cache_logger_on_first_use=False
    )
    with contextlib.ExitStack() as stack:
        for module in (capture, control, ingest, leases):
            stack.enter_context(patch.object(module, "time", clock))
        stack.enter_context(patch("asyncio.to_thread", _at_once))
        stack.enter_context(patch.object(build, "plant", lambda t, w, d: _plant(t, w, tuple(sorted(d.items())))))
        stack.enter_context(patch.object(build, "profiles_sha256", lambda: PROFILES))
        stack.enter_context(patch("cosched.daemon.engine.profiles_sha256", lambda: PROFILES))
        stack.enter_context(patch("telemetry.trace.json_schema", _json_schema))
        stack.enter_context(patch("cosched.daemon.reload.configure", lambda _: None))
        try:
            yield
        finally:
            structlog.configure(**held)


def play(script: Script) -> Played:
    """Play a script in a folder of its own."""
    base = str(MEMORY) if MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="cosched-sim-", dir=base) as folder:
        world = World(script, Path(folder))
        with virtual(world):
            try:
                world.run()
            except (Exception, Broken) as error:  # noqa: BLE001  # whatever it is, it is a finding
                world.disk.lift()
                return Played(world, f"{type(error).__name__}: {error}"[:500], traceback.format_exc())
    return Played(world)


def shrink(script: Script, kind: str, patience_s: float = 60.0) -> Script:
    """Leave steps out as long as it fails in the same way (delta debugging: Zeller & Hildebrandt 2002)."""
    end = time.monotonic() + patience_s
    steps, parts = list(script.steps), 2

    def fails(some: list[Step]) -> bool:
        return play(_with(script, some)).kind == kind

    while len(steps) > 1 and time.monotonic() < end:
        size = max(1, len(steps) // parts)
        for begin in range(0, len(steps), size):
            rest = steps[:begin] + steps[begin + size :]
            if time.monotonic() > end:
                break
            if fails(rest):
                steps, parts = rest, max(2, parts - 1)
                break
        else:
            if size == 1:
                break
            parts = min(len(steps), 2 * parts)
    return _with(script, steps)


def _with(script: Script, steps: list[Step]) -> Script:
    return Script(seed=script.seed, site=script.site, policy=script.policy, steps=steps)
