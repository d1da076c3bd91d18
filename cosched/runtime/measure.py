"""Times of a model's operators and layers on the device at hand, in the form that cosched/profiles/fit.py is fed with.

Kernels run on tensors that change from call to call, enough of them that no cache holds the weights from one call to
the next, as in a model whose other layers run in between. A time is the median over repeats.
"""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np
import torch
from torch.nn import functional

from cosched.profiles import latency
from cosched.profiles.measured import GEMM_OPS, SMALL_OPS, AttentionRun, OperatorRun
from cosched.profiles.model import Model
from cosched.runtime.kv import KvCache
from cosched.runtime.model import ModelSource
from cosched.runtime.parts import Part

CACHE_BYTES: Final = {"cuda": 256 << 20, "cpu": 64 << 20}  # more than the last cache of what is known today
LEAST_REPEATS: Final = 5
LEAST_S: Final = 0.03  # of one measurement, all repeats together
WARM_UP: Final = 2
LAYERS: Final = 4  # run one after the other for the time of one

Run = Callable[[], object]


def best_device() -> torch.device:
    """Return the CUDA card where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def card_name(device: torch.device) -> str:
    """Name of the card, as its driver gives it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def memory_bytes(device: torch.device) -> tuple[int, int]:
    """(all, free) bytes of the card's memory, or of the machine's (sysconf(3): what caches hold is not free)."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total, free
    page = os.sysconf("SC_PAGE_SIZE")
    return page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")


def timed(device: torch.device, run: Run) -> float:
    """Median seconds of a call, the device's queue empty before and after."""
    for _ in range(WARM_UP):
        run()
    _settle(device)
    took: list[float] = []
    while len(took) < LEAST_REPEATS or sum(took) < LEAST_S:
        began = time.perf_counter()
        run()
        _settle(device)
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def queued(device: torch.device, run: Run, calls: int = 20) -> float:
    """Median seconds of a call among several in a row: a GPU's launches overlap with what it does."""
    n = calls if device.type == "cuda" else 1
    return timed(device, lambda: [run() for _ in range(n)]) / n


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_flop_s(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of the largest square GEMM that is worth waiting for."""
    size = 8192 if device.type == "cuda" else 1536
    a, b = _randn(device, dtype, size, size), _randn(device, dtype, size, size)
    return float(2 * size**3 / queued(device, lambda: a @ b))


def peak_bytes_s(device: torch.device) -> float:
    """Bytes a second, read plus written, of copying what no cache holds."""
    source = torch.zeros(4 * CACHE_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return float(2 * source.nbytes / queued(device, lambda: target.copy_(source)))


def one_core() -> tuple[float, float]:
    """Peaks of one thread of this machine in fp32: TFLOPS, and GB/s as 16-bit elements count them (half the bytes)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        device = torch.device("cpu")
        flop_s, bytes_s = peak_flop_s(device, torch.float32), peak_bytes_s(device)
    finally:
        torch.set_num_threads(threads)
    return flop_s * 1e-12, bytes_s / 2 * 1e-9


def operators(model: Model, tokens: Sequence[int], device: torch.device, dtype: torch.dtype) -> OperatorRun:
    """Time a layer's GEMMs and small operators, each by itself, for each number of tokens."""
    seconds: dict[str, list[float]] = {op: [] for op in (*GEMM_OPS, *SMALL_OPS[: len(_small(model))])}
    weights = [_rotating(device, dtype, int(n), int(k)) for k, n in latency.gemm_shapes(model)]
    for m in tokens:
        for op, (k, _), weight in zip(GEMM_OPS, latency.gemm_shapes(model), weights, strict=True):
            x = _randn(device, dtype, m, int(k))
            seconds[op].append(queued(device, lambda x=x, w=weight: functional.linear(x, next(w))))  # type: ignore[misc]
        for op, run in zip(SMALL_OPS, _small_runs(model, m, device, dtype), strict=False):
            seconds[op].append(queued(device, run))
    counts = np.array(tokens, dtype=np.float64)
    return OperatorRun(device.type, model, counts, np.ones_like(counts), {op: np.array(s) for op, s in seconds.items()})


def prefill_attention(
    model: Model, chunks: Sequence[tuple[int, int]], device: torch.device, dtype: torch.dtype
) -> AttentionRun:
    """Time the attention kernel for (new tokens, cached tokens), causal."""
    rows = [queued(device, _attention(model, new, cached, device, dtype)) for new, cached in chunks]
    new, cached = np.array(chunks, dtype=np.float64).T
    return AttentionRun(model, 1, new, cached, np.array(rows))


def decode_attention(model: Model, contexts: Sequence[int], device: torch.device, dtype: torch.dtype) -> AttentionRun:
    """Time the attention kernel for one new token after so many cached ones."""
    rows = [queued(device, _attention(model, 1, context, device, dtype)) for context in contexts]
    sizes = np.array(contexts, dtype=np.float64)
    return AttentionRun(model, 1, np.ones_like(sizes), sizes, np.array(rows))


def layers_s(
    source: ModelSource, chunks: Sequence[tuple[int, int]], device: torch.device, dtype: torch.dtype
) -> list[float]:
    """Seconds of one whole layer as the runtime runs it, for (new tokens, cached tokens): the mean of some in a row."""
    stop = min(1 + LAYERS, source.n_layers - 1)  # neither embedding nor head
    part = Part(source, dtype=dtype, device=str(device))
    part.load(1, stop)
    found = []
    for new, cached in chunks:
        hidden = _randn(device, dtype, 1, new, source.sizes.hidden)
        past = _filled(part, stop, cached, device, dtype)
        found.append(timed(device, lambda h=hidden, p=past: part.run(h, _copy(p), 1, stop)) / (stop - 1))  # type: ignore[misc]
    return found


def _filled(part: Part, stop: int, cached: int, device: torch.device, dtype: torch.dtype) -> dict[int, torch.Tensor]:
    sizes = part.source.sizes
    return {i: _randn(device, dtype, 1, sizes.kv_heads, cached, sizes.head_dim) for i in range(1, stop) if cached}


def _copy(past: dict[int, torch.Tensor]) -> KvCache:
    """A cache that has `past` and may grow: what is in it is never written to."""
    cache = KvCache()
    for layer, tensor in past.items():
        cache.update(tensor, tensor, layer)
    return cache


def _small(model: Model) -> tuple[float, ...]:
    return latency.elementwise_elements(model)


def _small_runs(model: Model, m: int, device: torch.device, dtype: torch.dtype) -> list[Run]:
    """Norms, rotary embedding, activation and residual, as the runtime's layers have them, for m tokens."""
    hidden = _randn(device, dtype, m, model.hidden)
    other, scale = torch.clone(hidden), _randn(device, dtype, model.hidden)
    heads = _randn(device, dtype, m, model.heads + model.kv_heads, model.head_dim)
    angles = _randn(device, dtype, m, 1, model.head_dim)
    up, gate = _randn(device, dtype, m, model.ffn), _randn(device, dtype, m, model.ffn)

    def rope() -> torch.Tensor:
        first, second = heads.chunk(2, dim=-1)
        return heads * angles + torch.cat((-second, first), dim=-1) * angles

    norms: list[Run] = [lambda: functional.rms_norm(hidden, (model.hidden,), scale)] * model.norms
    return [*norms, rope, lambda: functional.silu(gate) * up, lambda: hidden + other]


def _attention(model: Model, new: int, cached: int, device: torch.device, dtype: torch.dtype) -> Run:
    query = _randn(device, dtype, 1, model.heads, new, model.head_dim)
    past = _rotating(device, dtype, 2, 1, model.kv_heads, cached + new, model.head_dim)
    mask = torch.ones(new, cached + new, dtype=torch.bool, device=device).tril(cached) if cached and new > 1 else None
    grouped, causal = model.heads != model.kv_heads, new > 1 and not cached

    def run() -> torch.Tensor:
        keys, values = next(past)
        return functional.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, is_causal=causal, enable_gqa=grouped
        )

    return run


def _rotating(device: torch.device, dtype: torch.dtype, *shape: int) -> Iterator[torch.Tensor]:
    """Tensors of a shape in turn, more of them than a cache holds."""
    one = _randn(device, dtype, *shape)
    copies = max(1, min(64, CACHE_BYTES[device.type] // one.nbytes))
    return itertools.cycle([one, *(one.clone() for _ in range(copies))])


def _randn(device: torch.device, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Small random numbers; speed may depend on their being different, results are not looked at."""
    generator = torch.Generator().manual_seed(len(shape))
    return (torch.randn(*shape, generator=generator) * 0.02).to(device=device, dtype=dtype)
