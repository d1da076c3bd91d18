"""Suite `gpu`: how well the profile of the card at hand, fitted on some models, predicts others.

Kernels of the SEEN models are timed and fitted as `cosched profile fit` fits recorded ones; the launch floor of the
runtime is fitted to their whole layers. Then layers of the UNSEEN models, at sizes that were not fitted, are predicted
and timed. Without a CUDA card the same runs on the CPU, with smaller models, and claims nothing. Needs the [llm] extra.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec
import numpy as np

from cosched.bench.model import BenchRow, ModelClaim, Result
from cosched.errors import BadInput
from cosched.profiles import fit, latency
from cosched.profiles.device import Device, Host, load_device, load_host
from cosched.profiles.fit import Floats
from cosched.profiles.measured import OperatorRun
from cosched.profiles.model import Model, load_model

SUITE: Final = "gpu"
BITS: Final = 16  # what the equations count in; on a CPU, fp32 runs at half the bandwidth in 16-bit terms
MARGIN: Final = 1.05  # of the declared peak over the best that was seen: efficiencies stay below 1
SEED: Final = 0
PERCENT: Final = 100.0
PREFILL, DECODE = "prefill-layer-unseen", "decode-layer-unseen"

# What may be claimed of a calibrated device and models that it was not fitted on (docs/profiles.md): part of the rows
# within a relative error, the bars of the whole model.
HALF_WITHIN, MOST_WITHIN, MOST = 0.10, 0.25, 0.9


class CardDevice(Protocol):
    """A device of torch, which is imported by the runtime alone."""

    type: str  # "cuda" or "cpu"


@dataclass(frozen=True)
class CardPlan:
    """What is measured. Chunks are (new tokens, cached tokens); decoding is one new token."""

    dtype: str
    seen: tuple[str, ...]
    unseen: tuple[str, ...]
    tokens: tuple[int, ...]
    fitted: tuple[tuple[int, int], ...]
    tested: tuple[tuple[int, int], ...]


CUDA: Final = CardPlan(
    dtype="float16",
    seen=("qwen2.5-1.5b", "llama-3.2-1b", "llama-3-8b"),
    unseen=("llama-3.2-3b", "qwen2.5-7b", "qwen3-8b"),
    tokens=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048),
    fitted=((1, 256), (1, 1024), (1, 4096), (64, 0), (256, 0), (512, 512), (1024, 0), (2048, 0), (2048, 2048)),
    tested=((1, 128), (1, 512), (1, 2048), (1, 3000), (48, 0), (200, 0), (384, 256), (768, 0), (1536, 1024)),
)
CPU: Final = CardPlan(
    dtype="float32",
    seen=("qwen2.5-0.5b", "llama-3.2-1b"),
    unseen=("qwen3-0.6b", "qwen2.5-1.5b"),
    tokens=(1, 2, 4, 8, 16, 32, 64, 128),
    fitted=((1, 128), (1, 512), (16, 0), (64, 0), (64, 128), (128, 0)),
    tested=((1, 64), (1, 300), (12, 0), (48, 0), (48, 100), (96, 0)),
)


@dataclass(frozen=True)
class CardLayers:
    """Whole layers of one model: (R,) new and cached tokens, measured seconds."""

    model: Model
    new: Floats
    cached: Floats
    seconds: Floats

    def device_s(self, device: Device) -> Floats:
        """(R,) seconds of the device without the launch floor."""
        prefill = latency.prefill_layer_s(self.model, device, self.new, self.cached, BITS)
        return np.where(self.new > 1, prefill, latency.decode_layer_s(self.model, device, self.cached, BITS))

    def predicted_s(self, device: Device, host: Host) -> Floats:
        """(R,) seconds as the runtime delivers them."""
        return latency.served_step_s(self.device_s(device), host, 1.0)


def run(*, seeds: int, progress: Callable[[float], None]) -> Result:  # noqa: ARG001  # there is nothing to draw
    """Fit on the seen models, predict the unseen ones: errors per part, the fitted numbers, and what may be claimed."""
    try:
        from cosched.runtime import measure
    except ImportError:
        raise BadInput("suite gpu runs real layers: install the extra: pip install 'cosched[llm]'") from None
    device = measure.best_device()
    return measured(CUDA if device.type == "cuda" else CPU, device, progress)


def measured(plan: CardPlan, device: CardDevice, progress: Callable[[float], None]) -> Result:
    """Carry a plan out on a device."""
    steps = _progress(progress, 2 * (len(plan.seen) + len(plan.unseen)) + 1)
    base = _base(plan, device)
    next(steps)
    card, host, errors = _fitted(plan, device, base, steps)
    for key in plan.unseen:
        kernels = _operators(plan, key, device)
        errors.setdefault("kernels-unseen", []).append(_error(fit.linear_s(kernels, card), kernels.total_s))
        next(steps)
        layers = _layers(plan, key, plan.tested, device)
        error = _error(layers.predicted_s(card, host), layers.seconds)
        errors.setdefault(PREFILL, []).append(error[layers.new > 1])
        errors.setdefault(DECODE, []).append(error[layers.new == 1])
        next(steps)
    next(steps, None)
    rows = [row for part, some in errors.items() for row in _error_rows(part, np.concatenate(some))]
    whole = np.concatenate([e for part in (PREFILL, DECODE) for e in errors[part]])
    claims = _claims(whole) if device.type == "cuda" else []  # the bars are those of cards
    return Result(rows=[*rows, *_numbers(card, host)], claims=claims, sweeps=[])


def _progress(progress: Callable[[float], None], n: int) -> Iterator[None]:
    for i in range(n):
        progress(i / n)
        yield
    progress(1.0)


def _base(plan: CardPlan, device: CardDevice) -> Device:
    """Profile with the peaks of this device, as measured, and everything else to be fitted."""
    from cosched.runtime import measure
    from cosched.runtime.model import dtype_of

    dtype = dtype_of(plan.dtype)
    per_element = dtype.itemsize / latency.ELEMENT_BYTES
    return msgspec.structs.replace(
        load_device("h200"),
        key=device.type,
        name=measure.card_name(device),
        peak_flop_s=MARGIN * measure.peak_flop_s(device, dtype),
        mem_bw_bytes_s=MARGIN * measure.peak_bytes_s(device) / per_element,
        guess=("quantised", "link", "power"),
    )


def _fitted(
    plan: CardPlan, device: CardDevice, base: Device, steps: Iterator[None]
) -> tuple[Device, Host, dict[str, list[Floats]]]:
    """Fit kernels, attention and launch floor on the seen models; also return the errors on them."""
    from cosched.runtime import measure
    from cosched.runtime.model import dtype_of

    runs = []
    for key in plan.seen:
        runs.append(_operators(plan, key, device))
        next(steps)
    chunks, dtype = [c for c in plan.fitted if c[0] > 1], dtype_of(plan.dtype)
    contexts = [cached for new, cached in plan.fitted if new == 1]
    attended = load_model(plan.seen[-1])
    prefill = measure.prefill_attention(attended, chunks, device, dtype)
    decode = measure.decode_attention(attended, contexts, device, dtype)
    card = fit.fit_attention(prefill, decode, fit.fit_linear(runs, base))
    layers = []
    for key in plan.seen:
        layers.append(_layers(plan, key, plan.fitted, device))
        next(steps)
    host = _fit_floor(layers, card)
    errors = {
        "kernels-fitted": [_error(fit.linear_s(run, card), run.total_s) for run in runs],
        "layers-fitted": [_error(one.predicted_s(card, host), one.seconds) for one in layers],
    }
    return card, host, errors


def _operators(plan: CardPlan, key: str, device: CardDevice) -> OperatorRun:
    from cosched.runtime import measure
    from cosched.runtime.model import dtype_of

    return measure.operators(load_model(key), plan.tokens, device, dtype_of(plan.dtype))


def _layers(plan: CardPlan, key: str, chunks: Sequence[tuple[int, int]], device: CardDevice) -> CardLayers:
    from cosched.runtime import measure
    from cosched.runtime.model import dtype_of, open_model

    source = open_model(key, seed=SEED)
    seconds = measure.layers_s(source, chunks, device, dtype_of(plan.dtype))
    new, cached = np.array(chunks, dtype=np.float64).T
    return CardLayers(source.sizes, new, cached, np.array(seconds))


def _fit_floor(layers: Sequence[CardLayers], card: Device) -> Host:
    """Launch floor per layer of this runtime."""
    host = msgspec.structs.replace(load_host("ideal"), key="runtime", name="cosched.runtime")

    def errors(x: Floats) -> Floats:
        trial = msgspec.structs.replace(host, layer_s=float(x[0]))
        return np.concatenate([np.log(one.predicted_s(card, trial) / one.seconds) for one in layers])

    return msgspec.structs.replace(host, layer_s=float(fit.minimise(errors, (1e-4,))[0]))


def _error(predicted: Floats, seconds: Floats) -> Floats:
    """(R,) relative errors without sign."""
    return np.abs(predicted / seconds - 1.0)


def _error_rows(part: str, errors: Floats) -> list[BenchRow]:
    p50, p90, p99 = (PERCENT * float(np.percentile(errors, q)) for q in (50, 90, 99))
    return [
        BenchRow(
            suite=SUITE, case=f"prediction part={part}", subject=subject, figure="error_percent",
            p50=p50, p99=p99, n=len(errors), value=value,
        )
        for subject, value in (("median", p50), ("90th percentile", p90))
    ]  # fmt: skip


def _numbers(card: Device, host: Host) -> list[BenchRow]:
    """Return the profile that was fitted."""
    numbers = {
        "peak_tflops": card.peak_flop_s * 1e-12,
        "mem_bw_gb_s": card.mem_bw_bytes_s * 1e-9,
        "compute_efficiency": card.compute_efficiency,
        "memory_efficiency": card.memory_efficiency,
        "gemm_overhead_us": card.gemm_overhead_s * 1e6,
        "elementwise_efficiency": card.elementwise_efficiency,
        "elementwise_overhead_us": card.elementwise_overhead_s * 1e6,
        "attention_efficiency": card.attention_efficiency,
        "kv_efficiency": card.kv_efficiency,
        "attention_prefill_overhead_us": card.attention_prefill_overhead_s * 1e6,
        "attention_decode_overhead_us": card.attention_decode_overhead_s * 1e6,
        "layer_launch_us": host.layer_s * 1e6,
    }
    return [
        BenchRow(
            suite=SUITE, case=f"profile number={name}", subject=card.name, figure="fitted", p50=v, p99=v, n=1, value=v
        )
        for name, v in numbers.items()
    ]


def _claims(errors: Floats) -> list[ModelClaim]:
    within = [(HALF_WITHIN, 0.5), (MOST_WITHIN, MOST)]
    return [
        ModelClaim(text=f"layers of unseen models within {e:.0%}", reached=float((errors <= e).mean()), asked=share)
        for e, share in within
    ]
