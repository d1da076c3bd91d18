"""The tokens of the model in one piece: the same seed and roundings, no network, no second process, no move of KV."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Final, NamedTuple

from cosched.runtime import activation
from cosched.runtime.generation import CHUNK_TOKENS
from cosched.runtime.kv import KvCache
from cosched.runtime.parts import Part
from cosched.runtime.sampling import Sampling, choose

UNROUNDED: Final = 0


class ReferenceStep(NamedTuple):
    """How a token came about: the layer whose output was sent, in how many bits, and whether all KV was made anew."""

    split: int
    bits: int
    anew: bool


def tokens(part: Part, prompt: Sequence[int], steps: Sequence[ReferenceStep]) -> list[int]:
    """Return the greedy tokens. part: all layers; bits UNROUNDED: nothing is rounded at the split."""
    known, done = list(prompt), 0
    lower, upper = KvCache(), KvCache()
    for step in steps:
        if step.anew:
            lower, upper, done = KvCache(), KvCache(), 0
        lower, upper = _cut(lower, upper, step.split, part.source.n_layers)
        pending = known[done:]
        for start in range(0, len(pending), CHUNK_TOKENS):
            chunk = pending[start : start + CHUNK_TOKENS]
            hidden = part.run(part.embed(chunk), lower, 0, step.split)
            if step.bits != UNROUNDED:
                frame = activation.encode(hidden, step.bits)
                hidden = activation.decode(frame, part.source.sizes.hidden, part.dtype, part.device)
            hidden = part.run(hidden, upper, step.split, part.source.n_layers)
        done += len(pending)
        known.append(choose(part.logits(hidden[:, -1:])[0, -1], Sampling(), done))
    return known[len(prompt) :]


def _cut(lower: KvCache, upper: KvCache, split: int, n_layers: int) -> tuple[KvCache, KvCache]:
    """Share the layers' caches out anew, below and above a split."""
    whole, parts = KvCache(), (KvCache(), KvCache())
    for cache in (lower, upper):
        whole.adopt(cache, cache.layers)
    if whole.layers:
        parts[0].adopt(whole, range(split))
        parts[1].adopt(whole, range(split, n_layers))
    return parts


def equal_from_start(found: Sequence[int], expected: Sequence[int]) -> int:
    """How many tokens are equal before the first that is not."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(found, expected, strict=False)))
