"""How long a layer takes: pure functions of a Model, a Device and token counts. Times in seconds.

Kind "gpu", operator by operator (M new tokens, e = 2 bytes per activation element, w bytes per weight):

    GEMM M x K by K x N    hypot((e M K + w K N + e M N) / (eff_m BW), 2 M N K / (eff_c PEAK)) + t_gemm
    elementwise            e M elements / (eff_e BW) + t_elem
    prefill attention      4 Hq d n (context + n) / (eff_a PEAK) + t_attn     (no causal half is skipped)
    decode attention       batch context 2 Hkv d e / (eff_kv BW) + t_attn
    tensor parallel        2 (latency + 2 (tp - 1) / tp M h e / link) per layer; widths are sharded

Kind "llamacpp": the four GEMMs of a layer are one (their weights are read once, computing hides behind the reading
or the other way round), plus attention, plus one overhead per layer.

`fraction` is a slice of a device: it scales peak and bandwidth, not overheads. Token counts may be arrays.
"""

from __future__ import annotations

from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from cosched.errors import BadInput
from cosched.profiles import quant
from cosched.profiles.device import Device, Host
from cosched.profiles.model import Model

Floats = npt.NDArray[np.float64]
T = TypeVar("T", float, Floats)

ELEMENT_BYTES: Final = 2  # activations and KV cache in 16 bit
GEMMS: Final = 4  # qkv, output, gate and up, down
GPU_EMBED_ROWS: Final = 6  # rows moved per token: Vidur's `emb` took as long as 3.2 (A40) to 7 (A100) streamed rows


def prefill_layer_s(
    model: Model,
    device: Device,
    new_tokens: T,
    context_tokens: T,
    weight_bits: int,
    *,
    fraction: float = 1.0,
    tp: int = 1,
) -> T:
    """Time of one layer for one sequence's `new_tokens` after `context_tokens` that are in the KV cache already."""
    linear = linear_layer_s(model, device, new_tokens, weight_bits, fraction=fraction, tp=tp)
    return linear + prefill_attention_s(model, device, new_tokens, context_tokens, fraction=fraction, tp=tp)


def decode_layer_s(
    model: Model,
    device: Device,
    context_tokens: T,
    weight_bits: int,
    batch: T | int = 1,
    *,
    fraction: float = 1.0,
    tp: int = 1,
) -> T:
    """Time of one layer for one new token of each of `batch` sequences, each with `context_tokens` in its cache."""
    linear = linear_layer_s(model, device, 0 * context_tokens + batch, weight_bits, fraction=fraction, tp=tp)
    return linear + decode_attention_s(model, device, context_tokens, batch, fraction=fraction, tp=tp)


def linear_layer_s(
    model: Model, device: Device, tokens: T, weight_bits: int, *, fraction: float = 1.0, tp: int = 1
) -> T:
    """Time of a layer but for its attention kernels, for `tokens` tokens of any number of sequences."""
    reduce_s = all_reduce_s(model, device, tokens, tp)
    if device.kind == "llamacpp":
        weights = _matrix_bytes(model, device, weight_bits) / tp
        work = _roofline_s(device, weights + 0 * tokens, model.flop_per_token_layer / tp * tokens, fraction)
        return work + device.layer_overhead_s + reduce_s
    bytes_per_weight = quant.weight_bits(weight_bits, device.weight_format) / 8
    total = reduce_s
    for K, N in gemm_shapes(model, tp):
        total = total + gemm_s(device, tokens, K, N, K * N * bytes_per_weight, fraction=fraction)
    for elements in elementwise_elements(model, tp):
        total = total + streamed_s(device, elements * tokens, fraction)
    return total


def prefill_attention_s(
    model: Model, device: Device, new_tokens: T, context_tokens: T, *, fraction: float = 1.0, tp: int = 1
) -> T:
    """Time of one layer's attention kernel for one sequence's `new_tokens` after `context_tokens`."""
    attended = model.attended_tokens(context_tokens + new_tokens)
    flop = model.attention_flop_slope / tp * new_tokens * attended
    return flop / (device.attention_efficiency * device.peak_flop_s * fraction) + device.attention_prefill_overhead_s


def decode_attention_s(
    model: Model, device: Device, context_tokens: T, batch: T | int = 1, *, fraction: float = 1.0, tp: int = 1
) -> T:
    """Time of one layer's attention kernel for one new token of each of `batch` sequences."""
    return batch * _kv_read_s(model, device, context_tokens, fraction, tp) + device.attention_decode_overhead_s


def decode_weight_read_s(
    model: Model, device: Device, weight_bits: int, fraction: float = 1.0, *, tp: int = 1
) -> float:
    """Part of a layer's decode step that the batch shares: weights read once, and every overhead."""
    matrices = _matrix_bytes(model, device, weight_bits) / tp
    weights = matrices / (device.memory_efficiency * device.mem_bw_bytes_s * fraction)
    alone = weights + _overheads_s(model, device) + device.attention_decode_overhead_s
    return alone + all_reduce_s(model, device, 0.0, tp)


def decode_sequence_s(model: Model, device: Device, context_tokens: T, fraction: float = 1.0, *, tp: int = 1) -> T:
    """Part of a layer's decode step that each sequence adds: its arithmetic, its activations, its KV cache read.

    decode_weight_read_s + batch x decode_sequence_s bounds decode_layer_s from above: the hypot of reading and
    computing is at most their sum. With `tp` ranks for as long as each of them has a KV head.
    """
    compute = model.flop_per_token_layer / tp / (device.compute_efficiency * device.peak_flop_s * fraction)
    traffic = _gemm_activation_elements(model, tp) * ELEMENT_BYTES
    moved = traffic / (device.memory_efficiency * device.mem_bw_bytes_s * fraction) if device.kind == "gpu" else 0.0
    small = _elementwise_slope_s(model, device, fraction, tp)
    sent = all_reduce_s(model, device, 1.0, tp) - all_reduce_s(model, device, 0.0, tp)
    return compute + moved + small + sent + _kv_read_s(model, device, context_tokens, fraction, tp)


def head_s(
    model: Model, device: Device, weight_bits: int, batch: float = 1, fraction: float = 1.0, *, tp: int = 1
) -> float:
    """Time of final norm and output head for the last token of each of `batch` sequences."""
    weights = model.head_weight_bytes(weight_bits, device.weight_format) / tp
    moved = ELEMENT_BYTES * batch * (model.hidden + model.vocab / tp) if device.kind == "gpu" else 0.0
    flop = model.head_flop_per_token * batch / tp
    norm = streamed_s(device, 2 * model.hidden * batch, fraction) if device.kind == "gpu" else 0.0
    return _roofline_s(device, weights + moved, flop, fraction) + device.gemm_overhead_s + norm


def embed_s(model: Model, device: Device, tokens: T, fraction: float = 1.0) -> T:
    """Time to look up the embeddings of `tokens` tokens, once per model."""
    rows = GPU_EMBED_ROWS if device.kind == "gpu" else 2
    return streamed_s(device, rows * model.hidden * tokens, fraction)


def served_step_s(gpu_s: T, host: Host, n_layers: T | float, batch: T | float = 1, prompt_tokens: T | float = 0) -> T:
    """Time of a step as a server delivers it: the GPU's own `gpu_s` and the host's launch floor overlap.

    (G^4 + H^4)^(1/4) is close to the larger of the two; the terms per sequence and per prompt token do not overlap.
    """
    floor_s = n_layers * host.layer_s
    overlapped: T = (gpu_s**4 + floor_s**4) ** 0.25
    return overlapped + host.sequence_s * batch + host.prompt_token_s * prompt_tokens


def all_reduce_s(model: Model, device: Device, tokens: T, tp: int) -> T:
    """Time of a layer's two all-reduces over `tp` ranks. Raises BadInput where the device has no link."""
    if tp == 1:
        return 0.0 * tokens
    if device.link_bytes_s is None:
        raise BadInput(f"{device.key}: tp = {tp}: this device profile has no [link] between ranks")
    moved = 2 * (tp - 1) / tp * model.hidden * ELEMENT_BYTES * tokens
    return 2 * (device.link_latency_s + moved / device.link_bytes_s)


def gemm_shapes(model: Model, tp: int = 1) -> tuple[tuple[float, float], ...]:
    """Return (K, N) of a layer's GEMMs on one rank: qkv, output, gate and up, down."""
    q_width, ffn = model.q_width / tp, model.ffn / tp
    kv_width = max(model.kv_heads / tp, 1.0) * model.head_dim
    up = 2 * ffn if model.gated else ffn
    return ((model.hidden, q_width + 2 * kv_width), (q_width, model.hidden), (model.hidden, up), (ffn, model.hidden))


def elementwise_elements(model: Model, tp: int = 1) -> tuple[float, ...]:
    """Elements read and written per token by a layer's small operators: each norm, rope, activation, add."""
    heads = model.q_width / tp + max(model.kv_heads / tp, 1.0) * model.head_dim
    activation = (3 if model.gated else 2) * model.ffn / tp
    return (*[2.0 * model.hidden] * model.norms, 2.0 * heads, activation, 3.0 * model.hidden)


def gemm_s(device: Device, M: T, K: T | float, N: T | float, weight_bytes: T | float, *, fraction: float = 1.0) -> T:
    """Time of one GEMM, M x K by K x N; `weight_bytes` is the size of the K x N matrix as stored."""
    moved = ELEMENT_BYTES * M * (K + N) + weight_bytes
    return _roofline_s(device, moved, 2 * K * N * M, fraction) + device.gemm_overhead_s


def _roofline_s(device: Device, moved_bytes: T, flop: T, fraction: float) -> T:
    """Smooth maximum of reading and computing: hypot, which fitted better than max (docs/profiles.md)."""
    reading = moved_bytes / (device.memory_efficiency * device.mem_bw_bytes_s * fraction)
    computing = flop / (device.compute_efficiency * device.peak_flop_s * fraction)
    time_s: T = (reading * reading + computing * computing) ** 0.5
    return time_s


def streamed_s(device: Device, elements: T, fraction: float = 1.0) -> T:
    """Time of one memory-bound operator that reads and writes `elements` elements in all."""
    bandwidth = device.elementwise_efficiency * device.mem_bw_bytes_s * fraction
    return ELEMENT_BYTES * elements / bandwidth + device.elementwise_overhead_s


def _kv_read_s(model: Model, device: Device, context_tokens: T, fraction: float, tp: int) -> T:
    """Time to read one sequence's keys and values of one layer on one rank."""
    per_token = model.kv_bytes_per_token_layer() * max(1.0 / tp, 1.0 / model.kv_heads)
    return per_token * model.attended_tokens(context_tokens) / (device.kv_efficiency * device.mem_bw_bytes_s * fraction)


def _matrix_bytes(model: Model, device: Device, weight_bits: int) -> float:
    return model.linear_parameters_layer * quant.weight_bits(weight_bits, device.weight_format) / 8


def _overheads_s(model: Model, device: Device) -> float:
    small = len(elementwise_elements(model)) * device.elementwise_overhead_s if device.kind == "gpu" else 0.0
    return GEMMS * device.gemm_overhead_s + small + device.layer_overhead_s


def _elementwise_slope_s(model: Model, device: Device, fraction: float, tp: int) -> float:
    if device.kind == "llamacpp":
        return 0.0
    bandwidth = device.elementwise_efficiency * device.mem_bw_bytes_s * fraction
    return ELEMENT_BYTES * sum(elementwise_elements(model, tp)) / bandwidth


def _gemm_activation_elements(model: Model, tp: int) -> float:
    return sum(K + N for K, N in gemm_shapes(model, tp))
