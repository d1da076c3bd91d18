"""Parts of a model against transformers' whole one, to the last bit; what is read, what is held, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the extra [llm] is not installed")

import runtime_cases as cases

CUTS = [*[(k,) for k in range(1, cases.LAYERS)], *[(j, k) for j in range(1, cases.LAYERS) for k in range(j + 1, 6)]]


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_every_split_in_two_and_three_parts_gives_the_last_bit(family: str, tmp_path: Path) -> None:
    source = cases.seeded(tmp_path, family)
    expected = cases.reference_steps(source, 5)
    for cut in [(), *CUTS]:
        found = cases.split_steps(source, cut, 5)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), cut


def test_the_model_is_alive(tmp_path: Path) -> None:
    """A seeded model whose answer did not depend on its input would prove nothing."""
    tokens = cases.reference_tokens(tmp_path, "llama", 50)
    assert len(set(tokens)) > 25
