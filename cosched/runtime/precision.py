"""What activation precision does to a model's answers, per split layer: the codec in place, nothing on a wire.

Logits are compared given the same true past, so that errors do not add up; the tokens of a free run are compared too,
where one token that differs changes all that follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from cosched.runtime import activation
from cosched.runtime.kv import KvCache
from cosched.runtime.model import ModelSource
from cosched.runtime.parts import Part

Through = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Deviation:
    """A split and precision against the unsplit model, over the tokens of its greedy answer."""

    split: int
    bits: int
    logit_error: tuple[float, ...]  # |logits - true logits| / |true logits| (2-norms), a token each, true past
    same_next: int  # tokens of the answer that are still the most probable ones, true past
    same_run: int  # tokens before the first that differs when it goes its own way


def deviations(
    source: ModelSource, prompt: Sequence[int], n_tokens: int, splits: Sequence[int], bits: Sequence[int]
) -> Iterator[Deviation]:
    """Yield one for each split and precision; fp32, `n_tokens` greedy tokens."""
    part = Part(source)
    part.load(0, source.n_layers)
    truth = [logits for logits, _ in _answer(part, prompt, n_tokens, None, 0, None)]
    answer = [int(logits.argmax()) for logits in truth]
    for split in splits:
        for width in bits:
            through = _codec(part, width)
            seen = [logits for logits, _ in _answer(part, prompt, n_tokens, answer, split, through)]
            errors = [float((a - b).norm() / b.norm()) for a, b in zip(seen, truth, strict=True)]
            same = sum(int(logits.argmax()) == token for logits, token in zip(seen, answer, strict=True))
            yield Deviation(split, width, tuple(errors), same, _run(part, prompt, answer, split, through))


def _codec(part: Part, bits: int) -> Through:
    def through(hidden: torch.Tensor) -> torch.Tensor:
        frame = activation.encode(hidden, bits)
        return activation.decode(frame, part.source.sizes.hidden, part.dtype, part.device)

    return through


def _answer(
    part: Part, prompt: Sequence[int], n_tokens: int, given: Sequence[int] | None, split: int, through: Through | None
) -> Iterator[tuple[torch.Tensor, int]]:
    """Yield logits (vocab,) and the most probable token, `n_tokens` times. given: what follows instead of it."""
    lower, upper, step = KvCache(), KvCache(), list(prompt)
    for i in range(n_tokens):
        hidden = part.run(part.embed(step), lower, 0, split)
        hidden = part.run(hidden if through is None else through(hidden), upper, split, part.source.n_layers)
        logits = part.logits(hidden[:, -1:])[0, -1]
        token = int(logits.argmax())
        yield logits, token
        step = [token if given is None else given[i]]


def _run(part: Part, prompt: Sequence[int], answer: Sequence[int], split: int, through: Through) -> int:
    free = _answer(part, prompt, len(answer), None, split, through)
    for i, ((_, token), true) in enumerate(zip(free, answer, strict=True)):
        if token != true:
            return i
    return len(answer)
