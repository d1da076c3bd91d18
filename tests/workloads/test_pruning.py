"""Pruning against brute force, and against the best value at random prices."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from workload_cases import CLIP, SESSION, offer, shipped

from cosched.workloads import llm, video
from cosched.workloads.base import LOCAL, Floats, PointTable
from cosched.workloads.pruning import holds_deadlines, local_feasible, prune, take, undominated

URBAN = shipped("urban-llm")


def table_of(columns: Floats, node: list[int], deadline_s: tuple[float, float] = (np.inf, np.inf)) -> PointTable:
    """Build a table from (J, 12) columns: quality, node_bytes, then fixed, bits, node s, energy, step s, two each."""
    n = len(columns)
    return PointTable(
        point_ids=tuple(f"p{j}" for j in range(n)),
        split=np.arange(n),
        precision_bits=np.zeros(n, dtype=np.int64),
        node=np.array(node, dtype=np.int64),
        quality=columns[:, 0],
        node_bytes=columns[:, 1],
        fixed_s=columns[:, 2:4],
        device_s=columns[:, 2:4],
        ul_bits=columns[:, 4:6],
        node_s=columns[:, 6:8],
        device_energy_j=columns[:, 8:10],
        deadline_s=np.array(deadline_s),
        rate_hz=np.ones(2),
        step_s=columns[:, 10:12],
    )


def dominated_by_hand(table: PointTable, a: int, b: int) -> bool:
    """Whether a makes b needless: same node, no worse in anything, and better in something or earlier."""
    if table.node[a] != table.node[b] or a == b:
        return False
    columns = (table.fixed_s, table.ul_bits, table.node_s, table.device_energy_j, table.steps)
    pairs = [(x, y) for c in columns for x, y in zip(c[a], c[b], strict=True)]
    pairs += [(-table.quality[a], -table.quality[b]), (table.node_bytes[a], table.node_bytes[b])]
    no_worse = all(x <= y for x, y in pairs)
    return no_worse and (a < b or any(x < y for x, y in pairs))


@given(st.integers(0, 25), st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_exactly_the_dominated_points_go(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    columns = rng.integers(0, 3, (n, 12)).astype(float)
    columns[:, 3:] = columns[:, 3:] * rng.integers(0, 2, 9)  # some columns equal throughout: more domination, more ties
    table = table_of(columns, rng.integers(-1, 2, n).tolist())
    expected = [not any(dominated_by_hand(table, a, b) for a in range(n)) for b in range(n)]
    assert undominated(table).tolist() == expected


def test_of_equal_points_the_first_stays_and_nodes_do_not_compete() -> None:
    table = table_of(np.ones((4, 12)), [0, 0, 1, LOCAL])
    assert prune(table).point_ids == ("p0", "p2", "p3")


def test_late_points_go_and_a_point_at_its_deadline_stays() -> None:
    columns = np.zeros((3, 12))
    columns[:, 2] = (0.9, 1.0, 1.1)
    columns[:, 4] = (3.0, 2.0, 1.0)
    table = table_of(columns, [0, 0, 0], (1.0, np.inf))
    assert holds_deadlines(table).tolist() == [True, True, False]
    assert prune(table).point_ids == ("p0", "p1")


def test_a_token_waits_at_least_for_a_step_of_its_own() -> None:
    columns = np.zeros((3, 12))
    columns[:, 3] = 0.5
    columns[:, 10] = (0.3, 0.25, 0.0)
    columns[:, 11] = (0.3, 0.25, 0.6)
    columns[:, 4] = (3.0, 2.0, 1.0)
    table = table_of(columns, [0, 0, 0], (np.inf, 1.0))
    assert holds_deadlines(table).tolist() == [False, True, False]
    assert prune(table).point_ids == ("p1",)


def test_local_feasible_needs_a_local_point_in_time() -> None:
    columns = np.zeros((2, 12))
    columns[1, 2] = 2.0
    assert not local_feasible(table_of(columns, [0, LOCAL], (1.0, np.inf)))
    assert local_feasible(table_of(columns, [0, LOCAL], (2.0, np.inf)))
    assert not local_feasible(take(table_of(columns, [0, LOCAL]), np.array([0])))


def best_value(table: PointTable, prices: Floats, bits_per_s: float, weight: float, step_s: float) -> float:
    """Greatest of weight x quality - cost over the points, 0 when none is worth it; docs/model.md, sections 2 and 3.

    Nodes serve in steps of `step_s`. What a lone decoder shares is his to pay, by the part of the time that it takes,
    and so is what he adds, by his rate.

    prices: (nodes + 1, 3) of uplink, node and node memory share. Cost of both phases: the greatest over theta of
    (sum_r sqrt(lambda_r (theta a_1r / tau_1 + (1 - theta) a_2r / tau_2)))^2; mean use is priced on top.
    """
    best = 0.0
    theta = np.linspace(0, 1, 21)
    for j in range(table.n_points):
        shared_s, own_s = table.steps[j]
        tau = table.deadline_s - table.fixed_s[j] - np.array([0.0, step_s if own_s else 0.0])
        if (tau <= 0).any() or shared_s + own_s > step_s:
            continue
        price = prices[table.node[j]] if table.node[j] != LOCAL else np.zeros(3)
        work = np.stack([table.ul_bits[j] / bits_per_s, table.node_s[j]])  # (resource, phase)
        need = work / tau
        mixed = np.outer(need[:, 0], theta) + np.outer(need[:, 1], 1 - theta)
        cost = (np.sqrt(price[:2, None] * mixed).sum(0) ** 2).max()
        cost += (price[:2] * (work * table.rate_hz).max(1)).sum() + price[2] * table.node_bytes[j] / 1e10
        cost += price[1] * (shared_s / step_s + own_s * table.rate_hz[1]) if own_s else 0.0
        best = max(best, weight * float(table.quality[j]) - float(cost))
    return best


@given(st.integers(0, 2**32 - 1), st.integers(0, 2), st.booleans())
@settings(max_examples=40, deadline=None)
def test_pruning_keeps_the_best_value_at_any_prices(seed: int, share: int, private: bool) -> None:
    rng = np.random.default_rng(seed)
    context = URBAN.context_of(share, 0)
    session = msgspec.structs.replace(
        SESSION,
        private=private,
        new_tokens=int(rng.integers(16, 512)),
        ttft_s=float(rng.uniform(0.3, 3)),
        tpot_s=float(rng.uniform(0.03, 0.3)),
    )
    clip = msgspec.structs.replace(CLIP, private=private, deadline_s=float(rng.uniform(0.05, 0.5)))
    prices = 10.0 ** rng.uniform(-3, 2, (3, 3))
    bits_per_s, weight = 10.0 ** rng.uniform(5, 8), float(rng.uniform(0.5, 5))
    for all_points, work in ((llm.all_points, session), (video.all_points, clip)):
        table = all_points(offer(work), context)
        step_s = float(rng.uniform(0.005, 0.1))
        whole, pruned = (best_value(t, prices, bits_per_s, weight, step_s) for t in (table, prune(table)))
        assert pruned == pytest.approx(whole, rel=1e-12, abs=1e-12)


def test_shipped_tables_are_undominated_and_of_a_size_that_solvers_like() -> None:
    for share in range(3):
        table = llm.points(offer(SESSION), URBAN.context_of(share, 0))
        assert undominated(table).all()
        assert 5 <= table.n_points <= 300
