"""Suite `closed-loop`: tasks met over offered load on recorded channels and requests, every policy, several seeds.

Decoupled policies are tuned first, for each load on its own and on seeds of their own: the strongest opponents that
their one or two numbers allow. The joint policy and greedy have nothing tuned.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from cosched.book import make_book
from cosched.core.policy import policy as parse_policy
from cosched.core.settings import Settings
from cosched.drivers.replay import Replayer, Workbook
from cosched.fate import policy_result
from cosched.loads import SAMPLE_TASKS, capacity_per_s
from cosched.offers import Request, channel_reports, draw_offers
from cosched.report.model import SweepRow
from cosched.site import Site
from telemetry.messages import UeReport

LOADS: Final = (0.3, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0)
DURATION_S: Final = 120.0
TUNING_SEED: Final = 9_000  # tuning and the load's scale use seeds from here on, the figures use 0, 1, 2, ...
SCALE_RATE_PER_S: Final = 10.0  # of the sample that load 1 is computed from

# What a policy's numbers may be; the best for each load is taken.
TUNING: Final[dict[str, tuple[str, ...]]] = {
    "pf-admit": tuple(f"pf-admit:overbook={o}" for o in (1, 1.5, 2, 3, 4, 6)),
    "pf-util": tuple(f"pf-util:rho={r},overbook={o}" for r in (0.6, 0.75, 0.9, 1.05) for o in (1, 2, 4)),
    "equal-rate-admit": tuple(f"equal-rate-admit:overbook={o}" for o in (1, 1.5, 2, 3, 4, 6)),
    "compute-only": tuple(f"compute-only:overbook={o}" for o in (1, 2, 4)),
}
PLAIN: Final = ("joint", "greedy", "greedy-residual", "pf", "edge")


@dataclass(frozen=True)
class Recordings:
    """What is replayed: channels by UE, and requests."""

    channels: dict[str, tuple[UeReport, ...]]
    requests: tuple[Request, ...]


@dataclass(frozen=True)
class Job:
    """One site, load and seed, and the policies to run on it."""

    site: Site
    load: float
    rate_per_s: float
    seed: int
    duration_s: float
    policies: tuple[str, ...]


_RECORDINGS: Recordings | None = None  # of a worker process, handed over once


def book_of(recordings: Recordings, site: Site, rate_per_s: float, duration_s: float, seed: int) -> Workbook:
    """Make the trace of one seed: recorded channels mapped on the site's UEs, Poisson arrivals of recorded requests."""
    rng = np.random.default_rng(seed)
    reports = channel_reports(recordings.channels, site, duration_s, rng)
    ues = sorted({r.ue for r in reports})
    offers, truths = draw_offers(
        site, recordings.requests, rate_per_s=rate_per_s, duration_s=duration_s, rng=rng, ues=ues
    )
    return make_book([*reports, *offers, *truths], f"{site.name}, seed {seed}", site=site)


def rate_at_load_1(recordings: Recordings, site: Site) -> float:
    """Arrivals a second at load 1 (cosched/loads.py), from a sample of its own."""
    span_s = SAMPLE_TASKS / SCALE_RATE_PER_S
    return capacity_per_s(book_of(recordings, site, SCALE_RATE_PER_S, span_s, TUNING_SEED))


def run_job(job: Job) -> list[SweepRow]:
    """Replay one trace with each policy. Local-feasible tasks are not in `offered`."""
    from cosched import regret

    if _RECORDINGS is None:
        raise RuntimeError("run_job works in a process that _start has prepared")
    book = book_of(_RECORDINGS, job.site, job.rate_per_s, job.duration_s, job.seed)
    bound = regret.bound(book)
    rows = []
    for spec in job.policies:
        run = Replayer(book, parse_policy(spec), Settings(), verify=True).run()
        s = policy_result(book, run, bound).summary
        rows.append(
            SweepRow(
                site=job.site.name, load=job.load, seed=job.seed, policy=spec, offered=s.offered,
                admitted=s.admitted, met=s.met, value=s.value, hindsight_bound=bound,
            )
        )  # fmt: skip
    return rows


def _start(recordings: Recordings) -> None:
    global _RECORDINGS  # noqa: PLW0603 - the initialiser of a worker process has no other place to put it
    _RECORDINGS = recordings


def run_jobs(
    recordings: Recordings, jobs: Sequence[Job], tell: Callable[[int, int], None] | None = None
) -> list[SweepRow]:
    """Run jobs over the machine's cores; rows come in the order of the jobs, whatever the number of cores."""
    rows: list[SweepRow] = []
    workers = min(len(os.sched_getaffinity(0)), len(jobs)) or 1
    with ProcessPoolExecutor(workers, initializer=_start, initargs=(recordings,)) as pool:
        for done, some in enumerate(pool.map(run_job, jobs), start=1):
            rows += some
            if tell is not None:
                tell(done, len(jobs))
    return rows


def tuned(rows: Sequence[SweepRow]) -> dict[tuple[float, str], str]:
    """(load, policy) -> the spec that met most over the tuning seeds; ties go to the first in TUNING."""
    best: dict[tuple[float, str], str] = {}
    for load in sorted({r.load for r in rows}):
        for name, specs in TUNING.items():
            met = [sum(r.met for r in rows if r.load == load and r.policy == spec) for spec in specs]
            best[load, name] = specs[int(np.argmax(met))]
    return best


def sweep(
    recordings: Recordings,
    site: Site,
    *,
    loads: Sequence[float] = LOADS,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    tuning_seeds: Sequence[int] = (0, 1),
    duration_s: float = DURATION_S,
    tell: Callable[[int, int], None] | None = None,
) -> list[SweepRow]:
    """Tune the decoupled policies at every load, then run all. A row's policy keeps the spec that tuning chose."""
    rate = rate_at_load_1(recordings, site)
    variants = tuple(spec for specs in TUNING.values() for spec in specs)
    tuning = [
        Job(site, load, load * rate, TUNING_SEED + 1 + seed, duration_s, variants)
        for load in loads
        for seed in tuning_seeds
    ]
    chosen = tuned(run_jobs(recordings, tuning, tell))
    jobs = [
        Job(site, load, load * rate, seed, duration_s, (*PLAIN, *(chosen[load, name] for name in TUNING)))
        for load in loads
        for seed in seeds
    ]
    return run_jobs(recordings, jobs, tell)


def by_name(rows: Sequence[SweepRow]) -> Iterator[SweepRow]:
    """Rows with the policies' plain names, for curves."""
    for row in rows:
        yield SweepRow(**{f: getattr(row, f) for f in row.__struct_fields__} | {"policy": row.policy.partition(":")[0]})


def read_recordings(
    ran: Sequence[Path], requests: Path, ran_source: str = "tractor", source: str = "azure-llm"
) -> Recordings:
    """Read a RAN and a request recording. Raises BadInput or TelemetryError for files that are not what they should be."""
    from telemetry.importers.registry import ran_importer, request_importer

    channels: dict[str, list[UeReport]] = {}
    for report in ran_importer(ran_source)(list(ran)).reports:
        channels.setdefault(report.ue, []).append(report)
    rows = request_importer(source)([requests]).requests
    return Recordings({ue: tuple(reports) for ue, reports in sorted(channels.items())}, tuple(rows))


__all__ = ["LOADS", "Job", "Recordings", "by_name", "read_recordings", "replace", "run_jobs", "sweep", "tuned"]
