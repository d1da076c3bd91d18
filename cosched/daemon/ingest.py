"""The telemetry bus's frames on their way to the core: limits, decoding, permission; what is refused is counted.

Publishers are served in turns (turns.py), in small pieces of work: whatever one of them sends, a submit, a solver's
answer or another publisher's report waits for no more than a piece.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from cosched.api.access import Access
from cosched.daemon.turns import Turns
from telemetry import bus
from telemetry.messages import Message, UeReport, UeReportBatch
from telemetry.wire import Intake

NS: Final = 1e-9
SLICE: Final = 100  # frames received in one go: receiving costs microseconds each, whatever their size
BUDGET_S: Final = 0.002  # of the loop's time in one go: a submit or a solver's answer waits no longer than that
RUN: Final = 200  # reports that came one by one, handed over together: a millisecond and a half too
SINGLE_BYTES: Final = 1_024  # of a message that is charged as one of many
ROWS: Final = 500  # of a batch that are taken in at once: a millisecond and a half
REST: Final = 4.0  # times as long as it worked rests who has used up its part (turns.py)
PAUSE_S: Final = 0.005  # until the next look at a socket that brings more than is taken
MOST_WAITING: Final = 20_000  # messages of one publisher: two seconds of 1 000 UEs that report one by one
MOST_WAITING_BYTES: Final = 4 << 20  # what waits longer than some seconds is of no use any more
ALL_WAITING_BYTES: Final = 32 << 20
TOO_FAST: Final = "sent faster than it is taken in"

Item = bus.Frame | tuple[str, UeReportBatch]  # as it came, or who sent it and what is left of it


class Ingest:
    """Drains one bus.

    What is plausible and permitted goes to reports(UE reports that came one after the other, at_ns), anything else to
    report(message, at_ns).
    """

    def __init__(
        self,
        socket: bus.TelemetrySocket,
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
        self._turns: Turns[Item] = Turns(MOST_WAITING, MOST_WAITING_BYTES, ALL_WAITING_BYTES, REST)
        self.access: Access | None = None

    def drain(self) -> float:
        """Take in what has arrived, as far as the budget goes, all at one instant.

        Returns whether there may be more: 0 = no, 1 = yes, less = seconds until it may be taken (telemetry.bus.Pump).
        """
        malformed = self._socket.malformed
        frames = self._socket.drain(SLICE)
        at_ns, end_s = self._clock(), time.perf_counter() + BUDGET_S
        self._queue(frames if self._turns else self._at_once(frames, at_ns, end_s), at_ns * NS)
        if self._turns:
            self._work(at_ns, end_s)
        now_s = self._clock() * NS
        if self._turns and not self._turns.pause_s(now_s):
            return 1.0
        full = len(frames) + self._socket.malformed - malformed == SLICE
        pause_s = self._turns.pause_s(now_s)
        return min(0.5, max(pause_s, PAUSE_S)) if pause_s else float(full)

    def _at_once(self, frames: Sequence[bus.Frame], at_ns: int, end_s: float) -> Sequence[bus.Frame]:
        """Take in small messages as they came, where nothing waits; return those from the first on that has to queue.

        What a quiet site sends takes this way: to queue a message costs half as much as to take it in.
        """
        run: list[UeReport] = []
        singles: Counter[str] = Counter()
        began_s, now_s, done = time.thread_time(), at_ns * NS, 0
        for frame in frames:
            peer = frame.user or frame.peer
            if len(frame.payload) > SINGLE_BYTES or (peer not in singles and self._turns.has_overdrawn(peer, now_s)):
                break
            if time.perf_counter() > end_s:
                break
            done += 1
            singles[peer] += 1
            if self._may_send(frame, now_s):
                user, message = self._decoded(frame)
                if message is not None and self._may(user, message):
                    self._take(message, run, at_ns)
        self._hand_over(run, at_ns)
        self._charge(singles, time.thread_time() - began_s)
        return frames[done:]

    def _charge(self, singles: Counter[str], spent_s: float) -> None:
        """Have peers pay for their single messages, each the same."""
        each_s, now_s = spent_s / max(1, singles.total()), self._clock() * NS
        for peer, n in singles.items():
            self._turns.charge(peer, n * each_s, now_s)

    def _may_send(self, frame: bus.Frame, now_s: float) -> bool:
        """Whether its sender is within its limits; counted where not."""
        if not frame.user or self.access is None:
            return True
        if reason := self.access.receive(frame.user, len(frame.payload), now_s):
            self._intake.refuse(frame.user, reason)
        return not reason

    def _queue(self, frames: Sequence[bus.Frame], now_s: float) -> None:
        for frame in frames:
            if not self._may_send(frame, now_s):
                continue
            if not self._turns.put(frame.user or frame.peer, frame, len(frame.payload), now_s):
                self._intake.refuse(frame.user, TOO_FAST)

    def _work(self, at_ns: int, end_s: float) -> None:
        """Take in what waits, in turns, until the budget is used up.

        A batch, or a piece of one, is charged what it took. A small message takes little more than a look at the clock
        of this thread: those of one call are charged together, each the same.
        """
        run: list[UeReport] = []
        singles: Counter[str] = Counter()
        began_s, now_s, pieces_s = time.thread_time(), at_ns * NS, 0.0
        while len(run) < RUN and time.perf_counter() < end_s and (taken := self._turns.take(now_s)) is not None:
            peer, item = taken
            is_single = isinstance(item, bus.Frame) and len(item.payload) <= SINGLE_BYTES
            if not is_single:
                self._hand_over(run, at_ns)  # of others, who pay for it
            before_s = 0.0 if is_single else time.thread_time()
            user, message = self._decoded(item) if isinstance(item, bus.Frame) else item
            if isinstance(message, UeReportBatch) and len(message.ue) > ROWS:
                self._turns.put_back(peer, (user, _rows(message, ROWS, None)), 0, now_s)
                message = _rows(message, 0, ROWS)
            if message is not None and self._may(user, message):
                self._take(message, run, at_ns)
            if is_single:
                singles[peer] += 1
            else:
                piece_s = time.thread_time() - before_s
                pieces_s += piece_s
                self._turns.charge(peer, piece_s, self._clock() * NS)
        self._hand_over(run, at_ns)
        self._charge(singles, time.thread_time() - began_s - pieces_s)

    def _decoded(self, frame: bus.Frame) -> tuple[str, Message | None]:
        """Return who sent a frame, and the message in it; None, and counted, where there is none."""
        return frame.user, self._intake.decode(frame.topic, frame.payload, frame.user)

    def _may(self, user: str, message: Message) -> bool:
        """Whether its sender may say that; counted where not. Of a large batch each piece is asked for by itself."""
        named = self.access if user else None
        if named is None or not (reason := named.publish(user, message)):
            return True
        self._intake.refuse(user, reason)
        return False

    def _take(self, message: Message, run: list[UeReport], at_ns: int) -> None:
        """Hand a message over; a UE's report waits in `run` for those that come after it."""
        if isinstance(message, UeReport):
            run.append(message)
            return
        self._hand_over(run, at_ns)
        self._report(message, at_ns)

    def _hand_over(self, run: list[UeReport], at_ns: int) -> None:
        if run:
            self._reports(run, at_ns)
            run.clear()


def _rows(batch: UeReportBatch, first: int, end: int | None) -> UeReportBatch:
    """Return rows [first, end) of a batch; columns that are not there stay away."""
    columns = {
        name: value[first:end]
        for name in batch.__struct_fields__
        if isinstance(value := getattr(batch, name), tuple) and value
    }
    return msgspec.structs.replace(batch, **columns)
