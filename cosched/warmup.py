"""Compile the inner loops once, so that no replay and no daemon waits for it: `python -m cosched.warmup`.

Machine code is kept beside the sources (or in NUMBA_CACHE_DIR); run again, this takes a second.
"""

from __future__ import annotations

import sys
import time

from cosched.core.policy import POLICIES
from cosched.core.settings import Settings
from cosched.drivers.replay import Replayer
from cosched.resources import sample_trace


def main() -> None:
    """Replay a few seconds of the shipped sample with every policy, and rehearse as the daemon does."""
    from cosched import build
    from cosched.book import make_book
    from cosched.drivers.rehearsal import rehearse
    from telemetry.trace import read_trace

    started = time.monotonic()
    messages = [m for m in read_trace(sample_trace()).messages if m.at_ns < 3_000_000_000]
    book = make_book(messages, "warm-up")
    for policy in POLICIES.values():
        Replayer(book, policy, Settings(), verify=False).run()
    rehearse(build.plant(*build.site_text("balanced"), {}), Settings(), tuple(POLICIES))
    sys.stderr.write(f"compiled kernels are ready ({time.monotonic() - started:.0f} s)\n")


if __name__ == "__main__":
    main()
