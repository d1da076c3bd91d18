"""The figures of a comparison: what each is called, where it comes from, which direction is better."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal

import msgspec

from cosched.report.model import ReplayResult, Summary
from cosched.report.stats import ratio

Best = Literal["high", "low"]
BLANK: Final = "-"  # no sample behind the figure


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the comparison. `get` returns None where there is no sample (so that an absent one is never best)."""

    label: str
    get: Callable[[Summary], float | None]
    best: Best | None  # None: more is neither better nor worse
    form: Callable[[float], str]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of all policies: text per policy, and the policies that are best (all of a tie)."""

    label: str
    cells: dict[str, str]
    best: frozenset[str]


def _count(x: float) -> str:
    return f"{x:.0f}"


def _percent(x: float) -> str:
    return f"{100 * x:.1f}"


def _short(x: float) -> str:
    """Two to four significant digits, never an exponent: 0.042, 0.42, 4.21, 42.1, 4210."""
    digits = 0 if abs(x) >= 100 or x == 0 else 1 if abs(x) >= 10 else 2 if abs(x) >= 0.1 else 3
    return f"{x:.{digits}f}"


def _if_met(get: Callable[[Summary], float]) -> Callable[[Summary], float | None]:
    """Latencies and fairness of a policy that served nobody are not zero: there are none."""
    return lambda s: get(s) if s.admitted or s.met else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


FIGURES: Final[tuple[Figure, ...]] = (
    Figure(label="offered", get=lambda s: s.offered, best=None, form=_count),
    Figure(label="admitted", get=lambda s: s.admitted, best=None, form=_count),
    Figure(label="met", get=lambda s: s.met, best="high", form=_count),
    Figure(label="met, %", get=lambda s: s.met_ratio if s.offered else None, best="high", form=_percent),
    Figure(label="value", get=lambda s: s.value, best="high", form=_short),
    Figure(label="of hindsight bound, %", get=lambda s: ratio(s.value, s.hindsight_bound), best="high", form=_percent),
    Figure(label="latency p50, ms", get=_if_met(lambda s: s.latency_ms.p50), best="low", form=_short),
    Figure(label="latency p95, ms", get=_if_met(lambda s: s.latency_ms.p95), best="low", form=_short),
    Figure(label="latency p99, ms", get=_if_met(lambda s: s.latency_ms.p99), best="low", form=_short),
    Figure(label="decide p50, ms", get=lambda s: s.decide_ms.p50, best="low", form=_short),
    Figure(label="decide p99, ms", get=lambda s: s.decide_ms.p99, best="low", form=_short),
    Figure(label="gap to bound, p50", get=lambda s: s.gap_p50, best="low", form=_short),
    Figure(label="gap to bound, max", get=lambda s: s.gap_max, best="low", form=_short),
    Figure(label="fairness (Jain)", get=_if_met(lambda s: s.fairness_jain), best="high", form=_short),
    Figure(label="switches", get=lambda s: s.switches, best="low", form=_count),
    Figure(label="energy, J", get=lambda s: s.energy_j, best=None, form=_short),  # who serves less spends less
    Figure(label="energy per met, J", get=lambda s: ratio(s.energy_j, s.met), best="low", form=_short),
)


def comparison_rows(result: ReplayResult) -> list[Row]:
    """All figures of all policies, in the order of the table; utilisation last, a row per resource."""
    summaries = {name: run.summary for name, run in result.policies.items()}
    resources = dict.fromkeys(r for s in summaries.values() for r in s.utilisation)
    used = [_utilisation(resource) for resource in resources]
    return [_row(figure, summaries) for figure in (*FIGURES, *used)]


def _utilisation(resource: str) -> Figure:
    return Figure(label=f"{resource} used, %", get=lambda s: s.utilisation.get(resource), best=None, form=_percent)


def _row(figure: Figure, summaries: Mapping[str, Summary]) -> Row:
    values = {name: _finite(figure.get(summary)) for name, summary in summaries.items()}
    cells = {name: BLANK if value is None else figure.form(value) for name, value in values.items()}
    return Row(label=figure.label, cells=cells, best=_best(figure.best, values, cells))


def _best(direction: Best | None, values: Mapping[str, float | None], cells: Mapping[str, str]) -> frozenset[str]:
    """Policies whose printed figure is the best one. None where all print the same: a mark would say nothing."""
    known = {name: value for name, value in values.items() if value is not None}
    if direction is None or len({cells[name] for name in known}) < 2:
        return frozenset()
    top = (max if direction == "high" else min)(known.values())
    winners = {cells[name] for name, value in known.items() if value == top}
    return frozenset(name for name in known if cells[name] in winners)


def fold(name: str, width: int) -> list[str]:
    """Break a name at its hyphens (else anywhere) so that no line is wider than `width` characters."""
    lines: list[str] = []
    for part in _hyphenated(name):
        pieces = [part[i : i + width] for i in range(0, len(part), width)] or [part]
        if lines and len(lines[-1]) + len(pieces[0]) <= width and lines[-1].endswith("-"):
            lines[-1] += pieces.pop(0)
        lines.extend(pieces)
    return lines


def _hyphenated(name: str) -> Sequence[str]:
    parts = name.split("-")
    return [*(f"{part}-" for part in parts[:-1]), parts[-1]]
