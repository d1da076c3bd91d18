"""Suite `regret`: what lies between joint and the hindsight bound, and what of it is for which knowledge.

Beside what joint meets: the best of the rivals with their default options, the best plan that a search finds with all
known and carries out (cosched/replay/clairvoyant.py), the hindsight bound and the loose one of before. Then joint with
the channel, the lengths, the arrivals told to it, each alone and all at once; what then remains to the best plan found
is for deciding at arrivals, one by one, as joint does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from cosched.bench.closed_loop import (
    DURATION_S,
    WHOLE,
    LoopJob,
    book_of,
    both_sets,
    rate_at_load_1,
    read_recordings,
    recordings_folder,
    run_in_workers,
    the_recordings,
)
from cosched.bench.model import BenchRow, ModelClaim, Result, Scope, spread
from cosched.core.policy import policy
from cosched.core.settings import Settings
from cosched.replay import hindsight
from cosched.replay.clairvoyant import KNOWN, attempt, best_plan
from cosched.replay.foresight import NOTHING, Foresight
from cosched.resources import config_file
from cosched.site import load_site

SUITE: Final = "regret"
SITES: Final = ("node-bound", "balanced")
LOADS: Final = (1.0, 1.5)
RIVALS: Final = ("predicted:step_s=0.05", "greedy", "compute-only:overbook=2")
TOLD: Final = {
    "channel known": Foresight(channel=True),
    "lengths known": Foresight(lengths=True),
    "arrivals known": Foresight(arrivals=True),
    "all known": KNOWN,
}
CLAIRVOYANT: Final = "clairvoyant (best plan found)"
BOUND: Final = "hindsight bound"
LOOSE: Final = "hindsight bound of before"
BEST_RIVAL: Final = "best rival"


@dataclass(frozen=True)
class RegretRow:
    """One trace: part of the offered weight by subject, in the order of the table."""

    site: str
    load: float
    seed: int
    reached: dict[str, float]


def regret_of(job: LoopJob) -> RegretRow:
    """All that the table says of one trace."""
    book = book_of(the_recordings(), job.site, job.rate_per_s, job.duration_s, job.seed)
    joint, settings = policy("joint"), Settings()
    plain = attempt(book, joint, settings, NOTHING)
    rivals = [attempt(book, policy(name), settings, NOTHING) for name in job.policies]
    told = {name: attempt(book, joint, settings, foresight) for name, foresight in TOLD.items()}
    best = best_plan(book, settings, known=[plain, *rivals, *told.values()], seed=job.seed)
    values = {
        "joint": plain.value,
        BEST_RIVAL: max(r.value for r in rivals),
        **{name: one.value for name, one in told.items()},
        CLAIRVOYANT: best.value,
        BOUND: hindsight.bound(book),
        LOOSE: hindsight.loose_bound(book),
    }
    offered = sum(offer.weight for _, offer in book.offers)
    return RegretRow(job.site.name, job.load, job.seed, {name: value / offered for name, value in values.items()})


def run(*, seeds: int, progress: Callable[[float], None], scope: Scope = WHOLE) -> Result:
    """These sites and loads, two sets of so many seeds. Claims: what bounds are for."""
    rows = measured(scope.sites or SITES, scope.loads or LOADS, both_sets(seeds), progress)
    return Result(rows=bench_rows(rows), claims=claims(rows), sweeps=[])


def measured(
    sites: Sequence[str], loads: Sequence[float], seeds: Sequence[int], progress: Callable[[float], None]
) -> list[RegretRow]:
    """Return a row for each site, load and seed."""
    recordings, jobs = read_recordings(recordings_folder()), []
    for name in sites:
        site = load_site(config_file("sites", f"{name}.toml"))
        rate = rate_at_load_1(recordings, site)
        jobs += [LoopJob(site, load, load * rate, seed, DURATION_S, RIVALS) for load in loads for seed in seeds]
    return run_in_workers(regret_of, recordings, jobs, progress)


def claims(rows: Sequence[RegretRow]) -> list[ModelClaim]:
    """Nobody is above the bound, and the best plan found is not below joint."""
    others = [max(v for k, v in r.reached.items() if k not in (BOUND, LOOSE)) / r.reached[BOUND] for r in rows]
    over = [r.reached[CLAIRVOYANT] - max(r.reached["joint"], r.reached[BEST_RIVAL]) for r in rows]
    return [
        ModelClaim(text="the best of all over the hindsight bound", reached=max(others), asked=1.0, at_most=True),
        ModelClaim(text="the best plan found less the better of joint and rivals", reached=min(over), asked=0.0),
    ]


def shares(row: dict[str, float]) -> dict[str, float]:
    """Parts of the distance from joint to the best plan found; at none of it, all are 0.

    Each piece of knowledge alone; what all three give together; the rest, for deciding at arrivals.
    """
    distance = row[CLAIRVOYANT] - row["joint"]
    gain = {name: row[name] - row["joint"] for name in TOLD} | {
        "decided at arrival": row[CLAIRVOYANT] - row["all known"]
    }
    return {name: value / distance if distance > 0 else 0.0 for name, value in gain.items()}


def bench_rows(rows: Sequence[RegretRow]) -> list[BenchRow]:
    """What was reached, and shares of the distance of the means: those of single traces are mostly noise."""
    out = []
    for site, load in dict.fromkeys((r.site, r.load) for r in rows):
        some = [r.reached for r in rows if (r.site, r.load) == (site, load)]
        mean = {name: float(np.mean([one[name] for one in some])) for name in some[0]}
        case = f"{site} load={load:g}"
        for name in mean:
            p50, p99, value = spread([one[name] for one in some])
            out.append(
                BenchRow(
                    suite=SUITE, case=case, subject=name, figure="met_ratio", p50=p50, p99=p99, n=len(some),
                    value=value, bound=mean[BOUND],
                )
            )  # fmt: skip
        out += [
            BenchRow(
                suite=SUITE, case=case, subject=name, figure="share_percent", p50=100 * part, p99=100 * part,
                n=len(some), value=100 * part,
            )
            for name, part in shares(mean).items()
        ]  # fmt: skip
    return out
