"""Kinds of work by the tag of their message. Adding one is one file and one line here; imported on first use."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Final, cast

from cosched.errors import BadInput
from cosched.workloads.base import PointTable, Workload, WorkloadContext
from telemetry.messages import TaskOffer

WORKLOADS: Final[dict[str, str]] = {
    "llm": "cosched.workloads.llm:points",
    "video": "cosched.workloads.video:points",
}


@cache
def get(kind: str) -> Workload:
    """Return the workload called `kind`. Raises BadInput, naming those there are."""
    try:
        module, function = WORKLOADS[kind].split(":")
    except KeyError:
        raise BadInput(f"unknown kind of work '{kind}'; there are: {', '.join(WORKLOADS)}") from None
    return cast("Workload", getattr(importlib.import_module(module), function))


def kind_of(offer: TaskOffer) -> str:
    """Return the tag of the offer's work: "llm", "video"."""
    return str(type(offer.work).__struct_config__.tag)


def points(offer: TaskOffer, context: WorkloadContext) -> PointTable:
    """Return the operating points of any offer (docs/workloads.md). Raises BadInput with what is wrong in it."""
    return get(kind_of(offer))(offer, context)
