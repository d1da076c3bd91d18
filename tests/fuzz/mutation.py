"""Seeded mutations of inputs: of bytes, and of what MessagePack, JSON or TOML say, so that they stay well-formed."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

MOST: Final = 1 << 20

INTS: Final = (0, 1, -1, 2, 127, 255, 2**31, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1, -(2**31), -(2**63))
FLOATS: Final = (
    0.0, -0.0, 1.0, 0.5, -1.0, 1e-9, 1e-300, 5e-324, 1e9, 1e18, 1e100, 1e300, 1.7e308, math.inf, -math.inf, math.nan,
)  # fmt: skip
TEXTS: Final = (
    "",
    "x",
    "ue0",
    "cell0",
    "t0",
    "\0",
    "é\u202e\U0001f600",
    "x" * 200,
    "../..",
    "%s{0}",
    "decision/",
    "inf",
)
NUMBER: Final = re.compile(rb"-?\d+(?:\.\d+)?(?:e-?\d+)?")
JSON_NUMBERS: Final = (
    b"1e999",
    b"-1e999",
    b"0",
    b"-1",
    b"1e-320",
    b"99999999999999999999999999",
    b"9223372036854775807",
)


def mutated(data: bytes, seed: int, others: Sequence[bytes] = ()) -> bytes:
    """Return a changed input. others: what parts may be taken from."""
    rng = random.Random(seed)  # noqa: S311
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = _once(data, rng, others)
    return data[:MOST]


def _once(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    head, body = data[:1], data[1:]  # the first byte chooses among kinds of input
    if rng.random() < 0.6:
        for decode, encode in _CODECS:
            try:
                value = decode(body)
            except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, ValueError):
                continue
            try:
                return head + encode(_changed(value, rng))
            except (OverflowError, TypeError, RecursionError, ValueError):
                break
    if rng.random() < 0.3 and (found := list(NUMBER.finditer(body))):
        at = rng.choice(found)
        return head + body[: at.start()] + rng.choice(JSON_NUMBERS) + body[at.end() :]
    return rng.choice(_BYTES)(data, rng, others)


_CODECS: Final[tuple[tuple[Callable[[bytes], Any], Callable[[Any], bytes]], ...]] = (
    (msgspec.json.decode, msgspec.json.encode),
    (msgspec.msgpack.decode, msgspec.msgpack.encode),
)


def _changed(value: Any, rng: random.Random) -> Any:  # noqa: ANN401
    """Change one thing somewhere in a tree."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        inner = [k for k, v in value.items() if isinstance(v, dict | list) and v]
        key = rng.choice(inner if inner and rng.random() < 0.7 else list(value))
        return _in_map(value, key, rng)
    if isinstance(value, list) and value and rng.random() < 0.85:
        i = rng.randrange(len(value))
        how = rng.random()
        if how < 0.75:
            return [*value[:i], _changed(value[i], rng), *value[i + 1 :]]
        if how < 0.85:
            return [*value[:i], *value[i + 1 :]]
        return [*value[:i], *([value[i]] * rng.choice((2, 3, 40))), *value[i + 1 :]]
    return _other(value, rng)


def _in_map(value: dict[Any, Any], key: object, rng: random.Random) -> dict[Any, Any]:
    how = rng.random()
    if how < 0.8:
        return {**value, key: _changed(value[key], rng)}
    if how < 0.9:
        return {k: v for k, v in value.items() if k != key}
    if how < 0.95:
        return {**value, rng.choice(TEXTS): value[key]}
    return {**value, key: value[rng.choice(list(value))]}


def _other(value: object, rng: random.Random) -> object:
    if isinstance(value, bool) or rng.random() < 0.12:
        kinds: tuple[object, ...] = (None, True, False, [], {}, 0, 0.5, "x", [value], {"x": value}, _deep(rng))
        return rng.choice(kinds)
    if isinstance(value, int):
        return rng.choice((*INTS, *FLOATS)) if rng.random() < 0.6 else value + rng.choice((-1, 1, 10, -100))
    if isinstance(value, float):
        return rng.choice((*FLOATS, *INTS)) if rng.random() < 0.6 else value * rng.choice((0.1, 2.0, -1.0, 1e6, 1e-6))
    if isinstance(value, str):
        return rng.choice(TEXTS) if rng.random() < 0.6 else value + rng.choice(TEXTS)
    return rng.choice((*INTS, *FLOATS, *TEXTS))


def _deep(rng: random.Random) -> object:
    value: object = 1
    for _ in range(rng.choice((10, 400))):
        value = [value]
    return value


def _flip(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    out = bytearray(data or b"\0")
    for _ in range(rng.choice((1, 1, 3, 20))):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def _cut(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    a, b = sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))
    return data[:a] + data[b:]


def _doubled(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    a, b = sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))
    return data[:b] + data[a:b] * rng.choice((1, 2, 20)) + data[b:]


def _spliced(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    other = rng.choice(others) if others else b""
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


def _noise(data: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.choice((1, 2, 8, 100))) + data[at + rng.choice((0, 1, 8)) :]


_BYTES: Final = (_flip, _cut, _doubled, _spliced, _noise)
