"""The README's curves: valid SVG that holds the sweep's numbers, in light and dark."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_records import POLICIES, make_sweep

from cosched.errors import BadInput
from cosched.report import curves, stats
from cosched.report.model import Sweep
from cosched.report.palette import styles

SVG = "{http://www.w3.org/2000/svg}"


def drawn(sweep: Sweep) -> ET.Element:
    return ET.fromstring(curves.curve_svg(sweep))  # noqa: S314 - our own output


def test_every_policy_and_the_bound_have_a_line_and_a_name() -> None:
    root = drawn(make_sweep())
    assert len([p for p in root.iter(f"{SVG}path") if "line " in p.get("class", "")]) == len(POLICIES) + 1
    names = {t.text for t in root.iter(f"{SVG}text")}
    assert {*POLICIES, "hindsight bound", "offered load (1 = just fits)"} <= names


def test_heights_are_proportional_to_the_means() -> None:
    sweep = make_sweep()
    css = {policy: f"p{i}" for i, policy in enumerate(styles(POLICIES))}
    lines = {p.get("class"): p.get("d", "") for p in drawn(sweep).iter(f"{SVG}path")}
    heights, means = [], []
    for policy in POLICIES:
        points = re.findall(r"([\d.]+) ([\d.]+)", lines[f"line {css[policy]}"])
        heights += [float(y) for _, y in points]
        means += [s.mean for s in stats.over_load(sweep.rows, policy, stats.met_ratio).values()]
    per_ratio = (heights[0] - heights[-1]) / (means[0] - means[-1])
    for height, mean in zip(heights, means, strict=True):
        assert height - heights[0] == pytest.approx(per_ratio * (mean - means[0]), abs=0.2)


def test_everything_lies_within_the_picture() -> None:
    root = drawn(make_sweep(sites=("a", "b", "c")))
    _, _, width, height = (float(v) for v in root.get("viewBox", "").split())
    for text in root.iter(f"{SVG}text"):
        assert 0 <= float(text.get("x", "-1")) <= width
        assert 0 <= float(text.get("y", "-1")) <= height


@given(st.lists(st.floats(0, 300), min_size=1, max_size=20).map(sorted), st.floats(300, 500))
def test_labels_do_not_touch_and_stay_above_the_edge(wanted: list[float], lowest: float) -> None:
    placed = curves.spread_out(wanted, 17, lowest)
    assert all(b - a >= 17 - 1e-6 for a, b in itertools.pairwise(placed))
    assert placed[-1] <= lowest + 1e-6


def test_labels_that_do_not_touch_stay_where_they_are() -> None:
    assert curves.spread_out([10, 40, 90], 17, 300) == pytest.approx([10, 40, 90])
    assert curves.spread_out([100, 100], 17, 300) == pytest.approx([91.5, 108.5])


def test_light_and_dark_and_nothing_loaded() -> None:
    text = curves.curve_svg(make_sweep())
    assert "prefers-color-scheme:dark" in text
    assert "url(" not in text
    assert "<script" not in text
    assert len(text) < 40_000


def test_ids_are_escaped() -> None:
    sweep = make_sweep(policies=("joint", "pf"))
    rows = [msgspec.structs.replace(r, site="</svg><script>", policy=r.policy + "<&\"'>") for r in sweep.rows]
    root = drawn(msgspec.structs.replace(sweep, rows=rows, name='"><x'))
    assert not list(root.iter(f"{SVG}script"))


@pytest.mark.parametrize(("seeds", "weight"), [(1, 1.0), (3, 5.0)])
def test_one_seed_has_no_band_and_weights_no_bound(seeds: int, weight: float) -> None:
    root = drawn(make_sweep(seeds=seeds, weight=weight))
    classes = [p.get("class", "") for p in root.iter(f"{SVG}path")]
    assert any(c.startswith("band") for c in classes) == (seeds > 1)
    assert ("line bound" in classes) == (weight == 1.0)


def test_one_load_and_added_policies_can_be_drawn() -> None:
    sweep = make_sweep(policies=("joint", "pf"))
    rows = [r for r in sweep.rows if r.load == 1.0]
    added = [msgspec.structs.replace(r, policy=f"mine{i}") for i in range(5) for r in rows if r.policy == "pf"]
    drawn(msgspec.structs.replace(sweep, rows=[*rows, *added]))


def test_an_empty_sweep_and_a_bad_path_are_one_line(tmp_path: Path) -> None:
    empty = Sweep(v=1, name="nothing", command="cosched bench load", rows=[])
    with pytest.raises(BadInput, match="nothing to draw; run: cosched bench load"):
        curves.write_curve_svg(empty, tmp_path / "c.svg")
    with pytest.raises(BadInput, match="cannot write"):
        curves.write_curve_svg(make_sweep(), tmp_path / "nowhere" / "c.svg")
