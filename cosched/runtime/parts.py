"""Layers [a, b) of a model, as one machine holds them: embedding with layer 0, last norm and head with layer L - 1.

Layers are numbered as in the whole model, everywhere: in the attention that addresses the KV cache, on the wire and
in decisions. Each side computes the mask from its own cache and the rotary embedding from the positions, so hidden
states are all that crosses a split.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from transformers.masking_utils import create_causal_mask

from cosched.runtime.errors import BadModel
from cosched.runtime.kv import KvCache, KvLayout
from cosched.runtime.model import ModelSource

EMBEDDING: Final = "model.embed_tokens.weight"
NORM: Final = "model.norm.weight"
HEAD: Final = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class LoadedLayers:
    """What one load did: new layers, their bytes in memory, and how long it took."""

    layers: int
    weight_bytes: int
    seconds: float


class Part:
    """Layers of `source` on one device; empty until `load`. Raises BadModel for ranges outside the model."""

    def __init__(self, source: ModelSource, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        self.source = source
        self.dtype = dtype
        self.device = torch.device(device)
        self._tied = source.sizes.tied
        self._layers: dict[int, Any] = {}
        self._ends: dict[str, torch.Tensor] = {}  # embedding, norm, head by name in the checkpoint
        family, stem = source.config.model_type, type(source.config).__name__.removesuffix("Config")
        modules = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
        self._layer_class = getattr(modules, f"{stem}DecoderLayer")
        self._rotary = getattr(modules, f"{stem}RotaryEmbedding")(config=source.config).to(self.device)
        self._norm = getattr(modules, f"{stem}RMSNorm")(source.sizes.hidden, eps=source.config.rms_norm_eps)

    @property
    def layers(self) -> list[int]:
        """Layers held, in order."""
        return sorted(self._layers)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights held; a tied head is the embedding."""
        layers = list(self._layers.values())  # at one instant: another thread may be loading
        tensors = [p for layer in layers for p in layer.parameters()] + list(self._ends.values())
        return sum(tensor.nbytes for tensor in tensors)

    @property
    def kv_layout(self) -> KvLayout:
        """Sizes of one layer's KV cache."""
        return KvLayout(self.source.sizes.kv_heads, self.source.sizes.head_dim, self.dtype, self.device)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return all weights held, by their names in a checkpoint."""
        layers = self._layers.items()
        named = {f"model.layers.{i}.{name}": t for i, layer in layers for name, t in layer.state_dict().items()}
        return named | self._ends

    def holds(self, start: int, stop: int) -> bool:
        """Whether layers [start, stop) can be run here."""
        return all(layer in self._layers for layer in range(start, stop))

    def check(self, start: int, stop: int) -> None:
        """Raise BadModel where [start, stop) is no range of this model's layers."""
        if not 0 <= start <= stop <= self.source.n_layers:
            raise BadModel(f"layers [{start}, {stop}): {self.source.name} has layers 0 to {self.source.n_layers - 1}")

    def load(self, start: int, stop: int) -> LoadedLayers:
        """Read the layers of [start, stop) that are not here yet. Raises BadModel."""
        self.check(start, stop)
        began, before = time.perf_counter(), self.weight_bytes
        missing = [i for i in range(start, stop) if i not in self._layers]
        for layer in missing:
            self._layers[layer] = self._read_layer(layer)
        self._keep_ends()
        return LoadedLayers(len(missing), self.weight_bytes - before, time.perf_counter() - began)

    def unload(self, start: int, stop: int) -> None:
        """Forget the layers of [start, stop), and what belongs to them alone."""
        self.check(start, stop)
        for layer in range(start, stop):
            self._layers.pop(layer, None)
        self._keep_ends()

    def _read_layer(self, layer: int) -> Any:  # noqa: ANN401  # a class of transformers
        with torch.device("meta"):
            module = self._layer_class(self.source.config, layer)
        prefix = f"model.layers.{layer}."
        shapes = {prefix + name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        found = self._read(shapes)
        module.load_state_dict({name.removeprefix(prefix): t for name, t in found.items()}, strict=True, assign=True)
        return module.eval().requires_grad_(False)

    def _read(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
        """Read tensors into memory of their own: a product's last bits may depend on how its operands are aligned."""
        found = self.source.weights.read(shapes)
        return {name: tensor.to(device=self.device, dtype=self.dtype, copy=True) for name, tensor in found.items()}

    def _keep_ends(self) -> None:
        """Hold the embedding, the norm and the head where their layers are, and only there."""
        sizes = self.source.sizes
        table, width = (sizes.vocab, sizes.hidden), (sizes.hidden,)
        wanted: dict[str, tuple[int, ...]] = {}
        if 0 in self._layers:
            wanted[EMBEDDING] = table
        if sizes.n_layers - 1 in self._layers:
            wanted |= {NORM: width, EMBEDDING if self._tied else HEAD: table}
        kept = {name: tensor for name, tensor in self._ends.items() if name in wanted}
        self._ends = kept | self._read({name: shape for name, shape in wanted.items() if name not in kept})

    def embed(self, tokens: Sequence[int]) -> torch.Tensor:
        """(1, n, hidden) of token ids. Raises BadModel: no embedding here, or an id outside the vocabulary."""
        if EMBEDDING not in self._ends:
            raise BadModel(f"{self.source.name}: tokens need layer 0, which is not loaded here")
        if not all(0 <= token < self.source.sizes.vocab for token in tokens):
            raise BadModel(f"token ids must be 0 to {self.source.sizes.vocab - 1}")
        ids = torch.tensor([list(tokens)], device=self.device)
        return torch.nn.functional.embedding(ids, self._ends[EMBEDDING])

    def need(self, start: int, stop: int) -> None:
        """Raise BadModel where layers [start, stop) are not all here."""
        if not self.holds(start, stop):
            lacking = next(layer for layer in range(start, stop) if layer not in self._layers)
            raise BadModel(f"{self.source.name}: layer {lacking} is not loaded here")

    def layer(self, index: int) -> Any:  # noqa: ANN401  # a class of transformers
        """Return a layer that is here."""
        return self._layers[index]

    def rotary(self, like: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines (1, n, head_dim) of the rotary embedding at positions (1, n), in the dtype of `like`."""
        cos, sin = self._rotary(like, position_ids=positions)
        return cos, sin

    def run(self, hidden: torch.Tensor, cache: KvCache, start: int, stop: int) -> torch.Tensor:
        """Run (1, n, hidden) through layers [start, stop), appending to `cache`. Raises BadModel: one is not here."""
        self.need(start, stop)
        with torch.inference_mode():
            config, past = self.source.config, cache.length
            positions = torch.arange(past, past + hidden.shape[1], device=self.device).unsqueeze(0)
            mask = create_causal_mask(
                config=config, inputs_embeds=hidden, attention_mask=None, past_key_values=cache, position_ids=positions
            )
            rotary = self.rotary(hidden, positions)
            for index in range(start, stop):
                hidden = self._layers[index](
                    hidden, attention_mask=mask, position_embeddings=rotary, position_ids=positions,
                    past_key_values=cache, use_cache=True,
                )  # fmt: skip
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(1, n, vocab) of the last layer's output. Raises BadModel: the last layer is not here."""
        if NORM not in self._ends:
            raise BadModel(f"{self.source.name}: the head needs the last layer, which is not loaded here")
        with torch.inference_mode():
            self._norm.weight = torch.nn.Parameter(self._ends[NORM], requires_grad=False)
            return torch.nn.functional.linear(self._norm(hidden), self._ends[EMBEDDING if self._tied else HEAD])
