"""Compile the inner loops once, so that no replay and no daemon waits for it: `python -m cosched.warmup`.

Machine code is kept beside the sources (or in NUMBA_CACHE_DIR); run again, this takes a second. Two processes, since
the price solver takes as long to compile as all the rest.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from cosched.core.policy import JOINT, POLICIES
from cosched.core.settings import Settings


def main() -> None:
    """Replay a few seconds of the shipped sample with every policy, solve a problem, rehearse as the daemon does."""
    started = time.monotonic()
    others = tuple(name for name in POLICIES if name not in JOINT)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        list(pool.map(_compile_for, [JOINT, others]))
    sys.stderr.write(f"compiled kernels are ready ({time.monotonic() - started:.0f} s)\n")


def _compile_for(policies: tuple[str, ...]) -> None:
    from cosched import build
    from cosched.book import make_book
    from cosched.drivers.rehearsal import rehearse
    from cosched.drivers.replay import Replayer
    from cosched.resources import sample_trace
    from telemetry.trace import read_trace

    messages = [m for m in read_trace(sample_trace()).messages if m.at_ns < 3_000_000_000]
    book = make_book(messages, "warm-up")
    for name in policies:
        Replayer(book, POLICIES[name], Settings(), verify=False).run()
    rehearse(build.plant(*build.site_text("balanced"), {}), Settings(), policies)
    if policies == JOINT:
        _solve_once()


def _solve_once() -> None:
    """What `cosched solve` runs beyond a replay."""
    from cosched.bench.instances import make
    from solvers import price, second_stage, share

    problem = make(4, 0).problem
    solution = second_stage.second_stage(problem, price.solve(problem), second_stage.parse_goal("latency"))
    share.round_prbs(problem, solution, 0, 100)


if __name__ == "__main__":
    main()
