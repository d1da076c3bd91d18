"""How the inner loops run: compiled by numba, or as they stand (COSCHED_KERNEL=numpy).

All functions marked `nopython` are ordinary Python on arrays and scalars. Inner ones are compiled into the one that
calls them; only entries (`cached`) are kept on disk. Numba's cache looks at an entry's own file only, so each entry
also closes over `source_digest()` of the files it is made of: editing any of them gives a new cache key.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import numpy as np
import numpy.typing as npt

Kind = TypeVar("Kind", bound=np.generic)
Function = TypeVar("Function", bound=Callable[..., object])

# The one place where the environment is read. A machine that forbids writable and executable memory
# (systemd's MemoryDenyWriteExecute) cannot run compiled code.
COMPILED: Final = os.environ.get("COSCHED_KERNEL", "numba") != "numpy"


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
    options["_nrt"] = False  # as in `lean`: tuples of arrays are handed on, never counted
    return cast("Function", numba.njit(forceinline=True, **options)(function))


def lean(function: Function) -> Function:
    """Like `nopython`, for functions that make no arrays: without counting references to those that they are given."""
    if not COMPILED:
        return function
    import numba

    options: dict[str, Any] = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    options["_nrt"] = False  # numba's own name for it; tests/solvers/test_price.py compiles with it
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


def _silent(function: Function) -> Function:
    """As the compiled form does: what is beyond a float is inf, without a warning."""

    @functools.wraps(function)
    def called(*args: object) -> object:
        with np.errstate(all="ignore"):
            return function(*args)

    return cast("Function", called)


def cached(function: Function) -> Function:
    """Like `nopython`, and keep the machine code beside the source for the next process."""
    if not COMPILED:
        return _silent(function)
    import numba

    from solvers.compiling import optimised_once

    try:
        made = numba.njit(error_model="numpy", cache=True)(function)
    except RuntimeError:  # no folder to write to: neither beside the source nor in the user's cache
        return cast("Function", numba.njit(error_model="numpy")(function))
    entry: Any = made
    cache = entry._cache  # noqa: SLF001  # numba's own name for it
    cache.load_overload = _or_nothing(cache.load_overload, cache.flush)
    entry.compile = optimised_once(entry.compile)
    return cast("Function", entry)


def _or_nothing(load: Callable[..., object], flush: Callable[[], None]) -> Callable[..., object]:
    """Load, or where what is on disk cannot be read have it made again.

    Numba unpickles an index before it looks whether the source is still the same, and fails where a type that was
    named in it is not there any more: after an update, or when a file was damaged.
    """

    def loaded(*args: object) -> object:
        try:
            return load(*args)
        except Exception:  # noqa: BLE001  # unpickling raises whatever there is
            flush()
            return None

    return loaded


@contextlib.contextmanager
def watched(began: Callable[[], None], ended: Callable[[], None]) -> Iterator[None]:
    """Have `began` and `ended` called around the compiling of what is not on disk: it takes minutes in all."""
    if not COMPILED:
        yield
        return
    from numba.core import event

    class Listener(event.Listener):
        under_way = 0  # what is compiled has others compiled that it calls

        def on_start(self, _: object) -> None:
            self.under_way += 1
            if self.under_way == 1:
                began()

        def on_end(self, _: object) -> None:
            self.under_way -= 1
            if self.under_way == 0:
                ended()

    with event.install_listener("numba:compile", Listener()):
        yield


def _prefetching() -> Callable[[npt.NDArray[Any], int], None]:
    """Make fetch as one machine instruction: a table is larger than the caches, and its rows are not read in turn."""
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic

    tools: Any = cgutils

    def fetch(_typing: Any, array: Any, row: Any) -> Any:  # noqa: ANN401 - numba's own
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401
            memory = context.make_array(signature.args[0])(context, builder, arguments[0])
            offset = builder.mul(tools.unpack_tuple(builder, memory.strides)[0], arguments[1])
            byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
            place = builder.gep(builder.bitcast(memory.data, byte), [offset])
            kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
            hint = tools.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
            builder.call(hint, [place, word(0), word(3), word(1)])  # to read, into all caches, data
            return context.get_dummy_value()

        return types.none(array, row), emit

    return cast("Callable[[npt.NDArray[Any], int], None]", intrinsic(fetch))


def _no_fetch(_array: npt.NDArray[Any], _row: int) -> None:
    pass


# fetch(array, row): ask for the start of a row before it is needed. Changes no result.
fetch = _prefetching() if COMPILED else _no_fetch


def plain(array: npt.NDArray[Kind]) -> npt.NDArray[Kind]:
    """Array as compiled entries take it, contiguous and writeable: each needs one specialisation."""
    return array if array.flags.c_contiguous and array.flags.writeable else np.array(array, order="C")


def source_digest(*packages: str) -> int:
    """Fingerprint of what entries are made of: all files of packages of solvers, and what every one of them uses."""
    here = Path(__file__).resolve().parent
    whole = hashlib.sha256()
    for path in (
        *(here / name for name in ("jit.py", "problem.py", "tolerances.py")),
        *(f for p in packages for f in sorted((here / p).glob("*.py"))),
    ):
        whole.update(path.read_bytes())
    return int.from_bytes(whole.digest()[:7], "big")
