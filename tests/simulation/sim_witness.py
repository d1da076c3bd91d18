"""Who stands outside: clients that wait for answers, subscribers that hear decisions, over all lives of a daemon."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from cosched.api.messages import DECISION_TOPIC, Lease, Response
from cosched.daemon.engine import ACCEPTED
from cosched.errors import hold

S_NS = 1_000_000_000
SLACK_MS = 1e-3


@dataclass
class Witness:
    """Holds what is told against what was told before. Tasks by id; a `lease` with a point says that one lives."""

    now_ns: int = 0
    lease_s: float = 0.5
    alive: dict[str, int] = field(default_factory=dict)  # task -> plan of what was heard of it last
    asked: Counter[str] = field(default_factory=Counter)  # task -> submits without an answer
    open: dict[bytes, str] = field(default_factory=dict)  # request -> the task that it submits, "" = another verb
    undone: set[str] = field(default_factory=set)  # ended while the disk refused: may be back after a crash
    leaving: set[str] = field(default_factory=set)  # their end is on disk, and not told
    coming: set[str] = field(default_factory=set)  # their admission is on disk, and not told
    generation: int = 0  # of the latest plan that was seen whole
    made: int = 0  # ... that was made
    answered: Counter[str] = field(default_factory=Counter)  # by fault, "" = done
    reasons: Counter[str] = field(default_factory=Counter)
    is_greeting: bool = False
    awake: dict[str, float] = field(default_factory=dict)  # UE -> s of silence that the daemon was awake for
    stale_s: float = 10.0
    stale: set[str] = field(default_factory=set)  # ended rightly as such, and not told before their UE came back
    shorter_ns: int = -1  # since when leases are shorter than `lease_s`

    # --- requests -----------------------------------------------------------------------------------------------

    def requests(self, route: bytes, task: str) -> None:
        self.open[route] = task
        if task:
            self.asked[task] += 1

    def answer(self, route: bytes, response: Response) -> None:
        hold(route in self.open, "request", route, "is answered twice, or was never made")
        task = self.open.pop(route)
        if task:
            self.asked[task] -= 1
        hold(response.ok or response.error.code != "internal", "a defect:", response)
        self.answered["" if response.ok else response.error.code] += 1
        if task and response.ok:
            lease = msgspec.json.decode(response.result, type=Lease)
            hold(lease.task == task, "an answer about", lease.task, "to a submit of", task)
            if lease.valid_for_ms > 0 and lease.reason in ACCEPTED:
                hold(task in self.alive, task, "is answered", lease.reason, ", and was never published")

    def is_stale(self, ue: str) -> bool:
        return self.awake.get(ue, 0.0) > self.stale_s - 0.5

    def leases_last(self, lease_s: float) -> None:
        """Take note of how long leases are; those of before a change may still be told."""
        if lease_s < self.lease_s and self.shorter_ns < 0:
            self.shorter_ns = self.now_ns
        elif lease_s >= self.lease_s or self.now_ns > self.shorter_ns + round(self.lease_s * S_NS):
            self.lease_s, self.shorter_ns = lease_s, -1

    # --- decisions ----------------------------------------------------------------------------------------------

    def told(self, topic: bytes, payload: bytes) -> None:
        if not topic.startswith(DECISION_TOPIC.encode()):
            return
        lease = msgspec.json.decode(payload, type=Lease)
        hold(topic.decode() == DECISION_TOPIC + lease.task, "a topic of another task")
        hold(
            lease.valid_until_ns <= self.now_ns + round(self.lease_s * S_NS) + 1,
            lease.task,
            ": a lease without end",
        )
        hold(
            0 <= lease.valid_for_ms <= 1e3 * self.lease_s + SLACK_MS,
            lease.task,
            ": valid for",
            lease.valid_for_ms,
            "ms",
        )
        hold(lease.plan == lease.seq <= self.made, lease.task, ": told of plan", lease.plan, ", which is not made")
        if self.is_greeting:
            self._greeted(lease)
        elif lease.point:
            self._lives(lease)
        else:
            self._ended(lease)

    def _greeted(self, lease: Lease) -> None:
        """A new subscriber hears what was told last."""
        if lease.point:
            hold(lease.task in self.alive, lease.task, "is told to a new subscriber, and does not live")
            hold(
                lease.plan >= self.alive[lease.task],
                lease.task,
                ": plan",
                lease.plan,
                "after",
                self.alive[lease.task],
            )

    def _lives(self, lease: Lease) -> None:
        task = lease.task
        hold(lease.bandwidth_hz >= 0 and lease.weight_prb >= 0 and lease.weight_node >= 0, task, ": negative shares")
        if task not in self.alive:
            hold(self.asked[task] > 0, task, "is decided (", lease.reason, ") after its end, or was never submitted")
            hold(lease.reason in ACCEPTED, task, "begins with", lease.reason)
            self.coming.discard(task)
            self.reasons[lease.reason] += 1
        else:
            hold(lease.plan >= self.alive[task], task, ": plan", lease.plan, "after", self.alive[task])
        self.alive[task] = lease.plan

    def _ended(self, lease: Lease) -> None:
        task = lease.task
        hold(task in self.alive or self.asked[task] > 0, task, "ends (", lease.reason, "), and did not live")
        hold(
            lease.plan >= self.alive.get(task, 0),
            task,
            ": its end is of plan",
            lease.plan,
            ", told was",
            self.alive.get(task),
        )
        hold(lease.valid_for_ms == 0, task, "ends with a lease")
        is_right = lease.reason != "stale" or task in self.stale or self.is_stale(lease.ue)
        hold(is_right, task, "ends as stale after", self.awake.get(lease.ue, 0.0), "s")
        self.alive.pop(task, None)
        self.leaving.discard(task)
        self.reasons[lease.reason] += 1

    def planned(self, generation: int) -> None:
        hold(generation > self.generation, "plan", generation, "after plan", self.generation)
        self.generation = generation

    # --- the disk -----------------------------------------------------------------------------------------------

    def stored(self, puts: Iterable[str], drops: Iterable[str]) -> None:
        """It is on disk that these live and those do not."""
        for task in drops:
            self.undone.discard(task)
            if task in self.alive:
                self.leaving.add(task)
        for task in puts:
            self.leaving.discard(task)
            if task not in self.alive:
                self.coming.add(task)

    def not_stored(self, drops: Iterable[str]) -> None:
        self.undone.update(drops)

    def died(self) -> None:
        """Nobody is answered any more."""
        self.open.clear()
        self.asked.clear()

    def risen(self, living: set[str], generation: int) -> None:
        """A daemon that goes on from the disk: nobody who was told of is lost, nobody is there who never was."""
        lost = self.alive.keys() - living - self.leaving - self.undone
        hold(not lost, "accepted, and lost:", sorted(lost))
        new = living - self.alive.keys() - self.coming - self.undone
        hold(not new, "back after their end:", sorted(new))
        hold(generation >= self.generation, "begins at plan", generation, ", told was", self.generation)
        self.generation = max(self.generation, generation)
        self.alive = {task: self.alive.get(task, 0) for task in living}
        self.leaving.clear()
        self.coming.clear()
        self.undone.clear()
