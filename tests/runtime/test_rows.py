"""Several sessions in one forward: each is what it would be alone, but for the last bits."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the extra [llm] is not installed")

import runtime_cases as cases

from cosched.runtime.kv import KvCache
from cosched.runtime.parts import Part
from cosched.runtime.rows import SessionRows, run_rows

L = cases.LAYERS


def alone(part: Part, tokens: list[int], sizes: list[int], start: int, cache: KvCache) -> list[torch.Tensor]:
    """Hidden states (n, hidden) out of the last layer after each of steps of `sizes` tokens, one session by itself."""
    found, at, below = [], 0, KvCache()
    for size in sizes:
        hidden = part.embed(tokens[at : at + size])
        hidden = part.run(hidden, below, 0, start)
        found.append(part.run(hidden, cache, start, L)[0])
        at += size
    return found


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_rows_of_mixed_splits_and_lengths_are_as_alone(tmp_path: Path, family: str) -> None:
    """Three decoders at different lengths, a prefill in two chunks, splits 0, 2, 2 and 5: four steps together."""
    part = Part(cases.seeded(tmp_path, family))
    part.load(0, L)
    plans = [(0, [5, 1, 1, 1]), (2, [17, 1, 1, 1]), (2, [30, 9, 7, 1]), (5, [1, 1, 1, 1])]
    caches, wanted, below, cache_alone = [], [], [KvCache() for _ in plans], [KvCache() for _ in plans]
    prompts = [[(n + 1) * (31 * i + 7) % cases.VOCAB for i in range(60)] for n in range(len(plans))]
    for (start, sizes), prompt, cache in zip(plans, prompts, cache_alone, strict=True):
        wanted.append(alone(part, prompt, sizes, start, cache))
        caches.append(KvCache())
    at = [0] * len(plans)
    for step in range(4):
        batch = []
        for i, (start, sizes) in enumerate(plans):
            tokens = prompts[i][at[i] : at[i] + sizes[step]]
            at[i] += sizes[step]
            hidden = part.run(part.embed(tokens), below[i], 0, start)
            batch.append(SessionRows(hidden[0], caches[i], start, L))
        run_rows(part, batch)
        for i, rows in enumerate(batch):
            torch.testing.assert_close(rows.hidden, wanted[i][step], rtol=2e-4, atol=2e-5)
    for i, (start, _) in enumerate(plans):
        assert caches[i].layers == list(range(start, L))
        for layer in caches[i].layers:
            assert caches[i].tokens(layer) == at[i] == cache_alone[i].tokens(layer)


def test_layers_of_different_ends_share_what_they_share(tmp_path: Path) -> None:
    part = Part(cases.seeded(tmp_path))
    part.load(0, L)
    spans = [(0, 3), (2, L), (4, 5), (0, L)]
    given = [torch.randn(2, cases.HIDDEN, generator=torch.Generator().manual_seed(i)) for i in range(len(spans))]
    batch = [SessionRows(x, KvCache(), *span) for x, span in zip(given, spans, strict=True)]
    run_rows(part, batch)
    for rows, x, (start, stop) in zip(batch, given, spans, strict=True):
        torch.testing.assert_close(rows.hidden, part.run(x[None], KvCache(), start, stop)[0], rtol=2e-4, atol=2e-5)


def test_a_row_that_is_not_finite_stays_by_itself(tmp_path: Path) -> None:
    part = Part(cases.seeded(tmp_path))
    part.load(0, L)
    bad, good = torch.full((1, cases.HIDDEN), float("nan")), torch.ones(1, cases.HIDDEN)
    batch = [SessionRows(good, KvCache(), 0, L), SessionRows(bad, KvCache(), 0, L)]
    run_rows(part, batch)
    assert torch.isfinite(batch[0].hidden).all()
    assert not torch.isfinite(batch[1].hidden).any()
