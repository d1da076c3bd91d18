"""One forward of several sessions: what a layer does to each token by itself is done to all rows at once.

A step of a server reads a layer's weights once for everybody in it (Yu et al., Orca, OSDI 2022, "selective batching"):
projections, norms and the feed-forward network see one matrix of all rows, attention looks at each session's own KV
cache. Sessions begin and end at layers of their own; rows join at theirs, so what they share is read once.

A product of many rows may differ in its last bits from that of one: whoever is alone in a step runs as `Part.run` has
it, and is exact (docs/runtime.md).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from cosched.runtime.kv import KvCache
from cosched.runtime.parts import Part


@dataclass(slots=True)
class SessionRows:
    """Tokens of one session in a step. hidden: (n, hidden), into layer `start`; after `run_rows` out of `stop` - 1."""

    hidden: torch.Tensor
    cache: KvCache
    start: int
    stop: int
    past: int = 0  # tokens in the cache before
    cos: torch.Tensor | None = None  # (n, 1, head_dim) of the rotary embedding
    sin: torch.Tensor | None = None
    mask: torch.Tensor | None = None  # (n, past + n); None: one token sees all, or all are new and see what is before


def run_rows(part: Part, batch: Sequence[SessionRows]) -> None:
    """Run each one's rows through its layers, appending to its cache. Raises BadModel: a layer is not here."""
    with torch.inference_mode():
        for rows in batch:
            part.need(rows.start, rows.stop)
            _prepare(part, rows)
        bounds = sorted({rows.start for rows in batch} | {rows.stop for rows in batch})
        for first, last in itertools.pairwise(bounds):
            here = [rows for rows in batch if rows.start <= first and last <= rows.stop]
            if here:
                _run_layers(part, here, first, last)


def _prepare(part: Part, rows: SessionRows) -> None:
    n, rows.past = rows.hidden.shape[0], rows.cache.length
    positions = torch.arange(rows.past, rows.past + n, device=part.device)
    cos, sin = part.rotary(rows.hidden.unsqueeze(0), positions.unsqueeze(0))
    rows.cos, rows.sin = cos[0].unsqueeze(1), sin[0].unsqueeze(1)
    if n > 1 and rows.past:
        rows.mask = torch.ones(n, rows.past + n, dtype=torch.bool, device=part.device).tril(rows.past)


def _run_layers(part: Part, batch: Sequence[SessionRows], first: int, last: int) -> None:
    counts = [rows.hidden.shape[0] for rows in batch]
    hidden = torch.cat([rows.hidden for rows in batch])
    cos = torch.cat([rows.cos for rows in batch if rows.cos is not None])
    sin = torch.cat([rows.sin for rows in batch if rows.sin is not None])
    for index in range(first, last):
        layer = part.layer(index)
        hidden = hidden + _attend(layer, index, layer.input_layernorm(hidden), batch, cos, sin)
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    for rows, own in zip(batch, hidden.split(counts), strict=True):
        rows.hidden = own


def _attend(
    layer: Any,  # noqa: ANN401  # a class of transformers
    index: int,
    x: torch.Tensor,
    batch: Sequence[SessionRows],
    cos: torch.Tensor,
    sin: torch.Tensor,
) -> torch.Tensor:
    """(rows, hidden) of self-attention: projections of all rows, then each session's own keys and values."""
    attention = layer.self_attn
    shape = (x.shape[0], -1, attention.head_dim)
    query, key = attention.q_proj(x).view(shape), attention.k_proj(x).view(shape)
    value = attention.v_proj(x).view(shape)
    if hasattr(attention, "q_norm"):  # Qwen3
        query, key = attention.q_norm(query), attention.k_norm(key)
    query, key = _rotated(query, cos, sin), _rotated(key, cos, sin)
    found, at = torch.empty_like(query), 0
    for rows in batch:
        own = slice(at, at + rows.hidden.shape[0])
        keys, values = rows.cache.append(_heads(key[own]), _heads(value[own]), index)
        found[own] = _one(query[own], keys, values, rows.mask, attention.scaling)
        at = own.stop
    out: torch.Tensor = attention.o_proj(found.flatten(1))
    return out


def _one(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """(n, heads, head_dim) of one session's n queries over keys and values (1, kv_heads, tokens, head_dim)."""
    n, heads, width = query.shape
    if n == 1:  # the query heads of one KV head are looked up as so many queries: nothing is copied
        packed = query.view(1, keys.shape[1], heads // keys.shape[1], width)
        return functional.scaled_dot_product_attention(packed, keys, values, scale=scale).view(1, heads, width)
    found = functional.scaled_dot_product_attention(
        _heads(query), keys, values, attn_mask=mask, is_causal=mask is None, scale=scale,
        enable_gqa=heads != keys.shape[1],
    )  # fmt: skip
    return found[0].transpose(0, 1)


def _heads(x: torch.Tensor) -> torch.Tensor:
    """(1, heads, n, head_dim) of (n, heads, head_dim)."""
    return x.transpose(0, 1).unsqueeze(0)


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """(n, heads, head_dim) turned by the rotary embedding, as transformers' `apply_rotary_pos_emb` does."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
