"""Choosing a token from logits: the most probable one, or a seeded draw that depends on nothing but its position."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
import torch

from cosched.runtime.errors import BadFrame

MASK: Final = (1 << 64) - 1


class Sampling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """temperature 0: greedy. A draw is made by (seed, position), so it is the same on whatever machine makes it."""

    temperature: Annotated[float, msgspec.Meta(ge=0, le=100)] = 0.0
    top_k: Annotated[int, msgspec.Meta(ge=0, le=1 << 24)] = 0  # draw among so many; 0: all
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0  # among the most probable that have this much together
    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**31)] = 0


def choose(logits: torch.Tensor, sampling: Sampling, position: int) -> int:
    """Return the token that follows. logits: (vocab,); position: that of the chosen token in the sequence.

    Any temperature will do: what overflows is what is never drawn. Raises BadFrame: logits that are not finite.
    """
    if not bool(torch.isfinite(logits).all()):
        raise BadFrame("the logits are not finite: nothing can be chosen from them")
    if sampling.temperature == 0:
        return int(logits.argmax())
    values = logits.double().cpu()
    values = (values - values.max()) / sampling.temperature  # 64 bits hold the difference of any two of 32
    if 0 < sampling.top_k < len(values):
        values = values.masked_fill(values < values.topk(sampling.top_k).values[-1], -torch.inf)
    chances = values.softmax(0)
    if sampling.top_p < 1:
        chances = _nucleus(chances, sampling.top_p)
    generator = torch.Generator().manual_seed(_mixed(sampling.seed, position))
    return int(torch.multinomial(chances, 1, generator=generator))


def _mixed(seed: int, position: int) -> int:
    """32 bits that depend on all of both: torch's generator on the CPU takes no more of a seed (splitmix64's mixer)."""
    word = ((seed << 32) ^ position) & MASK
    for multiplier in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB):
        word = ((word ^ (word >> 30)) * multiplier) & MASK
    return (word ^ (word >> 31)) >> 32


def _nucleus(chances: torch.Tensor, top_p: float) -> torch.Tensor:
    """(vocab,) chances, 0 beyond the fewest that have `top_p` together; the most probable always stays."""
    ordered, where = chances.sort(descending=True, stable=True)
    beyond = ordered.cumsum(0) - ordered >= top_p
    return chances.index_fill(0, where[beyond], 0.0)
