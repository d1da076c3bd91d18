"""Draws: what top-k and top-p leave, how often each token comes, what a seed repeats."""

from __future__ import annotations

from collections import Counter

import pytest

torch = pytest.importorskip("torch", reason="the extra [llm] is not installed")

from cosched.runtime.sampling import Sampling, choose

LOGITS = torch.tensor([0.0, 3.0, 1.0, 2.0, -1.0])


def drawn(n: int = 4000, **how: float) -> Counter[int]:
    return Counter(choose(LOGITS, Sampling(seed=seed, **how), 7) for seed in range(n))  # type: ignore[arg-type]


def test_draws_are_as_frequent_as_probable():
    counts, chances = drawn(temperature=1.0), LOGITS.double().softmax(0)
    for token in range(5):
        assert counts[token] / 4000 == pytest.approx(float(chances[token]), abs=0.03)


def test_a_draw_depends_on_seed_and_position():
    same = {choose(LOGITS, Sampling(temperature=1.0, seed=5), 9) for _ in range(5)}
    assert len(same) == 1
    assert len({choose(LOGITS, Sampling(temperature=1.0, seed=seed), 9) for seed in range(50)}) > 2
    assert len({choose(LOGITS, Sampling(temperature=1.0, seed=5), at) for at in range(50)}) > 2


def test_top_k_leaves_the_k_most_probable():
    assert set(drawn(500, temperature=5.0, top_k=2)) == {1, 3}


@pytest.mark.parametrize(
    ("top_p", "left"), [(1e-9, {1}), (0.6, {1}), (0.7, {1, 3}), (0.9, {1, 3, 2}), (1.0, {0, 1, 2, 3, 4})]
)
def test_top_p_leaves_the_fewest_that_have_so_much(top_p: float, left: set[int]):
    """Chances of the five: 0.636, 0.234, 0.086, 0.032, 0.012."""
    assert set(drawn(1500, temperature=1.0, top_p=top_p)) == left


def test_equal_logits_leave_as_many_as_are_needed():
    flat = torch.zeros(10)
    found = {choose(flat, Sampling(temperature=1.0, top_p=0.25, seed=seed), 1) for seed in range(200)}
    assert len(found) == 3
