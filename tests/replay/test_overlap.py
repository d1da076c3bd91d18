"""Tasks of one UE that overlap: by a slow count, and what docs/scenarios.md says of the traces that ship."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from replay_cases import sample_book

from cosched.replay.compare import trace_info
from cosched.replay.overlap import _most_at_once, _overlapping, overlap
from cosched.replay.workbook import make_book
from cosched.resources import config_file
from cosched.simulate.scenario import load_scenario
from cosched.traces.simulation import draw_trace

SCENARIOS = Path(__file__).resolve().parents[2] / "docs" / "scenarios.md"


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 8)), max_size=12))
def test_lives_overlap_as_counted_instant_by_instant(drawn: list[tuple[int, int]]) -> None:
    lives = [(float(start), float(start + length)) for start, length in drawn]
    at = [[i for i, (start, end) in enumerate(lives) if start <= t < end] for t in range(30)]
    assert _overlapping(lives) == len({i for some in at if len(some) > 1 for i in some})
    assert _most_at_once(lives) == max(map(len, at))


def row_of(name: str) -> list[str]:
    found = re.search(rf"^\| {re.escape(name)} \|(.+)\|$", SCENARIOS.read_text(), re.MULTILINE)
    assert found is not None, name
    return [cell.strip() for cell in found.group(1).split("|")]


def test_the_sample_is_as_documented() -> None:
    book = sample_book()
    found, facts = overlap(book), trace_info(book, "", "")
    assert (facts.overlap_share, facts.most_at_once) == (found.share, found.most)
    figures = (len(book.ue_rows), facts.tasks, facts.local_feasible, f"{100 * found.share:.0f} %", found.most)
    assert row_of("`config/traces/sample.mcap`") == [str(figure) for figure in figures]


@pytest.mark.parametrize("seed", [2])
def test_a_scenario_is_as_documented(seed: int) -> None:
    loaded = load_scenario(config_file("scenarios", "urban-llm.toml"))
    book = make_book(draw_trace(loaded, seed=seed, duration_s=loaded.scenario.duration_s), "urban-llm")
    found = overlap(book)
    tasks = len(book.offers) + len(book.local)
    figures = (len(book.ue_rows), tasks, len(book.local), f"{100 * found.share:.0f} %", found.most)
    assert row_of(f"`urban-llm.toml`, seed {seed}") == [str(figure) for figure in figures]


def test_nobody_overlaps_where_each_ue_has_one_task() -> None:
    book = sample_book()
    first = {offer.ue: (at_s, offer) for at_s, offer in reversed(book.offers)}
    from dataclasses import replace

    alone = replace(book, offers=tuple(first.values()), local=())
    assert overlap(alone) == (0.0, 1)
    assert overlap(replace(alone, offers=())) == (0.0, 0)
    assert np.isfinite(overlap(book).share)
