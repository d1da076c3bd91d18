"""How a decode step grows with its batch: step = shared + batch x sequence, fitted on measured servers.

The shared part (weights, launches) is paid once a step, each sequence adds its own (its KV cache, its part of the
arithmetic). solvers/batching.py plans with this line; what it is worth: docs/profiles.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cosched.profiles.measured import ServedRuns

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
