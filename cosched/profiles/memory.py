"""Sequences that wait because a server's KV memory is full: in how many goes a batch is served, and how large each is.

With M bytes of memory on all ranks, W of weights, and s_kv bytes of KV cache a token, a server has room for

    vLLM           R = f M - W             f of the whole card, weights and KV cache together
    TensorRT-LLM   R = f (M - W - A)       f of what weights and workspace leave
                   A = 2 e batch x prompt x (ffn + tp hidden / 2)   gate, up and hidden states of the greatest prefill

A batch of B sequences of n prompt and m output tokens fits where B s_kv (n + m) <= R. Else sequences wait:

    reserved   floor(R / (s_kv (n + m))) run at a time, each to its end; then the next ones: whole goes and a rest
    paged      as many as fill the room, R / (s_kv (n + m / 2)) at a mean; one that ends lets another in: B over that

The time of a run is that of its goes, one after the other. What an evicted sequence computes twice is left out.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from cosched.profiles import latency
from cosched.profiles.device import Device, KvMemory
from cosched.profiles.model import Model

EVEN: Final = 1e-9  # a rest below this is rounding


class Go(NamedTuple):
    """`times` runs, one after the other, of `sequences` sequences side by side. Neither need be whole where paged."""

    times: float
    sequences: float


class Lengths(NamedTuple):
    """Tokens of each sequence of a batch."""

    prompt: float
    output: float


def goes(
    model: Model,
    device: Device,
    memory: KvMemory | None,
    lengths: Lengths,
    batch: float,
    weight_bits: int,
    *,
    tp: int = 1,
) -> tuple[Go, ...]:
    """Return how a batch is served: at once where it fits, or where nothing is known of the server's memory.

    One sequence runs whatever the room, which is an estimate, says.
    """
    if memory is None:
        return (Go(1.0, batch),)
    room = kv_room_bytes(model, device, memory, batch * lengths.prompt, weight_bits, tp=tp)
    token = model.n_layers * model.kv_bytes_per_token_layer()
    longest = token * (lengths.prompt + lengths.output)
    if batch * longest <= room:
        return (Go(1.0, batch),)
    if memory.reserved:
        at_once = max(1.0, float(room // longest))
        whole, rest = divmod(batch, at_once)
        return (Go(whole, at_once), Go(1.0, rest)) if rest > EVEN else (Go(whole, at_once),)
    at_once = min(batch, max(1.0, room / (token * (lengths.prompt + lengths.output / 2))))
    return (Go(batch / at_once, at_once),)


def kv_room_bytes(
    model: Model, device: Device, memory: KvMemory, prefill_tokens: float, weight_bits: int, *, tp: int = 1
) -> float:
    """Bytes that are left for KV caches on all ranks together, negative where not even the weights fit.

    `prefill_tokens` are those that the server's greatest prefill has at once.
    """
    total = device.memory_bytes * tp
    weights = model.weight_bytes(weight_bits, device.weight_format)
    if not memory.of_rest:
        return memory.fraction * total - weights
    return memory.fraction * (total - weights - workspace_bytes(model, prefill_tokens, tp=tp))


def workspace_bytes(model: Model, tokens: float, *, tp: int = 1) -> float:
    """Bytes of the widest activations of a prefill: gate and up, sharded, and the hidden states, on each rank."""
    widest = (2 if model.gated else 1) * model.ffn + tp * model.hidden
    return latency.ELEMENT_BYTES * tokens * widest
