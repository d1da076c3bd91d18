"""Capacity at 95 % met: interpolation, ends of the grid, three sets of tasks, by hand; and the table that shows it."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from cosched.bench.capacity import capacities, greatest_load
from cosched.bench.tables import capacity_tables
from cosched.report.model import SweepRow


def row(load: float, met: int, *, offered: int = 100, admitted: int = 100, alone: int = 100, seed: int = 1) -> SweepRow:
    return SweepRow(
        site="s", load=load, seed=seed, policy="joint", offered=offered, admitted=admitted, met=met, value=float(met),
        hindsight_bound=float(offered), tokens_met=10 * met, feasible_alone=alone, duration_s=50.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ((1.0, 0.9, 0.8), ("", 0.75)),
        ((0.99, 0.97, 0.93), ("", 1.5)),
        ((0.9, 0.99, 0.9), ("<", 0.5)),
        ((1.0, 0.95, 0.9), ("", 1.0)),
        ((0.97, 0.9, 0.99), ("", 0.5 + 0.5 * 0.02 / 0.07)),
        ((0.99, 0.98, 0.95), (">", 2.0)),
    ],
)
def test_the_load_is_where_the_part_first_falls_below_95_percent(
    part: tuple[float, ...], expected: tuple[str, float]
) -> None:
    limit, load = greatest_load((0.5, 1.0, 2.0), part)
    assert limit == expected[0]
    assert load == pytest.approx(expected[1])


def test_one_load_says_on_which_side_it_is() -> None:
    assert greatest_load((1.0,), (0.96,)) == (">", 1.0)
    assert greatest_load((1.0,), (0.94,)) == ("<", 1.0)


def test_of_each_set_of_tasks_and_goodput_there() -> None:
    rows = [row(1.0, 80, alone=80, admitted=80), row(2.0, 90, offered=200, alone=150, admitted=96)]
    found = {c.of: c for c in capacities(rows)}
    assert (found["offered"].limit, found["offered"].load) == ("<", 1.0)
    alone = found["feasible alone"]  # 1 at load 1, 0.6 at load 2
    assert (alone.limit, alone.load) == ("", pytest.approx(1.125))
    assert alone.met_per_s == pytest.approx((80 + 0.125 * 10) / 50)
    assert alone.tokens_per_s == pytest.approx(10 * alone.met_per_s)
    assert found["admitted"].load == pytest.approx(1 + 0.05 / (1 - 90 / 96))


def test_seeds_count_together() -> None:
    rows = [row(1.0, 100, offered=100, seed=1), row(1.0, 180, offered=200, seed=2), row(2.0, 0, seed=1)]
    found = next(c for c in capacities(rows) if c.of == "offered")
    assert (found.limit, found.load) == ("<", 1.0)  # 280 of 300
    assert found.met_per_s == pytest.approx(2.8)


def test_nobody_admitted_breaks_nothing() -> None:
    found = next(c for c in capacities([row(1.0, 0, admitted=0)]) if c.of == "admitted")
    assert (found.limit, found.load, found.met_per_s) == (">", 1.0, 0.0)


def test_the_table_has_a_line_for_each_policy() -> None:
    out = io.StringIO()
    (table,) = capacity_tables(capacities([row(1.0, 80, alone=80), row(2.0, 90)]))
    Console(file=out, width=110).print(table)
    text = out.getvalue()
    assert "joint" in text
    assert "< 1.00" in text
    assert "feasible alone" in text
