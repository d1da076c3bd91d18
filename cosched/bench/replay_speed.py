"""Suite `replay-speed`: how much faster than real time a 10-UE trace replays, one policy, one core."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import msgspec
import numpy as np

from cosched.bench.closed_loop import FIRST_SEED, book_of, rate_at_load_1, read_recordings, recordings_folder
from cosched.bench.model import BenchRow, ModelClaim, Result, spread
from cosched.core.policy import policy as parse_policy
from cosched.core.settings import Settings
from cosched.replay.replayer import Replayer
from cosched.resources import config_file
from cosched.site import load_site

SUITE: Final = "replay-speed"
UES: Final = 10
DURATION_S: Final = 120.0
LOADS: Final = (0.3, 1.0)
POLICIES: Final = ("joint", "greedy-residual", "pf-util", "pf-admit")


def run(*, seeds: int, progress: Callable[[float], None]) -> Result:
    """Every policy on the same traces, in turn; every decision verified, as in `cosched replay`."""
    recordings = read_recordings(recordings_folder())
    site = load_site(config_file("sites", "node-bound.toml"))
    site = msgspec.structs.replace(site, ues=msgspec.structs.replace(site.ues, count=UES))
    rate = rate_at_load_1(recordings, site)
    speeds: dict[tuple[float, str], list[float]] = {}
    rounds = [(load, seed) for load in LOADS for seed in range(seeds)]
    for done, (load, seed) in enumerate(rounds, start=1):
        book = book_of(recordings, site, load * rate, DURATION_S, FIRST_SEED + seed)
        for name in POLICIES:
            started = time.process_time()
            run = Replayer(book, parse_policy(name), Settings()).run()
            speeds.setdefault((load, name), []).append(run.end_s / (time.process_time() - started))
        progress(done / len(rounds))
    rows = []
    for (load, name), values in speeds.items():
        p50, p99, mean = spread(values)
        rows.append(
            BenchRow(
                suite=SUITE, case=f"{UES} UEs, load={load:g}", subject=name, figure="times_real_time", p50=p50, p99=p99,
                n=len(values), value=mean,
            )
        )  # fmt: skip
    slowest = min(float(np.median(values)) for (_, name), values in speeds.items() if name == "joint")
    claim = ModelClaim(text="joint on 10 UEs, median times real time at the slower load", reached=slowest, asked=100.0)
    return Result(rows=rows, claims=[claim], sweeps=[])
