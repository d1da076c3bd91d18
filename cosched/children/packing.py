"""Problems and solutions as bytes: MessagePack with arrays as (type, shape, bytes). No pickle.

Whoever solves unpacks first, the worker process and `cosched verify` alike, so that both see arrays of the same
memory layout: the order in which NumPy adds depends on it, and with it the last bit.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from solvers.problem import Floats, Problem
from solvers.solution import Solution


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """One problem for a worker."""

    request: int
    solver: str
    options: dict[str, float]
    warm: Floats
    problem: Problem


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it: a solution, or in one line why there is none."""

    request: int
    solution: Solution | None = None
    error: str = ""


def _to_wire(value: Any) -> Any:  # noqa: ANN401  # msgspec hands over whatever it does not know
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, np.generic):  # a number of the loops as they stand, not compiled
        return value.item()
    raise TypeError(f"{type(value).__name__} does not travel")


def _from_wire(_: Any, value: Any) -> Any:  # noqa: ANN401
    dtype, shape, data = value
    if not dtype.startswith(("<f", "<i", "|b")):
        raise ValueError(f"arrays of {dtype} are not used here")
    return np.frombuffer(data, dtype=np.dtype(dtype)).reshape(shape).copy()  # a copy: writable, aligned


_encode = msgspec.msgpack.Encoder(enc_hook=_to_wire).encode
_decode_ask = msgspec.msgpack.Decoder(Ask, dec_hook=_from_wire).decode
_decode_answer = msgspec.msgpack.Decoder(Answer, dec_hook=_from_wire).decode


def pack(message: Ask | Answer) -> bytes:
    """Return the message as bytes."""
    return _encode(message)


def unpack_ask(data: bytes) -> Ask:
    """Return the Ask in `data`. Raises msgspec.DecodeError."""
    return _decode_ask(data)


def unpack_answer(data: bytes) -> Answer:
    """Return the Answer in `data`. Raises msgspec.DecodeError."""
    return _decode_answer(data)


def solve_packed(data: bytes) -> Answer:
    """Solve what an Ask says: the one way in which the daemon and `cosched verify` do it."""
    from solvers import registry
    from solvers.errors import SolverError

    ask = unpack_ask(data)
    try:
        solution = registry.solve(ask.solver, ask.problem, warm=ask.warm, options=ask.options)
    except SolverError as error:
        return Answer(request=ask.request, error=str(error))
    return Answer(request=ask.request, solution=solution)
