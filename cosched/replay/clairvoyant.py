"""The best plan found by one who knows arrivals, lengths and channel: how much of the way to the bound there is.

It is carried out, not worked out: every plan looked at is a replay in which a policy decides at arrivals as ever, with
the future told (foresight.py) and some of those who ask refused at the door. What is searched is whom to refuse:

1. policies that choose for themselves, with all known;
2. one that lets everybody in, asked by those alone whom the bound's relaxation would serve. In every slot of time the
   dearest of those who were not met is refused from then on, until whoever is let in is met;
3. in every slot one of the refused is let in again. Where more is met then, that stays; slots hardly touch each other,
   so one replay tries as many changes as there are slots, and a second one takes those that paid.

A lower bound on what can be reached, as `hindsight.bound` is an upper one. Seeded: one trace, one answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import msgspec
import numpy as np

from cosched.core.policy import Policy, policy
from cosched.core.settings import Settings
from cosched.replay.foresight import Foresight
from cosched.replay.hindsight import longest_life_s, look_back
from cosched.replay.outcome import policy_result
from cosched.replay.replayer import Replayer, Workbook
from cosched.report.model import PolicyResult
from telemetry.messages import LlmSession

ROUNDS: Final = 5  # of step 3, two replays each
REFUSALS: Final = 6  # rounds of step 2, at most
REFUSAL_SLOT_S: Final = 3.0  # in which one is refused
SLOT_S: Final = 4.0  # in which one is let in again
SERVED: Final = 0.5  # part of a task from which on the relaxation is taken to serve it
SCARCE: Final = 0.65  # part of the resources that it is told there are: it knows of no waiting
LIFE_S: Final = 0.02  # node seconds that a second of a life is taken to cost in reads
KNOWN: Final = Foresight(lengths=True, channel=True, arrivals=True)
CHOOSING: Final = ("joint", "predicted:step_s=0.05")
SERVING: Final = "engine:step_s=0.05"  # it lets in who asks
LESS_SAFETY: Final = {"z": 0.3, "deadline_margin": 0.98}  # for who knows what comes


@dataclass(frozen=True, slots=True)
class Attempt:
    """A replay and what it was told."""

    by: Policy
    settings: Settings
    foresight: Foresight
    result: PolicyResult

    @property
    def value(self) -> float:
        """Weight of the tasks that were met."""
        return self.result.summary.value

    def ended(self, outcome: str) -> frozenset[str]:
        """Tasks that ended so: met, missed, rejected."""
        return frozenset(f.task for f in self.result.fates if f.outcome == outcome)


def attempt(book: Workbook, by: Policy, settings: Settings, foresight: Foresight = KNOWN) -> Attempt:
    """Replay once. Plans are not verified: the policies' own are, where they are what is measured."""
    run = Replayer(book, by, settings, verify=False, foresight=foresight).run()
    return Attempt(by, settings, foresight, policy_result(book, run, 0.0))


def best_plan(
    book: Workbook,
    settings: Settings,
    *,
    known: Sequence[Attempt] = (),
    rounds: int = ROUNDS,
    seed: int = 0,
    tell: Callable[[float], None] | None = None,
) -> Attempt:
    """Search; never below any of `known`, plans that are there already. tell(fraction) is called now and then."""
    search, best = _Search(book, settings, np.random.default_rng(seed)), list(known)
    steps: list[Callable[[], Attempt]] = [partial(search.choosing, name) for name in CHOOSING]
    steps.append(search.without_the_missed)
    for done, step in enumerate(steps, start=1):
        best.append(step())
        if tell is not None:
            tell(done / (len(steps) + rounds))
    for done in range(rounds):
        best.append(search.with_some_more(best[-1]))
        if tell is not None:
            tell((len(steps) + done + 1) / (len(steps) + rounds))
    return max(best, key=_value)  # of equals the first


def _value(found: Attempt) -> float:
    return found.value


class _Search:
    """The three steps of the head of this file."""

    def __init__(self, book: Workbook, settings: Settings, rng: np.random.Generator) -> None:
        self._book, self._settings, self._rng = book, settings, rng
        self._serving = replace(policy(SERVING), drops_lost=True)
        self._possible = _served(book, 1.0)
        self._burden = _burdens(book)

    def choosing(self, name: str) -> Attempt:
        """A policy that admits for itself."""
        rules = msgspec.structs.replace(self._settings, **LESS_SAFETY) if name == "joint" else self._settings
        return attempt(self._book, policy(name), rules)

    def _among(self, only: frozenset[str]) -> Attempt:
        return attempt(self._book, self._serving, self._settings, replace(KNOWN, only=only))

    def without_the_missed(self) -> Attempt:
        """Step 2."""
        only = _served(self._book, SCARCE)
        found = best = self._among(only)
        for _ in range(REFUSALS):
            if not (missed := only - found.ended("met")):
                break
            only -= self._one_of_each(missed, REFUSAL_SLOT_S, 0.0, dearest=True)
            found = self._among(only)
            best = max(best, found, key=_value)
        return best

    def with_some_more(self, base: Attempt) -> Attempt:
        """Step 3, once."""
        met, phase_s = base.ended("met"), float(self._rng.uniform(0.0, SLOT_S))
        more = self._one_of_each(self._possible - met, SLOT_S, phase_s, dearest=False)
        tried = self._among(met | more)
        slots = _slots(self._book, SLOT_S, phase_s)
        gain = _gains(slots, base, tried)
        paid = frozenset(task for task in more if gain[slots[task]] > 0)
        return max(base, tried, self._among(met | paid) if paid else tried, key=_value)

    def _one_of_each(self, tasks: frozenset[str], slot_s: float, phase_s: float, *, dearest: bool) -> frozenset[str]:
        """One of `tasks` in each slot: the dearest, or any."""
        slots = _slots(self._book, slot_s, phase_s)
        by_slot: dict[int, list[str]] = {}
        for task in sorted(tasks):
            by_slot.setdefault(slots[task], []).append(task)
        return frozenset(
            max(some, key=lambda t: self._burden[t]) if dearest else some[int(self._rng.integers(len(some)))]
            for _, some in sorted(by_slot.items())
        )


def _served(book: Workbook, capacity: float) -> frozenset[str]:
    """Whom the bound's relaxation would serve with that part of all resources."""
    served = look_back(book, capacity=capacity).served
    return frozenset(task for task, part in served.items() if part > SERVED)


def _burdens(book: Workbook) -> Mapping[str, float]:
    """Task -> node seconds and life that it takes, for each unit of its weight, as a number to draw by."""
    out = {}
    for _, offer in book.offers:
        table, units = book.tables[offer.task], book.units[offer.task]
        times = np.array([1.0, units - 1.0]) if isinstance(offer.work, LlmSession) else np.array([units, 0.0])
        own_s = table.node_s.copy()
        own_s[:, 1] += table.steps[:, 1]
        least_s = float((own_s * times).sum(axis=1).min(initial=np.inf)) if table.n_points else 0.0
        out[offer.task] = (least_s + LIFE_S * longest_life_s(offer, units)) / max(offer.weight, 1e-3)
    return out


def _slots(book: Workbook, slot_s: float, phase_s: float) -> Mapping[str, int]:
    """Task -> slot of its arrival."""
    return {offer.task: int((at_s + phase_s) // slot_s) for at_s, offer in book.offers}


def _gains(slots: Mapping[str, int], before: Attempt, after: Attempt) -> Mapping[int, float]:
    """Slot -> weight that is met more than before, of those who ask in it."""
    gain = dict.fromkeys(slots.values(), 0.0)
    for sign, one in ((1.0, after), (-1.0, before)):
        for fate in one.result.fates:
            gain[slots[fate.task]] += sign * fate.weight * (fate.outcome == "met")
    return gain
