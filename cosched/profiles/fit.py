"""Refits the device and host numbers from measured profiles: one estimator per group of numbers.

Every estimator minimises squared relative errors (logarithms of predicted over measured), in the logarithms of the
numbers sought, which keeps them positive; from fixed starts, so that the same data give the same numbers. Operators
are fitted one by one and weighted by their share of the layer's time: fitting sums alone gives absurd efficiencies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, cast

import msgspec
import numpy as np
import numpy.typing as npt

from cosched.profiles import latency
from cosched.profiles.device import Device, Host
from cosched.profiles.measured import (
    GEMM_OPS,
    SMALL_OPS,
    AttentionRun,
    EdgeRun,
    OperatorRun,
    ServedRuns,
    octave_weights,
)
from cosched.profiles.model import Model

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

SERVED_BITS: Final = 16  # the served measurements are of 16-bit weights
NEGLIGIBLE_S: Final = 1e-9  # a term that the fit drives below this is none
A100_40GB_BW_BYTES_S: Final = 1555e9  # NVIDIA A100 40 GB data sheet; the rows of LLM-Inference-Bench fit this card
A100_40GB_BYTES: Final = 40e9
MEMORY_FILL: Final = 0.85  # rows that need more of the memory are left out: they swapped or queued (6.6 times slower)

LINEAR_FIELDS: Final = ("compute_efficiency", "memory_efficiency", "gemm_overhead_s")
SMALL_FIELDS: Final = ("elementwise_efficiency", "elementwise_overhead_s")
PREFILL_FIELDS: Final = ("attention_efficiency", "attention_prefill_overhead_s")
DECODE_FIELDS: Final = ("kv_efficiency", "attention_decode_overhead_s")
LINK_FIELDS: Final = ("link_bytes_s", "link_latency_s")
EDGE_FIELDS: Final = ("memory_efficiency", "layer_overhead_s")
HOST_FIELDS: Final = ("layer_s", "sequence_s", "prompt_token_s")


def minimise(log_errors: Callable[[Floats], Floats], start: Sequence[float]) -> Floats:
    """Return the positive numbers that minimise the sum of squares of `log_errors`, from `start`."""
    from scipy.optimize import least_squares

    found = least_squares(lambda x: log_errors(np.exp(x)), np.log(np.asarray(start)), xtol=1e-12, ftol=1e-12)
    return cast("Floats", np.exp(found.x))


def with_values(device: Device, fields: Sequence[str], values: Sequence[float] | Floats) -> Device:
    """Return `device` with `fields` set to `values`."""
    return msgspec.structs.replace(device, **{f: float(v) for f, v in zip(fields, values, strict=True)})


@dataclass(frozen=True, slots=True)
class Operators:
    """Rows of several operators side by side, each (P,): sizes, measured seconds and weight in the fit."""

    tokens: Floats
    k: Floats  # GEMM: K; small operators: elements per token
    n: Floats  # GEMM: N; small operators: unused
    seconds: Floats
    weight: Floats


def fit_linear(runs: Sequence[OperatorRun], device: Device) -> Device:
    """Fit the five numbers of GEMMs and small operators to kernel times."""

    def gemm_errors(x: Floats) -> Floats:
        trial = with_values(device, LINEAR_FIELDS, x)
        predicted = latency.gemm_s(trial, gemms.tokens, gemms.k, gemms.n, latency.ELEMENT_BYTES * gemms.k * gemms.n)
        return np.sqrt(gemms.weight) * np.log(predicted / gemms.seconds)

    def small_errors(x: Floats) -> Floats:
        trial = with_values(device, SMALL_FIELDS, x)
        predicted = latency.streamed_s(trial, small.tokens * small.k)
        return np.sqrt(small.weight) * np.log(predicted / small.seconds)

    gemms, small = _stack(runs, GEMM_OPS), _stack(runs, SMALL_OPS)
    fitted = with_values(device, LINEAR_FIELDS, minimise(gemm_errors, (0.7, 0.75, 5e-6)))
    return with_values(fitted, SMALL_FIELDS, minimise(small_errors, (0.6, 3e-6)))


def linear_s(run: OperatorRun, device: Device) -> Floats:
    """(R,) predicted time of one layer without its attention kernel (and without all-reduces: Vidur has none)."""
    predicted = np.zeros_like(run.tokens)
    for tp in np.unique(run.tp):
        rows = run.tp == tp
        tokens = run.tokens[rows]
        for k, n in latency.gemm_shapes(run.model, int(tp)):
            predicted[rows] += latency.gemm_s(device, tokens, k, n, latency.ELEMENT_BYTES * k * n)
        for elements in latency.elementwise_elements(run.model, int(tp)):
            predicted[rows] += latency.streamed_s(device, elements * tokens)
    return predicted


def _stack(runs: Sequence[OperatorRun], ops: tuple[str, ...]) -> Operators:
    """Put the operators `ops` of all runs below each other, weighted by share of time and by octave of tokens."""
    parts: list[tuple[Floats, Floats, Floats, Floats, Floats]] = []
    for run in runs:
        row_weight = octave_weights(run.tokens) / len(runs)
        present = [op for op in ops if op in run.seconds]
        for i, op in enumerate(present):
            k, n = _sizes(run, i, gemm=ops is GEMM_OPS)
            share = run.seconds[op] / run.total_s
            parts.append((run.tokens, k, n, run.seconds[op], row_weight * share))
    return Operators(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _sizes(run: OperatorRun, index: int, *, gemm: bool) -> tuple[Floats, Floats]:
    """(R,) K and N of the run's GEMM `index`, or elements of its small operator `index`, at each row's tp."""
    k, n = np.zeros_like(run.tokens), np.zeros_like(run.tokens)
    for tp in np.unique(run.tp):
        rows = run.tp == tp
        if gemm:
            k[rows], n[rows] = latency.gemm_shapes(run.model, int(tp))[index]
        else:
            k[rows] = latency.elementwise_elements(run.model, int(tp))[index]
    return k, n


def fit_attention(prefill: AttentionRun, decode: AttentionRun, device: Device) -> Device:
    """Fit efficiency and overhead of the attention kernels of both phases."""

    def prefill_errors(x: Floats) -> Floats:
        return np.log(prefill_attention_s(prefill, with_values(device, PREFILL_FIELDS, x)) / prefill.seconds)

    def decode_errors(x: Floats) -> Floats:
        return np.log(decode_attention_s(decode, with_values(device, DECODE_FIELDS, x)) / decode.seconds)

    fitted = with_values(device, PREFILL_FIELDS, minimise(prefill_errors, (0.4, 2e-5)))
    return with_values(fitted, DECODE_FIELDS, minimise(decode_errors, (0.8, 2e-5)))


def prefill_attention_s(run: AttentionRun, device: Device) -> Floats:
    """(R,) predicted time of the prefill kernel of one rank."""
    return latency.prefill_attention_s(run.model, device, run.size, run.context, tp=run.tp)


def decode_attention_s(run: AttentionRun, device: Device) -> Floats:
    """(R,) predicted time of the decode kernel of one rank."""
    seconds: Floats = latency.decode_attention_s(run.model, device, run.context, run.size, tp=run.tp)
    return seconds


def fit_link(sizes: Floats, seconds: Floats, device: Device) -> Device:
    """Fit bandwidth and latency of the link between ranks to send-receive times of (R,) bytes."""

    def errors(x: Floats) -> Floats:
        predicted: Floats = x[1] + sizes / x[0]
        return np.sqrt(weight) * np.log(predicted / seconds)

    weight = octave_weights(sizes)
    return with_values(device, LINK_FIELDS, minimise(errors, (2e11, 2e-5)))


def fit_edge(run: EdgeRun, device: Device, keep: Mask | None = None) -> Device:
    """Fit memory efficiency and overhead per layer of a llama.cpp device to decode times per token."""

    def errors(x: Floats) -> Floats:
        return np.log(edge_s(run, with_values(device, EDGE_FIELDS, x)) / run.seconds)[rows]

    rows = np.ones(len(run.models), dtype=np.bool_) if keep is None else keep
    return with_values(device, EDGE_FIELDS, minimise(errors, (0.7, 3e-4)))


def edge_s(run: EdgeRun, device: Device) -> Floats:
    """(R,) predicted time per token: all layers and the head, at a context that hardly counts."""
    pairs = zip(run.models, run.bits, strict=True)
    return np.array([_edge_token_s(model, device, bits) for model, bits in pairs])


def _edge_token_s(model: Model, device: Device, bits: int) -> float:
    layer_s = latency.decode_layer_s(model, device, 0.0, bits)
    return model.n_layers * layer_s + latency.head_s(model, device, bits)


@dataclass(frozen=True, slots=True)
class DeviceTimes:
    """The device's part of served measurements, (R,): seconds of a prefill and of one decode step."""

    prefill_s: Floats
    decode_s: Floats
    layers: Floats


def device_steps(run: ServedRuns, device: Device) -> DeviceTimes:
    """Compute the device's part of each row, at 16-bit weights."""
    rows = list(zip(run.models, run.tp, run.batch, run.prompt, run.context, strict=True))
    return DeviceTimes(
        prefill_s=np.array([_prefill_s(m, device, int(tp), b, prompt) for m, tp, b, prompt, _ in rows]),
        decode_s=np.array([_decode_s(m, device, int(tp), b, context) for m, tp, b, _, context in rows]),
        layers=np.array([float(m.n_layers) for m in run.models]),
    )


def _prefill_s(model: Model, device: Device, tp: int, batch: float, prompt: float) -> float:
    linear = latency.linear_layer_s(model, device, batch * prompt, SERVED_BITS, tp=tp)
    attention = batch * latency.prefill_attention_s(model, device, prompt, 0.0, tp=tp)
    return model.n_layers * (linear + attention) + latency.head_s(model, device, SERVED_BITS, batch, tp=tp)


def _decode_s(model: Model, device: Device, tp: int, batch: float, context: float) -> float:
    layer_s = latency.decode_layer_s(model, device, context, SERVED_BITS, batch, tp=tp)
    return model.n_layers * layer_s + latency.head_s(model, device, SERVED_BITS, batch, tp=tp)


def served_s(run: ServedRuns, steps: DeviceTimes, host: Host) -> Floats:
    """(R,) predicted seconds of each row as the server delivers it."""
    decode = latency.served_step_s(steps.decode_s, host, steps.layers, run.batch)
    prompt = latency.served_step_s(steps.prefill_s, host, steps.layers, run.batch, run.batch * run.prompt)
    return np.where(run.prefill, prompt, 0.0) + run.steps * decode


def fit_host(run: ServedRuns, steps: DeviceTimes, host: Host, keep: Mask) -> Host:
    """Fit a host's terms to the rows `keep` of served measurements.

    Where only whole runs of equal prompt and output were measured, a time per prompt token cannot be told from one
    per sequence and step: then the latter gets it all.
    """

    def with_terms(values: Floats) -> Host:
        terms = [float(v) if v > NEGLIGIBLE_S else 0.0 for v in values]
        terms += [0.0] * (len(HOST_FIELDS) - len(terms))
        return msgspec.structs.replace(host, **dict(zip(HOST_FIELDS, terms, strict=True)))

    def errors(x: Floats) -> Floats:
        return np.log(served_s(run, steps, with_terms(x)) / run.seconds)[keep]

    start = (2e-4, 1e-4, 1e-5) if (run.steps == 0).any() else (2e-4, 1e-4)
    return with_terms(minimise(errors, start))


def fits_memory(run: ServedRuns, memory_bytes: float) -> Mask:
    """(R,) whether weights and the whole KV cache stay within MEMORY_FILL of the cards' memory."""
    need = np.array([model.weight_bytes(SERVED_BITS) for model in run.models])
    kv = np.array([model.n_layers * model.kv_bytes_per_token_layer() for model in run.models])
    need = need + kv * run.batch * (run.prompt + run.steps)
    return np.asarray(need <= MEMORY_FILL * memory_bytes * run.tp)
