"""What activation precision costs in quality: measured numbers, read from config/quality.toml (docs/quality.md)."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated

import msgspec

from cosched.errors import BadInput
from cosched.resources import config_dir

Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]


class ActivationQuality(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One precision of activations on the air."""

    value: Fraction  # top-1 agreement with the same model unquantised, mean over interior splits
    ci95: Fraction  # half the width of its 95% confidence interval
    wire_bits_per_value: Annotated[float, msgspec.Meta(gt=0, le=32)]  # scales included: what was measured with
    scheme: str
    source: str
    guess: str  # what the measurement leaves open


class QualityTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Quality by precision in bits."""

    v: int
    activation: dict[int, ActivationQuality]


def load_quality(path: Path | None = None) -> QualityTable:
    """Read `path`, or config/quality.toml. Raises BadInput, naming file and key."""
    path = path or config_dir() / "quality.toml"
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
        table = msgspec.convert(raw, QualityTable, str_keys=True)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError, msgspec.ValidationError) as error:
        raise BadInput(f"{path}: {error}") from None
    if table.v != 1:
        raise BadInput(f"{path}: v = {table.v}: this version reads v = 1")
    return table
