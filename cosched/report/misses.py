"""The worst misses in words that an operator understands."""

from __future__ import annotations

import math
from typing import Final

from cosched.core.reasons import describe
from cosched.report.model import TaskFate

GUESSED: Final = "Guessed"
NO_GUESS: Final = "nothing"
COLUMNS: Final = ("Task", "User", "Asked for", "When", "Channel", "Served by", "Deadline and result", "Why", GUESSED)
WIDTHS: Final = (8, 6, 13, 6, 10, 18, 18, 12, 9)  # percent of the table
_PHASES: Final = {"llm": ("first token", "each further token"), "video": ("each frame",)}
_KINDS: Final = {"llm": "LLM session", "video": "Video clip"}


def cells(fate: TaskFate) -> tuple[str, ...]:
    """One missed task, a text per column of COLUMNS; not escaped."""
    return (
        fate.task,
        fate.ue,
        _asked(fate),
        f"{fate.arrival_s:.1f} s",
        _channel(fate),
        _served_by(fate),
        "; ".join(_results(fate)) or "no deadline recorded",
        describe(fate.reason),
        "; ".join(fate.guess) or NO_GUESS,
    )


def _asked(fate: TaskFate) -> str:
    privacy = "private (raw input stays on the device)" if fate.private else "open"
    weight = f", weight {fate.weight:g}" if fate.weight != 1 else ""
    return f"{_KINDS.get(fate.kind, fate.kind)}, {privacy}{weight}"


def _channel(fate: TaskFate) -> str:
    efficiency = fate.ul_efficiency_bps_hz
    known = f"{efficiency:.2f} bit/s/Hz" if math.isfinite(efficiency) and efficiency > 0 else "no estimate"
    return f"{known} in {fate.cell}"


def _served_by(fate: TaskFate) -> str:
    if not fate.node:
        return f"the device alone ({fate.point})" if fate.point else "the device alone"
    part = f"{fate.split} % of the work" if fate.kind == "video" else _layers(fate.split)
    precision = f", {fate.precision_bits}-bit activations" if fate.precision_bits else ""
    return f"{part} on the device, the rest on {fate.node}{precision} ({fate.point})"


def _layers(count: int) -> str:
    return "1 layer" if count == 1 else f"{count} layers"


def _results(fate: TaskFate) -> list[str]:
    """Return a phase's deadline and what became of it, each phase that has a deadline."""
    names = _PHASES.get(fate.kind, ())
    parts = []
    for q, deadline in enumerate(fate.deadline_s):
        if math.isfinite(deadline):
            name = names[q] if q < len(names) else f"phase {q + 1}"
            achieved = fate.latency_s[q] if q < len(fate.latency_s) else math.inf
            parts.append(f"{name} within {_duration(deadline)}: {_achieved(fate.kind, achieved, deadline)}")
    if parts and math.isinf(fate.lateness):
        parts.append("it was not served to its end")
    return parts


def _achieved(kind: str, latency_s: float, deadline_s: float) -> str:
    """Of a clip the mean over the frames that were in time: late ones are dropped."""
    if not math.isfinite(latency_s):
        return "none was in time" if kind == "video" else "never came"
    times = f" ({latency_s / deadline_s:.2f} x)" if deadline_s > 0 else ""
    return f"{'those in time ' if kind == 'video' else ''}took {_duration(latency_s)}{times}"


def _duration(seconds: float) -> str:
    return f"{1e3 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"
