"""The arithmetic behind the charts, against independent computations."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_records import make_result

from cosched.core import policy
from cosched.core.reasons import Reason, describe
from cosched.report import assets, misses, palette, stats
from cosched.report.charts_time import _channel_edges
from cosched.report.palette import styles


def test_height_of_the_distribution_at_the_deadline_is_the_share_in_time() -> None:
    for run in make_result(tasks=700, samples=5).policies.values():
        x, y = stats.lateness_ecdf(run.fates)
        in_time = sum(f.lateness <= 1 for f in run.fates) / len(run.fates)
        assert y[x <= 1].max(initial=0.0) == pytest.approx(in_time)
        assert len(x) <= 301
        assert np.all(np.diff(x) >= 0)
        assert np.all(np.diff(y) > 0)


def test_distribution_of_nobody_is_empty() -> None:
    assert stats.lateness_ecdf([])[0].size == 0
    rejected = [f for f in make_result(tasks=50, samples=2).policies["pf"].fates if f.outcome == "rejected"]
    assert stats.lateness_ecdf(rejected)[0].size == 0


@given(
    st.lists(st.floats(-1e6, 1e6), max_size=300),
    st.integers(1, 50),
)
def test_thinned_series_keep_their_mean_and_peak(series: list[float], points: int) -> None:
    mean = stats.thin(series, points)
    peak = stats.thin(series, points, peak=True)
    assert len(mean) == len(peak) == min(points, len(series))
    if series:
        assert peak.max() == max(series)
        assert mean.min() >= min(series) - 1e-6
        assert mean.max() <= max(series) + 1e-6


def test_thinned_time_goes_forward() -> None:
    assert np.all(np.diff(stats.thin(list(np.arange(3001) * 0.1), 500)) > 0)


def test_channel_classes_are_thirds_of_the_known() -> None:
    fates = make_result(tasks=900, samples=2).policies["joint"].fates
    classes = stats.channel_classes(fates)
    sizes = [sum(c == name for c in classes.values()) for name in stats.CHANNEL_CLASSES]
    assert sum(sizes) == 900
    assert max(sizes) - min(sizes) <= 1
    efficiency = {f.task: f.ul_efficiency_bps_hz for f in fates}
    worst_good = min(efficiency[t] for t, c in classes.items() if c == "good")
    assert worst_good > max(efficiency[t] for t, c in classes.items() if c == "bad")


@pytest.mark.parametrize("efficiency", [math.nan, 0.0, 2.0])
def test_unknown_or_equal_channels_make_no_classes(efficiency: float) -> None:
    fates = [
        msgspec.structs.replace(f, ul_efficiency_bps_hz=efficiency)
        for f in make_result(tasks=9, samples=2).policies["joint"].fates
    ]
    assert stats.channel_classes(fates) == {}


@given(st.lists(st.floats(0.01, 9), min_size=1, max_size=60))
def test_channel_columns_hold_every_task(efficiency: list[float]) -> None:
    edges = _channel_edges(np.array(efficiency))
    assert edges.size >= 2
    assert np.all(np.diff(edges) > 0)
    assert edges[0] <= min(efficiency)
    assert edges[-1] >= max(efficiency)


def test_worst_misses_are_the_latest_and_only_misses() -> None:
    run = make_result(tasks=800, samples=2).policies["joint"]
    worst = stats.worst_misses(run, 10)
    assert len(worst) == 10
    assert {f.outcome for f in worst} == {"missed"}
    rest = [f.lateness for f in run.fates if f.outcome == "missed" and f not in worst]
    assert min(f.lateness for f in worst) >= max(rest)


def test_reasons_account_for_every_task_that_was_not_met() -> None:
    for run in make_result(tasks=400, samples=2).policies.values():
        assert sum(stats.count_reasons(run).values()) == run.summary.offered - run.summary.met


def test_headline_in_words() -> None:
    sentence = stats.headline(make_result(tasks=312, samples=2))
    assert sentence.startswith("joint met ")
    assert "of 312 tasks" in sentence
    assert " x the best decoupled policy (pf-admit)" in sentence
    assert sentence.endswith("% of the hindsight bound.")


def test_headline_where_there_is_little_to_say() -> None:
    assert "nothing to compare" in stats.headline(make_result(tasks=0, samples=0))
    assert stats.headline(make_result(policies=(), tasks=3, samples=1)) == "No policy was run."
    lone = stats.headline(make_result(policies=("greedy",), tasks=20, samples=1))
    assert lone.startswith("greedy met ")
    assert "decoupled" not in lone


def test_every_reason_has_a_sentence_and_an_unknown_one_is_named() -> None:
    sentences = {describe(code) for code in Reason}
    assert len(sentences) == len(Reason)
    assert all(s.endswith(".") and s[0].isupper() for s in sentences)
    assert "no_such_code" in describe("no_such_code")


def test_misses_are_told_in_words_whatever_is_missing() -> None:
    fate = stats.worst_misses(make_result(tasks=400, samples=2).policies["joint"], 1)[0]
    told = misses.cells(fate)
    assert len(told) == len(misses.COLUMNS) == len(misses.WIDTHS)
    bare = msgspec.structs.replace(fate, node="", point="", latency_s=(), guess=(), ul_efficiency_bps_hz=math.nan)
    text = " ".join(misses.cells(bare))
    assert {"llm": "never came", "video": "none was in time"}[fate.kind] in text
    assert "the device alone" in text
    assert "no estimate" in text
    assert "nan" not in text


def test_one_layer_and_late_frames_are_told_in_good_english() -> None:
    fates = make_result(tasks=400, samples=2).policies["joint"].fates
    session = next(f for f in fates if f.kind == "llm" and f.outcome == "missed" and f.node)
    assert "1 layer on the device" in " ".join(misses.cells(msgspec.structs.replace(session, split=1)))
    clip = msgspec.structs.replace(session, kind="video", deadline_s=(0.2,), latency_s=(0.1,))
    assert "each frame within 200 ms: those in time took 100 ms (0.50 x)" in " ".join(misses.cells(clip))


# --- colours -------------------------------------------------------------------------------------------------------


def luminance(colour: str) -> float:
    """WCAG 2 relative luminance."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


POLICIES = tuple(policy.POLICIES)


def test_every_policy_stands_out_from_both_pages_and_has_its_own_marker() -> None:
    chosen = styles([*POLICIES, "mine", "yours"])
    for name, style in chosen.items():
        assert contrast(style.light, assets.LIGHT["page"]) >= 3, name
        assert contrast(style.dark, assets.DARK["page"]) >= 3, name
    assert len({style.symbol for style in chosen.values()}) == len(chosen)


def test_a_policy_keeps_its_style_whoever_else_is_there() -> None:
    assert styles(["joint"])["joint"] == styles([*POLICIES])["joint"]
    assert styles(["zz", "aa"]) == styles(["aa", "zz"])


def test_a_variant_counts_with_its_policy_and_looks_like_it_when_alone() -> None:
    assert styles(["joint", "pf-util:rho=0.9"])["pf-util:rho=0.9"] == styles(["pf-util"])["pf-util"]
    both = styles(["pf-util", "pf-util:rho=0.9", "pf-util:rho=0.8"])
    assert len({style.symbol for style in both.values()}) == 3
    tuned = make_result(policies=("joint:z=1", "pf", "pf-util:rho=0.9"), tasks=60, samples=2)
    assert stats.lead_policy(tuned) == "joint:z=1"
    assert "(pf-util:rho=0.9)" in stats.headline(tuned)


def test_every_policy_has_a_style_of_its_own() -> None:
    assert set(palette._KNOWN) == set(policy.POLICIES)
