"""Suite `codesign-sensitivity`: what joint's gain over `pf` depends on. One parameter of `codesign` at a time."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from typing import Any, Final

from cosched.bench.codesign import SCENARIO, best_over_loads
from cosched.bench.model import BenchRow, Result, spread
from cosched.bench.sweep import JOINT, Contestant, ratio_row, sweep
from cosched.resources import config_file
from cosched.simulate.scenario import LoadedScenario, parse_scenario
from cosched.simulate.tomltext import dumps

SUITE: Final = "codesign-sensitivity"
POLICIES: Final = (JOINT, "pf", "pf-admit", "equal-rate-admit")

# Dotted key of the scenario file (a number is a place in a list), and the values tried instead of its own.
VARIATIONS: Final[dict[str, tuple[object, ...]]] = {
    "name": ("as it is",),
    "radio.environment": ("umi",),
    "radio.cell_radius_m": (150.0, 200.0, 400.0),
    "radio.indoor_share": (0.0, 0.5),
    "site.nodes.0.fraction": (0.05, 0.1, 0.4, 1.0),
    "site.mix.video_frame_bits": (0.25e6, 1.0e6),
    "site.mix.video_gflop": ([210.0], [500.0]),
}


def run(*, seeds: int, progress: Callable[[float], None]) -> Result:
    """Best mean number of tasks met over the offered loads, per policy and variation, and joint's ratios."""
    text = config_file("scenarios", SCENARIO).read_text(encoding="utf-8")
    variations = [(key, value) for key, values in VARIATIONS.items() for value in values]
    contestants = [Contestant(name, name, {}) for name in POLICIES]
    rows: list[BenchRow] = []
    for done, (key, value) in enumerate(variations):
        swept = sweep(changed(text, key, value), contestants, seeds=seeds, progress=lambda _: None)
        best = best_over_loads(swept)
        case = f"{key.rsplit('.', 1)[-1]}={_plain(value)}"
        rows += [_row(case, name, best[name], seeds) for name in POLICIES]
        rows += [
            ratio_row(SUITE, case, f"joint/{name}", best[JOINT] / best[name], seeds)
            for name in POLICIES[1:]
            if best[name] > 0
        ]
        progress((done + 1) / len(variations))
    return Result(rows=rows, claims=[], sweeps=[])


def changed(text: str, key: str, value: object) -> LoadedScenario:
    """Parse the scenario with one value replaced."""
    raw: Any = tomllib.loads(text)
    at = raw
    *path, last = key.split(".")
    for part in path:
        at = at[int(part)] if isinstance(at, list) else at.setdefault(part, {})
    at[last] = value
    return parse_scenario(dumps(raw), f"{SCENARIO} with {key}")


def _row(case: str, subject: str, best: float, seeds: int) -> BenchRow:
    p50, p99, mean = spread([best])
    return BenchRow(suite=SUITE, case=case, subject=subject, figure="best met", p50=p50, p99=p99, n=seeds, value=mean)


def _plain(value: object) -> str:
    """Values as they stand in a case's name, which has no blanks after the equals sign."""
    item = value[0] if isinstance(value, list) else value
    return f"{item:g}" if isinstance(item, float) else str(item).replace(" ", "-")
