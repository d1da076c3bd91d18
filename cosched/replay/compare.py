"""Several policies side by side on one trace."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from cosched.core.policy import Policy
from cosched.core.settings import Settings
from cosched.replay import hindsight as regret
from cosched.replay.outcome import policy_result
from cosched.replay.overlap import overlap
from cosched.replay.replayer import BrokenPlan, Replayer, Workbook
from cosched.report.model import PolicyResult, ReplayResult, TraceInfo

Tell = Callable[[str, float], None]


def compare(
    book: Workbook,
    policies: Sequence[Policy],
    settings: Settings,
    *,
    path: str = "",
    sha256: str = "",
    verify: bool = True,
    speed: float | None = None,
    tell: Tell | None = None,
) -> ReplayResult:
    """Replay `book` with each policy in turn.

    speed: multiple of real time to play at, None = as fast as it goes; tell(policy, fraction) is called now and then.
    A policy whose decision does not pass independent verification is in `failed` with the reason; the others go on.
    """
    bound = regret.bound(book)
    results: dict[str, PolicyResult] = {}
    failed: dict[str, str] = {}
    for policy in policies:
        try:
            run = Replayer(book, policy, settings, verify=verify).run(_pacer(book, policy.name, speed, tell))
        except BrokenPlan as error:
            failed[policy.name] = str(error)
            continue
        results[policy.name] = policy_result(book, run, bound)
    return ReplayResult(v=1, trace=trace_info(book, path, sha256), policies=results, failed=failed)


def _pacer(book: Workbook, name: str, speed: float | None, tell: Tell | None) -> Callable[[float], None]:
    """Return what is called with the fraction that is done: it tells it on, and waits where a speed is asked for."""
    started = time.monotonic()

    def reached(fraction: float) -> None:
        if tell is not None:
            tell(name, fraction)
        if speed is not None:
            time.sleep(max(0.0, started + fraction * book.duration_s / speed - time.monotonic()))

    return reached


def trace_info(book: Workbook, path: str, sha256: str) -> TraceInfo:
    """Facts of the trace, for the head of every table and report."""
    beside = overlap(book)
    return TraceInfo(
        path=path,
        sha256=sha256,
        duration_s=book.duration_s,
        ues=len(book.ue_rows),
        tasks=len(book.offers) + len(book.local),
        local_feasible=len(book.local),
        overlap_share=beside.share,
        most_at_once=beside.most,
    )
