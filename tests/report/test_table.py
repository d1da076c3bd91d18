"""The comparison: best figures, directions, nothing cut, valid JSON and Markdown."""

from __future__ import annotations

import io
import json
import math
import statistics

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_records import POLICIES, RESOURCES, make_result, make_sweep
from rich.console import Console
from rich.table import Table

from cosched.core.policy import DECOUPLED, GREEDY
from cosched.report import stats
from cosched.report.figures import FIGURES, comparison_rows, fold
from cosched.report.model import ReplayResult, Sweep
from cosched.report.table import (
    comparison_table,
    sweep_markdown,
    sweep_rows,
    sweep_table,
    to_json,
    to_markdown,
)


def printed(table: Table, width: int, *, colour: bool = False) -> str:
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=colour, color_system="standard" if colour else None).print(table)
    return out.getvalue()


def with_summaries(**changes: dict[str, object]) -> ReplayResult:
    """Build a result of the named policies, each with some figures changed."""
    result = make_result(policies=tuple(changes), tasks=20, samples=5)
    runs = {
        name: msgspec.structs.replace(run, summary=msgspec.structs.replace(run.summary, **changes[name]))
        for name, run in result.policies.items()
    }
    return msgspec.structs.replace(result, policies=runs)


def row(result: ReplayResult, label: str) -> frozenset[str]:
    return next(r.best for r in comparison_rows(result) if r.label == label)


@pytest.mark.parametrize("width", [80, 100, 120])
def test_no_policy_figure_or_name_is_cut(width: int) -> None:
    text = printed(comparison_table(make_result(tasks=300, samples=10)), width)
    assert "…" not in text
    assert max(len(line) for line in text.splitlines()) <= width
    for figure in FIGURES:
        assert figure.label in text
    for resource in RESOURCES:
        assert f"{resource} used, %" in text
    heads = text.replace("\n", " ")
    for policy in POLICIES:
        assert all(part in heads for part in policy.split("-"))


def test_ten_policies_fit_one_block_at_120_columns() -> None:
    text = printed(comparison_table(make_result(policies=POLICIES[:10], tasks=300, samples=10)), 120)
    assert sum(line.startswith("offered") for line in text.splitlines()) == 1


def test_long_ids_are_folded_not_cut() -> None:
    name = "an-extremely-long-policy-name-" + "x" * 40
    text = printed(comparison_table(make_result(policies=("joint", name), tasks=5, samples=2)), 80)
    assert "…" not in text
    assert text.count("x") >= 40


def test_best_is_marked_in_green_and_by_an_asterisk_that_survives_without_colour() -> None:
    result = with_summaries(joint={"met": 9}, pf={"met": 4})
    line = next(li for li in printed(comparison_table(result), 80).splitlines() if li.startswith("met "))
    assert "9*" in line
    assert "4*" not in line
    assert "\x1b[1;32m" in printed(comparison_table(result), 80, colour=True)


@pytest.mark.parametrize(
    ("label", "field", "low", "high", "best"),
    [
        ("met", "met", 1, 2, "high"),
        ("met, %", "met_ratio", 0.1, 0.2, "high"),
        ("value", "value", 1.0, 2.0, "high"),
        ("fairness (Jain)", "fairness_jain", 0.2, 0.9, "high"),
        ("switches", "switches", 1, 2, "low"),
        ("gap to bound, max", "gap_max", 0.5, 1.5, "low"),
        ("offered", "offered", 3, 4, None),
        ("admitted", "admitted", 3, 4, None),
        ("energy, J", "energy_j", 3.0, 4.0, None),
    ],
)
def test_direction(label: str, field: str, low: float, high: float, best: str | None) -> None:
    result = with_summaries(joint={field: low}, pf={field: high})
    expected = {"high": {"pf"}, "low": {"joint"}, None: set()}[best]
    assert row(result, label) == expected


def test_utilisation_has_no_best() -> None:
    for resource in RESOURCES:
        assert not row(make_result(tasks=30, samples=5), f"{resource} used, %")


def test_all_ties_are_marked_also_those_that_only_print_alike() -> None:
    result = with_summaries(joint={"met_ratio": 0.7641}, greedy={"met_ratio": 0.7639}, pf={"met_ratio": 0.2})
    assert row(result, "met, %") == {"joint", "greedy"}


def test_nothing_is_marked_where_all_are_alike_or_alone() -> None:
    alike = with_summaries(joint={"met": 5}, pf={"met": 5})
    assert not row(alike, "met")
    assert not row(make_result(policies=("joint",), tasks=9, samples=3), "met")


def test_a_policy_that_served_nobody_has_no_latency_and_is_not_the_fastest() -> None:
    zero = msgspec.structs.replace(make_result(tasks=0, samples=0).policies["pf"].summary.latency_ms, p50=0.0)
    result = with_summaries(joint={}, pf={"admitted": 0, "met": 0, "latency_ms": zero})
    cells = next(r for r in comparison_rows(result) if r.label == "latency p50, ms")
    assert cells.cells["pf"] == "-"
    assert "pf" not in cells.best


@given(x=st.floats(allow_nan=True, allow_infinity=True), y=st.floats(allow_nan=True, allow_infinity=True))
@settings(max_examples=60, deadline=None)
def test_any_number_prints_and_a_figure_that_is_not_finite_is_never_best(x: float, y: float) -> None:
    result = with_summaries(joint={"value": x}, pf={"value": y})
    best = row(result, "value")
    assert all(math.isfinite({"joint": x, "pf": y}[p]) for p in best)
    printed(comparison_table(result), 80)


@pytest.mark.parametrize(("tasks", "policies"), [(0, POLICIES), (1, ("pf",)), (5, ())])
def test_tiny_results_print(tasks: int, policies: tuple[str, ...]) -> None:
    text = printed(comparison_table(make_result(policies=policies, tasks=tasks, samples=tasks)), 80)
    assert "nan" not in text
    assert "inf" not in text.lower()


@given(name=st.text(min_size=1, max_size=40), width=st.integers(1, 12))
def test_fold_loses_nothing_and_is_never_wider(name: str, width: int) -> None:
    lines = fold(name, width)
    assert "".join(lines) == name
    assert all(len(line) <= width for line in lines)


# --- JSON and Markdown ---------------------------------------------------------------------------------------------


def strict_json(data: bytes) -> dict[str, object]:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    decoded: dict[str, object] = json.loads(data, parse_constant=refuse)
    return decoded


def test_json_has_exactly_the_keys_of_interfaces() -> None:
    decoded = strict_json(to_json(make_result(tasks=50, samples=5)))
    assert set(decoded) == {"v", "trace", "policies"}
    assert set(decoded["trace"]) == {
        *("path", "local_feasible", "sha256", "duration_s", "ues", "tasks", "overlap_share", "most_at_once"),
    }
    assert list(decoded["policies"]) == list(POLICIES)
    for policy in decoded["policies"].values():
        assert set(policy) == {
            *("offered", "admitted", "met", "met_ratio", "value", "hindsight_bound", "gap_p50", "gap_max"),
            *("latency_ms", "decide_ms", "fairness_jain", "switches", "utilisation", "energy_j", "decisions_sha256"),
            *("promised", "broken", "met_unpromised", "tokens_met", "step_ms", "batch"),
        }
        assert set(policy["latency_ms"]) == {"p50", "p95", "p99"}
        assert set(policy["decide_ms"]) == {"p50", "p99", "max"}


def test_json_stays_valid_with_figures_that_are_not_finite() -> None:
    result = with_summaries(joint={"gap_max": math.inf, "fairness_jain": math.nan})
    joint = strict_json(to_json(result))["policies"]["joint"]
    assert joint["gap_max"] is None
    assert joint["fairness_jain"] is None


def test_markdown_has_a_row_per_figure_and_bold_best() -> None:
    result = with_summaries(joint={"met": 9}, pf={"met": 4})
    lines = to_markdown(result).splitlines()
    assert len(lines) == 2 + len(FIGURES) + len(RESOURCES)
    assert len({line.count("|") for line in lines}) == 1
    assert "| met | **9** | 4 |" in lines


def test_markdown_is_not_broken_by_ids() -> None:
    text = to_markdown(make_result(policies=("a|b", "<img src=x>"), tasks=5, samples=2))
    assert "a\\|b" in text
    assert "<img" not in text


# --- sweeps --------------------------------------------------------------------------------------------------------


def test_gain_at_a_load_against_the_same_computed_by_hand() -> None:
    rows = make_sweep().rows
    met = {(r.policy, r.seed): r.met / r.offered for r in rows if r.load == 1.5}
    means = {p: statistics.fmean(met[p, s] for s in range(5)) for p in DECOUPLED}
    best = max(means, key=lambda p: means[p])
    ratios = [met["joint", s] / met[best, s] for s in range(5)]
    gain = stats.gain_at(rows, 1.5, DECOUPLED)
    assert gain is not None
    assert gain.against == best
    assert gain.ratio.mean == pytest.approx(statistics.fmean(ratios))
    assert gain.ratio.sd == pytest.approx(statistics.stdev(ratios))


def test_mean_gain_averages_loads_1_to_2_only() -> None:
    rows = make_sweep().rows
    per_load = [stats.gain_at(rows, load, GREEDY) for load in (1.0, 1.25, 1.5, 2.0)]
    mean = stats.mean_gain(rows, stats.in_range(rows), GREEDY)
    assert mean is not None
    assert mean.mean == pytest.approx(statistics.fmean(g.ratio.mean for g in per_load if g is not None))


def test_sweep_table_shows_every_load_policy_gain_and_the_bound() -> None:
    text = printed(sweep_table(make_sweep()), 80)
    assert "…" not in text
    for word in (*POLICIES, "hindsight bound", "joint / best decoupled", "joint / better greedy", "mean 1-2", "±"):
        assert word in text
    for load in ("0.3", "0.6", "0.8", "1.25", "1.5"):
        assert f" {load} " in text


def test_weighted_sweep_shows_no_bound_on_the_count() -> None:
    _, rows = sweep_rows(make_sweep(weight=3.0).rows)
    assert "hindsight bound" not in [r.label for r in rows]


def test_sweeps_without_joint_seeds_or_runs() -> None:
    assert "hindsight bound" in printed(sweep_table(make_sweep(policies=("pf", "edge"))), 80)
    assert "±" not in sweep_markdown(make_sweep(seeds=1))
    empty = Sweep(v=1, name="nothing", command="cosched bench load", rows=[])
    assert "no run" in printed(sweep_table(empty), 80)
    assert "cosched bench load" in sweep_markdown(empty)


def test_opponent_that_met_nothing_gives_no_ratio() -> None:
    rows = [r for r in make_sweep(policies=("joint", "pf")).rows if r.load == 1.0]
    none = [msgspec.structs.replace(r, met=0, value=0.0) if r.policy == "pf" else r for r in rows]
    assert stats.gain_at(none, 1.0, DECOUPLED) is None
