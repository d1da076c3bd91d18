"""Where a model's weights come from: a safetensors checkpoint, read tensor by tensor, or a seed.

Both are asked for tensors by their name in the checkpoint (`model.layers.3.mlp.up_proj.weight`), so whoever holds
layers [a, b) reads those and nothing else. A checkpoint's files that hold other layers need not even be there.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from cosched.runtime.errors import BadModel

Shapes = Mapping[str, tuple[int, ...]]

SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
_MAX_INDEX_BYTES: Final = 1 << 26


class Weights(Protocol):
    """Tensors by name."""

    @property
    def identity(self) -> str:
        """What tells these weights from others, as far as can be said without reading them all."""
        ...

    def read(self, shapes: Shapes) -> dict[str, torch.Tensor]:
        """Return the tensors named. Raises BadModel: one is missing or of another shape."""
        ...


@dataclass(frozen=True, slots=True)
class Seeded:
    """Weights drawn from a seed: each tensor by a generator of its own, so that any range of layers agrees.

    Matrices keep the variance of what passes through them (std 1 / sqrt(columns)), so that a model without training
    still has answers that depend on its input; norms are near 1, biases small.
    """

    seed: int

    @property
    def identity(self) -> str:
        """The seed."""
        return f"seed {self.seed}"

    def read(self, shapes: Shapes) -> dict[str, torch.Tensor]:
        """Draw the tensors named, fp32."""
        return {name: self._draw(name, shape) for name, shape in shapes.items()}

    def _draw(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        noise = torch.randn(shape, generator=generator)
        if len(shape) == 1:
            return (1.0 if name.endswith("norm.weight") else 0.0) + 0.1 * noise
        return noise if "embed_tokens" in name else noise / math.sqrt(shape[-1])


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder with safetensors files. `files`: tensor -> file in that folder."""

    folder: Path
    files: dict[str, str]
    identity: str

    def read(self, shapes: Shapes) -> dict[str, torch.Tensor]:
        """Read the tensors named, file by file. Raises BadModel."""
        lacking = sorted(set(shapes) - set(self.files))
        if lacking:
            raise BadModel(f"{self.folder}: the checkpoint has no tensor '{lacking[0]}'; is config.json its own?")
        found: dict[str, torch.Tensor] = {}
        for file in sorted({self.files[name] for name in shapes}):
            names = [name for name in shapes if self.files[name] == file]
            found |= _read_file(self.folder / file, names)
        for name, shape in shapes.items():
            if tuple(found[name].shape) != tuple(shape):
                sizes = f"{tuple(found[name].shape)}, where config.json asks for {tuple(shape)}"
                raise BadModel(f"{self.folder}: '{name}' is {sizes}")
        return found


def open_checkpoint(folder: Path) -> Checkpoint:
    """Find a folder's tensors: by its index where there is one, else in its single file. Raises BadModel."""
    index, single = folder / INDEX, folder / SINGLE
    if index.exists():
        files = _read_index(index)
        said = json.dumps(files, sort_keys=True)
    elif single.exists():
        names = sorted(_open(single).keys())
        files, said = dict.fromkeys(names, SINGLE), json.dumps(names)
    else:
        raise BadModel(f"{folder}: neither {SINGLE} nor {INDEX} is there; give a seed to run without weights")
    return Checkpoint(folder, files, hashlib.sha256(said.encode()).hexdigest())


def write_checkpoint(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors, by their names in a checkpoint, as the single file of a folder that is there."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / SINGLE, {"format": "pt"})


def _read_index(path: Path) -> dict[str, str]:
    try:
        if path.stat().st_size > _MAX_INDEX_BYTES:
            raise BadModel(f"{path}: too large for an index")
        files = json.loads(path.read_bytes())["weight_map"]
    except OSError as error:
        raise BadModel(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise BadModel(f"{path}: no index of a checkpoint: {error!r}") from None
    if not isinstance(files, dict) or not all(isinstance(f, str) and Path(f).name == f for f in files.values()):
        raise BadModel(f"{path}: weight_map must name files beside it")
    return files


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except FileNotFoundError:
        raise BadModel(f"{path}: no such file, and layers that are asked for lie in it") from None
    except (OSError, SafetensorError) as error:
        raise BadModel(f"{path}: not a whole safetensors file: {error}") from None


def _read_file(path: Path, names: list[str]) -> dict[str, torch.Tensor]:
    with _open(path) as file:
        try:
            return {name: file.get_tensor(name) for name in names}
        except SafetensorError as error:
            raise BadModel(f"{path}: {error}") from None
