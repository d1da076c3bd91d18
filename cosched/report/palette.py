"""One fixed style per policy, for light and dark, that does not rest on colour alone.

Hues follow Okabe & Ito's set for colour-blind readers (https://jfly.uni-koeln.de/color/), darkened on white and
lightened on black until each stands out by 3:1 or more. So many policies are more than any such set can tell apart, so
each also has its own marker, and families share a dash: joint solid, greedy dashed, decoupled dotted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec


class Style(msgspec.Struct, frozen=True, kw_only=True):
    """How a policy is drawn. Colours are `#rrggbb`; `dash` and `symbol` are plotly's names."""

    light: str
    dark: str
    dash: str
    symbol: str
    width: float = 1.8


JOINT: Final = "joint"

_KNOWN: Final[dict[str, Style]] = {
    "joint": Style(light="#0060c0", dark="#4da3ff", dash="solid", symbol="circle", width=3.4),
    "greedy": Style(light="#c24e00", dark="#ff8a3d", dash="dash", symbol="square"),
    "greedy-residual": Style(light="#a07400", dark="#e6b422", dash="dash", symbol="diamond"),
    "pf": Style(light="#30363d", dark="#d7dde4", dash="dot", symbol="triangle-up"),
    "pf-admit": Style(light="#00795a", dark="#20c997", dash="dot", symbol="triangle-down"),
    "pf-util": Style(light="#2f95c8", dark="#7cc9f0", dash="dot", symbol="cross"),
    "equal-rate-admit": Style(light="#b0468a", dark="#e58cc4", dash="dot", symbol="x"),
    "compute-only": Style(light="#6a43b5", dark="#b39bf0", dash="dot", symbol="star"),
    "edge": Style(light="#8a5a3c", dark="#c79a7b", dash="dot", symbol="hexagon"),
    "engine": Style(light="#a3122b", dark="#ff8593", dash="dot", symbol="triangle-left"),
    "predicted": Style(light="#4f6b00", dark="#a8cf2d", dash="dot", symbol="triangle-right"),
    "deadline-split": Style(light="#00717d", dark="#45c8d8", dash="dot", symbol="bowtie"),
    "weight-floor": Style(light="#7d33b0", dark="#cc92f7", dash="dash", symbol="hourglass"),
    "local": Style(light="#80868d", dark="#949ba3", dash="dot", symbol="pentagon"),
}

_SPARE: Final = (
    Style(light="#a11d33", dark="#ff7a8a", dash="dashdot", symbol="diamond-tall"),
    Style(light="#5d7a00", dark="#b2d235", dash="dashdot", symbol="diamond-wide"),
    Style(light="#007d8a", dark="#4dd0dc", dash="dashdot", symbol="star-square"),
    Style(light="#8c3fc0", dark="#d09bf5", dash="dashdot", symbol="circle-cross"),
)


def family(policy: str) -> str:
    """Name of a policy without its options: `pf-util` of `pf-util:rho=0.9`."""
    return policy.partition(":")[0]


def members(policies: Iterable[str], families: Sequence[str]) -> list[str]:
    """Return those of `policies` that belong to `families`, in the order of the families, then by name."""
    ranked = [(families.index(family(p)), p) for p in policies if family(p) in families]
    return [policy for _, policy in sorted(ranked)]


def styles(policies: Iterable[str]) -> dict[str, Style]:
    """Return a style per policy: the fixed one of ours, else a spare one, by alphabet.

    A variant (pf-util:rho=0.9) looks like its policy as long as nothing else of that policy is shown beside it.
    """
    named = sorted(set(policies))
    shown = Counter(family(p) for p in named)
    fixed = {p: _KNOWN[family(p)] for p in named if p in _KNOWN or (family(p) in _KNOWN and shown[family(p)] == 1)}
    added = [p for p in named if p not in fixed]
    spare = {p: _SPARE[i % len(_SPARE)] for i, p in enumerate(added)}
    return {p: fixed[p] if p in fixed else spare[p] for p in named}
