"""The KV cache of one session: by layer, numbered as in the whole model, so that layers can come and go.

transformers asks a cache for its length and hands it new keys and values; what else there is here is what a split
needs: layers as bytes, taken over from another cache, cut back to a length. A layer grows by pages of PAGE_TOKENS
tokens: a step writes behind what is there and copies nothing until a page is full. Two caches may share tensors;
whoever appends to what is shared copies it first.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import torch

from cosched.runtime.errors import BadFrame

Pair = tuple[torch.Tensor, torch.Tensor]  # keys and values, each (1, kv_heads, tokens, head_dim)

HEAD: Final = struct.Struct("<4sBxHHHII")  # magic, dtype, layer, kv_heads, head_dim, tokens, crc32 of what follows
PAGE_TOKENS: Final = 16
_MAGIC: Final = b"cKV1"
_DTYPES: Final = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(slots=True)
class LayerKv:
    """One layer's keys and values, each (1, kv_heads, room, head_dim), of which `tokens` are filled."""

    keys: torch.Tensor
    values: torch.Tensor
    tokens: int
    shared: bool  # somebody else may look at these tensors: not to be written to

    @property
    def pair(self) -> Pair:
        """What is filled."""
        return self.keys[:, :, : self.tokens], self.values[:, :, : self.tokens]


class KvCache:
    """Keys and values by layer; all layers have seen the same `length` tokens between two steps."""

    is_compileable = False

    def __init__(self) -> None:
        self._layers: dict[int, LayerKv] = {}

    @property
    def length(self) -> int:
        """Tokens seen."""
        return next((held.tokens for held in self._layers.values()), 0)

    @property
    def layers(self) -> list[int]:
        """Layers that have something, in order."""
        return sorted(self._layers)

    @property
    def n_bytes(self) -> int:
        """Bytes of all keys and values, and of what their last pages have left."""
        return sum(tensor.nbytes for held in self._layers.values() for tensor in (held.keys, held.values))

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: object) -> Pair:
        """Append to a layer and return all it has: what transformers' attention calls.

        What it returns is contiguous, or what came: attention over pages need not have the same last bits.
        """
        if layer_idx not in self._layers:
            self._layers[layer_idx] = LayerKv(keys, values, int(keys.shape[2]), shared=True)
            return keys, values
        all_keys, all_values = self.append(keys, values, layer_idx)
        return all_keys.contiguous(), all_values.contiguous()

    def append(self, keys: torch.Tensor, values: torch.Tensor, layer: int) -> Pair:
        """Write (1, kv_heads, n, head_dim) behind a layer's tokens and return views of all it has."""
        held, new = self._layers.get(layer), int(keys.shape[2])
        tokens = new + (held.tokens if held is not None else 0)
        with torch.inference_mode():  # what was made in it can be written to in it alone
            if held is None or held.shared or tokens > held.keys.shape[2]:
                held = self._layers[layer] = _with_room(held, keys, values, paged(tokens))
            held.keys[:, :, held.tokens : tokens] = keys
            held.values[:, :, held.tokens : tokens] = values
        held.tokens = tokens
        return held.pair

    def get_query_offset(self, _: int = 0) -> int:
        """Position of the next token: what transformers' mask asks."""
        return self.length

    def get_mask_sizes(self, query_length: int, _: int = 0) -> tuple[int, int]:
        """Length and offset of the keys that `query_length` further tokens attend to."""
        return self.length + query_length, 0

    def truncate(self, length: int) -> None:
        """Forget tokens from position `length` on, in layers that a broken step left longer than others, too."""
        kept = self._layers if length else {}
        self._layers = {i: _cut(held, min(length, held.tokens)) for i, held in kept.items()}

    def tokens(self, layer: int) -> int:
        """Tokens that one layer has seen; 0: it has nothing."""
        return self._layers[layer].tokens if layer in self._layers else 0

    def adopt(self, other: KvCache, layers: Iterable[int], length: int | None = None) -> None:
        """Take over layers of another cache, the first `length` tokens (None: all); tensors are shared.

        Raises BadFrame: it lacks one.
        """
        taken = {layer: other._layers.get(layer) for layer in layers}
        for layer, held in taken.items():
            if held is None:
                raise BadFrame(f"layer {layer} has no KV cache to take over")
            held.shared = True
            tokens = held.tokens if length is None else min(length, held.tokens)
            taken[layer] = LayerKv(held.keys, held.values, tokens, shared=True)
        self._layers |= {layer: held for layer, held in taken.items() if held is not None}

    def export(self, layer: int) -> bytes:
        """Return one layer as a frame. Raises BadFrame: there is nothing."""
        if layer not in self._layers:
            raise BadFrame(f"layer {layer} has no KV cache to export")
        keys, values = self._layers[layer].pair
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
        self._layers[layer] = LayerKv(pair[0], pair[1], tokens, shared=True)


def paged(tokens: int) -> int:
    """Tokens that the pages of so many have room for."""
    return -(-tokens // PAGE_TOKENS) * PAGE_TOKENS


def _with_room(held: LayerKv | None, keys: torch.Tensor, values: torch.Tensor, room: int) -> LayerKv:
    """Return what is held in tensors of its own with room for so many tokens; keys, values: what they are like."""
    shape = (1, keys.shape[1], room, keys.shape[3])
    tokens = held.tokens if held is not None else 0
    found = LayerKv(keys.new_empty(shape), values.new_empty(shape), tokens, shared=False)
    if held is not None:
        found.keys[:, :, : held.tokens], found.values[:, :, : held.tokens] = held.pair
    return found


def _cut(held: LayerKv, length: int) -> LayerKv:
    """The first `length` tokens; pages that nothing is left in are given back."""
    cut = LayerKv(held.keys, held.values, length, held.shared)
    if paged(length) < held.keys.shape[2]:
        cut.keys, cut.values = (tensor.clone() for tensor in cut.pair)
        cut.shared = True  # its last page is not whole: the next token moves it
    return cut


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
