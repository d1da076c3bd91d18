"""What tasks cannot avoid, against schedules drawn at random, and subsets counted one by one."""

from __future__ import annotations

import itertools
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_cases import sample_book

from cosched.core.policy import POLICIES
from cosched.core.settings import Settings
from cosched.fluid.world import ChannelTruth
from cosched.replay import hindsight, unavoidable
from cosched.replay.clairvoyant import attempt
from cosched.replay.foresight import NOTHING, Foresight
from cosched.replay.past import Carried
from cosched.replay.replayer import Workbook
from cosched.workloads.base import Floats, PointTable
from telemetry.messages import LlmSession

EXAMPLES = settings(max_examples=150, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)


def within(spans: Floats, amount: float, a: float, b: float) -> float:
    """Of amounts that are done evenly over each span (n, 2), how much falls into [a, b]."""
    inside = np.clip(np.minimum(spans[:, 1], b) - np.maximum(spans[:, 0], a), 0.0, None)
    return float((amount * inside / (spans[:, 1] - spans[:, 0])).sum())


@EXAMPLES
@given(seeds, st.integers(1, 12))
def test_any_schedule_has_as_many_tokens_in_a_window(seed: int, tokens: int) -> None:
    """Tokens one after the other: device, air, flight, step; each part drawn, none shorter than its least."""
    rng = np.random.default_rng(seed)
    least = rng.uniform(0.0, 1.0, 4) * (rng.random(4) < 0.7)
    least[3] += 0.05
    token_s = float(least.sum())
    early, late = 1.0, 1.0 + float(rng.uniform(0.0, 3.0))
    decode_s = tokens * token_s * float(rng.choice([1.0, 1.3, 4.0]))
    # where the spare time goes: anywhere, mostly to few places
    spare = rng.dirichlet(np.full(4 * tokens + 1, 0.2)) * (decode_s - tokens * token_s)
    parts = np.tile(least, tokens) + spare[1:]
    first = float(rng.choice([early, late, rng.uniform(early, late)]))
    edge = first + np.concatenate([[0.0], np.cumsum(parts)]) + float(rng.choice([0.0, spare[0]]))
    air = np.stack([edge[1:-1:4], edge[1:-1:4] + np.maximum(least[1], 1e-9)], axis=1)
    steps = np.stack([edge[4::4] - least[3], edge[4::4]], axis=1)  # the own part within the step is anywhere
    a, b = np.sort(rng.choice(np.concatenate([edge, rng.uniform(0.0, edge[-1] + 1.0, 6)]), 2))
    few = unavoidable.TokensIn(np.array([[a, b]]), tokens, np.array([token_s]), (np.array([early]), late), decode_s)
    before_step = np.array([least[:3].sum()])
    assert few(np.zeros(1), before_step)[0, 0] <= within(steps, 1.0, a, b) + 1e-6
    on_air = few(np.array([least[2] + least[3]]), np.array([least[0]]))[0, 0]
    assert on_air <= within(air, 1.0, a, b) + 1e-6


def test_tokens_that_a_window_must_hold_by_hand() -> None:
    """Ten tokens of a second each between 0 and 12: in [3, 9] at least 6 - 2 that do not fit elsewhere."""
    few = unavoidable.TokensIn(np.array([[3.0, 9.0]]), 10, np.array([1.0]), (np.array([0.0]), 0.0), 12.0)
    assert few(np.zeros(1), np.zeros(1))[0, 0] == pytest.approx(10 - 3 - 3)
    assert few(np.zeros(1), np.array([0.5]))[0, 0] == pytest.approx(10 - 3 - 3.5)


@EXAMPLES
@given(seeds, st.integers(1, 7))
def test_frames_that_a_window_must_hold(seed: int, frames: int) -> None:
    rng = np.random.default_rng(seed)
    release, deadline = np.arange(frames) * 1.0, float(rng.uniform(0.2, 2.5))
    possible, least = rng.random(frames) < 0.8, int(rng.integers(1, frames + 1))
    a, b = np.sort(rng.uniform(-1.0, frames + 2.0, 2))
    inside = (release >= a) & (release + deadline <= b)
    choices = list(itertools.combinations(np.flatnonzero(possible), least))
    fewest = min((sum(inside[k] for k in c) for c in choices), default=0)
    found = unavoidable._frames_in(np.array([[a, b]]), release, deadline, possible, least)
    assert found[0] == fewest


@EXAMPLES
@given(seeds)
def test_rows_in_whole_tasks_hold_for_whoever_fits(seed: int) -> None:
    """Every choice of whole tasks that fits a window fits the rows that are added; clips mix their two options."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 7))
    task = np.repeat(np.arange(n), 2)
    seconds = rng.choice([0.2, 0.25, 1 / 3, 0.34, 0.5, 0.51, 0.7, 1.0], 2 * n)
    is_clip = rng.random(n) < 0.4
    rows, options, counts, limits = unavoidable._with_whole_tasks(
        np.zeros(2 * n, np.int64), np.arange(2 * n), seconds, task, is_clip, np.ones(1), 1
    )
    mixes = [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.5, 0.5)]
    for choice in itertools.product(*(mixes if clip else mixes[:3] for clip in is_clip)):
        taken = np.array(choice).ravel()
        if (taken * seconds).sum() <= 1.0 + 1e-12:
            use = np.bincount(rows, weights=counts * taken[options], minlength=limits.size)
            assert (use <= limits + 1e-9).all()


def test_two_who_take_more_than_half_are_one() -> None:
    rows, _, counts, limits = unavoidable._with_whole_tasks(
        np.zeros(2, np.int64), np.arange(2), np.array([0.6, 0.7]), np.arange(2), np.zeros(2, np.bool_), np.ones(1), 1
    )
    assert limits.tolist() == [1.0, 1.0, 1.0]
    assert counts[rows == 1].tolist() == [1.0, 1.0]


@EXAMPLES
@given(seeds)
def test_bits_carried_against_small_steps(seed: int) -> None:
    rng = np.random.default_rng(seed)
    at_s = np.sort(rng.uniform(0.0, 5.0, 6)).round(2)
    truth = ChannelTruth(at_s, np.zeros(6, np.int64), rng.uniform(0.1, 4.0, 6), rng.uniform(0.1, 4.0, 1))
    carried = Carried(truth, 0, 8.0)
    grid = (np.arange(0, 800) + 0.5) / 100
    rate = np.concatenate([truth.initial_bps_hz, truth.efficiency_bps_hz])[np.searchsorted(at_s, grid, side="right")]
    start, bits = float(rng.integers(0, 300)) / 100, float(rng.uniform(0.1, 3.0))
    sent = np.cumsum(rate[grid > start]) / 100
    through = float(carried.sent_s(np.array([start]), np.array([bits]))[0])
    assert through == pytest.approx(start + (np.searchsorted(sent, bits) + 1) / 100, abs=0.011)
    assert carried.bits(np.array([through]))[0] - carried.bits(np.array([start]))[0] == pytest.approx(bits)
    assert carried.sent_s(np.array([7.9]), np.array([1e3]))[0] == np.inf


def few_tasks(n: int, skip: int) -> Workbook:
    """So many sessions and clips of the sample, all at once: they are in each other's way."""
    book = sample_book(4.0)
    some = book.offers[skip : skip + n]
    return replace(book, offers=tuple((some[0][0], offer) for _, offer in some))


@pytest.mark.parametrize("skip", [0, 14])
def test_no_set_of_tasks_is_worth_more_than_the_bound(skip: int) -> None:
    """Every set of three is let in by force, with all known: what is met is at most the bound."""
    book = few_tasks(3, skip)
    bound = hindsight.bound(book)
    names = [offer.task for _, offer in book.offers]
    best = 0.0
    for chosen in itertools.product((False, True), repeat=len(names)):
        only = frozenset(name for name, one in zip(names, chosen, strict=True) if one)
        tried = attempt(book, POLICIES["engine"], Settings(), Foresight(channel=True, lengths=True, only=only))
        assert tried.ended("met") <= only
        best = max(best, tried.value)
    assert 0 < best <= bound + 1e-6


def test_options_that_serve_are_counted_as_possible() -> None:
    """Whoever was met, at the point that he had, is among the options: what is called impossible is."""
    book = sample_book(5.0)
    served = hindsight.look_back(book, capacity=1.0).served
    demand = unavoidable.demand_of(book, hindsight._least_background(book))
    possible = {book.offers[i][1].task for i in np.unique(demand.task).tolist()}
    for name in ("joint", "engine", "predicted"):
        met = attempt(book, POLICIES[name], Settings(), NOTHING).ended("met")
        assert met
        assert met <= possible
    assert set(served) == {o.task for _, o in book.offers}


def alone(book: Workbook, row: int, ttft_s: float) -> Workbook:
    """One session of the book, which has so long for its first token."""
    at_s, offer = book.offers[row]
    offer = msgspec.structs.replace(offer, work=msgspec.structs.replace(offer.work, ttft_s=ttft_s))
    table = book.tables[offer.task]
    table = replace(table, deadline_s=np.array([ttft_s, table.deadline_s[1]]))
    return replace(book, offers=((at_s, offer),), tables={offer.task: table})


@pytest.mark.parametrize("private", [False, True])
def test_the_soonest_first_token_is_possible_and_a_sooner_one_is_not(private: bool) -> None:
    """A session alone, at every point that it has: the world's first token against what is called possible."""
    book = sample_book(3.0)
    row = next(
        i
        for i, (_, o) in enumerate(book.offers)
        if isinstance(o.work, LlmSession)
        and o.work.private == private
        and attempt(alone(book, i, 9.0), POLICIES["engine"], Settings(), NOTHING).ended("met")
    )
    task = book.offers[row][1].task
    soonest = np.inf
    for point in range(book.tables[task].n_points):
        one = alone(book, row, 9.0)
        one = replace(one, tables={task: point_alone(one.tables[task], point)})
        if not (one.tables[task].node >= 0).all():
            continue
        (fate,) = attempt(one, POLICIES["engine"], Settings(), NOTHING).result.fates
        soonest = min(soonest, fate.latency_s[0]) if fate.latency_s else soonest
    assert hindsight.bound(alone(book, row, soonest + 1e-6)) == pytest.approx(book.offers[row][1].weight)
    assert hindsight.bound(alone(book, row, soonest * 0.99)) == 0.0


def point_alone(table: PointTable, point: int) -> PointTable:
    """The table with this point only."""
    columns = ("split", "precision_bits", "node", "quality", "fixed_s", "device_s", "ul_bits", "node_s", "node_bytes")
    optional = ("step_s", "device_bytes", "alone_s")
    kept = {name: getattr(table, name)[[point]] for name in (*columns, "device_energy_j")}
    kept |= {name: getattr(table, name)[[point]] for name in optional if getattr(table, name) is not None}
    return replace(table, point_ids=(table.point_ids[point],), **kept)
