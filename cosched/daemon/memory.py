"""Memory that was needed once goes back to the system: glibc keeps what is freed in the middle of its heaps."""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Callable
from typing import Final

EVERY_S: Final = 20.0


def _trim() -> Callable[[int], int] | None:
    """malloc_trim(3); None where the C library has none."""
    found: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return found


async def give_back() -> None:
    """Do so every now and then, in a thread: it takes some milliseconds."""
    trim = _trim()
    while trim is not None:
        await asyncio.sleep(EVERY_S)
        await asyncio.to_thread(trim, 0)
