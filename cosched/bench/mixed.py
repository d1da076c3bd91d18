"""Suite `mixed`: devices, channels, deadlines and work differ; joint against all decoupled policies and greedy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from cosched.bench.model import BenchRow, ModelClaim, Result
from cosched.bench.sweep import JOINT, Contestant, Swept, curves, ratio_row, rows_of, sweep
from cosched.core.policy import DECOUPLED, GREEDY
from cosched.report.model import Sweep
from cosched.resources import config_file
from cosched.simulate.scenario import load_scenario
from solvers.registry import FLOATING

SUITE: Final = "mixed"
UTILISATIONS: Final = (0.8, 1.0)  # of pf-util: the better one counts


class Case(NamedTuple):
    """A scenario, what counts in it, and the ratios that the README states."""

    name: str
    file: str
    figure: str
    over_decoupled: float
    over_greedy: float


CASES: Final = (
    Case("1+1", "mixed.toml", "met", 1.3, 1.15),
    Case("4+4", "mixed-4x4.toml", "met", 1.3, 1.15),
    Case("1+1 weights 1 and 5", "mixed-weighted.toml", "value", 1.3, 1.15),
)


def contestants() -> list[Contestant]:
    """All policies; those with an option once for each of its values."""
    # FLOATING ones promise nothing: in one shot, where nothing is carried out, there is nothing to count of them
    plain = (JOINT, *(p for p in DECOUPLED if p != "pf-util" and p not in FLOATING), *GREEDY)
    return [Contestant(p, p, {}) for p in plain] + [Contestant("pf-util", "pf-util", {"rho": u}) for u in UTILISATIONS]


def run(*, seeds: int, progress: Callable[[float], None]) -> Result:
    """Sum over the offered loads: joint over the best decoupled policy, and over the better greedy, in every case."""
    rows: list[BenchRow] = []
    claims: list[ModelClaim] = []
    sweeps: list[Sweep] = []
    for done, case in enumerate(CASES):
        loaded = load_scenario(config_file("scenarios", case.file))
        part = _part(progress, done, len(CASES))
        swept = sweep(loaded, contestants(), seeds=seeds, progress=part, figure=case.figure)
        rows += rows_of(swept, SUITE, case.name)
        for what, rivals, asked in (
            ("the best decoupled policy", DECOUPLED, case.over_decoupled),
            ("the better greedy", GREEDY, case.over_greedy),
        ):
            ratio, rival = over_best(swept, rivals)
            rows.append(ratio_row(SUITE, f"{case.name} all loads", f"joint/{rival}", ratio, seeds))
            claims.append(
                ModelClaim(text=f"mixed {case.name}: joint over {what} ({rival})", reached=ratio, asked=asked)
            )
        sweeps.append(curves(swept, f"{SUITE} {case.name}", f"cosched bench {SUITE} --seeds {seeds}"))
    return Result(rows=rows, claims=claims, sweeps=sweeps)


def over_best(swept: Swept, rivals: Sequence[str]) -> tuple[float, str]:
    """Return joint's total over that of the rival that reaches most, over the offered loads; and that rival."""
    there = {c.policy for c in swept.contestants}
    best = max((p for p in rivals if p in there), key=lambda policy: swept.total(policy, swept.offered))
    return swept.total(JOINT, swept.offered) / swept.total(best, swept.offered), best


def _part(progress: Callable[[float], None], done: int, of: int) -> Callable[[float], None]:
    return lambda fraction: progress((done + fraction) / of)
