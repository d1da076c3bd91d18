"""The slow loop's arithmetic in a process of its own: a state of the core in, what nodes are to hold out.

CP-SAT takes its time, and so do the operating points of a minute's arrivals. Niced, started by
cosched/daemon/placing.py as `python -m cosched.daemon.children.placement`; questions travel behind their length, an
answer is a line of JSON.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from functools import lru_cache
from typing import BinaryIO, Final

import msgspec

from cosched.children.framing import read_framed
from cosched.config import wiring as build
from cosched.config.wiring import Plant
from cosched.core.placement import choose, stock_of
from cosched.core.settings import Settings
from cosched.core.snapshot import Snapshot
from cosched.errors import CoschedError
from solvers.errors import SolverError
from solvers.placement import Layers

NICE: Final = 10

Held = tuple[str, str, int, int]
"""Node, model, first layer, and the layer that it ends before."""


class PlacementQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """What nodes are to hold from here on. `current`: what they are to hold at present."""

    site_toml: str
    ue_devices: dict[str, str]
    policy: str
    core: Settings
    snapshot: Snapshot
    current: tuple[Held, ...]
    load_bytes_per_s: dict[str, float]


class PlacementAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What to hold, with what it is worth; `why`: there is no answer, for this reason."""

    layers: tuple[Held, ...] = ()
    value: float = 0.0
    bound: float = 0.0
    moved_bytes: float = 0.0
    why: str = ""


def main() -> None:
    """Answer questions until stdin ends."""
    with contextlib.suppress(PermissionError):  # systemd's filter may not let it
        os.nice(NICE)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while (question := _read(sys.stdin.buffer)) is not None:
        sys.stdout.buffer.write(msgspec.json.encode(answer(question)) + b"\n")
        sys.stdout.buffer.flush()


def _read(stream: BinaryIO) -> PlacementQuestion | None:
    data = read_framed(stream)
    return None if data is None else msgspec.msgpack.decode(data, type=PlacementQuestion)


def answer(question: PlacementQuestion) -> PlacementAnswer:
    """Choose what nodes are to hold. Equal questions have equal answers, on any machine."""
    try:
        plant = _plant(question.site_toml, tuple(sorted(question.ue_devices.items())))
        stock = stock_of(plant.profiles, question.snapshot.short_bytes)
        core = plant.core(question.policy, question.core)
        core.restore(question.snapshot)
        current = [Layers(*one) for one in question.current]
        found = choose(core.state, core.bids, question.core, stock, current, question.load_bytes_per_s)
    except (CoschedError, SolverError) as error:
        return PlacementAnswer(why=str(error))
    if found is None:
        return PlacementAnswer(why=NO_DEMAND)
    layers = tuple((x.node, x.model, x.first, x.end) for x in found.layers)
    return PlacementAnswer(layers=layers, value=found.value, bound=found.bound, moved_bytes=found.moved_bytes)


NO_DEMAND: Final = "nobody has asked for anything of late"


@lru_cache(maxsize=1)
def _plant(text: str, ue_devices: tuple[tuple[str, str], ...]) -> Plant:
    return build.plant(text, "placement", dict(ue_devices))


if __name__ == "__main__":
    main()
