"""What a Hugging Face `config.json` leaves unsaid: the layer of each supported family of decoders.

Facts are those of the families' reference implementations in the `transformers` library (class defaults, which
matrices have biases, how many norms a layer has); parameter counts in tests/profiles/test_model.py confirm them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Final

import msgspec

from cosched.errors import BadInput

Count = Annotated[int, msgspec.Meta(ge=1, le=10_000_000)]


@dataclass(frozen=True, slots=True)
class Family:
    """One family's layer, as far as its configuration files do not say it themselves."""

    name: str
    gated: bool = True  # gate and up projections, multiplied
    norms: int = 2  # of width `hidden`, per layer
    norm_bias: bool = False  # LayerNorm has one, RMSNorm has none
    qk_norm: bool = False  # a norm of width `head_dim` on queries and on keys
    qkv_bias: bool = False  # always; a configuration's `attention_bias` adds it for all four projections
    dense_bias: bool = False  # output and MLP projections, and the head
    tied: bool = False  # where `tie_word_embeddings` is not given
    defaults: dict[str, int] = field(default_factory=dict)  # of keys that published files leave out
    windowed: str = "if_given"  # which layers slide: if_given (all), if_used, alternate, five_of_six


_GEMMA3: Final = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 262_208,
    "sliding_window": 4096,
}

FAMILIES: Final[dict[str, Family]] = {
    "llama": Family("llama"),
    "mistral": Family("mistral"),
    "qwen2": Family("qwen2", qkv_bias=True, windowed="if_used"),
    "qwen3": Family("qwen3", qk_norm=True, defaults={"head_dim": 128}, windowed="if_used"),
    "phi": Family("phi", gated=False, norms=1, norm_bias=True, qkv_bias=True, dense_bias=True),
    "phi3": Family("phi3"),
    "gemma": Family("gemma", tied=True, defaults={"head_dim": 256}),
    "gemma2": Family("gemma2", norms=4, tied=True, defaults={"head_dim": 256}, windowed="alternate"),
    "gemma3_text": Family("gemma3", norms=4, qk_norm=True, tied=True, defaults=_GEMMA3, windowed="five_of_six"),
    "gemma3": Family("gemma3", norms=4, qk_norm=True, tied=True, defaults=_GEMMA3, windowed="five_of_six"),
}


class RawConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The keys that are read, in the file's own names; None = not given."""

    model_type: str
    name: str | None = msgspec.field(default=None, name="_name_or_path")
    hidden_size: Count | None = None
    num_hidden_layers: Count | None = None
    num_attention_heads: Count | None = None
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    intermediate_size: Count | None = None
    vocab_size: Count | None = None
    tie_word_embeddings: bool | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    sliding_window: Count | None = None
    sliding_window_pattern: Count | None = None
    use_sliding_window: bool | None = None
    max_window_layers: int | None = None
    layer_types: tuple[str, ...] | None = None
    quantization_config: dict[str, Any] | None = None


_EXPERT_KEYS: Final = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def parse_config(data: bytes, where: str) -> tuple[Family, RawConfig]:
    """Decode a `config.json`. Raises BadInput (one line: what, where, the mend).

    A `text_config` (vision-language wrappers) is read in place of the outer level, which lends it the quantisation,
    the tying of embeddings and the name.
    """
    raw = _decode(data, where)
    text = raw.get("text_config")
    if isinstance(text, dict):
        lent = ("quantization_config", "tie_word_embeddings", "_name_or_path", "model_type")
        raw = {key: raw[key] for key in lent if raw.get(key) is not None} | text
    _refuse_experts(raw, where)
    try:
        config = msgspec.convert(raw, RawConfig)
    except msgspec.ValidationError as error:
        raise BadInput(f"{where}: {error}") from None
    family = FAMILIES.get(config.model_type)
    if family is None:
        supported = ", ".join(sorted(FAMILIES))
        raise BadInput(f"{where}: model_type '{config.model_type}' is not supported; supported: {supported}")
    return family, config


def _decode(data: bytes, where: str) -> dict[str, Any]:
    try:
        raw = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(f"{where}: not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise BadInput(f"{where}: a config.json holds an object, not {type(raw).__name__}")
    return raw


def _refuse_experts(raw: dict[str, Any], where: str) -> None:
    """Refuse mixtures of experts: they read and compute a varying part of their weights, our equations do not."""
    for key in _EXPERT_KEYS:
        experts = raw.get(key)
        if isinstance(experts, int) and experts > 1:
            raise BadInput(f"{where}: {key} = {experts}: mixtures of experts are not supported; use a dense model")


def sliding_layers(family: Family, config: RawConfig, n_layers: int) -> int:
    """How many layers attend to the last `sliding_window` tokens only."""
    if config.layer_types is not None:
        return min(n_layers, config.layer_types.count("sliding_attention"))
    if family.windowed == "if_used":
        full = n_layers if config.max_window_layers is None else config.max_window_layers
        return max(0, n_layers - full) if config.use_sliding_window else 0
    if family.windowed == "alternate":
        return (n_layers + 1) // 2
    if family.windowed == "five_of_six":
        return n_layers - n_layers // (config.sliding_window_pattern or 6)
    return n_layers


def quantised_bits(config: RawConfig, where: str) -> int | None:
    """Bits per weight that the checkpoint is stored with, None = not quantised. Raises BadInput when unreadable."""
    quantised = config.quantization_config
    if quantised is None:
        return None
    method = str(quantised.get("quant_method", "")).lower()
    bits = _stated_bits(quantised, method)
    if isinstance(bits, int) and bits in (4, 8):
        return bits
    raise BadInput(f"{where}: quantization_config ({method or 'no quant_method'}): 4 or 8 bits are read, not {bits}")


def _stated_bits(quantised: dict[str, Any], method: str) -> object:
    if quantised.get("load_in_4bit") is True:
        return 4
    if quantised.get("load_in_8bit") is True or "fp8" in method:
        return 8
    groups = quantised.get("config_groups")
    if isinstance(groups, dict) and groups:
        group = groups[min(groups)]
        weights = group.get("weights") if isinstance(group, dict) else None
        return weights.get("num_bits") if isinstance(weights, dict) else None
    return quantised.get("bits", quantised.get("w_bit"))
