"""The layer table of a model: work, bytes and times of embedding, layers and head, with their totals."""

from __future__ import annotations

from typing import Final

import msgspec

from cosched.errors import BadInput
from cosched.profiles import latency, quant
from cosched.profiles.device import Device, Host
from cosched.profiles.model import Model

PRECISIONS: Final = (16, 8, 4)


class TablePart(msgspec.Struct, frozen=True, kw_only=True):
    """`count` equal parts of a model; figures are of ONE. Prefill: all new tokens; decode: one token."""

    part: str
    count: int
    prefill_flop: float
    decode_flop: float
    weight_bytes: float
    kv_bytes_per_token: float
    prefill_s: float
    decode_s: float


class Precision(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of one layer at `bits` per value: weights, KV cache and the activation that a split sends."""

    bits: int
    weight_bytes: float
    kv_bytes_per_token: float
    activation_bytes_per_token: float


class LayerTable(msgspec.Struct, frozen=True, kw_only=True):
    """All of `cosched profile`: `parts` in the order of the computation, `total` over the model."""

    v: int
    model: str
    family: str
    parameters: int
    layers: int
    device: str
    host: str | None
    tokens: int
    context: int
    weight_bits: int
    weight_format: str
    parts: tuple[TablePart, ...]
    total: TablePart
    served: dict[str, float] | None  # seconds per phase as the host delivers them
    precisions: tuple[Precision, ...]
    guess: tuple[str, ...]


def layer_table(
    model: Model, device: Device, host: Host | None, *, tokens: int, context: int, weight_bits: int
) -> LayerTable:
    """Tabulate a prefill of `tokens` after `context` tokens, and one decoded token after all of them.

    Raises BadInput for token counts or weight bits that there are not.
    """
    if tokens < 1 or context < 0:
        raise BadInput(f"tokens = {tokens}, context = {context}: at least 1 and 0 are needed")
    parts = (
        _embedding(model, device, tokens, weight_bits),
        _layer(model, device, tokens, context, weight_bits),
        _head(model, device, weight_bits),
    )
    total = _total(model, parts, model.weight_bytes(weight_bits, device.weight_format))
    return LayerTable(
        v=1,
        model=model.name,
        family=model.family,
        parameters=model.parameters,
        layers=model.n_layers,
        device=device.key,
        host=host.key if host else None,
        tokens=tokens,
        context=context,
        weight_bits=weight_bits,
        weight_format=device.weight_format,
        parts=parts,
        total=total,
        served=_served(model, host, total, tokens) if host else None,
        precisions=tuple(_precision(model, device, bits) for bits in PRECISIONS),
        guess=_guesses(device, host, weight_bits),
    )


def _precision(model: Model, device: Device, bits: int) -> Precision:
    return Precision(
        bits=bits,
        weight_bytes=model.weight_bytes_layer(bits, device.weight_format),
        kv_bytes_per_token=model.kv_bytes_per_token_layer(bits),
        activation_bytes_per_token=model.activation_bytes_per_token(bits),
    )


def _embedding(model: Model, device: Device, tokens: int, weight_bits: int) -> TablePart:
    """Input embedding: a look-up, no arithmetic. A tied one shares its weights with the head, which counts them."""
    bits = quant.embedding_bits(weight_bits, device.weight_format)
    return TablePart(
        part="embedding",
        count=1,
        prefill_flop=0.0,
        decode_flop=0.0,
        weight_bytes=0.0 if model.tied else model.embedding_parameters * bits / 8,
        kv_bytes_per_token=0.0,
        prefill_s=latency.embed_s(model, device, float(tokens)),
        decode_s=latency.embed_s(model, device, 1.0),
    )


def _layer(model: Model, device: Device, tokens: int, context: int, weight_bits: int) -> TablePart:
    seen = float(context + tokens)
    return TablePart(
        part="layer",
        count=model.n_layers,
        prefill_flop=tokens * (model.flop_per_token_layer + model.attention_flop_per_token(seen)),
        decode_flop=model.flop_per_token_layer + model.attention_flop_per_token(seen),
        weight_bytes=model.weight_bytes_layer(weight_bits, device.weight_format),
        kv_bytes_per_token=model.kv_bytes_per_token_layer(),
        prefill_s=latency.prefill_layer_s(model, device, float(tokens), float(context), weight_bits),
        decode_s=latency.decode_layer_s(model, device, seen, weight_bits),
    )


def _head(model: Model, device: Device, weight_bits: int) -> TablePart:
    """Take final norm and output head: for the last token only, in both phases."""
    time_s = latency.head_s(model, device, weight_bits)
    return TablePart(
        part="head",
        count=1,
        prefill_flop=model.head_flop_per_token,
        decode_flop=model.head_flop_per_token,
        weight_bytes=model.head_weight_bytes(weight_bits, device.weight_format) + model.final_norm_bytes,
        kv_bytes_per_token=0.0,
        prefill_s=time_s,
        decode_s=time_s,
    )


def _total(model: Model, parts: tuple[TablePart, ...], weight_bytes: float) -> TablePart:
    def over_all(field: str) -> float:
        return float(sum(part.count * getattr(part, field) for part in parts))

    return TablePart(
        part="model",
        count=1,
        prefill_flop=over_all("prefill_flop"),
        decode_flop=over_all("decode_flop"),
        weight_bytes=weight_bytes,
        kv_bytes_per_token=model.n_layers * model.kv_bytes_per_token_layer(),
        prefill_s=over_all("prefill_s"),
        decode_s=over_all("decode_s"),
    )


def _served(model: Model, host: Host, total: TablePart, tokens: int) -> dict[str, float]:
    return {
        "prefill_s": latency.served_step_s(total.prefill_s, host, float(model.n_layers), 1.0, float(tokens)),
        "decode_s": latency.served_step_s(total.decode_s, host, float(model.n_layers)),
    }


def _guesses(device: Device, host: Host | None, weight_bits: int) -> tuple[str, ...]:
    phases = (*device.guesses("prefill", weight_bits), *device.guesses("decode", weight_bits))
    return tuple(dict.fromkeys((*phases, *(host.guesses(device.key) if host else ()))))
