"""The KV cache of one session: by layer, numbered as in the whole model, so that layers can come and go.

transformers asks a cache for its length and hands it new keys and values; what else there is here is what a split
needs: layers as bytes, taken over from another cache, cut back to a length. Tensors are never written to after they
are made, so two caches may share one.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from typing import Final

import torch

from cosched.runtime.errors import BadFrame

Pair = tuple[torch.Tensor, torch.Tensor]  # keys and values, each (1, kv_heads, tokens, head_dim)

HEAD: Final = struct.Struct("<4sBxHHHII")  # magic, dtype, layer, kv_heads, head_dim, tokens, crc32 of what follows
_MAGIC: Final = b"cKV1"
_DTYPES: Final = (torch.float32, torch.bfloat16, torch.float16)


class KvCache:
    """Keys and values by layer; all layers have seen the same `length` tokens between two steps."""

    is_compileable = False

    def __init__(self) -> None:
        self._layers: dict[int, Pair] = {}

    @property
    def length(self) -> int:
        """Tokens seen."""
        return next((int(keys.shape[2]) for keys, _ in self._layers.values()), 0)

    @property
    def layers(self) -> list[int]:
        """Layers that have something, in order."""
        return sorted(self._layers)

    @property
    def n_bytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(tensor.nbytes for pair in self._layers.values() for tensor in pair)

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: object) -> Pair:
        """Append to a layer and return all it has: what transformers' attention calls."""
        if layer_idx in self._layers:
            past_keys, past_values = self._layers[layer_idx]
            keys, values = torch.cat((past_keys, keys), dim=2), torch.cat((past_values, values), dim=2)
        self._layers[layer_idx] = (keys, values)
        return keys, values

    def get_query_offset(self, _: int = 0) -> int:
        """Position of the next token: what transformers' mask asks."""
        return self.length

    def get_mask_sizes(self, query_length: int, _: int = 0) -> tuple[int, int]:
        """Length and offset of the keys that `query_length` further tokens attend to."""
        return self.length + query_length, 0

    def truncate(self, length: int) -> None:
        """Forget tokens from position `length` on, in layers that a broken step left longer than others, too."""
        self._layers = {i: (k[:, :, :length], v[:, :, :length]) for i, (k, v) in self._layers.items()} if length else {}

    def tokens(self, layer: int) -> int:
        """Tokens that one layer has seen; 0: it has nothing."""
        return int(self._layers[layer][0].shape[2]) if layer in self._layers else 0

    def adopt(self, other: KvCache, layers: Iterable[int]) -> None:
        """Take over layers of another cache; the tensors are shared. Raises BadFrame: it lacks one."""
        taken = {layer: other._layers.get(layer) for layer in layers}
        for layer, pair in taken.items():
            if pair is None:
                raise BadFrame(f"layer {layer} has no KV cache to take over")
        self._layers |= {layer: pair for layer, pair in taken.items() if pair is not None}

    def export(self, layer: int) -> bytes:
        """Return one layer as a frame. Raises BadFrame: there is nothing."""
        if layer not in self._layers:
            raise BadFrame(f"layer {layer} has no KV cache to export")
        keys, values = self._layers[layer]
        body = raw_bytes(keys) + raw_bytes(values)
        _, heads, tokens, width = keys.shape
        kind = _DTYPES.index(keys.dtype)
        return HEAD.pack(_MAGIC, kind, layer, heads, width, tokens, zlib.crc32(body)) + body

    def take(self, frame: bytes, layer: int, like: KvLayout) -> None:
        """Put an exported layer in. Raises BadFrame: damaged, another layer, or of other sizes than the model's."""
        if len(frame) < HEAD.size:
            raise BadFrame(f"KV of layer {layer}: {len(frame)} bytes are no frame")
        magic, kind, sent, heads, width, tokens, crc = HEAD.unpack_from(frame)
        told = (magic, sent, heads, width)
        if told != (_MAGIC, layer, like.heads, like.width) or kind >= len(_DTYPES) or _DTYPES[kind] != like.dtype:
            raise BadFrame(f"KV of layer {layer}: the frame is of another layer, model or dtype")
        body = memoryview(frame)[HEAD.size :]
        if not tokens or len(body) != tokens * like.bytes_per_token or zlib.crc32(body) != crc:
            raise BadFrame(f"KV of layer {layer}: damaged on its way")
        pair = torch.frombuffer(bytearray(body), dtype=like.dtype).view(2, 1, heads, tokens, width).to(like.device)
        if not bool(torch.isfinite(pair).all()):
            raise BadFrame(f"KV of layer {layer}: not finite")
        self._layers[layer] = (pair[0], pair[1])


def claimed(frame: bytes) -> int:
    """Tokens that an exported layer says it has; nothing else of it is looked at. Raises BadFrame."""
    if len(frame) < HEAD.size:
        raise BadFrame(f"KV: {len(frame)} bytes are no frame")
    return int(HEAD.unpack_from(frame)[5])


class KvLayout:
    """Sizes of one layer's cache: KV heads, their width, dtype and device."""

    def __init__(self, heads: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self.heads, self.width, self.dtype, self.device = heads, width, dtype, device

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one token adds to one layer."""
        return 2 * self.heads * self.width * int(self.dtype.itemsize)


def raw_bytes(tensor: torch.Tensor) -> bytes:
    """Return a tensor's elements in row order."""
    found: bytes = tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
    return found
