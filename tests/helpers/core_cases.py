"""A core on the node-bound site, with its solves answered at once; its state is held against itself after each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cosched.core.commands import Command, Dispatch, Plan, Solve
from cosched.core.core import Core
from cosched.core.events import Solved
from cosched.core.policy import policy
from cosched.core.settings import Settings
from cosched.profiles.calibration import Factors
from cosched.resources import config_file
from cosched.site import load_site
from cosched.workloads import registry
from cosched.workloads.base import PointTable
from cosched.workloads.context import load_profiles, session_memory_bytes
from solvers import check
from solvers import registry as solvers
from telemetry.messages import LlmSession, TaskOffer, UeReport

SITE = load_site(config_file("sites", "node-bound.toml"))
PROFILES = load_profiles(SITE)


CONTEXT = PROFILES.context_of(0, 0)


def report(ue: str, at_s: float, efficiency: float | None) -> UeReport:
    return UeReport(
        at_ns=round(at_s * 1e9), source="ran", seq=0, ue=ue, cell=SITE.cells[0].id, ul_efficiency_bps_hz=efficiency
    )


def session(
    task: str, at_s: float = 0.0, *, private: bool = True, tpot_s: float = 0.2, weight: float = 1.0
) -> TaskOffer:
    work = LlmSession(
        model="llama-3-8b", context_tokens=500, new_tokens=64, max_output_tokens=100, ttft_s=2.0, tpot_s=tpot_s,
        private=private,
    )  # fmt: skip
    return TaskOffer(at_ns=round(at_s * 1e9), source="s", seq=0, task=task, ue="ue00", work=work, weight=weight)


def points(offer: TaskOffer, cell: int, factors: Factors) -> PointTable:
    return registry.points(offer, PROFILES.context_of(0, cell, factors))


def make_core(name: str = "joint") -> Core:
    core = Core(SITE, policy(name), Settings(), points, session_memory_bytes(PROFILES))
    core.handle(report("ue00", 0.0, 2.0), 0.0)
    core.validate()
    return core


def answer(core: Core, commands: Sequence[Command], at_s: float) -> list[Plan]:
    """Carry out Solve commands; return the plans."""
    core.validate()
    plans = []
    todo = list(commands)
    while todo:
        command = todo.pop(0)
        if isinstance(command, Solve):
            by = command.policy
            solution = solvers.solve(by.solver, command.problem, warm=command.warm, options=by.options)
            floats = by.solver in solvers.FLOATING  # its steps are as long as it comes, and it promises nothing
            problem = replace(command.problem, steps=None) if floats else command.problem
            assert check.verify(problem, solution) == []
            todo += core.handle(Solved(command.request, solution=solution), at_s)
            core.validate()
        elif isinstance(command, Dispatch):
            command.plan.validate()
            plans.append(command.plan)
    return plans
