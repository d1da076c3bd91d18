"""Suite `mixed`: devices, channels, deadlines and kinds of work differ. Joint against every decoupled policy and greedy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from cosched.bench.model import BenchRow, Claim, Result
from cosched.bench.sweep import JOINT, Contestant, Swept, curves, ratio_row, rows_of, sweep
from cosched.report.model import Sweep
from cosched.resources import config_file
from cosched.simulate.scenario import load_scenario

SUITE: Final = "mixed"
CASES: Final = {"1+1": "mixed.toml", "4+4": "mixed-4x4.toml"}
DECOUPLED: Final = ("pf", "pf-admit", "pf-util", "equal-rate-admit", "compute-only", "edge", "local")
GREEDY: Final = ("greedy", "greedy-residual")
UTILISATIONS: Final = (0.6, 0.8, 1.0)  # of pf-util: the best counts
OVER_DECOUPLED: Final = 1.3
OVER_GREEDY: Final = 1.15


def contestants() -> list[Contestant]:
    """All policies; those with an option once for each of its values."""
    plain = (JOINT, *(p for p in DECOUPLED if p != "pf-util"), *GREEDY)
    return [Contestant(p, p, {}) for p in plain] + [Contestant("pf-util", "pf-util", {"rho": u}) for u in UTILISATIONS]


def run(*, seeds: int, progress: Callable[[float], None]) -> Result:
    """Tasks met, summed over the offered loads, joint over the best decoupled policy and over the better greedy."""
    rows: list[BenchRow] = []
    claims: list[Claim] = []
    sweeps: list[Sweep] = []
    for done, (case, file) in enumerate(CASES.items()):
        loaded = load_scenario(config_file("scenarios", file))
        swept = sweep(loaded, contestants(), seeds, lambda part, done=done: progress((done + part) / len(CASES)))
        rows += rows_of(swept, SUITE, case)
        for what, against, asked in (
            ("the best decoupled policy", DECOUPLED, OVER_DECOUPLED),
            ("the better greedy", GREEDY, OVER_GREEDY),
        ):
            ratio, rival = over_best(swept, against)
            rows.append(ratio_row(SUITE, f"{case} all loads", f"joint/{rival}", ratio, seeds))
            claims.append(Claim(text=f"mixed {case}: joint over {what} ({rival})", reached=ratio, asked=asked))
        sweeps.append(curves(swept, f"{SUITE} {case}", f"cosched bench {SUITE} --seeds {seeds}"))
    return Result(rows=rows, claims=claims, sweeps=sweeps)


def over_best(swept: Swept, rivals: Sequence[str]) -> tuple[float, str]:
    """Joint's tasks met over those of the rival that meets most, summed over the offered loads; and that rival."""
    best = max(rivals, key=lambda policy: swept.total(policy, swept.offered))
    return swept.total(JOINT, swept.offered) / swept.total(best, swept.offered), best
