"""The activation codec: sizes as planned with, errors as the schemes promise, damage refused."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the extra [llm] is not installed")

from hypothesis import given, settings
from hypothesis import strategies as st

from cosched.profiles.model import load_model
from cosched.profiles.quant import activation_bytes
from cosched.runtime import activation
from cosched.runtime.errors import BadFrame

CPU = torch.device("cpu")


def hidden(tokens: int, width: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    """Rows with a few channels far greater than the rest, as trained models have."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(1, tokens, width, generator=generator) * scale
    rows[..., :: max(1, width // 3)] *= 40
    return rows


def through(rows: torch.Tensor, bits: int) -> torch.Tensor:
    return activation.decode(activation.encode(rows, bits), rows.shape[-1], rows.dtype, CPU)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 5), st.integers(1, 300), st.sampled_from([32, 16, 8, 4]), st.integers(0, 99))
def test_frames_are_as_long_as_planned_and_errors_as_small_as_promised(tokens: int, width: int, bits: int, seed: int):
    rows = hidden(tokens, width, seed)
    frame = activation.encode(rows, bits)
    planned = 4 * width if bits == 32 else activation_bytes(width, bits)
    assert len(frame) == activation.HEAD.size + tokens * planned
    back = activation.decode(frame, width, torch.float32, CPU)
    for t in range(tokens):
        for start in range(0, width, 128):
            group, got = rows[0, t, start : start + 128], back[0, t, start : start + 128]
            greatest = float(group.abs().max())
            # half a step, and what rounding the step to half precision (11 bits) takes off at the ends
            allowed = {32: 0.0, 16: greatest * 2**-11, 8: greatest / 127, 4: greatest / 7}[bits]
            rounding = 0.0 if bits >= 16 else greatest * 2**-10
            assert float((group - got).abs().max()) <= (allowed / 2 if bits < 16 else allowed) + rounding


def test_bytes_are_those_of_the_scheduler_for_a_real_model() -> None:
    model = load_model("llama-3-8b")
    for bits in (16, 8, 4):
        assert activation.payload_bytes(512, model.hidden, bits) == 512 * model.activation_bytes_per_token(bits)


def test_integers_agree_with_the_formula_that_quality_was_measured_with() -> None:
    rows = hidden(7, 256)
    for bits in (8, 4):
        groups, top = rows.view(1, 7, 2, 128), 2 ** (bits - 1) - 1
        step = (groups.abs().amax(-1, keepdim=True) / top).half().float()
        expected = ((groups / step).round().clamp(-top, top) * step).view(rows.shape)
        assert torch.equal(through(rows, bits), expected)


def test_exact_where_it_says_so() -> None:
    rows = hidden(3, 64)
    assert torch.equal(through(rows, 32), rows)
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(through(rows.to(dtype), 16), rows.to(dtype))


def test_zeros_and_overflow_of_half_precision() -> None:
    zeros = torch.zeros(1, 2, 130)
    for bits in (32, 16, 8, 4):
        assert torch.equal(through(zeros, bits), zeros)
    assert float(through(torch.full((1, 1, 4), 1e6), 16).max()) == 65504.0
    with pytest.raises(BadFrame, match="not finite"):
        activation.encode(torch.full((1, 1, 4), torch.nan), 8)


@pytest.mark.parametrize("bits", [32, 16, 8, 4])
def test_every_damaged_byte_is_noticed(bits: int) -> None:
    rows = hidden(2, 20)
    frame = activation.encode(rows, bits)
    kind_of_half = 5  # names the dtype of 16 bits; it says nothing in other precisions
    for i in range(len(frame)):
        damaged = bytearray(frame)
        damaged[i] ^= 0x10
        if i == kind_of_half + 1 or i == kind_of_half + 2:
            continue  # padding
        with pytest.raises(BadFrame):
            activation.decode(bytes(damaged), 20, torch.float32, CPU)
    for cut in (0, 5, len(frame) - 1):
        with pytest.raises(BadFrame):
            activation.decode(frame[:cut], 20, torch.float32, CPU)
    with pytest.raises(BadFrame):
        activation.decode(frame + b"x", 20, torch.float32, CPU)
    with pytest.raises(BadFrame, match="width 20"):
        activation.decode(frame, 64, torch.float32, CPU)


def test_precision_that_there_is_not() -> None:
    with pytest.raises(BadFrame, match="there are: 32, 16, 8, 4"):
        activation.encode(hidden(1, 8), 2)
