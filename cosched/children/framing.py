"""Messages behind their length: what travels to and from a child."""

from __future__ import annotations

from typing import BinaryIO, Final

LENGTH_BYTES: Final = 4  # little-endian


def framed(data: bytes) -> bytes:
    """Return a message with its length before it."""
    return len(data).to_bytes(LENGTH_BYTES, "little") + data


def read_framed(stream: BinaryIO) -> bytes | None:
    """Read one message; None where the stream ends, also in the midst of one."""
    head = stream.read(LENGTH_BYTES)
    length = int.from_bytes(head, "little")
    data = stream.read(length)
    return data if len(head) == LENGTH_BYTES and len(data) == length else None


def write_framed(stream: BinaryIO, data: bytes) -> None:
    """Write one message, whole to an unbuffered stream too."""
    view = memoryview(framed(data))
    while view:
        view = view[stream.write(view) :]
