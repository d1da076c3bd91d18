"""How the inner loops run: compiled by numba, or as they stand (COSCHED_KERNEL=numpy).

All functions marked `nopython` are ordinary Python on arrays and scalars. Inner ones are compiled into the one that
calls them; only the entry (solvers/price.py) is kept on disk. Numba's cache looks at the entry's own file only, so
the entry also closes over `source_digest()`: editing any kernel file gives a new cache key.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import numpy as np
import numpy.typing as npt

Kind = TypeVar("Kind", bound=np.generic)
Function = TypeVar("Function", bound=Callable[..., object])

# The one place where the environment is read. A machine that forbids writable and executable memory
# (systemd's MemoryDenyWriteExecute) cannot run compiled code.
COMPILED: Final = os.environ.get("COSCHED_KERNEL", "numba") != "numpy"
_SOURCES: Final = (
    "_jit",
    "_kernel",
    "_point",
    "_oracle",
    "_dual",
    "_recovery",
    "_fit",
    "_settle",
    "_spread",
    "_search",
    "_tree",
    "price",
    "problem",
)


def nopython(function: Function) -> Function:
    """Compile on first use (strict IEEE arithmetic, one thread), or leave as it is."""
    if not COMPILED:
        return function
    import numba

    # error_model="numpy": 1 / 0 is inf, as in the arrays of the fallback. No wrappers: only compiled code calls it.
    options: dict[str, Any] = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return cast("Function", numba.njit(**options)(function))


def inlined(function: Function) -> Function:
    """Like `nopython`, and part of whoever calls it: for small functions, whose arguments take longer to pass on."""
    if not COMPILED:
        return function
    import numba

    options: dict[str, Any] = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return cast("Function", numba.njit(forceinline=True, **options)(function))


def lean(function: Function) -> Function:
    """Like `nopython`, for functions that make no arrays: without counting references to those that they are given."""
    if not COMPILED:
        return function
    import numba

    options: dict[str, Any] = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    options["_nrt"] = False  # numba's own name for it; tests/test_solvers_price.py compiles with it
    return cast("Function", numba.njit(**options)(function))


def merged(function: Function) -> Function:
    """Like `nopython`, but becomes part of its caller.

    Numba optimises a function again in every caller above it, so a shallow tree of calls compiles several times
    faster; and a call would copy the tuples of arrays that it is given.
    """
    if not COMPILED:
        return function
    import numba

    options: dict[str, Any] = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return cast("Function", numba.njit(**options, inline="always")(function))


def cached(function: Function) -> Function:
    """Like `nopython`, and keep the machine code beside the source for the next process."""
    if not COMPILED:
        return function
    import numba

    try:
        return cast("Function", numba.njit(error_model="numpy", cache=True)(function))
    except RuntimeError:  # no folder to write to: neither beside the source nor in the user's cache
        return cast("Function", numba.njit(error_model="numpy")(function))


def plain(array: npt.NDArray[Kind]) -> npt.NDArray[Kind]:
    """Array as compiled entries take it, contiguous and writeable: each needs one specialisation."""
    return array if array.flags.c_contiguous and array.flags.writeable else np.array(array, order="C")


def source_digest(*names: str) -> int:
    """Fingerprint of kernel sources: those named, else the price solver's."""
    here = Path(__file__).resolve().parent
    whole = hashlib.sha256()
    for name in names or _SOURCES:
        whole.update((here / f"{name}.py").read_bytes())
    return int.from_bytes(whole.digest()[:7], "big")
