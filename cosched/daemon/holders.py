"""Whose tasks live: counted by UE and by identity as they come and go, and held against what each may have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol, TypeVar

from cosched.core.commands import Plan
from cosched.core.core import Core
from cosched.errors import hold
from telemetry.messages import TaskOffer


class HasOffer(Protocol):
    """What belongs to an offer."""

    @property
    def offer(self) -> TaskOffer: ...  # noqa: D102


T = TypeVar("T", bound=HasOffer)


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

    def setdefault(self, task: str, held: T) -> T:
        """Put a task in unless it is there; return the one that is."""
        if task not in self:
            self[task] = held
        return self[task]

    def update(self, held: Iterable[tuple[str, T]]) -> None:  # type: ignore[override]
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

    def validate(self) -> None:
        """Hold the names and the counts against the tasks. Raises Broken."""
        recount: Counter[tuple[str, str]] = Counter()
        for task, held in self.items():
            hold(held.offer.task == task, "task", held.offer.task, "is held as", task)
            recount.update((("ue", held.offer.ue), ("source", held.offer.source)))
        hold(self.of == recount and all(self.of.values()), "counted:", dict(self.of), "there are:", dict(recount))


def over_quota(offer: TaskOffer, held: Iterable[Mapping[tuple[str, str], int]], of_ue: int, of_source: int) -> str:
    """Why a task may not come in beside those `held`, "" when it may."""
    counts = list(held)
    for what, name, most in (("ue", offer.ue, of_ue), ("source", offer.source, of_source)):
        if sum(c.get((what, name), 0) for c in counts) >= most:
            who = f"UE '{name}'" if what == "ue" else "this identity"
            return f"{who} has {most} tasks, and may not have more"
    return ""


def over_share(offer: TaskOffer, core: Core, plan: Plan | None, of_ue: float, of_source: float) -> str:
    """Why a task may not come in by what the plan in force counts for those that run, "" when it may."""
    for what, name, most in (("ue", offer.ue, of_ue), ("source", offer.source, of_source)):
        if plan is None or most >= 1:
            continue
        parts = _parts(core, plan, lambda held, what=what, name=name: getattr(held, what) == name)  # type: ignore[misc]
        if parts and max(parts.values()) >= most:
            resource, part = max(parts.items(), key=lambda item: item[1])
            who = f"UE '{name}'" if what == "ue" else "this identity"
            return f"{who} holds {100 * part:.0f} % of {resource}, and may hold {100 * most:g} %"
    return ""


def _parts(core: Core, plan: Plan, is_theirs: Callable[[TaskOffer], bool]) -> dict[str, float]:
    """What the plan counts for somebody's tasks, added up by resource."""
    parts: Counter[str] = Counter()
    site, running = core.state.site, core.state.tasks
    for name, reserved in zip(plan.tasks, plan.reserved.tolist(), strict=True):
        task = running.get(name)
        if task is None or not is_theirs(task.offer) or (node := int(task.table.node[task.point])) < 0:
            continue
        where = (f"{site.cells[task.cell].id}/ul", site.nodes[node].id, f"{site.nodes[node].id}/mem")
        for resource, part in zip(where, reserved, strict=True):
            parts[resource] += part
    return dict(parts)
