"""Reading Protocol Buffers by a table of fields: the wire format alone, without generated code or its runtime.

https://protobuf.dev/programming-guides/encoding: a message is a row of (field number, wire type) keys with values.
A field that the table does not name is passed over, as every reader of the format must; one that comes twice counts
the last time, unless it is repeated. proto3 does not send zeros: a missing number is 0 or unset, nobody can tell.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

from telemetry.errors import BadMessage

_VARINT: Final = 0
_FIXED64: Final = 1
_BYTES: Final = 2
_FIXED32: Final = 5
_LONGEST_VARINT: Final = 10  # bytes that 64 bits need


@dataclass(frozen=True, slots=True)
class Field:
    """One field: its name here, and its kind in the .proto (uint32 and uint64 are both `uint`)."""

    name: str
    kind: Literal["uint", "float", "message"]
    of: dict[int, Field] | None = None  # fields of a message
    repeated: bool = False


Schema = dict[int, Field]
_WIRE: Final = {"uint": _VARINT, "float": _FIXED32, "message": _BYTES}


def parse(data: bytes | memoryview, schema: Schema) -> dict[str, Any]:
    """Return field name -> int, float, dict, or list of dicts. Raises BadMessage when `data` is not such a message."""
    message: dict[str, Any] = {field.name: [] for field in schema.values() if field.repeated}
    for number, wire, value in _fields(memoryview(data)):
        field = schema.get(number)
        if field is None:
            continue
        if wire != _WIRE[field.kind]:
            raise BadMessage("protobuf field of another type than declared: is it another version of the schema?")
        if field.of is not None:
            below = parse(value, field.of)
            if field.repeated:
                message[field.name].append(below)
            else:
                message[field.name] = below
        else:
            message[field.name] = struct.unpack("<f", value)[0] if field.kind == "float" else value
    return message


def _fields(data: memoryview) -> Iterator[tuple[int, int, Any]]:
    """Yield (field number, wire type, value): an int for varints, a memoryview for the rest."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield number, wire, value
            continue
        if wire == _BYTES:
            size, at = _varint(data, at)
        else:
            size = {_FIXED64: 8, _FIXED32: 4}.get(wire, -1)
        if number == 0 or size < 0 or at + size > len(data):
            raise BadMessage("not a protobuf message, or cut off")
        yield number, wire, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for i, byte in enumerate(data[at : at + _LONGEST_VARINT]):
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at + i + 1
    raise BadMessage("not a protobuf message, or cut off")
