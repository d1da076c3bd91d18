"""Suite `closed-loop`: tasks met over offered load on recorded channels and requests, every policy, two seed sets.

Rivals with a number are tuned first, for each load on its own and on seeds of their own: the strongest opponents that
their one or two numbers allow. The joint policy and greedy have none. Sites, loads and mix can be chosen; one sweep
gives both the tables over load and, at their head, the capacity (capacity.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import msgspec
import numpy as np

from cosched.bench.capacity import capacities
from cosched.bench.loop_figures import CLAIRVOYANT, SECOND_SET, bench_rows, claims
from cosched.bench.model import Result, Scope
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
TUNING_SEED: Final = 9_000  # tuning and the load's scale use seeds from here on
SCALE_RATE_PER_S: Final = 10.0  # of the sample that load 1 is computed from

# What a policy's numbers may be; the best for each load is taken.
TUNING: Final[dict[str, tuple[str, ...]]] = {
    "engine": ("engine:step_s=0.05,sequences=12", "engine:step_s=0.1"),
    "predicted": tuple(
        f"predicted:step_s={t},margin={m},queue={q}" for t, m in ((0.05, 1), (0.1, 0.85), (0.1, 1)) for q in (0, 1)
    ),
    "deadline-split": tuple(f"deadline-split:radio={r}" for r in (0.3, 0.6)),
    "pf-admit": tuple(f"pf-admit:overbook={o}" for o in (1.5, 3)),
    "compute-only": tuple(f"compute-only:overbook={o}" for o in (1, 2)),
}
# ... where there are several nodes: some of them for tight deadlines per token
POOLS: Final[dict[str, tuple[str, ...]]] = {
    "predicted-pools": tuple(
        f"predicted:step_s=0.05,margin=1,queue=1,pools={n},pool_s={s}" for n in (1, 2) for s in (0.06, 0.11)
    )
}
# ... where weights differ: from which use on light tasks are refused
FLOORS: Final[dict[str, tuple[str, ...]]] = {"weight-floor": tuple(f"weight-floor:use={u}" for u in (0.4, 0.6, 0.8))}
PLAIN: Final = ("joint", "greedy", "greedy-residual")
DRAWN: Final = "drawn"
PRIVATE: Final = "private"  # all sessions keep their tokens on the device, weights 1 and 5: what is scarce is the cell
MIX_SITES: Final = {DRAWN: SITES, PRIVATE: ("cell-bound",)}
PRIVATE_WEIGHTS: Final = (1.0, 5.0)
WHOLE: Final = Scope()


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
    alone = int((regret.unavoidable(book)[2] > 0).sum()) if book.offers else 0
    weight = sum(offer.weight for _, offer in book.offers)
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
                broken=s.broken, tokens_met=s.tokens_met, offered_value=weight, feasible_alone=alone,
                duration_s=job.duration_s,
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


def tuning_for(site: Site) -> dict[str, tuple[str, ...]]:
    """Rivals with numbers, and what these may be at that site."""
    pools = POOLS if len(site.nodes) > 1 else {}
    return TUNING | pools | (FLOORS if len(set(site.mix.weights)) > 1 else {})


def tuned(rows: Sequence[SweepRow], tuning: Mapping[str, Sequence[str]] = TUNING) -> dict[tuple[float, str], str]:
    """(load, policy) -> the spec that met most weight over the tuning seeds; ties go to the first in `tuning`."""
    best: dict[tuple[float, str], str] = {}
    for load in sorted({r.load for r in rows}):
        for name, specs in tuning.items():
            value = [sum(r.value for r in rows if r.load == load and r.policy == spec) for spec in specs]
            best[load, name] = specs[int(np.argmax(value))]
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
    rate, tuning_specs = rate_at_load_1(recordings, site), tuning_for(site)
    variants = tuple(spec for specs in tuning_specs.values() for spec in specs)
    tuning = [
        LoopJob(site, load, load * rate, TUNING_SEED + 1 + seed, duration_s, variants)
        for load in loads
        for seed in tuning_seeds
    ]
    half = tell or (lambda _part: None)
    chosen = tuned(run_jobs(recordings, tuning, lambda part: half(part / 2)), tuning_specs)
    jobs = [
        LoopJob(
            site, load, load * rate, seed, duration_s, (*PLAIN, *(chosen[load, name] for name in tuning_specs), *last)
        )
        for load in loads
        for seed in seeds
    ]
    return run_jobs(recordings, jobs, lambda part: half((1 + part) / 2))


def by_name(rows: Sequence[SweepRow]) -> list[SweepRow]:
    """Rows with the policies' plain names, for curves; one that is cut into pools has a name of its own."""
    return [msgspec.structs.replace(row, policy=_plain(row.policy)) for row in rows]


def _plain(spec: str) -> str:
    return spec.partition(":")[0] + ("-pools" if "pools=" in spec else "")


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


def run(*, seeds: int, progress: Callable[[float], None], scope: Scope = WHOLE) -> Result:
    """All sites and loads, two sets of so many seeds. Claims: no loss to anybody, few broken promises.

    Raises BadInput for a mix or site that there is not, or a load that is none.
    """
    mix, loads = scope.mix or DRAWN, tuple(sorted(scope.loads or LOADS))
    if mix not in MIX_SITES:
        raise BadInput(f"--mix {mix}: there are: {', '.join(MIX_SITES)}")
    if not all(0 < load < np.inf for load in loads):
        raise BadInput("--load: give positive numbers, such as 0.6")
    sites = [site_of_mix(name, mix) for name in scope.sites or MIX_SITES[mix]]
    recordings = read_recordings(recordings_folder())
    rows: list[SweepRow] = []
    for i, site in enumerate(sites):
        rows += sweep(
            recordings, site, loads=loads, seeds=both_sets(seeds), clairvoyant=scope.clairvoyant,
            tell=lambda fraction, i=i: progress((i + fraction) / len(sites)),  # type: ignore[misc]  # default argument
        )  # fmt: skip
    plain, names = by_name(rows), [site.name for site in sites]
    return Result(
        rows=[row for name in names for row in bench_rows(SUITE, name, rows)],
        claims=[claim for name in names for claim in claims(name, [r for r in plain if r.site == name])],
        sweeps=[Sweep(v=1, name=SUITE, command=command(SUITE, seeds, scope), rows=plain)],
        capacities=capacities(plain),
    )


def site_of_mix(name: str, mix: str) -> Site:
    """A site that ships, with the tasks of a mix. Raises BadInput where it does not ship."""
    site = load_site(config_file("sites", f"{name}.toml"))
    if mix == DRAWN:
        return site
    private = msgspec.structs.replace(site.mix, private_share=1.0, weights=PRIVATE_WEIGHTS)
    return msgspec.structs.replace(site, name=f"{site.name}, {mix}", mix=private)


def command(suite: str, seeds: int, scope: Scope) -> str:
    """What was called."""
    sites = [f"--site {name}" for name in scope.sites]
    loads = [f"--load {load:g}" for load in scope.loads]
    rest = [f"--mix {scope.mix}"] * bool(scope.mix) + [f"--batch {scope.batch:g}"] * bool(scope.batch)
    rest += ["--clairvoyant"] * scope.clairvoyant
    return " ".join(["cosched bench", suite, f"--seeds {seeds}", *sites, *loads, *rest])


def both_sets(seeds: int) -> tuple[int, ...]:
    """So many seeds of each of two sets."""
    return (*range(FIRST_SEED, FIRST_SEED + seeds), *range(SECOND_SET, SECOND_SET + seeds))
