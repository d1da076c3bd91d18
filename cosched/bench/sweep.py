"""One-shot sweeps: every policy on the same drops, over the numbers of tasks offered and the seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from cosched.bench import oneshot
from cosched.bench.model import RATIO, BenchRow, spread
from cosched.errors import BadInput
from cosched.report.model import Sweep, SweepRow
from cosched.simulate.scenario import LoadedScenario

JOINT: Final = "joint"


@dataclass(frozen=True, slots=True)
class Contestant:
    """A policy as it is compared: a solver with options. Several of one `policy` are its settings: the best counts."""

    policy: str
    solver: str
    options: Mapping[str, float]

    @property
    def label(self) -> str:
        """The policy's name with its options, where it has any."""
        return self.policy + "".join(f" {key}={value:g}" for key, value in self.options.items())


@dataclass(frozen=True, slots=True)
class Swept:
    """Outcomes by (offered, contestant's label), one per seed, in the order of the seeds."""

    offered: tuple[int, ...]
    contestants: tuple[Contestant, ...]
    outcomes: Mapping[tuple[int, str], Sequence[oneshot.OneshotOutcome]]
    figure: str  # what counts: "met", or "value" where weights differ

    def reached(self, offered: int, contestant: Contestant) -> list[float]:
        """Return the figure that counts, by seed."""
        return [float(getattr(o, self.figure)) for o in self.outcomes[offered, contestant.label]]

    def mean(self, offered: int, contestant: Contestant) -> float:
        """Return its mean over the seeds."""
        return float(np.mean(self.reached(offered, contestant)))

    def best(self, policy: str, offered: Sequence[int]) -> Contestant:
        """Return the policy's setting that reaches most in all, over these offered loads."""
        settings = [c for c in self.contestants if c.policy == policy]
        return max(settings, key=lambda c: sum(self.mean(n, c) for n in offered))

    def total(self, policy: str, offered: Sequence[int]) -> float:
        """Return the means at the policy's best setting, summed over these offered loads."""
        best = self.best(policy, offered)
        return sum(self.mean(n, best) for n in offered)


def loads_of(loaded: LoadedScenario) -> tuple[int, ...]:
    """Return the numbers of tasks offered. Raises BadInput when the scenario is not for one shot."""
    if loaded.scenario.oneshot is None or not loaded.scenario.oneshot.offered:
        raise BadInput(f"scenario {loaded.scenario.name}: no [oneshot] offered = [...]: it is not for this suite")
    return loaded.scenario.oneshot.offered


def sweep(
    loaded: LoadedScenario,
    contestants: Sequence[Contestant],
    *,
    seeds: int,
    progress: Callable[[float], None],
    figure: str = "met",
) -> Swept:
    """Run every contestant on every drop. progress(fraction) is called after each drop."""
    offered = loads_of(loaded)
    outcomes: dict[tuple[int, str], list[oneshot.OneshotOutcome]] = {}
    drops = [(n, seed) for seed in range(seeds) for n in offered]
    for done, (n, seed) in enumerate(drops, start=1):
        problem = oneshot.build(oneshot.draw(loaded, n, seed))
        for contestant in contestants:
            outcome = oneshot.solve(problem, contestant.solver, contestant.options)
            outcomes.setdefault((n, contestant.label), []).append(outcome)
        progress(done / len(drops))
    return Swept(offered, tuple(contestants), outcomes, figure)


def rows_of(swept: Swept, suite: str, case: str) -> list[BenchRow]:
    """Return what was reached per number offered and contestant; the bound is joint's certificate, on the value."""
    rows = []
    for n in swept.offered:
        bound = float(np.mean([o.bound for o in swept.outcomes[n, JOINT]]))
        for contestant in swept.contestants:
            reached = swept.reached(n, contestant)
            p50, p99, mean = spread(reached)
            rows.append(
                BenchRow(
                    suite=suite,
                    case=f"{case} offered={n}",
                    subject=contestant.label,
                    figure=swept.figure,
                    p50=p50,
                    p99=p99,
                    n=len(reached),
                    value=mean,
                    bound=bound,
                )
            )
    return rows


def ratio_row(suite: str, case: str, subject: str, value: float, seeds: int) -> BenchRow:
    """Return a row with one ratio of means over seeds."""
    return BenchRow(suite=suite, case=case, subject=subject, figure=RATIO, p50=value, p99=value, n=seeds, value=value)


def curves(swept: Swept, name: str, command: str) -> Sweep:
    """Return the points of the curves: per offered load and seed, each policy at its best setting."""
    policies = list(dict.fromkeys(c.policy for c in swept.contestants))
    rows = []
    for policy in policies:
        label = swept.best(policy, swept.offered).label
        for n in swept.offered:
            bounds = [o.bound for o in swept.outcomes[n, JOINT]]
            rows += [
                SweepRow(
                    site=name,
                    load=float(n),
                    seed=seed,
                    policy=policy,
                    offered=n,
                    admitted=outcome.admitted,
                    met=outcome.met,
                    value=outcome.value,
                    hindsight_bound=bound,
                )
                for seed, (outcome, bound) in enumerate(zip(swept.outcomes[n, label], bounds, strict=True))
            ]
    return Sweep(v=1, name=name, command=command, rows=rows)
