"""The daemon's modes, as a table of what leads where: an illegal move raises and changes nothing."""

from __future__ import annotations

import enum
from typing import Final

from cosched.errors import CoschedError, hold


class Mode(enum.StrEnum):
    """What the daemon does at present."""

    STARTING = "STARTING"  # no solver is ready, or no input has come: the state of before the start holds
    STEADY = "STEADY"
    DEGRADED = "DEGRADED"  # an alarm is on: a simpler policy decides, or something is not recorded
    DRAINING = "DRAINING"  # no new task is taken
    FENCED = "FENCED"  # another daemon has taken over the cluster: this one serves nobody any more
    STOPPED = "STOPPED"


class Move(enum.StrEnum):
    """What happens to it."""

    READY = "ready"
    ALARM = "alarm"
    CLEAR = "clear"
    DRAIN = "drain"
    RESUME = "resume"
    FENCE = "fence"
    STOP = "stop"


_TABLE: Final[dict[tuple[Mode, Move], Mode]] = {
    (Mode.STARTING, Move.READY): Mode.STEADY,
    (Mode.STEADY, Move.ALARM): Mode.DEGRADED,
    (Mode.DEGRADED, Move.CLEAR): Mode.STEADY,
    (Mode.STEADY, Move.DRAIN): Mode.DRAINING,
    (Mode.DEGRADED, Move.DRAIN): Mode.DRAINING,
    (Mode.DRAINING, Move.RESUME): Mode.STEADY,
    **{(mode, Move.FENCE): Mode.FENCED for mode in (Mode.STARTING, Mode.STEADY, Mode.DEGRADED, Mode.DRAINING)},
    **{(mode, Move.STOP): Mode.STOPPED for mode in Mode if mode is not Mode.STOPPED},
}


class IllegalMove(CoschedError):
    """That does not happen in this mode."""


# alarms to be seen; nothing is decided worse for them
NOTICES: Final = frozenset({"calibration", "capacity", "connections", "log", "request", "storage"})


class Modes:
    """The mode, since when, and the alarms that are on. Time is handed in (seconds)."""

    def __init__(self, now_s: float) -> None:
        self.mode = Mode.STARTING
        self.since_s = now_s
        self._alarms: dict[str, str] = {}

    @property
    def alarms(self) -> tuple[str, ...]:
        """What is wrong, one line each, in order of its subject."""
        return tuple(f"{subject}: {text}" for subject, text in sorted(self._alarms.items()))

    @property
    def _is_degrading(self) -> bool:
        return not self._alarms.keys() <= NOTICES

    def move(self, move: Move, now_s: float) -> None:
        """Go where the table says. Raises IllegalMove and changes nothing."""
        to = _TABLE.get((self.mode, move))
        if to is None:
            raise IllegalMove(f"'{move}' does not happen while {self.mode}")
        self.mode, self.since_s = to, now_s
        if to is Mode.STEADY and self._is_degrading:
            self.move(Move.ALARM, now_s)

    def alarm(self, subject: str, text: str, now_s: float) -> bool:
        """Turn an alarm on, or off with an empty text; return whether that changed anything."""
        if self._alarms.get(subject, "") == text:
            return False
        if text:
            self._alarms[subject] = text
        else:
            self._alarms.pop(subject, None)
        if self._is_degrading and self.mode is Mode.STEADY:
            self.move(Move.ALARM, now_s)
        elif not self._is_degrading and self.mode is Mode.DEGRADED:
            self.move(Move.CLEAR, now_s)
        return True

    def validate(self) -> None:
        """Hold the mode against the alarms. Raises Broken."""
        hold(all(self._alarms.values()), "an alarm is on, and says nothing:", self._alarms)
        if self.mode in {Mode.STEADY, Mode.DEGRADED}:
            is_degraded = self.mode is Mode.DEGRADED
            hold(is_degraded == self._is_degrading, "the mode is", self.mode, "with the alarms", list(self._alarms))
