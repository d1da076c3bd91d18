"""How long to wait before something is started again that dies again and again. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SOUND_S: Final = 60.0  # what has lived so long counts as sound: its next death is a first one


@dataclass(slots=True)
class Backoff:
    """pauses_s: after the first death, the second, and so on; the last one after all further ones."""

    pauses_s: tuple[float, ...]
    deaths: int = 0  # in a row, each within SOUND_S of its start

    def died(self, lived_s: float) -> float:
        """Return the pause in seconds before the next start; lived_s: since the latest one."""
        self.deaths = self.deaths + 1 if lived_s < SOUND_S else 1
        return self.pauses_s[min(self.deaths, len(self.pauses_s)) - 1]
