"""Short traces and runs that the replay tests share: the first seconds of the shipped sample, what a run decided."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cosched.core.commands import Command, Plan, Solve
from cosched.core.events import Event, Solved
from cosched.core.policy import as_promised, policy
from cosched.core.settings import Settings
from cosched.replay.replayer import Replayer, Run, Workbook
from cosched.replay.workbook import make_book
from cosched.resources import sample_trace
from solvers.problem import Problem
from solvers.solution import Solution
from telemetry.messages import Message, SiteMessage, TaskOffer, TaskTruth, UeReport, UeReportBatch
from telemetry.trace import read_trace

Asked = list[tuple[Problem, Solution]]


@functools.cache
def sample(seconds: float = 1e9) -> tuple[Message, ...]:
    """Return the messages of the shipped sample before `seconds`."""
    return tuple(m for m in read_trace(sample_trace()).messages if m.at_ns < seconds * 1e9)


@functools.cache
def sample_book(seconds: float = 1e9) -> Workbook:
    return make_book(sample(seconds), "sample")


@dataclass(frozen=True)
class Watched:
    """A run with all that was asked of the solver and all plans that came of it."""

    run: Run
    plans: list[Plan]
    asked: Asked


def watched(book: Workbook, spec: str) -> Watched:
    plans: list[Plan] = []
    asked: Asked = []
    chosen = policy(spec)
    replayer = Replayer(book, chosen, Settings(), watch=plans.append)
    handle, solve = replayer._core.handle, replayer._solve
    open_now: list[Problem] = []

    def recording(command: Solve) -> None:
        open_now.append(command.problem)
        solve(command)

    def answered(event: Event, at_s: float) -> list[Command]:
        if isinstance(event, Solved) and event.solution is not None:
            asked.append((as_promised(open_now[-1], chosen), event.solution))
        return handle(event, at_s)

    replayer._solve, replayer._core.handle = recording, answered  # type: ignore[method-assign]
    return Watched(replayer.run(), plans, asked)


def fingerprint(plan: Plan) -> bytes:
    """Return all that a plan decides, bit for bit."""
    said = [(d.task, str(d.reason), d.point, d.cell, d.binding, d.promised) for d in plan.decisions]
    arrays = (plan.point, plan.share, plan.prbs, plan.promised, plan.planned_use, plan.prices)
    steps = (plan.node_weight, plan.pace_s, plan.wait_s, plan.step_s, plan.period_s)
    numbers = [a.tobytes() for a in (*arrays, *steps)]
    return b"|".join([repr((plan.generation, plan.at_s, plan.tasks, said, plan.value, plan.bound)).encode(), *numbers])


def without(messages: Sequence[Message], *kinds: type) -> list[Message]:
    return [m for m in messages if not isinstance(m, kinds)]


def first_difference_s(a: Workbook, b: Workbook) -> float:
    """Return the first instant at which what is observed, or what the channel is, differs between two traces."""
    instants = [
        min((at for at, _ in set(a.offers) ^ set(b.offers)), default=np.inf),
        min((at for at, _ in set(a.reports) ^ set(b.reports)), default=np.inf),
    ]
    changes = [
        set(zip(w.truth.at_s.tolist(), w.truth.ue.tolist(), w.truth.efficiency_bps_hz.tolist(), strict=True))
        for w in (a, b)
    ]
    return float(min(*instants, min((at for at, _, _ in changes[0] ^ changes[1]), default=np.inf)))


__all__ = [
    "Asked", "Message", "SiteMessage", "TaskOffer", "TaskTruth", "UeReport", "UeReportBatch", "Watched",
    "fingerprint", "first_difference_s", "sample", "sample_book", "watched", "without",
]  # fmt: skip
