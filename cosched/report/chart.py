"""What a chart of the report is: a plotly figure specification (plain dictionaries; nothing is drawn here).

Colours are written as names ("@grid", "@p:joint", "@p:joint/0.16"): the page's script puts in the value for a light or
dark background. Every chart says in its title what there is to see, and is replaced by a sentence where it is empty.
Every text that comes from a trace goes through `label`: plotly reads markup in its texts.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from cosched.report.palette import JOINT, Style, styles

Spec = dict[str, Any]


class Chart(msgspec.Struct, frozen=True, kw_only=True):
    """One chart of the page. `variants`: what is drawn per choice of the reader ("" where there is nothing to choose).

    `group`: charts of one group follow one selector. `empty`: the sentence that stands where no data is.
    """

    key: str
    title: str
    explain: str
    variants: dict[str, Spec]
    empty: str = ""
    group: str = ""
    terms: tuple[tuple[str, str], ...] = ()  # words of the legend and what they mean
    half: bool = False  # two of them stand side by side where there is room


def label(text: str) -> str:
    """Escape an id for plotly, which reads a few HTML tags and entities in its texts."""
    return html.escape(text, quote=False)


def figure(traces: Sequence[Spec], *, height: int, x: Spec, y: Spec, **layout: object) -> Spec:
    """Lay out one pair of axes; x and y are plotly axis objects."""
    return {"data": list(traces), "layout": {"height": height, "xaxis": x, "yaxis": y, **layout}}


def policy_colour(policy: str) -> str:
    """Name of a policy's colour; the prefix keeps a policy called "ink" from being taken for the page's ink."""
    return f"@p:{policy}"


def axis(title: str, **more: object) -> Spec:
    """Return an axis with its title, units in it."""
    return {"title": {"text": title}, "automargin": True, **more}


def drawn(policies: Iterable[str]) -> list[tuple[str, Style]]:
    """Policies with their styles, joint last so that it lies on top."""
    named = list(policies)
    chosen = styles(named)
    return [(p, chosen[p]) for p in sorted(named, key=lambda p: p == JOINT)]
