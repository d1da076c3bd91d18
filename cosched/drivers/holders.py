"""Whose tasks live: counted by UE and by identity as they come and go, and held against what each may have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Protocol, TypeVar

from telemetry.messages import TaskOffer


class Offered(Protocol):
    """What belongs to an offer."""

    @property
    def offer(self) -> TaskOffer: ...  # noqa: D102


T = TypeVar("T", bound=Offered)


class Held(dict[str, T]):
    """Tasks by id; `of` counts them by UE and by source (an identity's is `control/<name>`)."""

    def __init__(self) -> None:
        super().__init__()
        self.of: Counter[tuple[str, str]] = Counter()

    def _count(self, held: T, n: int) -> None:
        for key in (("ue", held.offer.ue), ("source", held.offer.source)):
            self.of[key] += n
            if not self.of[key]:
                del self.of[key]

    def __setitem__(self, task: str, held: T) -> None:
        """Put a task in, in the place of the one of that id."""
        if task in self:
            self._count(self[task], -1)
        super().__setitem__(task, held)
        self._count(held, 1)

    def __delitem__(self, task: str) -> None:
        """Take a task out. Raises KeyError."""
        self._count(self[task], -1)
        super().__delitem__(task)

    def setdefault(self, task: str, held: T) -> T:  # type: ignore[override]  # no default for the default
        """Put a task in unless it is there; return the one that is."""
        if task not in self:
            self[task] = held
        return self[task]

    def update(self, held: Iterable[tuple[str, T]]) -> None:  # type: ignore[override]  # the one form in use
        """Put tasks in."""
        for task, one in held:
            self[task] = one

    def pop(self, task: str, default: None = None) -> T | None:  # type: ignore[override]
        """Take a task out; None when it is not there."""
        held = self.get(task, default)
        if held is not None:
            del self[task]
        return held

    def clear(self) -> None:
        """Take all out."""
        super().clear()
        self.of.clear()


def over_quota(offer: TaskOffer, held: Iterable[Mapping[tuple[str, str], int]], of_ue: int, of_source: int) -> str:
    """Why a task may not come in beside those `held`, "" when it may."""
    counts = list(held)
    for what, name, most in (("ue", offer.ue, of_ue), ("source", offer.source, of_source)):
        if sum(c.get((what, name), 0) for c in counts) >= most:
            who = f"UE '{name}'" if what == "ue" else "this identity"
            return f"{who} has {most} tasks, and may not have more"
    return ""
