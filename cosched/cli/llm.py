"""Options that `cosched ue` and `cosched host` share, and what they mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cosched.errors import BadInput

if TYPE_CHECKING:
    from cosched.runtime.model import ModelSource

SeedOption = Annotated[int | None, typer.Option(help="Draw the weights from this seed; a config.json is enough then.")]
DtypeOption = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, or cuda where there is one.")]
ThreadsOption = Annotated[int, typer.Option(min=0, help="Threads of a matrix product; 0: as torch chooses.")]


def require_extra() -> None:
    """Raise BadInput where the extra `[llm]` is not installed."""
    from importlib.util import find_spec

    lacking = [name for name in ("torch", "transformers", "safetensors") if find_spec(name) is None]
    if lacking:
        raise BadInput(f"{lacking[0]} is not installed: pip install 'cosched[llm]'")


def prepare(threads: int, device: str) -> None:
    """Set what torch has once a process. Raises BadInput for a device that is not there."""
    require_extra()
    import torch

    if threads:
        torch.set_num_threads(threads)
    if device != "cpu" and not (device.startswith("cuda") and torch.cuda.is_available()):
        raise BadInput(f"--device {device}: not there; cpu is")


def named_model(text: str, seed: int | None) -> ModelSource:
    """Open `NAME=PATH` or `PATH`. Raises BadInput."""
    from cosched.runtime.model import open_model

    name, _, path = text.rpartition("=")
    return open_model(path, seed=seed, name=name)
