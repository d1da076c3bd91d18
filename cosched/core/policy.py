"""Policies: a solver with the way the planner feeds it. One row each; `cosched replay --policy` takes the names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from cosched.errors import BadInput


def _frozen(**options: float) -> Mapping[str, float]:
    return MappingProxyType(options)


@dataclass(frozen=True, slots=True)
class Policy:
    """How one policy decides.

    statistical: the planner hands it the effective-bandwidth problem (model.md 2a) instead of hard reservations.
    weighs_load: newcomers' points are weighed at congestion prices (cosched/core/congestion.py).
    bids: newcomers pay bid prices for their whole life (cosched/core/bids.py).
    drops_lost: a session whose promise can no longer be kept loses its lease (else it is served to its end).
    solver options are those the solver documents (docs/policies.md).
    """

    name: str
    solver: str
    statistical: bool = False
    drops_lost: bool = True
    weighs_load: bool = False
    bids: bool = False
    options: Mapping[str, float] = field(default_factory=_frozen)


POLICIES: Final[dict[str, Policy]] = {
    p.name: p
    for p in (
        Policy(
            "joint", "joint", statistical=True, weighs_load=True, bids=True, options=_frozen(second_stage=0, nodes=0)
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
    )
}

FALLBACK: Final = ("greedy", "local")  # when a solve fails, in this order; `local` is trivial and cannot overrun


def fallback(failed: Policy) -> Policy:
    """Return the policy that answers instead of one whose solve failed."""
    names = [failed.solver, *FALLBACK] if failed.solver not in FALLBACK else list(FALLBACK)
    return POLICIES[names[min(names.index(failed.solver) + 1, len(names) - 1)]]


JOINT: Final = ("joint",)
GREEDY: Final = ("greedy", "greedy-residual")
DECOUPLED: Final = ("pf", "pf-admit", "pf-util", "equal-rate-admit", "compute-only", "edge", "local")


def policy(spec: str) -> Policy:
    """Policy by name, with solver options changed: `pf-util` or `pf-util:rho=0.9,overbook=2`.

    Raises BadInput naming the policies there are, or the option that is not a number.
    """
    name, _, rest = spec.partition(":")
    if name not in POLICIES:
        raise BadInput(f"--policy {name}: no such policy; there are: {', '.join(POLICIES)}")
    known = POLICIES[name]
    if not rest:
        return known
    options = dict(known.options)
    for item in rest.split(","):
        key, _, number = item.partition("=")
        try:
            options[key.strip()] = float(number)
        except ValueError:
            raise BadInput(f"--policy {spec}: '{item}' is not option=number") from None
    return replace(known, name=spec, options=MappingProxyType(options))
