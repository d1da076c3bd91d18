"""From a scenario to a trace: finds the rate that a load stands for, and draws."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np

from cosched.errors import BadInput
from cosched.simulate import stream
from cosched.simulate.arrivals import requests_of
from cosched.simulate.scenario import LoadedScenario
from telemetry.messages import LlmSession, Message, TaskOffer, UeReportBatch

SAMPLE_S: Final = 60.0  # of the channel, for the work that a load stands for


class SimulationSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What is in a drawn trace. Efficiencies in bit/s/Hz, over all reports."""

    ues: int
    reports: int
    handovers: int
    efficiency_p5: float
    efficiency_p50: float
    efficiency_p95: float
    tasks: int
    sessions: int
    clips: int
    rate_per_s: float


def rate_per_s(loaded: LoadedScenario, seed: int) -> float:
    """Return the arrival rate that the scenario asks for: given, by load, or that of its recording. Raises BadInput."""
    arrivals = loaded.scenario.arrivals
    if arrivals.rate_per_s is not None:
        return arrivals.rate_per_s
    if arrivals.load is not None:
        return round(
            arrivals.load * capacity(loaded, seed), 3
        )  # a linear programme's last bits differ between machines
    if arrivals.kind == "recorded":
        requests = requests_of(arrivals, loaded.folder, np.random.default_rng(seed))
        return stream.recorded_rate_per_s(requests)
    raise BadInput(f"scenario {loaded.scenario.name}: arrivals: give rate_per_s or load")


def capacity(loaded: LoadedScenario, seed: int) -> float:
    """Arrivals a second at load 1, from a sample of the scenario's own mix and channel (cosched/replay/load.py)."""
    # Imported here: only a load needs the whole planner, and with it its compiled kernels.
    from cosched.replay.load import SAMPLE_TASKS, capacity_per_s
    from cosched.replay.workbook import make_book

    sample = stream.messages(loaded, seed=seed, duration_s=SAMPLE_S, rate_per_s=SAMPLE_TASKS / SAMPLE_S)
    return capacity_per_s(make_book(sample, loaded.scenario.name))


def draw_trace(loaded: LoadedScenario, *, seed: int, duration_s: float) -> list[Message]:
    """Draw the messages of a trace; equal arguments give equal messages. Raises BadInput."""
    return stream.messages(loaded, seed=seed, duration_s=duration_s, rate_per_s=rate_per_s(loaded, seed))


def summary(messages: Sequence[Message], duration_s: float) -> SimulationSummary:
    """Count what was drawn."""
    batches = [m for m in messages if isinstance(m, UeReportBatch)]
    offers = [m for m in messages if isinstance(m, TaskOffer)]
    sessions = sum(isinstance(o.work, LlmSession) for o in offers)
    efficiency = np.array([b.ul_efficiency_bps_hz for b in batches], dtype=np.float64)  # (T, U)
    p5, p50, p95 = (float(x) for x in np.percentile(efficiency, [5, 50, 95]))
    return SimulationSummary(
        ues=len(batches[0].ue),
        reports=sum(len(b.ue) for b in batches),
        handovers=sum(a != b for x, y in itertools.pairwise(batches) for a, b in zip(x.cell, y.cell, strict=True)),
        efficiency_p5=p5,
        efficiency_p50=p50,
        efficiency_p95=p95,
        tasks=len(offers),
        sessions=sessions,
        clips=len(offers) - sessions,
        rate_per_s=len(offers) / duration_s,
    )
