"""Refusing offers with impossible numbers: one line that says which task, which field, and what it must be."""

from __future__ import annotations

import math

from cosched.errors import BadInput
from telemetry.messages import TaskOffer


def refuse(offer: TaskOffer, message: str) -> BadInput:
    """Return the error to raise for this offer."""
    return BadInput(f"task {offer.task}: {message}")


def positive(offer: TaskOffer, name: str, value: float) -> None:
    """Raise BadInput unless `value` is a finite number above zero."""
    if not (math.isfinite(value) and value > 0):
        raise refuse(offer, f"{name} = {value:g}: must be a finite number above 0")


def at_least(offer: TaskOffer, name: str, value: float, least: float) -> None:
    """Raise BadInput unless `value` is a finite number of at least `least`."""
    if not (math.isfinite(value) and value >= least):
        raise refuse(offer, f"{name} = {value:g}: must be a finite number of at least {least:g}")
