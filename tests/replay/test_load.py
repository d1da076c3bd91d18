"""Offered load: the linear programme on cases that paper and pencil solve, and how capacity grows with the site."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from replay_cases import sample_book

from cosched.replay.hindsight import least_work
from cosched.replay.load import _harmonic_mean_efficiency, _least_greatest_sum, _reading, capacity_per_s
from cosched.replay.replayer import Workbook
from cosched.site import Site

SECONDS = 8.0


def with_site(book: Workbook, **changes: object) -> Workbook:
    site: Site = msgspec.structs.replace(book.site, **changes)
    return replace(book, site=site)


def wider(book: Workbook, times: float) -> Workbook:
    cells = tuple(msgspec.structs.replace(c, ul_prbs=round(c.ul_prbs * times)) for c in book.site.cells)
    return with_site(book, cells=cells)


def faster(book: Workbook, times: float) -> Workbook:
    tables = {name: replace(t, node_s=t.node_s / times, step_s=t.steps / times) for name, t in book.tables.items()}
    return replace(book, tables=tables)


def servable(book: Workbook) -> Workbook:
    """The tasks that this site serves in time, each alone: on a wider site others become work, too."""
    rate, hz = _harmonic_mean_efficiency(book), {c.id: c.ul_bandwidth_hz for c in book.site.cells}
    bps = {o.task: float(rate[book.ue_rows[o.ue]]) * hz[book.cell_of_ue[o.ue]] for _, o in book.offers}
    return replace(book, offers=tuple((t, o) for t, o in book.offers if len(least_work(book, o, bps[o.task], 0))))


@pytest.mark.parametrize(
    ("works", "expected"),
    [
        ([], 0.0),
        ([[[3.0, 1.0]]], 3.0),
        ([[[4.0, 0.0], [0.0, 4.0]]], 2.0),  # half this way, half that way
        ([[[4.0, 0.0], [0.0, 12.0]]], 3.0),  # 3/4 of it: 4 p = 12 (1 - p)
        ([[[2.0, 0.0]], [[2.0, 0.0], [0.0, 2.0]]], 2.0),  # the first has no choice, so the second makes way
        ([[[1.0, 1.0]], [[1.0, 1.0]]], 2.0),
    ],
)
def test_least_greatest_sum_by_hand(works: list[list[list[float]]], expected: float) -> None:
    assert _least_greatest_sum([np.array(w) for w in works]) == pytest.approx(expected, abs=1e-9)


def test_the_programme_against_a_search_over_mixtures() -> None:
    rng = np.random.default_rng(8)
    works = [rng.uniform(0, 5, (2, 3)) for _ in range(3)]
    part = np.linspace(0, 1, 41)
    best = np.inf
    for p in part:
        for q in part:
            head = works[0][0] * p + works[0][1] * (1 - p) + works[1][0] * q + works[1][1] * (1 - q)
            tail = works[2][0][None] * part[:, None] + works[2][1][None] * (1 - part[:, None])
            best = min(best, float((head + tail).max(axis=1).min()))
    found = _least_greatest_sum(works)
    assert found <= best + 1e-9
    assert found == pytest.approx(best, rel=0.03)


def test_capacity_grows_with_cell_and_node_and_doubles_with_both() -> None:
    book = servable(sample_book(SECONDS))
    base = capacity_per_s(book)
    both = capacity_per_s(faster(wider(book, 2), 2))
    assert 0 < base < np.inf
    assert base - 1e-9 <= capacity_per_s(wider(book, 2)) <= both + 1e-9
    assert base - 1e-9 <= capacity_per_s(faster(book, 2)) <= both + 1e-9
    reading = _reading(book)  # half of the time for it is left for work, too
    more = float(((1 - reading / 2) / (1 - reading)).max())
    # a little off: points that no share serves in time become servable
    assert 2 * base * 0.98 <= both <= 2 * base * more * 1.1


def test_half_the_site_taken_is_half_the_capacity() -> None:
    book = sample_book(SECONDS)
    found = []
    for taken in (0.0, 0.5):
        cells = tuple(msgspec.structs.replace(c, background_fraction=taken) for c in book.site.cells)
        nodes = tuple(msgspec.structs.replace(n, background_fraction=taken) for n in book.site.nodes)
        found.append(capacity_per_s(with_site(book, cells=cells, nodes=nodes)))
    assert found[1] == pytest.approx(0.5 * found[0], rel=1e-6)


def test_tasks_without_work_add_arrivals_and_nothing_else() -> None:
    book = sample_book(SECONDS)
    alone = replace(book, local=(*book.local, *book.local))
    arrivals = len(book.offers) + len(book.local)
    ratio = capacity_per_s(alone) / capacity_per_s(book)
    assert ratio == pytest.approx((arrivals + len(book.local)) / arrivals)


def test_a_site_that_nobody_needs_has_no_limit() -> None:
    assert capacity_per_s(replace(sample_book(SECONDS), offers=())) == np.inf


def test_mean_efficiency_is_the_harmonic_mean_of_the_samples() -> None:
    book = sample_book(SECONDS)
    truth = book.truth
    for u, found in enumerate(_harmonic_mean_efficiency(book)):
        samples = [truth.initial_bps_hz[u], *truth.efficiency_bps_hz[truth.ue == u]]
        assert found == pytest.approx(len(samples) / sum(1 / s for s in samples))
