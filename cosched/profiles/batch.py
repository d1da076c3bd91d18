"""How a decode step grows with its batch: step = shared + batch x sequence, fitted on measured servers or planned.

The shared part (weights, launches) is paid once a step, each sequence adds its own (its KV cache, its part of the
arithmetic). solvers/steps.py plans with this line; what it is worth: docs/profiles.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cosched.profiles import latency
from cosched.profiles.device import Device, Host
from cosched.profiles.measured import ServedRuns
from cosched.profiles.model import Model

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class StepLine(NamedTuple):
    """Seconds of a decode step: `shared_s` + batch x `sequence_s`."""

    shared_s: float
    sequence_s: float

    def step_s(self, batch: Floats) -> Floats:
        """(R,) seconds of steps with these batch sizes (R,)."""
        return self.shared_s + batch * self.sequence_s


def fit_line(batch: Floats, seconds: Floats) -> StepLine:
    """Least squares on relative errors. batch, seconds (R,): at least two different batch sizes."""
    columns = np.stack([1.0 / seconds, batch / seconds], axis=1)
    shared_s, sequence_s = np.linalg.lstsq(columns, np.ones(len(seconds)), rcond=None)[0]
    return StepLine(float(shared_s), float(sequence_s))


def settings(run: ServedRuns) -> Iterator[tuple[Floats, Floats]]:
    """Batch sizes and seconds a step of each setting (model, ranks, prompt, context) with three sizes or more.

    Of whole runs the prefill is spread over the steps: it grows linearly with the batch, too.
    """
    rows: dict[tuple[str, float, float, float], list[int]] = {}
    keys = zip(run.names.tolist(), run.tp.tolist(), run.prompt.tolist(), run.context.tolist(), strict=True)
    for i, key in enumerate(keys):
        if run.steps[i] > 0:
            rows.setdefault(key, []).append(i)
    for some in rows.values():
        if len(np.unique(run.batch[some])) > 2:
            yield run.batch[some], run.seconds[some] / run.steps[some]


def held_out(run: ServedRuns, *, greatest: float | None = None) -> tuple[Floats, Floats]:
    """(R,) predicted and measured seconds of steps with batch sizes that the line was not fitted on.

    Fitted on the batches up to `greatest` and tested beyond; None: fitted on each setting's least and greatest batch
    and tested between.
    """
    predicted, measured = [np.zeros(0)], [np.zeros(0)]
    for batch, seconds in settings(run):
        seen = (batch == batch.min()) | (batch == batch.max()) if greatest is None else batch <= greatest
        if len(np.unique(batch[seen])) > 1:
            predicted.append(fit_line(batch[seen], seconds[seen]).step_s(batch[~seen]))
            measured.append(seconds[~seen])
    return np.concatenate(predicted), np.concatenate(measured)


def planned_line(
    model: Model,
    device: Device,
    host: Host,
    context_tokens: float,
    weight_bits: int,
    *,
    fraction: float = 1.0,
    tp: int = 1,
) -> StepLine:
    """Return the line that is planned with, from a profile alone: each sequence adds what it adds to a lone one's step.

        own    = layers x decode_sequence_s + head and embedding of one token + host's time per sequence
        shared = served step of a lone sequence - own

    For all layers on one node; cosched/workloads/llm.py has it for split sessions. The full equations bend, since
    reading and computing overlap; the line is straight, right at a batch of one.
    """
    layers, idle_head_s = float(model.n_layers), latency.head_s(model, device, weight_bits, 0, fraction, tp=tp)
    own_s = layers * latency.decode_sequence_s(model, device, context_tokens, fraction, tp=tp)
    own_s += latency.head_s(model, device, weight_bits, 1, fraction, tp=tp) - idle_head_s
    own_s += latency.embed_s(model, device, 1.0, fraction)
    shared_s = layers * latency.decode_weight_read_s(model, device, weight_bits, fraction, tp=tp) + idle_head_s
    lone_s = latency.served_step_s(shared_s + own_s, host, layers)
    own_s += host.sequence_s
    return StepLine(lone_s - own_s, own_s)
