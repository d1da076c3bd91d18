"""The telemetry bus's frames on their way to the core: limits, decoding, permission; what is refused is counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from cosched.access import Access
from telemetry import bus
from telemetry.messages import Message, UeReport
from telemetry.wire import Intake

NS: Final = 1e-9
SLICE: Final = 100  # messages in one go, about a millisecond: a submit or a solver's answer waits no longer than that


class Ingest:
    """Drains one bus.

    What is plausible and permitted goes to reports(UE reports that came one after the other, at_ns), anything else to
    report(message, at_ns).
    """

    def __init__(
        self,
        socket: bus.Telemetry,
        intake: Intake,
        reports: Callable[[Sequence[UeReport], int], None],
        report: Callable[[Message, int], None],
        clock: Callable[[], int],
    ) -> None:
        self._socket = socket
        self._intake = intake
        self._reports = reports
        self._report = report
        self._clock = clock
        self.access: Access | None = None

    def drain(self) -> bool:
        """Take in what has arrived, up to a slice of it, all at one instant; True when there may be more."""
        malformed = self._socket.malformed
        frames = self._socket.drain(SLICE)
        at_ns = self._clock()
        now_s = at_ns * NS
        decode, access = self._intake.decode, self.access
        run: list[UeReport] = []
        for topic, payload, user in frames:
            named = access if user else None
            if named is not None and (reason := named.receive(user, len(payload), now_s)):
                self._intake.refuse(user, reason)
                continue
            message = decode(topic, payload, user)
            if message is None:
                continue
            if named is not None and (reason := named.publish(user, message)):
                self._intake.refuse(user, reason)
                continue
            if isinstance(message, UeReport):
                run.append(message)
                continue
            self._hand_over(run, at_ns)
            self._report(message, at_ns)
        self._hand_over(run, at_ns)
        return len(frames) + self._socket.malformed - malformed == SLICE

    def _hand_over(self, run: list[UeReport], at_ns: int) -> None:
        if run:
            self._reports(run, at_ns)
            run.clear()
