"""Choosing a token from logits: the most probable one, or a seeded draw that depends on nothing but its position."""

from __future__ import annotations

from typing import Annotated

import msgspec
import torch

from cosched.runtime.errors import BadFrame


class Sampling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """temperature 0: greedy. A draw is made by (seed, position), so it is the same on whatever machine makes it."""

    temperature: Annotated[float, msgspec.Meta(ge=0, le=100)] = 0.0
    top_k: Annotated[int, msgspec.Meta(ge=0, le=1 << 24)] = 0  # draw among so many; 0: all
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
    generator = torch.Generator().manual_seed((sampling.seed << 32) | position)
    return int(torch.multinomial(values.softmax(0), 1, generator=generator))
