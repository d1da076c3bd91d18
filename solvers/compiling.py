"""Compiles an entry with what it calls optimised as part of it alone: half the CPU time, the same results bit for bit.

Numba optimises every function, and makes machine code of it, each time together with all that it calls; what is called
by compiled code alone needs neither. What is left is linked as it is, and optimised once, in the entry. This goes
through numba's own parts: where a version has others, everything is compiled as it does by itself.
"""
# ruff: noqa: SLF001, ANN401  # numba's own parts have no public names and no types

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def optimised_once(compiled: Callable[..., object]) -> Callable[..., object]:
    """Return the compiling of an entry (a numba dispatcher's `compile`) in which inner functions are linked alone."""
    try:
        from numba import _dynfunc  # type: ignore[attr-defined]
        from numba.core import codegen, cpu, event

        make_function: Any = _dynfunc.make_function
        library: Any = codegen.CPUCodeLibrary
        context: Any = cpu.CPUContext
        finalize, get_executable = library.finalize, context.get_executable
        _ = library._finalize_dynamic_globals, library._get_module_for_linking, library._ensure_finalized
    except (ImportError, AttributeError):
        return compiled
    depth = 0  # of functions that are being compiled because others call them

    class Depth(event.Listener):
        def on_start(self, _: object) -> None:
            nonlocal depth
            depth += 1

        def on_end(self, _: object) -> None:
            nonlocal depth
            depth -= 1

    def linked(self: Any) -> None:
        if depth <= 1:
            finalize(self)
            return
        self._raise_if_finalized()
        for one in dict.fromkeys(self._linking_libraries):
            self._reload_init.update(one._reload_init)
            self._final_module.link_in(one._get_module_for_linking(), preserve=True)
        self._finalize_dynamic_globals()
        self._finalized = True

    def placeholder(self: Any, made: Any, about: Any, env: Any) -> object:
        """Stand for the function where Python would call it, which nobody does."""
        if depth <= 1:
            return get_executable(self, made, about, env)
        made._ensure_finalized()
        return make_function(about.lookup_module(), about.qualname, "called by compiled code alone", 1, env, (made,))

    def compile_once(*args: object) -> object:
        with event.install_listener("numba:compile", Depth()):
            library.finalize, context.get_executable = linked, placeholder
            try:
                return compiled(*args)
            finally:
                library.finalize, context.get_executable = finalize, get_executable

    return compile_once
