"""Tasks of one UE that overlap in time: a device does one thing at a time, so these are what share it.

A task counts from its arrival for as long as its deadlines let it last (`longest_life_s`), whatever a policy makes of
it, those that a device serves alone too: so the figures are the trace's, and no policy's.
"""

from __future__ import annotations

from typing import NamedTuple

from cosched.replay.hindsight import longest_life_s
from cosched.replay.replayer import NS, Workbook


class Overlap(NamedTuple):
    """Of all tasks of a trace."""

    share: float  # of the tasks, that overlap another of the same UE; 0 where there is no task
    most: int  # tasks of one UE at once


def overlap(book: Workbook) -> Overlap:
    """Count the tasks that overlap another of their UE; who begins as another ends does not."""
    of_ue: dict[str, list[tuple[float, float]]] = {}
    for offer in (*(offer for _, offer in book.offers), *book.local):
        at_s = offer.at_ns * NS
        of_ue.setdefault(offer.ue, []).append((at_s, at_s + longest_life_s(offer, book.units[offer.task])))
    together = sum(_overlapping(lives) for lives in of_ue.values())
    tasks = sum(map(len, of_ue.values()))
    return Overlap(together / tasks if tasks else 0.0, max(map(_most_at_once, of_ue.values()), default=0))


def _overlapping(lives: list[tuple[float, float]]) -> int:
    """How many of these lives (start, end) overlap another one."""
    lives = sorted(lives)
    found, reach, longest = set[int](), -1.0, -1
    for i, (start, end) in enumerate(lives):
        if start < reach:
            found |= {i, longest}
        if end > reach:
            reach, longest = end, i
    return len(found)


def _most_at_once(lives: list[tuple[float, float]]) -> int:
    """Greatest number of lives (start, end) at one instant."""
    turns = sorted([(start, 1) for start, _ in lives] + [(end, -1) for _, end in lives])
    now = most = 0
    for _, turn in turns:
        now += turn
        most = max(most, now)
    return most
