"""How far running tasks are: as their runtimes report it, else taken to be exactly on their deadlines.

Whoever runs a task publishes `TaskProgress` on the bus topic `task`. Of a task that nobody reports, or nobody any
more, it is assumed that each deadline is met and none is beaten; so it ends when its deadlines would have ended it,
and never holds capacity for longer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cosched.core.events import Progress
from cosched.errors import hold
from cosched.workloads.base import PointTable
from telemetry.messages import LlmSession, TaskOffer, TaskProgress, VideoClip

SILENT_S: Final = 5.0  # a runtime that has said nothing for this long is taken to say nothing any more
NS: Final = 1e-9


@dataclass(slots=True)
class Tracker:
    """One task's progress. `told`: the latest report and the instant of its arrival.

    margin: plans aim at this part of a deadline. Somebody exactly on the deadline would be behind that with every token
    more, and be planned faster and faster; so the core is told that unreported tokens came as planned.
    """

    offer: TaskOffer
    margin: float = 1.0
    told: TaskProgress | None = None
    told_s: float = 0.0
    heard_s: float = 0.0  # latest sign of life of whoever runs it or asked for it

    def tell(self, report: TaskProgress, now_s: float) -> None:
        """Take a report; one that is older than the latest (by its sequence number) is only a sign of life."""
        self.hear(now_s)
        if self.told is None or report.seq > self.told.seq or report.source != self.told.source or report.seq == 0:
            self.told, self.told_s = report, now_s

    def hear(self, now_s: float) -> None:
        """Note that somebody cares for it: a report of any kind, or the same submit again."""
        self.heard_s = max(self.heard_s, now_s)

    def is_reported(self, now_s: float) -> bool:
        """Whether its runtime reports it."""
        return self.told is not None and now_s - self.told_s <= SILENT_S

    def units_done(self, now_s: float) -> int:
        """Tokens out, or frames past: reported, then on pace."""
        work = self.offer.work
        if self.told is not None:
            done, since_s = self.told.done + self.told.late, self.told_s
            if self.is_reported(now_s):
                return done
        else:
            done, since_s = 0, self.offer.at_ns * NS
        if isinstance(work, VideoClip):
            return min(work.frames, done + int((now_s - since_s) * work.fps))
        if done == 0:
            since_s = self.offer.at_ns * NS + work.ttft_s
            if now_s < since_s:
                return 0
            done = 1
        return min(work.max_output_tokens, done + int((now_s - since_s) / work.tpot_s))

    def is_over(self, now_s: float) -> bool:
        """Whether it has ended, as reported or as assumed."""
        if self.told is not None and self.told.finished:
            return True
        work = self.offer.work
        total = work.frames if isinstance(work, VideoClip) else work.max_output_tokens
        return self.units_done(now_s) >= total

    def progress(self, now_s: float, table: PointTable, point: int) -> Progress | None:
        """Return what the core is told; None while there is nothing to tell. table, point: as the task holds them."""
        done = self.units_done(now_s)
        if isinstance(self.offer.work, VideoClip):
            late = self.told.late if self.told is not None else 0
            return Progress(self.offer.task, 0, done - late, late, 0.0, now_s, 0.0, 0.0, 0.0)
        if done == 0:
            return self._prefill(table, point)
        return _decoding(self.offer.work, self.offer.task, done, self._decoding_s(done), now_s)

    def _prefill(self, table: PointTable, point: int) -> Progress | None:
        if self.told is None:
            return None
        bits, node_s = self.told.ul_bits_left, self.told.node_s_left
        return Progress(
            task=self.offer.task, phase=0, done=0, late=0, first_s=0.0, last_s=0.0,
            ul_bits_left=float(table.ul_bits[point, 0]) if bits is None else bits,
            node_s_left=float(table.node_s[point, 0]) if node_s is None else node_s,
            fixed_s_left=float(table.fixed_s[point, 0]) if bits is None and node_s is None else 0.0,
        )  # fmt: skip

    def _decoding_s(self, done: int) -> float:
        """Seconds from the first token to the latest: reported for those reported, as planned for the others."""
        assert isinstance(self.offer.work, LlmSession)  # noqa: S101  # its callers saw to it
        told = self.told.done if self.told is not None else 0
        reported_s = self.told.decoding_s if self.told is not None and told else 0.0
        return reported_s + (done - max(told, 1)) * self.offer.work.tpot_s * self.margin

    def validate(self, now_s: float) -> None:
        """Hold what was told against its task and the clock. Raises Broken."""
        name = self.offer.task
        hold(0 < self.margin <= 1, "task", name, "is planned at", self.margin, "of its deadlines")
        hold(self.heard_s <= now_s + NS, "task", name, "was heard of in the future:", self.heard_s, "s")
        if self.told is not None:
            hold(self.told.task == name, "task", name, "was told what task", self.told.task, "has done")
            hold(self.told_s <= self.heard_s, "task", name, "was told of after it was heard of last")


def lasts_s(work: LlmSession | VideoClip) -> float:
    """Return how long a task may last when each of its deadlines is met and none is beaten."""
    if isinstance(work, VideoClip):
        return work.frames / work.fps
    return work.ttft_s + work.max_output_tokens * work.tpot_s


def _decoding(work: LlmSession, task: str, done: int, decoding_s: float, now_s: float) -> Progress:
    first_s = now_s - decoding_s
    return Progress(task, 1, min(done, work.max_output_tokens), 0, first_s, now_s, 0.0, 0.0, 0.0)
