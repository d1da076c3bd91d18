"""What sessions are held against that run together at a host: each one alone, and transformers' own batched step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from cosched.runtime import activation
from cosched.runtime.engine import token_frame
from cosched.runtime.kv import KvCache
from cosched.runtime.model import ModelSource
from cosched.runtime.parts import Part


@dataclass(frozen=True)
class SessionScript:
    """What one session sends: frames of its prompt and of each token, and the logits (T, vocab) that follow alone."""

    start: int
    prompt: bytes
    frames: list[bytes]
    logits: torch.Tensor


def scripts_of(
    source: ModelSource, splits: Sequence[int], sessions: int, n_prompt: int, n_tokens: int
) -> list[SessionScript]:
    """Run so many sessions alone, greedily, and write down what crosses each one's split: `splits` in turn."""
    part, found = Part(source), []
    part.load(0, source.n_layers)
    for i in range(sessions):
        split, below, above = splits[i % len(splits)], KvCache(), KvCache()
        tokens = [(101 * i + 31 * j * j + 7 * j) % source.sizes.vocab for j in range(n_prompt)]
        frames, logits = list[bytes](), list[torch.Tensor]()
        for _ in range(n_tokens + 1):
            hidden = part.run(part.embed(tokens), below, 0, split) if split else part.embed(tokens)
            frames.append(activation.encode(hidden, 32) if split else token_frame(tokens))
            logits.append(part.logits(part.run(hidden, above, split, source.n_layers)[:, -1:])[0, -1])
            tokens = [int(logits[-1].argmax())]
        found.append(SessionScript(split, frames[0], frames[1:], torch.stack(logits[1:])))
    return found


class BatchedSteps:
    """transformers' own model with the same weights, decoding sequences of equal length as one batch."""

    def __init__(self, source: ModelSource) -> None:
        self._source = source
        self._model: Any = AutoModelForCausalLM.from_config(source.config, dtype=torch.float32).eval()
        shapes = {name: tuple(tensor.shape) for name, tensor in self._model.state_dict().items()}
        if source.sizes.tied:
            del shapes["lm_head.weight"]
        self._model.load_state_dict(source.weights.read(shapes), strict=False)
        self._model.tie_weights()

    def step_s(self, n: int, context: int) -> float:
        """Median seconds of a step of n sequences of `context` tokens each."""
        sizes, past = self._source.sizes, DynamicCache(config=self._source.config)
        for layer in range(sizes.n_layers):
            seen = torch.randn(2, n, sizes.kv_heads, context, sizes.head_dim)
            past.update(seen[0], seen[1], layer)
        tokens, took = torch.zeros(n, 1, dtype=torch.int64), []
        with torch.inference_mode():
            for _ in range(8):
                began = time.perf_counter()
                out = self._model(tokens, past_key_values=past, use_cache=True)
                tokens = out.logits[:, -1].argmax(-1, keepdim=True)
                took.append(time.perf_counter() - began)
        return statistics.median(took[2:])


@dataclass(frozen=True)
class Agreement:
    """Of tokens given the true past: the share chosen as alone, and how far logits are apart at most.

    beyond: tokens chosen otherwise though alone the two were further apart than rounding explains.
    """

    share: float
    difference: float
    beyond: int


def agreement(
    scripts: Sequence[SessionScript], chosen: Sequence[Sequence[int]], logits: Sequence[Sequence[bytes]]
) -> Agreement:
    """Hold tokens that sessions were answered, and frames of their logits (fp32), against each alone."""
    same = beyond = count = 0
    greatest = 0.0
    for script, tokens, frames in zip(scripts, chosen, logits, strict=True):
        found = torch.stack([torch.frombuffer(bytearray(frame), dtype=torch.float32) for frame in frames])
        apart = (found - script.logits).abs().amax(dim=1)
        greatest = max(greatest, float(apart.max()))
        for t, token in enumerate(tokens):
            alone, count = script.logits[t], count + 1
            same += token == int(alone.argmax())
            beyond += float(alone.max() - alone[token]) > 2 * float(apart[t])
    return Agreement(same / count, greatest, beyond)
