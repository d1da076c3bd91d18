"""What is answered can be encoded, whatever peers have sent: the one place that sees to it.

MessagePack holds whole numbers of 64 bits and JSON no infinity; a count or a sum that grew beyond either must not end
a daemon. Limits where things come in keep such values away; this is the net under them.
"""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec

MOST: Final = 2**63 - 1
LARGEST: Final = 1.7976931348623157e308  # a float


def sound(value: Any) -> Any:  # noqa: ANN401  # of any type, and comes back as that
    """Return the value with numbers that both encodings hold: whole ones saturate, NaN is 0. The same where none is."""
    if isinstance(value, int | float):
        return _number(value)
    if isinstance(value, tuple | list):
        return _sequence(value)
    if isinstance(value, dict):
        return {sound(k): sound(v) for k, v in value.items()}
    if isinstance(value, msgspec.Struct):
        return _struct(value)
    return value


def _number(value: float) -> float:
    if isinstance(value, int):  # bool is one, and stays itself
        return value if -MOST <= value <= MOST else max(-MOST, min(MOST, value))
    if math.isfinite(value):
        return value
    return 0.0 if math.isnan(value) else math.copysign(LARGEST, value)


def _sequence(values: tuple[Any, ...] | list[Any]) -> tuple[Any, ...] | list[Any]:
    made = [sound(v) for v in values]
    if all(a is b for a, b in zip(made, values, strict=True)):
        return values
    return tuple(made) if isinstance(values, tuple) else made


def _struct(value: msgspec.Struct) -> msgspec.Struct:
    changed = {}
    for name in value.__struct_fields__:
        before = getattr(value, name)
        after = sound(before)
        if after is not before:
            changed[name] = after
    return msgspec.structs.replace(value, **changed) if changed else value
