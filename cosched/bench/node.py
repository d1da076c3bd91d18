"""Suite `node`: the step model of nodes against servers that others measured (prof-argonne, prof-splitwise).

Each recording's host terms are fitted on one model with memory left; its other rows are held out. Each row is
predicted twice: by the full equations (profiles/latency.py), and by the line that the planner uses, shared plus batch
times own (profiles/batch.py); a batch that does not fit the KV memory is served in goes (profiles/memory.py). Whole
runs spread their prefill, which is the full equations' in both, over the steps. Step time: seconds over steps;
tokens/s: its sequences over that, so the ratio of predicted to measured tokens/s is one over that of step times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from cosched.bench.closed_loop import recordings_folder
from cosched.bench.model import RATIO, BenchRow, ModelClaim, Result, spread
from cosched.errors import BadInput
from cosched.profiles import fit, latency, measured, memory
from cosched.profiles.batch import planned_line
from cosched.profiles.device import Device, Host, load_device, load_host
from cosched.profiles.heldout import ServedRecording, card_40gb, served_recordings
from cosched.profiles.measured import ServedRuns

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

SUITE: Final = "node"
MOST_SEQUENCES: Final = 64  # rows of greater batches are shown, not claimed
MEDIAN_ERROR, WORST_ERROR = 0.12, 0.25  # what may be claimed of held-out rows

FITTED, HELD_OUT, FULL_MEMORY = "fitted", "held-out", "memory-full"
BEYOND: Final = "greater-batches"
EQUATIONS, LINE = "full", "line"
STEP, RATE = "step", "tokens/s"

# A framework without a profile of ours: fitted here, for what it tells; its rows are not claimed.
UNPROFILED: Final = {"Deepspeed-MII": "deepspeed-mii"}
# Why rows of LLM-Inference-Bench are not predicted; by framework, then by model.
ONE_SEQUENCE: Final = "one sequence whatever the batch"
NOT_PREDICTED: Final = {
    "llama.cpp": ONE_SEQUENCE,  # llama-bench's -b is how the prompt is cut; tokens/s are 2 x length / latency
    "mistralai/Mixtral-8x7B-v0.1": "mixture of experts",
    "Deci/DeciLM-7B": "layers that differ",
}


@dataclass(frozen=True, slots=True)
class Predicted:
    """Rows of one recording: (R,) ratios of predicted to measured seconds, and what each row is."""

    recording: ServedRecording
    claimed: bool
    ratio: dict[str, Floats]  # of EQUATIONS and LINE

    @property
    def steps(self) -> Mask:
        """(R,) rows with decode steps; the others are prompts alone."""
        return np.asarray(self.recording.run.steps > 0)

    @property
    def kind(self) -> npt.NDArray[np.str_]:
        """(R,) FITTED, HELD_OUT, FULL_MEMORY or BEYOND."""
        kinds = np.where(self.recording.seen, FITTED, np.where(self.recording.kept, HELD_OUT, FULL_MEMORY))
        return np.where(self.recording.run.batch > MOST_SEQUENCES, BEYOND, kinds)

    @property
    def groups(self) -> Iterator[tuple[str, Mask]]:
        """Cards, server and model, as rows name them, and the (R,) rows of each."""
        runs = self.recording.run
        for name, tp in sorted(set(zip(runs.names.tolist(), runs.tp.tolist(), strict=True))):
            yield f"{tp:g}x{self._server}/{name}", np.asarray((runs.names == name) & (runs.tp == tp))

    @property
    def _server(self) -> str:
        return f"{self.recording.device.key}/{self.recording.host.key}"

    def name(self, row: int, note: str = "") -> str:
        """Return a row's table (kind, card, server, model) and its line there (ranks, prompt + output, batch)."""
        runs, kind = self.recording.run, self.kind[row]
        output = runs.steps[row] if runs.prefill[row] else 2 * (runs.context[row] - runs.prompt[row])
        line = f"tp={runs.tp[row]:g},{runs.prompt[row]:g}+{output:g},batch={runs.batch[row]:g}"
        if note:
            return f"{kind}{note} {self._server}/{runs.models[row].name},{line}"
        return f"{kind} {self._server} {runs.models[row].name} {line}"


def run(*, seeds: int, progress: Callable[[float], None]) -> Result:  # noqa: ARG001  # there is nothing to draw
    """Ratios of every row, errors by kind of row, server and model; claims on what was held out."""
    data = recordings_folder()
    recordings = [*((r, True) for r in served_recordings(data, load_device("a100"))), *_unprofiled(data)]
    if not any(claimed for _, claimed in recordings):
        raise BadInput(
            f"{data}: this suite needs prof-argonne/All_results_A100.csv.gz or prof-splitwise/perf_model_a100.csv.gz; "
            "COSCHED_RECORDINGS names another folder"
        )
    found = []
    for done, (recording, claimed) in enumerate(recordings, start=1):
        found.append(predict(recording, recording.trained(), claimed=claimed))
        progress(done / len(recordings))
    rows = [row for one in found for row in _ratios(one, one.steps)]
    note = f", step not within {WORST_ERROR:.0%}"
    rows += [row for one in found if one.claimed for row in _ratios(one, _outside(one), note)]
    rows += [*_summary(found), *_left_out(measured.count_argonne(data))]
    return Result(rows=rows, claims=claims(found), sweeps=[])


def _unprofiled(data: Path) -> Iterator[tuple[ServedRecording, bool]]:
    """Recordings of frameworks for which no host profile ships."""
    card = card_40gb(load_device("a100"))
    for framework, key in UNPROFILED.items():
        runs = measured.read_argonne(data, framework)
        if runs is not None:
            host = msgspec.structs.replace(load_host("ideal"), key=key, name=framework)
            kept = fit.fits_memory(runs, card.memory_bytes)
            yield ServedRecording("argonne", host, runs, card, "llama-2-7b", kept), False


def predict(recording: ServedRecording, host: Host, *, claimed: bool) -> Predicted:
    """Predict every row with `host`'s terms."""
    runs, device = recording.run, recording.device
    owner, times, some = _in_goes(runs, device, host)
    predicted = {}
    for name, equation in ((EQUATIONS, full_s), (LINE, line_s)):
        predicted[name] = np.bincount(owner, times * equation(some, device, host)) / runs.seconds
    return Predicted(recording, claimed, predicted)


def full_s(runs: ServedRuns, device: Device, host: Host) -> Floats:
    """(R,) seconds by the full equations, each batch at once."""
    return fit.served_s(runs, fit.device_steps(runs, device), host)


def line_s(runs: ServedRuns, device: Device, host: Host) -> Floats:
    """(R,) seconds with decode steps by the planned line, each batch at once; prefill by the full equations."""
    steps = fit.device_steps(runs, device)
    prompt = latency.served_step_s(steps.prefill_s, host, steps.layers, runs.batch, runs.batch * runs.prompt)
    lines = [
        planned_line(model, device, host, context, fit.SERVED_BITS, tp=int(tp))
        for model, context, tp in zip(runs.models, runs.context.tolist(), runs.tp.tolist(), strict=True)
    ]
    shared_s, own_s = np.array(lines).T
    seconds: Floats = np.where(runs.prefill, prompt, 0.0) + runs.steps * (shared_s + runs.batch * own_s)
    return seconds


def _in_goes(runs: ServedRuns, device: Device, host: Host) -> tuple[npt.NDArray[np.int64], Floats, ServedRuns]:
    """Return the goes of all rows: whose each is (G,), how often it is run (G,), and the runs themselves, G of them.

    Only whole runs wait: a step that was measured is one of sequences that run.
    """
    owner, times, batch = [], [], []
    for i, model in enumerate(runs.models):
        whole_run = runs.prefill[i] and runs.steps[i] > 0
        lengths = memory.Lengths(float(runs.prompt[i]), float(runs.steps[i]))
        known, tp = host.memory if whole_run else None, int(runs.tp[i])
        for go in memory.goes(model, device, known, lengths, float(runs.batch[i]), fit.SERVED_BITS, tp=tp):
            owner.append(i)
            times.append(go.times)
            batch.append(go.sequences)
    index = np.array(owner, dtype=np.int64)
    taken = measured.take(runs, index, batch=np.array(batch))
    return index, np.array(times), taken


def claims(found: Sequence[Predicted]) -> list[ModelClaim]:
    """Median and worst error of rows with steps that were not fitted: of step time and tokens/s, by both equations."""
    out = []
    for scope, kind, most_cards in (
        (HELD_OUT, HELD_OUT, np.inf),
        (f"{HELD_OUT} on one card", HELD_OUT, 1),  # as a site's nodes are
        (FULL_MEMORY, FULL_MEMORY, np.inf),
    ):
        for equation in (EQUATIONS, LINE):
            some = [
                p.ratio[equation][p.steps & (p.kind == kind) & (p.recording.run.tp <= most_cards)]
                for p in found
                if p.claimed
            ]
            ratio = np.concatenate([np.zeros(0), *some])
            for what, errors in both_errors(ratio) if len(ratio) else ():
                for name, reached, asked in (
                    ("median", float(np.median(errors)), MEDIAN_ERROR),
                    ("worst", float(errors.max()), WORST_ERROR),
                ):
                    text = f"{scope}, {len(errors)} rows: {what}, {equation}: {name} error"
                    out.append(ModelClaim(text=text, reached=reached, asked=asked, at_most=True))
    return out


def both_errors(ratio: Floats) -> tuple[tuple[str, Floats], tuple[str, Floats]]:
    """(R,) relative errors of step time and of tokens/s, from ratios of predicted to measured step time (R,)."""
    return (STEP, np.abs(ratio - 1.0)), (RATE, np.abs(1.0 / ratio - 1.0))


def _summary(found: Sequence[Predicted]) -> Iterator[BenchRow]:
    """Errors by kind of row, then cards, server and model; prompts alone apart, which the line does not predict."""
    for kind in (HELD_OUT, FULL_MEMORY, BEYOND, FITTED):
        for one in sorted(found, key=lambda one: not one.claimed):
            claim = "" if one.claimed else ", not claimed"
            for name, rows in one.groups:
                of_kind = rows & (one.kind == kind)
                for equation in (EQUATIONS, LINE):
                    for what, errors in both_errors(one.ratio[equation][of_kind & one.steps]):
                        yield from _errors(errors, f"{kind}{claim}: {what} {name}", equation)
                prompts, _ = both_errors(one.ratio[EQUATIONS][of_kind & ~one.steps])
                yield from _errors(prompts[1], f"{kind}, not claimed: prompts {name}", EQUATIONS)


def _errors(errors: Floats, case: str, equation: str) -> Iterator[BenchRow]:
    """Median, worst, and part of the rows within WORST_ERROR."""
    if len(errors):
        p50, p99, _ = spread(errors.tolist())
        within = float((errors <= WORST_ERROR).mean())
        values = {"median": p50, "worst": float(errors.max()), f"within {WORST_ERROR:.0%}": within}
        for figure, value in values.items():
            yield BenchRow(
                suite=SUITE, case=f"{case},rows={len(errors)}", subject=f"{equation} {figure}", figure=RATIO,
                p50=p50, p99=p99, n=len(errors), value=value,
            )  # fmt: skip


def _ratios(one: Predicted, rows: Mask, note: str = "") -> Iterator[BenchRow]:
    """Predicted over measured step time and tokens/s of the (R,) rows chosen; where measured twice, the mean."""
    runs = one.recording.run
    order = np.lexsort((runs.batch, runs.context, runs.prompt, runs.tp, runs.names, one.kind))
    cells: dict[tuple[str, str], list[float]] = {}
    for row in order[rows[order]].tolist():
        for equation in (EQUATIONS, LINE):
            ratio = float(one.ratio[equation][row])
            for what, value in ((STEP, ratio), (RATE, 1.0 / ratio)):
                cells.setdefault((one.name(row, note), f"{equation} {what}"), []).append(value)
    for (case, subject), values in cells.items():
        p50, p99, mean = spread(values)
        yield BenchRow(
            suite=SUITE, case=case, subject=subject, figure=RATIO, p50=p50, p99=p99, n=len(values), value=mean
        )


def _outside(one: Predicted) -> Mask:
    """(R,) rows that were not fitted and whose step time is not within WORST_ERROR by one of the equations."""
    worst = np.maximum(*(np.abs(one.ratio[equation] - 1.0) for equation in (EQUATIONS, LINE)))
    return np.asarray(one.steps & (one.kind != FITTED) & (worst > WORST_ERROR))


def _left_out(counts: dict[tuple[str, str], int]) -> Iterator[BenchRow]:
    """Rows of LLM-Inference-Bench that are not predicted, and why."""
    for (framework, model), n in counts.items():
        why = NOT_PREDICTED.get(framework) or NOT_PREDICTED.get(model)
        if why is not None:
            yield BenchRow(
                suite=SUITE, case=f"left out, {why} {framework}={model}", subject="rows", figure="number",
                p50=n, p99=n, n=n, value=float(n),
            )  # fmt: skip
