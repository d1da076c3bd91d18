"""Work of clients that takes longer than a request may: few pieces of it at a time, one of a client, in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from typing import Any

from cosched.daemon.turns import Turns

Work = Callable[[], Coroutine[Any, Any, None]]


class Jobs:
    """At most `at_once` under way, and `waiting` of a client behind them. `spawn` runs one beside all else."""

    def __init__(
        self,
        at_once: int,
        waiting: int,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._free = at_once
        self._turns: Turns[Work] = Turns(waiting, waiting, 1 << 30)
        self._spawn = spawn
        self._clock = clock

    def put(self, peer: str, work: Work) -> bool:
        """Take work of a client; False where too much of his waits. It may begin at once."""
        taken = self._turns.put(peer, work, 1, self._clock())
        self._begin()
        return taken

    def _begin(self) -> None:
        while self._free and (taken := self._turns.take(self._clock())) is not None:
            peer, work = taken
            self._turns.hold(peer)
            self._free -= 1
            self._spawn(self._run(peer, work))

    async def _run(self, peer: str, work: Work) -> None:
        began_s = self._clock()
        try:
            await work()
        finally:
            self._free += 1
            self._turns.charge(peer, self._clock() - began_s)
            self._turns.release(peer)
            self._begin()
