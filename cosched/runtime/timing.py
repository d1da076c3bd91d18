"""What a generation measures of itself: TTFT, time per output token, and where the time went."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import NamedTuple


class StepTimes(NamedTuple):
    """Measurements at one operating point; None: there was no such phase. Fields as in telemetry's TaskTiming."""

    tokens: int
    ttft_s: float | None
    tpot_s: float | None
    device_prefill_s: float | None
    device_token_s: float | None
    node_prefill_s: float | None
    node_token_s: float | None


@dataclass(slots=True)
class Stopwatch:
    """Wall-clock seconds. device_s and node_s: in execution, of the token under way; waiting and air are the rest."""

    asked_s: float = field(default_factory=time.perf_counter)  # when the first token was asked for
    ttft_s: float | None = None
    first_s: float = 0.0  # when the first token came
    last_s: float = 0.0
    prefill_s: tuple[float, float] = (0.0, 0.0)  # device's and nodes' part of the prefill
    tokens_s: list[tuple[float, float, float]] = field(default_factory=list)  # later tokens: all, device's, nodes' part
    device_s: float = 0.0
    node_s: float = 0.0
    began_s: float = 0.0
    taken: int = -1  # tokens after the first that were handed out by `take`; -1: not even the first

    def begin(self) -> None:
        """Note the beginning of a token."""
        self.began_s, self.device_s, self.node_s = time.perf_counter(), 0.0, 0.0

    def end(self, *, is_first: bool) -> None:
        """Take note of a token."""
        now_s = time.perf_counter()
        if is_first:
            self.ttft_s, self.first_s, self.prefill_s = now_s - self.asked_s, now_s, (self.device_s, self.node_s)
        else:
            self.tokens_s.append((now_s - self.began_s, self.device_s, self.node_s))
        self.last_s = now_s

    @property
    def decoding_s(self) -> float:
        """From the first token to the latest, moves included."""
        return self.last_s - self.first_s

    @property
    def tpot_s(self) -> float | None:
        """Mean time per token after the first, moves included; None: there is none."""
        return self.decoding_s / len(self.tokens_s) if self.tokens_s else None

    def layer_s(self, split: int, n_layers: int, n_prompt: int) -> tuple[float, float]:
        """Seconds per token and layer of a prefill on the device and at the nodes, from this one's; 0 where unknown."""
        device_s, node_s = self.prefill_s
        return device_s / max(1, split * n_prompt), node_s / max(1, (n_layers - split) * n_prompt)

    def take(self) -> StepTimes | None:
        """Hand out what was measured since the last call; None: nothing was.

        The token after a move carries its cost, so it counts for the task but not for the point: it is left out.
        """
        if self.ttft_s is None:
            return None
        is_first = self.taken < 0
        fresh = self.tokens_s[0 if is_first else self.taken + 1 :]
        self.taken = len(self.tokens_s)
        if not is_first and not fresh:
            return None
        means = [sum(column) / len(fresh) for column in zip(*fresh, strict=True)] if fresh else [None] * 3
        device_s, node_s = self.prefill_s if is_first else (None, None)
        return StepTimes(
            len(fresh), self.ttft_s if is_first else None, means[0], device_s or None, means[1] or None,
            node_s or None, means[2] or None,
        )  # fmt: skip
