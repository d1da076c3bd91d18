"""The file that names a local cluster's processes, so that what a crash leaves behind can be ended: those alone."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec
import psutil

GONE_S: Final = 2.0  # a killed process is gone within, or hangs in the kernel
STEP_S: Final = 0.01
CLOCK_TICK_S: Final = 0.02  # starts are told in ticks of 10 ms (proc(5)); a number used again starts much later


class Left(msgspec.Struct, frozen=True, kw_only=True):
    """Processes with the instant at which each began, and the folder that they work in."""

    v: int = 1
    processes: dict[int, float] = {}  # id -> seconds since the epoch
    folder: str = ""


def note(path: Path, folder: str) -> None:
    """Write down this process and all that descend from it."""
    found, this = {}, psutil.Process()
    for process in (this, *this.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            found[process.pid] = process.create_time()
    fresh = path.with_suffix(".new")
    fresh.write_bytes(msgspec.json.encode(Left(processes=found, folder=folder)))
    fresh.replace(path)


def clean(path: Path) -> int:
    """Kill what the file names and still runs, remove its folder and the file; return how many were killed."""
    try:
        left = msgspec.json.decode(path.read_bytes(), type=Left)
    except (FileNotFoundError, msgspec.DecodeError):
        return 0
    killed = _kill(_same(left))
    if left.folder:
        shutil.rmtree(left.folder, ignore_errors=True)
    path.unlink(missing_ok=True)
    return killed


def kill_descendants() -> int:
    """End all processes that descend from this one; return how many."""
    return _kill(psutil.Process().children(recursive=True))


def _kill(processes: Iterable[psutil.Process]) -> int:
    """End processes at once, and wait for those that are ours to wait for."""
    mine = list(processes)
    for process in mine:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    end_s = time.monotonic() + GONE_S
    while time.monotonic() < end_s and any(_runs(process) for process in mine):
        time.sleep(STEP_S)
    return len(mine)


def _runs(process: psutil.Process) -> bool:
    """Whether it still does: a zombie, whose parent may be gone too, does not."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _same(left: Left) -> list[psutil.Process]:
    found = []
    for pid, began_s in left.processes.items():
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if abs(process.create_time() - began_s) <= CLOCK_TICK_S:
                found.append(process)
    return found
