"""Compile the inner loops once, so that no command, daemon or test waits for it: `python -m cosched.warmup`.

Machine code is kept beside the sources (or in NUMBA_CACHE_DIR); run again, this takes a second. Two processes, since
the price solver takes as long to compile as all the rest.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Final

from cosched.core.policy import JOINT, POLICIES
from cosched.core.settings import Settings


def main() -> None:
    """Replay a few seconds of the shipped sample with every policy, rehearse as the daemon does, solve a problem."""
    started = time.monotonic()
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for job in [pool.submit(job) for job in JOBS]:
            job.result()
    sys.stderr.write(f"compiled kernels are ready ({time.monotonic() - started:.0f} s)\n")


def _price_solver() -> None:
    _decide(JOINT)


def _on_a_grid_and_beyond() -> None:
    """What `cosched solve` runs beyond a replay."""
    import numpy as np

    from cosched.bench.instances import make
    from solvers import power
    from solvers.grid import solver as grid
    from solvers.objectives import second_stage

    problem = make(4, 0).problem
    second_stage.second_stage(problem, grid.solve(problem), second_stage.parse_goal("latency"))
    power.cheapest(problem, np.full(problem.slot.shape, 9.0), np.ones(problem.n_resources))


def _baselines() -> None:
    _decide([name for name in POLICIES if name not in JOINT])


JOBS: Final[tuple[Callable[[], None], ...]] = (_price_solver, _on_a_grid_and_beyond, _baselines)  # the longest first


def _decide(policies: Sequence[str]) -> None:
    from cosched.config import wiring as build
    from cosched.daemon.rehearsal import rehearse
    from cosched.replay.replayer import Replayer
    from cosched.replay.workbook import make_book
    from cosched.resources import sample_trace
    from telemetry.trace import read_trace

    messages = [m for m in read_trace(sample_trace()).messages if m.at_ns < 3_000_000_000]
    book = make_book(messages, "warm-up")
    for name in policies:
        Replayer(book, POLICIES[name], Settings(), verify=False).run()
    rehearse(build.plant(*build.site_text("balanced"), {}), Settings(), policies)


if __name__ == "__main__":
    main()
