"""The telemetry bus's frames on their way to the core: limits, decoding, permission; what is refused is counted."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Final, Protocol

from cosched.access import Access
from telemetry import bus
from telemetry.messages import Message, UeReport, UeReportBatch
from telemetry.wire import Intake

NS: Final = 1e-9
SLICE: Final = 100  # messages in one go, about a millisecond: a submit or a solver's answer waits no longer than that


class Known(Container[str], Protocol):
    """UEs that were heard of."""

    def __len__(self) -> int: ...


class Ingest:
    """Drains one bus. report(message, at_ns) takes what is plausible and permitted; `known` are its UEs."""

    def __init__(
        self,
        socket: bus.Telemetry,
        intake: Intake,
        report: Callable[[Message, int], None],
        known: Known,
        clock: Callable[[], int],
    ) -> None:
        self._socket = socket
        self._intake = intake
        self._report = report
        self._known = known
        self._clock = clock
        self.access: Access | None = None
        self.max_ues = 1 << 30

    def drain(self) -> bool:
        """Take in what has arrived, up to a slice of it, all at one instant; True when there may be more."""
        malformed = self._socket.malformed
        frames = self._socket.drain(SLICE)
        at_ns = self._clock()
        now_s = at_ns * NS
        decode, report, refuse, access = self._intake.decode, self._report, self._intake.refuse, self.access
        for topic, payload, user in frames:
            named = access if user else None
            if named is not None and (reason := named.receive(user, len(payload), now_s)):
                refuse(user, reason)
                continue
            message = decode(topic, payload, user)
            if message is None:
                continue
            if named is not None and (reason := named.publish(user, message)):
                refuse(user, reason)
            elif len(self._known) >= self.max_ues and self._is_new(message):
                refuse(getattr(message, "source", ""), f"more than {self.max_ues} UEs")
            else:
                report(message, at_ns)
        return len(frames) + self._socket.malformed - malformed == SLICE

    def _is_new(self, message: Message) -> bool:
        if isinstance(message, UeReport):
            return message.ue not in self._known
        return isinstance(message, UeReportBatch) and any(ue not in self._known for ue in message.ue)
