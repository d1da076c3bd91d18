"""A model as work: what one decoder layer, the embedding and the head cost in FLOP and bytes.

Read from a Hugging Face `config.json`: no weights are needed. FLOP count a multiply-add as two and matrix products
only (norms, rotations and activations are memory-bound: latency.py counts their bytes).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from cosched.errors import BadInput
from cosched.profiles import families, quant
from cosched.resources import config_file

Floats = npt.NDArray[np.float64]
T = TypeVar("T", float, Floats)

_MAX_CONFIG_BYTES: Final = 1 << 20  # real files have a few KiB; do not read a checkpoint by mistake


@dataclass(frozen=True, slots=True)
class Model:
    """A dense decoder: `n_layers` equal layers. Widths in elements, `window` in tokens (None: full attention)."""

    name: str
    family: str
    n_layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    gated: bool
    vocab: int
    tied: bool
    norms: int = 2  # per layer, of width `hidden`
    norm_bias: bool = False
    qk_norm: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    window: int | None = None
    window_layers: int = 0  # how many layers attend to the last `window` tokens only
    stored_weight_bits: int | None = None  # of a checkpoint that is quantised already

    @property
    def q_width(self) -> int:
        """Width of all queries: heads x head_dim (need not equal `hidden`)."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of all keys (and of all values)."""
        return self.kv_heads * self.head_dim

    @property
    def linear_parameters_layer(self) -> int:
        """Elements of a layer's matrices: q, k, v, o and the MLP."""
        attention = self.hidden * (2 * self.q_width + 2 * self.kv_width)
        return attention + (3 if self.gated else 2) * self.hidden * self.ffn

    @property
    def small_parameters_layer(self) -> int:
        """Elements of a layer's norms and biases, which no quantiser touches."""
        norms = self.norms * self.hidden * (2 if self.norm_bias else 1) + (2 * self.head_dim if self.qk_norm else 0)
        qkv = self.q_width + 2 * self.kv_width if self.qkv_bias else 0
        mlp = (2 if self.gated else 1) * self.ffn + self.hidden if self.mlp_bias else 0
        return norms + qkv + mlp + (self.hidden if self.out_bias else 0)

    @property
    def parameters_layer(self) -> int:
        """Elements of one layer."""
        return self.linear_parameters_layer + self.small_parameters_layer

    @property
    def embedding_parameters(self) -> int:
        """Elements of the input embedding (with tied embeddings also the output head)."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """Elements of the whole model; a tied head is counted once."""
        final_norm = round(self.final_norm_bytes / 2)
        head = 0 if self.tied else self.embedding_parameters
        head_bias = self.vocab if self.head_bias else 0
        return self.n_layers * self.parameters_layer + self.embedding_parameters + head + head_bias + final_norm

    @property
    def flop_per_token_layer(self) -> float:
        """FLOP of one layer's matrices for one token; attention over the context comes on top."""
        return 2.0 * self.linear_parameters_layer

    @property
    def head_flop_per_token(self) -> float:
        """FLOP of the output head for one token."""
        return 2.0 * self.embedding_parameters

    @property
    def attention_flop_slope(self) -> float:
        """FLOP per token and attended token of one layer: Q K^T and P V, two FLOP each per element."""
        return 4.0 * self.q_width

    def attended_tokens(self, context_tokens: T) -> T:
        """Tokens that a query attends to, mean over the layers: sliding layers see their window only."""
        if self.window is None or self.window_layers == 0:
            return context_tokens
        sliding = self.window_layers / self.n_layers
        seen = 0.5 * (context_tokens + self.window - abs(context_tokens - self.window))  # min, for arrays too
        return (1.0 - sliding) * context_tokens + sliding * seen

    def attention_flop_per_token(self, context_tokens: T) -> T:
        """FLOP of one layer's attention for one token that attends to `context_tokens`."""
        return self.attention_flop_slope * self.attended_tokens(context_tokens)

    def weight_bytes_layer(self, bits: int, weight_format: str = "gguf") -> float:
        """Bytes of one layer's weights, scales counted (quant.py); norms and biases stay at 16 bit."""
        linear = self.linear_parameters_layer * quant.weight_bits(bits, weight_format) / 8.0
        return linear + 2.0 * self.small_parameters_layer

    def head_weight_bytes(self, bits: int, weight_format: str = "gguf") -> float:
        """Bytes read for the output head at each step: the tied embedding matrix too."""
        matrix = self.embedding_parameters * quant.head_bits(bits, weight_format) / 8.0
        return matrix + (2.0 * self.vocab if self.head_bias else 0.0)

    @property
    def final_norm_bytes(self) -> float:
        """Bytes of the norm before the head, at 16 bit."""
        return 2.0 * self.hidden * (2 if self.norm_bias else 1)

    def weight_bytes(self, bits: int, weight_format: str = "gguf") -> float:
        """Bytes of the whole model in memory: layers, final norm, input embedding and, unless tied, the head."""
        layers = self.n_layers * self.weight_bytes_layer(bits, weight_format)
        embedding = self.embedding_parameters * quant.embedding_bits(bits, weight_format) / 8.0
        head = self.head_weight_bytes(bits, weight_format)
        return layers + self.final_norm_bytes + (head if self.tied else head + embedding)

    def kv_bytes_per_token_layer(self, bits: int = 16) -> float:
        """Bytes that one token adds to one layer's KV cache (keys and values)."""
        return 2.0 * self.kv_width * bits / 8.0

    def activation_bytes_per_token(self, bits: int) -> float:
        """Bytes of one token's hidden state on the air: what a split sends (quant.activation_bytes)."""
        return float(quant.activation_bytes(self.hidden, bits))


def load_model(path_or_key: str | Path) -> Model:
    """Read a model by key (config/models/<key>.json), by path of a config.json, or of the folder that holds one.

    Raises BadInput: no such file, not JSON, unknown family, mixture of experts, missing or impossible numbers.
    """
    path = _find(path_or_key)
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= _MAX_CONFIG_BYTES else b""
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    if size > _MAX_CONFIG_BYTES:
        raise BadInput(f"{path}: {size} bytes are too many for a config.json; name the model's config.json")
    name = path.parent.resolve().name if path.name == "config.json" else path.stem
    return parse_model(data, str(path), name)


def _find(path_or_key: str | Path) -> Path:
    path = Path(path_or_key)
    if path.is_dir():
        return path / "config.json"
    if path.exists() or path.suffix == ".json" or isinstance(path_or_key, Path) or "/" in path_or_key:
        return path
    return config_file("models", f"{path_or_key}.json")


def parse_model(data: bytes, where: str, name: str) -> Model:
    """Build a Model from the bytes of a config.json. `where` is named in errors, `name` becomes the model's name."""
    family, config = families.parse_config(data, where)
    sizes = _sizes(family, config, where)
    sliding = families.sliding_layers(family, config, sizes["num_hidden_layers"])
    window = config.sliding_window or family.defaults.get("sliding_window")
    return Model(
        name=name,
        family=family.name,
        n_layers=sizes["num_hidden_layers"],
        hidden=sizes["hidden_size"],
        heads=sizes["num_attention_heads"],
        kv_heads=sizes["num_key_value_heads"],
        head_dim=sizes["head_dim"],
        ffn=sizes["intermediate_size"],
        gated=family.gated,
        vocab=sizes["vocab_size"],
        tied=family.tied if config.tie_word_embeddings is None else config.tie_word_embeddings,
        norms=family.norms,
        norm_bias=family.norm_bias,
        qk_norm=family.qk_norm,
        qkv_bias=family.qkv_bias or config.attention_bias,
        out_bias=family.dense_bias or config.attention_bias,
        mlp_bias=family.dense_bias or config.mlp_bias,
        head_bias=family.dense_bias,
        window=window if sliding else None,
        window_layers=sliding if window else 0,
        stored_weight_bits=families.quantised_bits(config, where),
    )


def _sizes(family: families.Family, config: families.RawConfig, where: str) -> dict[str, int]:
    """Return the sizes that every model has, with the family's defaults filled in."""

    def need(key: str) -> int:
        value: int | None = getattr(config, key)
        value = family.defaults.get(key) if value is None else value
        if value is None:
            raise BadInput(f"{where}: {key} is missing: a {family.name} configuration needs it")
        return value

    keys = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    sizes = {key: need(key) for key in keys}
    heads, hidden = sizes["num_attention_heads"], sizes["hidden_size"]
    sizes["num_key_value_heads"] = config.num_key_value_heads or family.defaults.get("num_key_value_heads", heads)
    head_dim = config.head_dim or family.defaults.get("head_dim")
    if heads % sizes["num_key_value_heads"]:
        kv_heads = sizes["num_key_value_heads"]
        raise BadInput(f"{where}: num_attention_heads = {heads} is no multiple of num_key_value_heads = {kv_heads}")
    if head_dim is None and hidden % heads:
        raise BadInput(f"{where}: hidden_size {hidden} is no multiple of num_attention_heads {heads}: give head_dim")
    sizes["head_dim"] = head_dim or hidden // heads
    return sizes
