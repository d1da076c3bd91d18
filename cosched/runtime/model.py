"""Which model runs: its Hugging Face configuration, and where its weights come from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoConfig

from cosched.profiles.model import Model, load_model
from cosched.resources import config_file
from cosched.runtime.errors import BadModel
from cosched.runtime.weights import Seeded, Weights, open_checkpoint

FAMILIES: Final = ("llama", "mistral", "qwen2", "qwen3")  # equal decoder layers, rotary positions, full attention
DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class ModelSource:
    """A model that can be loaded in parts. `sizes`: as the scheduler knows it; `config`: as transformers does."""

    name: str
    sizes: Model
    config: Any
    weights: Weights
    fingerprint: str  # what both sides of a split compare: all that is computed with, and the identity of the weights

    @property
    def n_layers(self) -> int:
        """Decoder layers."""
        return self.sizes.n_layers

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """Tokens that end an answer; a model with seeded weights knows none."""
        ends = None if isinstance(self.weights, Seeded) else self.config.eos_token_id
        return () if ends is None else tuple(ends) if isinstance(ends, list) else (ends,)


def open_model(path_or_key: str | Path, *, seed: int | None = None, name: str = "") -> ModelSource:
    """Open a checkpoint's folder; with a seed, a config.json or a key of config/models/ suffices.

    Raises BadModel and BadInput: no such file, another family, sliding windows, quantised or missing weights.
    """
    sizes = load_model(path_or_key)
    path = _config_path(path_or_key)
    if sizes.family not in FAMILIES:
        raise BadModel(f"{path}: family '{sizes.family}' does not run split; those that do: {', '.join(FAMILIES)}")
    if sizes.window is not None:
        raise BadModel(f"{path}: sliding windows do not run split: layers must have equal attention")
    if sizes.stored_weight_bits is not None:
        raise BadModel(f"{path}: quantised weights are not run here; use the checkpoint in 16 or 32 bit")
    weights: Weights = open_checkpoint(path.parent) if seed is None else Seeded(seed)
    config = _read_config(path)
    return ModelSource(name or sizes.name, sizes, config, weights, _fingerprint(sizes, config, weights))


def _fingerprint(sizes: Model, config: Any, weights: Weights) -> str:  # noqa: ANN401  # as for _read_config
    """Hash what the answer depends on; of the configuration, versions of transformers write the rest differently."""
    told = dataclasses.asdict(sizes) | {"name": "", "rope": config.rope_parameters, "eps": config.rms_norm_eps}
    text = json.dumps(told | {"act": config.hidden_act, "weights": weights.identity}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _config_path(path_or_key: str | Path) -> Path:
    path = Path(path_or_key)
    if path.is_dir():
        return path / "config.json"
    return path if path.exists() else config_file("models", f"{path_or_key}.json")


def _read_config(path: Path) -> Any:  # noqa: ANN401  # transformers has a class for each family
    raw = json.loads(path.read_bytes())
    own = {
        key: value for key, value in raw.items() if key not in {"model_type", "dtype", "torch_dtype", "_name_or_path"}
    }
    try:
        config = AutoConfig.for_model(raw["model_type"], **own)
    except (TypeError, ValueError, KeyError) as error:
        raise BadModel(f"{path}: {error}") from None
    config._attn_implementation = "sdpa"  # noqa: SLF001  # the name that transformers gives it
    return config


def dtype_of(name: str) -> torch.dtype:
    """Return a dtype by name. Raises BadModel."""
    if name not in DTYPES:
        raise BadModel(f"dtype '{name}': there are: {', '.join(DTYPES)}")
    return DTYPES[name]
