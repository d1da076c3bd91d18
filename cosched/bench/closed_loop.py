"""Suite `closed-loop`: tasks met over offered load on recorded channels and requests, every policy, two seed sets.

Rivals with a number are tuned first, for each load on its own and on seeds of their own: the strongest opponents that
their one or two numbers allow. The joint policy and greedy have none.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import msgspec
import numpy as np

from cosched.bench.model import BenchRow, ModelClaim, Result, spread
from cosched.core.policy import policy as parse_policy
from cosched.core.settings import Settings
from cosched.errors import BadInput
from cosched.replay.clairvoyant import Attempt, best_plan
from cosched.replay.foresight import NOTHING
from cosched.replay.load import SAMPLE_TASKS, capacity_per_s
from cosched.replay.outcome import policy_result
from cosched.replay.replayer import Replayer, Workbook
from cosched.replay.workbook import make_book
from cosched.report.model import Sweep, SweepRow
from cosched.resources import config_file
from cosched.simulate.offers import RecordedRequest, channel_reports, draw_offers
from cosched.site import Site, load_site
from telemetry.messages import UeReport

SUITE: Final = "closed-loop"
SITES: Final = ("node-bound", "balanced", "cell-bound")
LOADS: Final = (0.6, 1.0, 1.5)
DURATION_S: Final = 60.0
FIRST_SEED: Final = 100  # the planner's own settings were chosen on seeds below
SECOND_SET: Final = 500  # a second set of seeds, to see what the first is worth
TUNING_SEED: Final = 9_000  # tuning and the load's scale use seeds from here on
SCALE_RATE_PER_S: Final = 10.0  # of the sample that load 1 is computed from

# What a policy's numbers may be; the best for each load is taken.
TUNING: Final[dict[str, tuple[str, ...]]] = {
    "engine": ("engine:step_s=0.05,sequences=12", "engine:step_s=0.1"),
    "predicted": tuple(f"predicted:step_s={t},margin={m}" for t in (0.05, 0.1) for m in (0.85, 1)),
    "deadline-split": tuple(f"deadline-split:radio={r}" for r in (0.3, 0.6)),
    "pf-admit": tuple(f"pf-admit:overbook={o}" for o in (1.5, 3)),
    "compute-only": tuple(f"compute-only:overbook={o}" for o in (1, 2)),
}
PLAIN: Final = ("joint", "greedy", "greedy-residual")
CLAIRVOYANT: Final = "clairvoyant"  # no policy: the best plan that a search finds, all known; when asked for


@dataclass(frozen=True)
class Recordings:
    """What is replayed: channels by UE, and requests."""

    channels: dict[str, tuple[UeReport, ...]]
    requests: tuple[RecordedRequest, ...]


@dataclass(frozen=True)
class LoopJob:
    """One site, load and seed, and the policies to run on it."""

    site: Site
    load: float
    rate_per_s: float
    seed: int
    duration_s: float
    policies: tuple[str, ...]


Row = TypeVar("Row")

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
    """Arrivals a second at load 1 (cosched/replay/load.py), from a sample of its own."""
    span_s = SAMPLE_TASKS / SCALE_RATE_PER_S
    return capacity_per_s(book_of(recordings, site, SCALE_RATE_PER_S, span_s, TUNING_SEED))


def run_job(job: LoopJob) -> list[SweepRow]:
    """Replay one trace with each policy. Local-feasible tasks are not in `offered`."""
    from cosched.replay import hindsight as regret

    book = book_of(the_recordings(), job.site, job.rate_per_s, job.duration_s, job.seed)
    bound = regret.bound(book)
    rows, plans = [], list[Attempt]()
    for spec in job.policies:
        if spec == CLAIRVOYANT:
            plans.append(best_plan(book, Settings(), known=plans, seed=job.seed))
        else:
            run = Replayer(book, parse_policy(spec), Settings(), verify=True).run()
            plans.append(Attempt(run.policy, Settings(), NOTHING, policy_result(book, run, bound)))
        s = plans[-1].result.summary
        rows.append(
            SweepRow(
                site=job.site.name, load=job.load, seed=job.seed, policy=spec, offered=s.offered,
                admitted=s.admitted, met=s.met, value=s.value, hindsight_bound=bound, promised=s.promised,
                broken=s.broken, tokens_met=s.tokens_met,
            )
        )  # fmt: skip
    return rows


def the_recordings() -> Recordings:
    """What a worker process was handed."""
    if _RECORDINGS is None:
        raise RuntimeError("jobs run in a process that _start has prepared")
    return _RECORDINGS


def _start(recordings: Recordings) -> None:
    global _RECORDINGS  # noqa: PLW0603 - the initialiser of a worker process has no other place to put it
    _RECORDINGS = recordings


def run_jobs(
    recordings: Recordings, jobs: Sequence[LoopJob], tell: Callable[[float], None] | None = None
) -> list[SweepRow]:
    """Run jobs over the machine's cores; rows come in the order of the jobs, whatever the number of cores."""
    return [row for some in run_in_workers(run_job, recordings, jobs, tell) for row in some]


def run_in_workers(
    function: Callable[[LoopJob], Row],
    recordings: Recordings,
    jobs: Sequence[LoopJob],
    tell: Callable[[float], None] | None = None,
) -> list[Row]:
    """Call a function that reads `the_recordings` for each job, as run_jobs does."""
    rows: list[Row] = []
    workers = min(len(os.sched_getaffinity(0)), len(jobs)) or 1
    with ProcessPoolExecutor(workers, initializer=_start, initargs=(recordings,)) as pool:
        for done, row in enumerate(pool.map(function, jobs), start=1):
            rows.append(row)
            if tell is not None:
                tell(done / len(jobs))
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
    seeds: Sequence[int] = range(FIRST_SEED, FIRST_SEED + 5),
    tuning_seeds: Sequence[int] = (0,),
    duration_s: float = DURATION_S,
    tell: Callable[[float], None] | None = None,
    clairvoyant: bool = False,
) -> list[SweepRow]:
    """Tune the decoupled policies at every load, then run all. A row's policy keeps the spec that tuning chose.

    clairvoyant: beside them the best plan found, which takes some 20 replays a trace.
    """
    last = (CLAIRVOYANT,) if clairvoyant else ()
    rate = rate_at_load_1(recordings, site)
    variants = tuple(spec for specs in TUNING.values() for spec in specs)
    tuning = [
        LoopJob(site, load, load * rate, TUNING_SEED + 1 + seed, duration_s, variants)
        for load in loads
        for seed in tuning_seeds
    ]
    half = tell or (lambda _part: None)
    chosen = tuned(run_jobs(recordings, tuning, lambda part: half(part / 2)))
    jobs = [
        LoopJob(site, load, load * rate, seed, duration_s, (*PLAIN, *(chosen[load, name] for name in TUNING), *last))
        for load in loads
        for seed in seeds
    ]
    return run_jobs(recordings, jobs, lambda part: half((1 + part) / 2))


def by_name(rows: Sequence[SweepRow]) -> list[SweepRow]:
    """Rows with the policies' plain names, for curves."""
    return [msgspec.structs.replace(row, policy=row.policy.partition(":")[0]) for row in rows]


def read_recordings(folder: Path) -> Recordings:
    """Read the TRACTOR channels and the Azure conversation requests below `folder`.

    Raises BadInput that says what belongs where, TelemetryError for files that are not what they should be.
    """
    from telemetry.importers.registry import ran_importer, request_importer

    ran = folder / "ran-tractor" / "multi10ue_trial1"
    requests = sorted((folder / "llm-azure2023").glob("AzureLLMInferenceTrace_conv*"))
    if not ran.is_dir() or not requests:
        raise BadInput(
            f"{folder}: this suite replays recordings: TRACTOR's multi10ue_trial1 as ran-tractor/multi10ue_trial1/ and "
            "the Azure 2023 conversation trace in llm-azure2023/; COSCHED_RECORDINGS names another folder"
        )
    channels: dict[str, list[UeReport]] = {}
    for report in ran_importer("tractor")([ran]).reports:
        channels.setdefault(report.ue, []).append(report)
    rows = request_importer("azure-llm")(requests[:1]).requests
    return Recordings({ue: tuple(reports) for ue, reports in sorted(channels.items())}, tuple(rows))


def recordings_folder() -> Path:
    """COSCHED_RECORDINGS, or ../shared/data beside the working directory."""
    return Path(os.environ.get("COSCHED_RECORDINGS", "../shared/data"))


def run(*, seeds: int, progress: Callable[[float], None], clairvoyant: bool = False) -> Result:
    """All sites and loads, two sets of so many seeds. Claims: no loss to anybody, few broken promises."""
    recordings = read_recordings(recordings_folder())
    rows: list[SweepRow] = []
    for i, name in enumerate(SITES):
        site = load_site(config_file("sites", f"{name}.toml"))
        rows += sweep(
            recordings, site, seeds=both_sets(seeds), clairvoyant=clairvoyant,
            tell=lambda fraction, i=i: progress((i + fraction) / len(SITES)),  # type: ignore[misc]  # default argument
        )  # fmt: skip
    command = f"cosched bench {SUITE} --seeds {seeds}" + " --clairvoyant" * clairvoyant
    return Result(
        rows=[row for name in SITES for row in _bench_rows(name, rows)],
        claims=[claim for name in SITES for claim in claims(name, [r for r in by_name(rows) if r.site == name])],
        sweeps=[Sweep(v=1, name=SUITE, command=command, rows=by_name(rows))],
    )


def both_sets(seeds: int) -> tuple[int, ...]:
    """So many seeds of each of two sets."""
    return (*range(FIRST_SEED, FIRST_SEED + seeds), *range(SECOND_SET, SECOND_SET + seeds))


def claims(site: str, rows: Sequence[SweepRow]) -> list[ModelClaim]:
    """What the README states of one site's rows (plain policy names)."""
    rivals = [p for p in dict.fromkeys(r.policy for r in rows) if p not in ("joint", CLAIRVOYANT)]
    loads = sorted({r.load for r in rows})
    over = [met(rows, load, "joint") / max(met(rows, load, p) for p in rivals) for load in loads]
    behind = [
        met(rows, load, "joint") - max(met(rows, load, p) for p in rivals) + noise(rows, load, "joint", rivals)
        for load in loads
    ]
    kept = [1.0 - broken(rows, load, "joint") for load in loads]
    return [
        ModelClaim(text=f"{site}: joint over the best rival, mean over loads", reached=float(np.mean(over)), asked=1.0),
        ModelClaim(
            text=f"{site}: joint less the best rival plus the noise, least over loads", reached=min(behind), asked=0.0
        ),
        ModelClaim(text=f"{site}: promises that joint keeps, least over loads", reached=min(kept), asked=0.95),
    ]


def broken(rows: Sequence[SweepRow], load: float, policy: str) -> float:
    """Part of what was promised that was not met, all seeds together; 0 where nothing is promised."""
    some = [r for r in rows if r.load == load and r.policy == policy]
    return sum(r.broken for r in some) / max(1, sum(r.promised for r in some))


def met(rows: Sequence[SweepRow], load: float, policy: str) -> float:
    """Mean over seeds of the fraction of tasks met."""
    return float(np.mean([r.met / r.offered for r in rows if r.load == load and r.policy == policy]))


def noise(rows: Sequence[SweepRow], load: float, policy: str, others: Sequence[str]) -> float:
    """Two standard errors of the mean over seeds of the difference to the better of `others`, seed by seed paired."""
    best = max(others, key=lambda p: met(rows, load, p))
    of = {
        name: {r.seed: r.met / r.offered for r in rows if r.load == load and r.policy == name}
        for name in (policy, best)
    }
    difference = np.array([of[policy][seed] - of[best][seed] for seed in sorted(of[policy])])
    return float(2 * difference.std(ddof=1) / np.sqrt(len(difference))) if len(difference) > 1 else np.inf


def _bench_rows(site: str, rows: Sequence[SweepRow]) -> list[BenchRow]:
    """Per load and policy (with the spec that tuning chose): met, missed of the admitted, broken of the promised."""
    out = []
    for load in LOADS:
        some = [r for r in rows if r.site == site and r.load == load]
        for policy in dict.fromkeys(r.policy for r in some):
            mine = [r for r in some if r.policy == policy]
            figures = {
                "met_ratio": [r.met / r.offered for r in mine],
                "met_ratio_set1": [r.met / r.offered for r in mine if r.seed < SECOND_SET],
                "met_ratio_set2": [r.met / r.offered for r in mine if r.seed >= SECOND_SET],
                "missed_of_admitted_percent": [100 * (1 - r.met / max(r.admitted, 1)) for r in mine],
                "broken_of_promised_percent": [100 * r.broken / max(r.promised, 1) for r in mine],
            }
            bound = float(np.mean([r.hindsight_bound / r.offered for r in mine]))
            for figure, reached in figures.items():
                p50, p99, mean = spread(reached)
                out.append(
                    BenchRow(
                        suite=SUITE, case=f"{site} load={load:g}", subject=policy, figure=figure, p50=p50, p99=p99,
                        n=len(reached), value=mean, bound=bound if figure == "met_ratio" else None,
                    )
                )  # fmt: skip
    return out
