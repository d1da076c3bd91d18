"""When an actor's silence is its own, and not that of this process or of the cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

STEPS: Final = 10  # in which silence is counted

Answer = TypeVar("Answer")


class Silent(Exception):
    """There was no answer."""


async def answered(
    asked: Awaitable[Answer], patience_s: float, is_cluster_there: Callable[[], Awaitable[bool]]
) -> Answer:
    """Wait for an answer, `patience_s` and the duration of one call of `is_cluster_there` at most. Raises Silent.

    Silence is counted in steps: an answer may lie here unread when this process stood still, and however long it did,
    that is one step. Before the last one the cluster is asked whether it is there; where it is not, no answer could
    come, and silence counts anew from the moment at which it is.
    """
    answer = asyncio.ensure_future(asked)
    quiet = 0
    try:
        while not (await asyncio.wait({answer}, timeout=patience_s / STEPS))[0]:
            quiet += 1
            if quiet == STEPS:
                raise Silent
            if quiet == STEPS - 1 and not await is_cluster_there():
                quiet = 0
        return answer.result()
    finally:
        answer.cancel()
