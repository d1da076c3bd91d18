"""A UE's connection to one host: requests out, answers in by number, and the news that the host has gone."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Final

from cosched.runtime.errors import HostLost, HostRefused, Interrupted
from cosched.runtime.peers import LOST
from cosched.runtime.protocol import Body, HostAnswer, HostRequest, answer_of, frames_of
from telemetry.bus import Curve
from telemetry.calls import Caller, wait_for

PATIENCE_S: Final = 30.0  # without any answer, while one is due; a process that dies is noticed at once
GREATEST_FRAME: Final = 256 << 20
LOOK_S: Final = 0.1  # between two looks whether the answer is still wanted


class Link:
    """One host. Once lost, it stays so. Raises BadEndpoint for an endpoint that is malformed.

    unwanted: asked while an answer is waited for; where it says True the wait ends with Interrupted, and what is on
    its way is not taken any more: the connection is then to be closed.
    """

    def __init__(
        self,
        endpoint: str,
        keys: Curve | None = None,
        patience_s: float = PATIENCE_S,
        unwanted: Callable[[], bool] | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.patience_s, self._unwanted = patience_s, unwanted
        self._caller = Caller(endpoint, keys, GREATEST_FRAME)
        self._numbers = itertools.count(1)
        self._due: set[int] = set()  # numbers that an answer is still to come for
        self._arrived: dict[int, list[bytes]] = {}
        self._lost = ""

    def post(self, body: Body, tensors: Sequence[bytes] = ()) -> int:
        """Send a request and go on; `wait` takes its number. Raises HostLost."""
        self._look()
        number = next(self._numbers)
        if not self._caller.send(frames_of(HostRequest(id=number, body=body), list(tensors))):
            self._lost = "takes nothing any more"
            self._look()
        self._due.add(number)
        return number

    def wait(self, number: int) -> tuple[HostAnswer, list[bytes]]:
        """Wait for an answer. Raises HostLost, Interrupted, and Refused with the host's code."""
        until_s = time.monotonic() + self.patience_s
        while number not in self._arrived:
            if self._receive():
                until_s = time.monotonic() + self.patience_s
                continue
            self._look()
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                self._lost = f"has not answered for {self.patience_s:g} s"
                self._look()
            if self._unwanted is not None:
                if self._unwanted():
                    raise Interrupted(f"the answer of the host at {self.endpoint} is not waited for any more")
                left_s = min(left_s, LOOK_S)
            wait_for([self._caller], left_s)
        frames = self._arrived.pop(number)
        answer = answer_of(frames)
        if answer.error == LOST:
            raise HostLost(answer.message)
        if answer.error:
            raise HostRefused(answer.error, answer.message)
        return answer, frames[1:]

    def ask(self, body: Body, tensors: Sequence[bytes] = ()) -> tuple[HostAnswer, list[bytes]]:
        """Send a request and wait for its answer. Raises as `wait`."""
        return self.wait(self.post(body, tensors))

    def _receive(self) -> bool:
        arrived = self._caller.drain()
        due = False
        for frames in arrived:
            number = answer_of(frames).id
            if number in self._due:  # what nobody asked for is not kept, and is no sign of life
                due = True
                self._due.discard(number)
                self._arrived[number] = frames
        return due

    def _look(self) -> None:
        if self._caller.lost():
            self._lost = self._lost or "cannot be reached (any more)"
        if self._lost:
            raise HostLost(f"the host at {self.endpoint} {self._lost}")

    @property
    def is_lost(self) -> bool:
        """Whether the host has gone."""
        if self._caller.lost():
            self._lost = self._lost or "cannot be reached (any more)"
        return bool(self._lost)

    def close(self, linger_ms: int = 0) -> None:
        """Close; what was sent last still goes out within `linger_ms`."""
        self._caller.close(linger_ms)
