"""Bytes of quantised weights and activations, scales included.

Weights come in two formats. `gguf` (llama.cpp): bits per weight of whole layers of Q4_K_M, Q6_K and Q8_0 files
(the k-quant mixes hold some matrices at 6 bit, hence 4.85), output head at Q6_K in a Q4_K_M file. `group128`
(GPTQ, AWQ): per 128 weights one 16-bit scale, and at 4 bit one 4-bit zero point; the head stays at 16 bit.
"""

from __future__ import annotations

from typing import Final

from cosched.errors import BadInput

WEIGHT_BITS: Final = {
    "gguf": {16: 16.0, 8: 8.5, 6: 6.56, 4: 4.85},
    "group128": {16: 16.0, 8: 8 + 16 / 128, 4: 4 + (16 + 4) / 128},
}
HEAD_BITS: Final = {
    "gguf": {16: 16.0, 8: 8.5, 6: 6.56, 4: 6.56},
    "group128": {16: 16.0, 8: 16.0, 4: 16.0},
}
EMBEDDING_BITS: Final = {
    "gguf": {16: 16.0, 8: 8.5, 6: 6.56, 4: 4.5},
    "group128": {16: 16.0, 8: 16.0, 4: 16.0},
}
ACTIVATION_GROUP: Final = 128  # values that share one 16-bit scale at 8 and 4 bit
SCALE_BYTES: Final = 2


def weight_bits(bits: int, weight_format: str) -> float:
    """Effective bits per weight of a layer's matrices. Raises BadInput for a format or width that there is not."""
    return _look_up(WEIGHT_BITS, bits, weight_format)


def head_bits(bits: int, weight_format: str) -> float:
    """Effective bits per weight of the output head, which quantisers treat more gently than layers."""
    return _look_up(HEAD_BITS, bits, weight_format)


def embedding_bits(bits: int, weight_format: str) -> float:
    """Effective bits per weight of an input embedding that is not also the head."""
    return _look_up(EMBEDDING_BITS, bits, weight_format)


def _look_up(table: dict[str, dict[int, float]], bits: int, weight_format: str) -> float:
    if weight_format not in table:
        raise BadInput(f"weight format '{weight_format}': there are: {', '.join(table)}")
    if bits not in table[weight_format]:
        there = ", ".join(str(b) for b in sorted(table[weight_format]))
        raise BadInput(f"weight_bits = {bits}: {weight_format} weights come in {there} bits")
    return table[weight_format][bits]


def activation_bytes(hidden: int, bits: int) -> int:
    """Bytes of one token's hidden state on the wire.

    16 bit: as it is. 8 and 4 bit: symmetric integers, one 16-bit scale per group of ACTIVATION_GROUP values.
    Raises BadInput for other widths.
    """
    if bits == 16:
        return 2 * hidden
    if bits not in (8, 4):
        raise BadInput(f"activation bits = {bits}: activations are sent in 16, 8 or 4 bits")
    groups = -(-hidden // ACTIVATION_GROUP)
    return -(-hidden * bits // 8) + SCALE_BYTES * groups
