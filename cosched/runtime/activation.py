"""Hidden states as bytes: what crosses a split, in 32, 16, 8 or 4 bits a value.

    frame  = head (20 bytes) + payload
    32 bit   fp32, exact: for proofs
    16 bit   the model's own dtype where it has 16 bits (exact), IEEE half of an fp32 model
    8, 4     symmetric integers, one half-precision scale per group of 128 values of a token (the last group may be
             shorter): scale = absmax / (2^(bits-1) - 1), two values of 4 bits in a byte, the even one in the low half

The payload has tokens x `activation_bytes(hidden, bits)` bytes (profiles/quant.py): what the scheduler plans with and
what config/quality.toml was measured for.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final

import torch

from cosched.profiles.quant import ACTIVATION_GROUP, SCALE_BYTES, activation_bytes
from cosched.runtime.errors import BadFrame
from cosched.runtime.kv import raw_bytes

PRECISIONS: Final = (32, 16, 8, 4)
HEAD: Final = struct.Struct("<4sBBxxIII")  # magic, bits, which dtype of 16 bits, tokens, width, crc32 of the payload
_MAGIC: Final = b"cAc1"
_HALF: Final = (torch.float16, torch.bfloat16)
_GREATEST_HALF: Final = 65504.0
_MAX_TOKENS: Final = 1 << 20


def payload_bytes(tokens: int, hidden: int, bits: int) -> int:
    """Bytes of `tokens` hidden states. Raises BadFrame for a precision that there is not."""
    if bits not in PRECISIONS:
        raise BadFrame(f"activation precision {bits}: there are: {', '.join(map(str, PRECISIONS))} bits")
    return tokens * (4 * hidden if bits == 32 else activation_bytes(hidden, bits))


def encode(hidden: torch.Tensor, bits: int) -> bytes:
    """(1, n, hidden) to one frame. Raises BadFrame: a precision that there is not, or values that are not finite."""
    _, tokens, width = hidden.shape
    size = payload_bytes(tokens, width, bits)
    if not bool(torch.isfinite(hidden).all()):
        raise BadFrame("the hidden state is not finite; does the model overflow its dtype?")
    half = hidden.dtype if hidden.dtype in _HALF else torch.float16
    if bits == 32:
        payload = raw_bytes(hidden.float())
    elif bits == 16:
        fits = hidden if hidden.dtype == half else hidden.clamp(-_GREATEST_HALF, _GREATEST_HALF).to(half)
        payload = raw_bytes(fits)
    else:
        payload = _quantised(hidden[0].float(), bits)
    assert len(payload) == size  # noqa: S101  # the scheduler planned with it
    return HEAD.pack(_MAGIC, bits, _HALF.index(half), tokens, width, zlib.crc32(payload)) + payload


def decode(
    frame: bytes, width: int, dtype: torch.dtype, device: torch.device, n_tokens: int | None = None
) -> torch.Tensor:
    """Return (1, n, width) of a frame. n_tokens: how many there must be.

    Raises BadFrame: damaged, cut short, of another width or number, or not finite in the model's dtype. Nothing is
    copied before the head's claims are held against the frame's length.
    """
    if len(frame) < HEAD.size:
        raise BadFrame(f"an activation of {len(frame)} bytes is no frame")
    magic, bits, half, tokens, sent_width, crc = HEAD.unpack_from(frame)
    if magic != _MAGIC or bits not in PRECISIONS or half >= len(_HALF) or not 0 < tokens <= _MAX_TOKENS:
        raise BadFrame("an activation with a head that makes no sense")
    if sent_width != width:
        raise BadFrame(f"an activation of width {sent_width}: this model's is {width}")
    if n_tokens is not None and tokens != n_tokens:
        raise BadFrame(f"the activation has {tokens} tokens, its step {n_tokens}")
    sent = memoryview(frame)[HEAD.size :]
    if len(sent) != payload_bytes(tokens, width, bits) or zlib.crc32(sent) != crc:
        raise BadFrame("an activation was damaged on its way")
    payload = bytearray(sent)
    if bits >= 16:
        kind = torch.float32 if bits == 32 else _HALF[half]
        hidden = torch.frombuffer(payload, dtype=kind).view(1, tokens, width)
    else:
        hidden = _restored(payload, tokens, width, bits)
    found = hidden.to(device=device, dtype=dtype, copy=True)  # aligned, as what was computed here is
    if not bool(torch.isfinite(found).all()):
        raise BadFrame("an activation that is not finite")
    return found


def _quantised(rows: torch.Tensor, bits: int) -> bytes:
    """(n, width) to all scales, then all codes."""
    tokens, width = rows.shape
    top = 2 ** (bits - 1) - 1
    groups = -(-width // ACTIVATION_GROUP)
    padded = torch.nn.functional.pad(rows, (0, groups * ACTIVATION_GROUP - width)).view(tokens, groups, -1)
    scale = (padded.abs().amax(-1, keepdim=True) / top).clamp(max=_GREATEST_HALF).half()
    step = scale.float()
    codes = torch.where(step > 0, padded / step, 0.0).round().clamp(-top, top)
    codes = codes.view(tokens, -1)[:, :width].to(torch.int8)
    return raw_bytes(scale) + raw_bytes(codes if bits == 8 else _packed(codes))


def _packed(codes: torch.Tensor) -> torch.Tensor:
    """(n, width) of -7..7 to (n, ceil(width / 2)) bytes."""
    nibbles = torch.nn.functional.pad(codes, (0, codes.shape[1] % 2)).to(torch.uint8) & 0x0F
    return nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)


def _restored(payload: bytearray, tokens: int, width: int, bits: int) -> torch.Tensor:
    groups = -(-width // ACTIVATION_GROUP)
    n_scales = tokens * groups
    scale = torch.frombuffer(payload, dtype=torch.float16, count=n_scales).view(tokens, groups, 1).float()
    offset = SCALE_BYTES * n_scales
    if bits == 8:
        codes = torch.frombuffer(payload, dtype=torch.int8, offset=offset).view(tokens, width)
    else:
        pairs = torch.frombuffer(payload, dtype=torch.uint8, offset=offset).view(tokens, -1)
        nibbles = torch.stack((pairs & 0x0F, pairs >> 4), dim=-1).view(tokens, -1)[:, :width]
        codes = (nibbles.to(torch.int8) ^ 8) - 8  # sign of the lowest four bits
    padded = torch.nn.functional.pad(codes.float(), (0, groups * ACTIVATION_GROUP - width))
    return (padded.view(tokens, groups, -1) * scale).view(1, tokens, -1)[:, :, :width]
