"""Options that `cosched ue` and `cosched host` share, and what they mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cosched.runtime.model import ModelSource

SeedOption = Annotated[int | None, typer.Option(help="Draw the weights from this seed; a config.json is enough then.")]
DtypeOption = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, or cuda where there is one.")]
ThreadsOption = Annotated[int, typer.Option(min=0, help="Threads of a matrix product; 0: as torch chooses.")]


def named_model(text: str, seed: int | None) -> ModelSource:
    """Open `NAME=PATH` or `PATH`. Raises BadInput."""
    from cosched.runtime.model import open_model

    name, _, path = text.rpartition("=")
    return open_model(path, seed=seed, name=name)
