"""Policies: a solver with the way the planner feeds it. One row each; `cosched replay --policy` takes the names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from cosched.errors import BadInput
from solvers.problem import Problem
from solvers.queues import unqueued
from solvers.registry import FLOATING

if TYPE_CHECKING:
    from solvers.objectives.second_stage import Goal


def _frozen(**options: float) -> Mapping[str, float]:
    return MappingProxyType(options)


@dataclass(frozen=True, slots=True)
class Policy:
    """How one policy decides.

    statistical: the planner hands it the effective-bandwidth problem (docs/model.md, section 6), not reservations.
    weighs_load: newcomers' points are weighed at congestion prices (cosched/core/congestion.py).
    bids: newcomers pay bid prices for their whole life (cosched/core/bids.py).
    drops_lost: a session whose promise can no longer be kept loses its lease (else it is served to its end).
    objective: what is left over is shared out by (solvers/objectives), "none": nothing is; "": as configured.
    solver options are those the solver documents (docs/policies.md).
    """

    name: str
    solver: str
    statistical: bool = False
    drops_lost: bool = True
    weighs_load: bool = False
    bids: bool = False
    objective: str = "none"
    options: Mapping[str, float] = field(default_factory=_frozen)

    def goal(self, configured: str) -> Goal | None:
        """What to share out by, given the configured objective; None: nothing is. Raises BadProblem."""
        from solvers.objectives.second_stage import parse_goal

        text = self.objective or configured
        return None if text == "none" else parse_goal(text)


def as_promised(problem: Problem, by: Policy) -> Problem:
    """Return the problem that a plan of this policy is held against.

    Where it overbooks on purpose its shares are weights, which add up to `overbook` at most, and its promises hold at
    them as they are; what waits in a queue is not held against what they leave. Where it plans no steps they are as
    long as it comes, and it promises nothing.
    """
    if (overbook := by.options.get("overbook", 1.0)) > 1:
        problem = replace(problem, activity=problem.activity / overbook, background=problem.background / overbook)
        problem = problem if problem.steps is None else unqueued(problem, problem.steps)
    return replace(problem, steps=None) if by.solver in FLOATING else problem


POLICIES: Final[dict[str, Policy]] = {
    p.name: p
    for p in (
        Policy(
            "joint",
            "joint",
            statistical=True,
            weighs_load=True,
            bids=True,
            objective="",
            options=_frozen(second_stage=0, nodes=0),
        ),
        Policy("greedy", "greedy", statistical=True, options=_frozen(second_stage=0)),
        Policy("greedy-residual", "greedy-residual", statistical=True, options=_frozen(second_stage=0)),
        Policy("pf", "pf", drops_lost=False),
        Policy("pf-admit", "pf-admit"),
        Policy("pf-util", "pf-util"),
        Policy("equal-rate-admit", "equal-rate-admit"),
        Policy("compute-only", "compute-only"),
        Policy("edge", "edge", drops_lost=False),
        Policy("local", "local"),
        Policy("engine", "engine", drops_lost=False),
        Policy("predicted", "predicted"),
        Policy("deadline-split", "deadline-split", statistical=True),
        Policy("weight-floor", "weight-floor", statistical=True, options=_frozen(second_stage=0)),
    )
}

FALLBACK: Final = ("greedy", "local")  # when a solve fails, in this order; `local` is trivial and cannot overrun


def fallback(failed: Policy) -> Policy:
    """Return the policy that answers instead of one whose solve failed."""
    names = [failed.solver, *FALLBACK] if failed.solver not in FALLBACK else list(FALLBACK)
    return POLICIES[names[min(names.index(failed.solver) + 1, len(names) - 1)]]


JOINT: Final = ("joint",)
GREEDY: Final = ("greedy", "greedy-residual", "weight-floor")
DECOUPLED: Final = (
    "pf",
    "pf-admit",
    "pf-util",
    "equal-rate-admit",
    "compute-only",
    "edge",
    "local",
    "engine",
    "predicted",
    "deadline-split",
)


def policy(spec: str) -> Policy:
    """Policy by name, with solver options changed: `pf-util`, `pf-util:rho=0.9,overbook=2`, `joint:objective=energy`.

    Raises BadInput naming the policies there are, the option that is not a number, or the objectives there are.
    """
    name, _, rest = spec.partition(":")
    if name not in POLICIES:
        raise BadInput(f"policy '{name}': no such policy; there are: {', '.join(POLICIES)}")
    known = POLICIES[name]
    if not rest:
        return known
    options, objective = dict(known.options), known.objective
    for item in rest.split(","):
        key, _, value = (part.strip() for part in item.partition("="))
        if key == "objective":
            objective = checked_objective(value, f"policy '{spec}'")
            continue
        try:
            options[key] = float(value)
        except ValueError:
            raise BadInput(f"policy '{spec}': '{item}' is not option=number") from None
    return replace(known, name=spec, objective=objective, options=MappingProxyType(options))


def checked_objective(text: str, where: str) -> str:
    """Return an objective's name. Raises BadInput, naming those there are."""
    from solvers.errors import BadProblem
    from solvers.objectives.second_stage import parse_goal

    try:
        if text != "none":
            parse_goal(text)
    except BadProblem as error:
        raise BadInput(f"{where}: {error}; 'none' leaves shares as they are") from None
    return text
