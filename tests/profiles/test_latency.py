"""Times of layers: figures computed by hand, properties that any model of a machine must have."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosched.errors import BadInput
from cosched.profiles import latency
from cosched.profiles.device import Device, load_device, load_host
from cosched.profiles.model import Model, load_model

DEVICES = ("phone", "jetson", "laptop", "agx-orin", "a40", "a100", "h100", "h200")
MODELS = ("llama-3-8b", "qwen2.5-0.5b", "phi-2", "gemma-2-2b", "gemma-3-4b", "phi-3-mini")

devices = st.sampled_from(DEVICES).map(load_device)
models = st.sampled_from(MODELS).map(load_model)
bits = st.sampled_from([16, 8, 4])
tokens = st.integers(1, 20_000).map(float)
fractions = st.sampled_from([0.1, 0.25, 0.5, 1.0])


def gpu(**changes: float) -> Device:
    """Return a GPU of round numbers: 100 TFLOPS, 1 TB/s, all efficiencies 1, no overheads."""
    perfect = dict.fromkeys(
        ("compute_efficiency", "memory_efficiency", "elementwise_efficiency", "attention_efficiency", "kv_efficiency"),
        1.0,
    )
    none = dict.fromkeys(
        (
            "gemm_overhead_s",
            "elementwise_overhead_s",
            "attention_prefill_overhead_s",
            "attention_decode_overhead_s",
        ),
        0.0,
    )
    numbers = {"peak_flop_s": 1e14, "mem_bw_bytes_s": 1e12, **perfect, **none, **changes}
    return msgspec.structs.replace(load_device("a100"), **numbers)


def test_gemm_is_the_hypotenuse_of_reading_and_computing() -> None:
    reading = 2 * (3 * 1000 + 1000 * 2000 + 3 * 2000) / 1e12
    computing = 2 * 3 * 1000 * 2000 / 1e14
    got = latency.gemm_s(gpu(gemm_overhead_s=5e-6), 3.0, 1000.0, 2000.0, 2 * 1000 * 2000)
    assert got == pytest.approx(math.hypot(reading, computing) + 5e-6)


def test_attention_by_hand() -> None:
    model = load_model("llama-3-8b")
    prefill = latency.prefill_attention_s(model, gpu(attention_prefill_overhead_s=1e-5), 100.0, 400.0)
    assert prefill == pytest.approx(4 * 32 * 128 * 100 * 500 / 1e14 + 1e-5)
    decode = latency.decode_attention_s(model, gpu(attention_decode_overhead_s=2e-5), 1000.0, 7)
    assert decode == pytest.approx(7 * 1000 * 2 * 8 * 128 * 2 / 1e12 + 2e-5)


def test_elementwise_by_hand() -> None:
    model = load_model("llama-3-8b")
    elements = latency.elementwise_elements(model)
    assert elements == (8192, 8192, 2 * (4096 + 1024), 3 * 14336, 3 * 4096)
    assert latency.elementwise_elements(load_model("phi-2")) == (5120, 2 * (2560 + 2560), 2 * 10240, 3 * 2560)
    assert len(latency.elementwise_elements(load_model("gemma-2-2b"))) == 7  # four norms


def test_gemms_of_a_layer_are_the_models_matrices() -> None:
    for key in MODELS:
        model = load_model(key)
        assert sum(k * n for k, n in latency.gemm_shapes(model)) == model.linear_parameters_layer


def test_tensor_parallel_shards_the_widths_but_keeps_a_kv_head() -> None:
    model = load_model("llama-3-8b")
    assert latency.gemm_shapes(model, 8)[0] == (4096, 4096 / 8 + 2 * 128)
    assert latency.gemm_shapes(model, 16)[0] == (4096, 4096 / 16 + 2 * 128)
    moved = 2 * 7 / 8 * 100 * 4096 * 2
    device = load_device("a100")
    assert device.link_bytes_s is not None
    expected = 2 * (device.link_latency_s + moved / device.link_bytes_s)
    assert latency.all_reduce_s(model, device, 100.0, 8) == pytest.approx(expected)
    assert latency.all_reduce_s(model, device, 100.0, 1) == 0
    with pytest.raises(BadInput, match="link"):
        latency.all_reduce_s(model, load_device("phone"), 100.0, 2)


def test_llamacpp_decode_reads_the_weights() -> None:
    model, phone = load_model("llama-3-8b"), load_device("phone")
    reading = model.linear_parameters_layer * 4.85 / 8 / 40e9
    computing = model.flop_per_token_layer / 1e12
    assert latency.decode_layer_s(model, phone, 0.0, 4) == pytest.approx(math.hypot(reading, computing))
    assert latency.decode_weight_read_s(model, phone, 4) == pytest.approx(reading)


def test_agx_orin_reproduces_a_measured_model() -> None:
    """Meta-Llama-3.1-8B-Instruct-Q4_K_M decodes 25.07 tokens/s there (prof-edge-llamacpp)."""
    model, device = load_model("llama-3-8b"), load_device("agx-orin")
    total = 32 * latency.decode_layer_s(model, device, 0.0, 4) + latency.head_s(model, device, 4)
    assert total == pytest.approx(1 / 25.07, rel=0.1)


def test_a100_reproduces_a_measured_gemm() -> None:
    """Vidur, A100, Llama-3-8B, tp 1: 33.09 ms for gate and up of 32768 tokens."""
    device = load_device("a100")
    up = latency.gemm_s(device, 32768.0, 4096.0, 28672.0, 2 * 4096 * 28672)
    assert up == pytest.approx(33.09e-3, rel=0.1)


def test_host_floor_and_terms() -> None:
    host = load_host("splitwise")
    assert latency.served_step_s(0.0, host, 80.0) == pytest.approx(80 * host.layer_s + host.sequence_s)
    long = latency.served_step_s(10.0, host, 80.0, 1.0, 0.0)
    assert long == pytest.approx(10.0, rel=1e-3)
    one = latency.served_step_s(0.02, host, 80.0, 1.0, 100.0)
    four = latency.served_step_s(0.02, host, 80.0, 4.0, 300.0)
    assert four - one == pytest.approx(3 * host.sequence_s + 200 * host.prompt_token_s)
    assert latency.served_step_s(0.02, load_host("ideal"), 80.0, 4.0, 100.0) == pytest.approx(0.02)


def linear_in_batch(model: Model, device: Device, context: float, weight_bits: int, batch: int) -> float:
    shared = latency.decode_weight_read_s(model, device, weight_bits)
    return shared + batch * latency.decode_sequence_s(model, device, context)


@given(model=models, device=devices, context=tokens, weight_bits=bits, batch=st.integers(1, 128))
def test_shared_plus_per_sequence_bounds_the_step(
    model: Model, device: Device, context: float, weight_bits: int, batch: int
) -> None:
    """From above, and by at most sqrt 2: hypot(a, b) <= a + b <= sqrt 2 hypot(a, b)."""
    step = latency.decode_layer_s(model, device, context, weight_bits, batch)
    bound = linear_in_batch(model, device, context, weight_bits, batch)
    assert step <= bound * (1 + 1e-12)
    assert bound <= math.sqrt(2) * step * (1 + 1e-12)


@given(model=models, context=tokens, batch=st.integers(1, 128), tp=st.sampled_from([2, 4]))
def test_the_two_parts_are_sharded_as_the_step_is(model: Model, context: float, batch: int, tp: int) -> None:
    """Equal to the step where nothing is computed and nothing but weights, overheads and all-reduces takes time."""
    if model.kv_heads < tp:
        return  # a rank keeps a whole KV head: its matrices are wider than a share
    device = gpu(peak_flop_s=1e30)
    step = latency.decode_layer_s(model, device, context, 16, batch, tp=tp)
    own = latency.decode_sequence_s(model, device, context, tp=tp)
    assert latency.decode_weight_read_s(model, device, 16, tp=tp) + batch * own == pytest.approx(step)


@given(model=models, device=devices, new=tokens, more=st.integers(1, 5000), context=tokens, weight_bits=bits)
def test_more_tokens_are_never_faster(
    *, model: Model, device: Device, new: float, more: int, context: float, weight_bits: int
) -> None:
    base = latency.prefill_layer_s(model, device, new, context, weight_bits)
    assert latency.prefill_layer_s(model, device, new + more, context, weight_bits) > base
    assert latency.prefill_layer_s(model, device, new, context + more, weight_bits) >= base
    decode = latency.decode_layer_s(model, device, context, weight_bits)
    assert latency.decode_layer_s(model, device, context + more, weight_bits) >= decode
    assert latency.decode_layer_s(model, device, context, weight_bits, 2) > decode
    assert latency.embed_s(model, device, new + more) > latency.embed_s(model, device, new)
    assert latency.head_s(model, device, weight_bits, 2) > latency.head_s(model, device, weight_bits)


@given(model=models, device=devices, new=tokens, context=tokens, weight_bits=bits, fraction=fractions)
def test_a_slice_is_never_faster_nor_slower_than_its_share(
    *, model: Model, device: Device, new: float, context: float, weight_bits: int, fraction: float
) -> None:
    for whole, part in (
        (
            latency.prefill_layer_s(model, device, new, context, weight_bits),
            latency.prefill_layer_s(model, device, new, context, weight_bits, fraction=fraction),
        ),
        (
            latency.decode_layer_s(model, device, context, weight_bits),
            latency.decode_layer_s(model, device, context, weight_bits, fraction=fraction),
        ),
        (latency.head_s(model, device, weight_bits), latency.head_s(model, device, weight_bits, 1, fraction)),
    ):
        assert whole * (1 - 1e-12) <= part <= whole / fraction * (1 + 1e-12)


@given(model=models, device=devices, new=tokens, context=tokens)
def test_fewer_bits_are_never_slower(model: Model, device: Device, new: float, context: float) -> None:
    times = [latency.prefill_layer_s(model, device, new, context, b) for b in (4, 8, 16)]
    assert times == sorted(times)
    times = [latency.decode_layer_s(model, device, context, b) for b in (4, 8, 16)]
    assert times == sorted(times)


@given(model=models, device=devices, weight_bits=bits, counts=st.lists(st.integers(1, 9999), min_size=1, max_size=8))
def test_arrays_give_what_numbers_give(model: Model, device: Device, weight_bits: int, counts: list[int]) -> None:
    new = np.array(counts, dtype=np.float64)
    context = new[::-1].copy()
    prefill = latency.prefill_layer_s(model, device, new, context, weight_bits)
    decode = latency.decode_layer_s(model, device, context, weight_bits)
    for i, (n, c) in enumerate(zip(new.tolist(), context.tolist(), strict=True)):
        assert prefill[i] == pytest.approx(latency.prefill_layer_s(model, device, n, c, weight_bits), rel=1e-12)
        assert decode[i] == pytest.approx(latency.decode_layer_s(model, device, c, weight_bits), rel=1e-12)


@given(model=models, new=tokens, tp=st.sampled_from([2, 4, 8]))
def test_ranks_share_the_work(model: Model, new: float, tp: int) -> None:
    """Without the link's cost, tp ranks are faster than one, and never more than tp times."""
    device = gpu(link_bytes_s=1e30, link_latency_s=0.0)
    one = latency.prefill_layer_s(model, device, new, 0.0, 16)
    many = latency.prefill_layer_s(model, device, new, 0.0, 16, tp=tp)
    assert one / tp * (1 - 1e-9) <= many < one
