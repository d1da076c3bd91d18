"""What the refitted numbers are worth: errors on models, sizes and devices that a fit did not see.

`refit(data)` yields, source by source, the numbers fitted on everything and the errors of fits that left the tested
rows out. Error of a row: |predicted / measured - 1|, in percent; stated as median and 90th percentile.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from cosched.profiles import batch, fit, measured
from cosched.profiles.device import Device, Host, load_device, load_host
from cosched.profiles.measured import AttentionRun, EdgeRun, OperatorRun, ServedRuns
from cosched.profiles.rewrite import FITTED_FIELDS

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

DECODE_TOKENS: Final = 128  # a GEMM over so many tokens is what a decode step does; more is prefill
TRAIN_RANKS: Final = (1, 4)  # on cards measured with one model: fitted at these tp, tested at the others
SHORT_TOKENS: Final = 2048  # attention, extrapolated: fitted up to this length, tested beyond
SMALL_BATCH: Final = 16.0  # a step's line over the batch, extrapolated: fitted up to here, tested beyond
TWO_POINTS_APART: Final = 4.0  # ratio of the times of the two models that a device is calibrated with

# What may be claimed (docs/profiles.md): median and 90th percentile in percent.
BAR_LINEAR: Final = (6.0, 15.0)
BAR_DATA_SHEET: Final = (8.0, 18.0)
BAR_ATTENTION: Final = (10.0, 22.0)
BAR_SERVED: Final = (10.0, 25.0)
BAR_EDGE: Final = (5.0, 10.0)


class PublishedClaim(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table of errors: median and 90th percentile over `rows` held-out rows, and the bar."""

    what: str
    fitted_on: str
    tested_on: str
    rows: int
    median_pct: float
    p90_pct: float
    bar_pct: tuple[float, float]

    @property
    def holds(self) -> bool:
        """Whether both figures are within the bar."""
        return self.median_pct <= self.bar_pct[0] and self.p90_pct <= self.bar_pct[1]


class Refit(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers refitted from one source on everything it has, and the errors on what was held out."""

    source: str
    devices: dict[str, Device] = {}
    hosts: dict[str, Host] = {}
    claims: tuple[PublishedClaim, ...] = ()


def refit(data: Path) -> Iterator[Refit]:
    """Refit source by source, in a fixed order; sources that are not under `data` are left out.

    Raises BadInput when a file is not what its format says.
    """
    devices: dict[str, Device] = {}
    runs = measured.read_operators(data)
    for part in (*_linear(runs), *_attention(data), *_link(data)):
        devices |= {key: _merge(devices.get(key), new, part.source) for key, new in part.devices.items()}
        yield msgspec.structs.replace(part, devices={key: devices[key] for key in part.devices})
    for recording in served_recordings(data, devices.get("a100", load_device("a100"))):
        yield _served(recording)
    yield from _edge(data)


def _merge(old: Device | None, new: Device, source: str) -> Device:
    """Take over what `source` fitted into a device that other sources refitted before."""
    if old is None:
        return new
    fields = FITTED_FIELDS[source]
    return fit.with_values(old, fields, [getattr(new, field) for field in fields])


def _claim(what: str, on: tuple[str, str], errors: Floats, bar: tuple[float, float]) -> PublishedClaim:
    return PublishedClaim(
        what=what,
        fitted_on=on[0],
        tested_on=on[1],
        rows=len(errors),
        median_pct=float(np.median(errors)),
        p90_pct=float(np.percentile(errors, 90)),
        bar_pct=bar,
    )


def _errors(predicted: Floats, seconds: Floats) -> Floats:
    return 100.0 * np.abs(predicted / seconds - 1.0)


def _ranks(run: OperatorRun, keep: Mask) -> OperatorRun:
    seconds = {op: values[keep] for op, values in run.seconds.items()}
    return OperatorRun(run.device, run.model, run.tokens[keep], run.tp[keep], seconds)


def _linear(runs: Sequence[OperatorRun]) -> Iterator[Refit]:
    """Kernel times: numbers per device; errors on unseen models or rank counts, and from data sheets alone."""
    by_device: dict[str, list[OperatorRun]] = {}
    for run in runs:
        by_device.setdefault(run.device, []).append(run)
    if not by_device:
        return
    fitted = {key: fit.fit_linear(some, load_device(key)) for key, some in sorted(by_device.items())}
    claims = [claim for key in fitted for claim in _calibrated(by_device[key], load_device(key))]
    if len(fitted) > 1:
        claims += _data_sheet(by_device, fitted)
    yield Refit(source="operators", devices=fitted, claims=tuple(claims))


def _calibrated(runs: Sequence[OperatorRun], device: Device) -> Iterator[PublishedClaim]:
    """Leave out each model but the one with most rows; with one model, leave out rank counts."""
    runs = sorted(runs, key=lambda run: (-len(run.tokens), run.model.name))
    train = runs[0]
    if len(runs) > 1:
        trained = fit.fit_linear([train], device)
        for test in runs[1:]:
            yield from _by_phase(f"linear part, {device.key}", (train.model.name, test.model.name), test, trained)
        return
    seen = np.isin(train.tp, TRAIN_RANKS)
    if seen.all() or not seen.any():
        return
    trained = fit.fit_linear([_ranks(train, seen)], device)
    names = (f"{train.model.name}, tp {_list(train.tp[seen])}", f"same, tp {_list(train.tp[~seen])}")
    yield from _by_phase(f"linear part, {device.key}", names, _ranks(train, ~seen), trained)


def _list(values: Floats) -> str:
    return ", ".join(f"{value:g}" for value in np.unique(values))


def _by_phase(what: str, on: tuple[str, str], run: OperatorRun, device: Device) -> Iterator[PublishedClaim]:
    errors = _errors(fit.linear_s(run, device), run.total_s)
    decode = run.tokens <= DECODE_TOKENS
    for phase, rows in (("decode", decode), ("prefill", ~decode)):
        if rows.any():
            yield _claim(f"{what}, {phase}", on, errors[rows], BAR_LINEAR)


def _data_sheet(by_device: dict[str, list[OperatorRun]], fitted: dict[str, Device]) -> list[PublishedClaim]:
    """Predict each device from its data sheet and the mean efficiencies of the others."""
    claims, pooled = [], []
    for key, runs in sorted(by_device.items()):
        others = [device for other, device in sorted(fitted.items()) if other != key]
        fields = FITTED_FIELDS["operators"]
        mean = [float(np.mean([getattr(device, field) for device in others])) for field in fields]
        guess = fit.with_values(load_device(key), fields, mean)
        errors = np.concatenate([_errors(fit.linear_s(run, guess), run.total_s) for run in runs])
        names = (", ".join(device.key for device in others), key)
        claims.append(_claim(f"linear part, {key}, data sheet", names, errors, BAR_DATA_SHEET))
        pooled.append(errors)
    names = ("the other devices", "all devices in turn")
    claims.append(_claim("linear part, data sheet", names, np.concatenate(pooled), BAR_DATA_SHEET))
    return claims


def _attention(data: Path) -> Iterator[Refit]:
    runs = measured.read_attention(data)
    if runs is None:
        return
    prefill, decode = runs
    device = load_device("a100")
    claims = [*_attention_claims("between the sizes fitted", _alternate(prefill), _alternate(decode), runs, device)]
    short = [run.context + (run.size if run is prefill else 0.0) <= SHORT_TOKENS for run in runs]
    claims += _attention_claims(f"beyond {SHORT_TOKENS} tokens", short[0], short[1], runs, device)
    yield Refit(source="attention", devices={"a100": fit.fit_attention(prefill, decode, device)}, claims=tuple(claims))


def _alternate(run: AttentionRun) -> Mask:
    """Every other size that was measured (chunk of a prefill, batch of a decode)."""
    sizes = np.unique(run.size)
    return np.isin(run.size, sizes[::2])


def _attention_claims(
    where: str, prefill_seen: Mask, decode_seen: Mask, runs: tuple[AttentionRun, AttentionRun], device: Device
) -> Iterator[PublishedClaim]:
    prefill, decode = runs
    if any(seen.all() or not seen.any() for seen in (prefill_seen, decode_seen)):
        return
    trained = fit.fit_attention(_part(prefill, prefill_seen), _part(decode, decode_seen), device)
    for phase, run, seen, predict in (
        ("prefill", prefill, prefill_seen, fit.prefill_attention_s),
        ("decode", decode, decode_seen, fit.decode_attention_s),
    ):
        test = _part(run, ~seen)
        on = (f"{int(seen.sum())} rows", where)
        yield _claim(f"attention, a100, {phase}", on, _errors(predict(test, trained), test.seconds), BAR_ATTENTION)


def _part(run: AttentionRun, keep: Mask) -> AttentionRun:
    return AttentionRun(run.model, run.tp, run.size[keep], run.context[keep], run.seconds[keep])


def _link(data: Path) -> Iterator[Refit]:
    link = measured.read_link(data)
    if link is not None:
        yield Refit(source="link", devices={"a100": fit.fit_link(*link, load_device("a100"))})


@dataclass(frozen=True, slots=True)
class ServedRecording:
    """What one server was measured to deliver: (R,) rows on `device`, and how its host's terms are fitted."""

    source: str
    host: Host  # as shipped
    run: ServedRuns
    device: Device
    train: str  # model that a fit is made on when the others are held out
    kept: Mask  # (R,) rows that fits and their errors use: those with memory left

    def trained(self) -> Host:
        """Return the host fitted on the kept rows of `train` alone."""
        return fit.fit_host(self.run, fit.device_steps(self.run, self.device), self.host, self.seen)

    @property
    def seen(self) -> Mask:
        """(R,) rows that `trained` is fitted on."""
        return np.asarray(self.kept & (self.run.names == self.train))


def served_recordings(data: Path, a100: Device) -> Iterator[ServedRecording]:
    """Read what servers delivered on the A100: Splitwise's, then LLM-Inference-Bench's."""
    run = measured.read_splitwise(data)
    if run is not None:
        everything = np.ones(len(run.seconds), dtype=np.bool_)
        yield ServedRecording("splitwise", load_host("splitwise"), run, a100, "llama-2-70b", everything)
    card = card_40gb(a100)
    for framework, key in measured.ARGONNE_HOSTS.items():
        run = measured.read_argonne(data, framework)
        if run is not None:
            kept = fit.fits_memory(run, card.memory_bytes)
            yield ServedRecording("argonne", load_host(key), run, card, "llama-2-7b", kept)


def card_40gb(a100: Device) -> Device:
    """LLM-Inference-Bench's card: the 40 GB one's bandwidth and memory, the 80 GB one's efficiencies."""
    return msgspec.structs.replace(
        a100, key="a100-40gb", mem_bw_bytes_s=fit.A100_40GB_BW_BYTES_S, memory_bytes=fit.A100_40GB_BYTES
    )


def _served(recording: ServedRecording) -> Refit:
    """Fit a host on one model, test it on the others, then fit it on all; and a line over the batch per setting."""
    run, host = measured.select(recording.run, recording.kept), recording.host
    steps, seen = fit.device_steps(run, recording.device), recording.seen[recording.kept]
    errors = _errors(fit.served_s(run, steps, recording.trained()), run.seconds)[~seen]
    on = (recording.train, ", ".join(sorted({str(name) for name in run.names[~seen]})))
    claim = _claim(f"whole model, {host.key}", on, errors, BAR_SERVED)
    everything = fit.fit_host(run, steps, host, np.ones_like(seen))
    return Refit(source=recording.source, hosts={host.key: everything}, claims=(claim, *_batches(host.key, run)))


def _batches(key: str, run: ServedRuns) -> Iterator[PublishedClaim]:
    """Step time as a line over the batch size, each setting by itself: between the sizes fitted, and beyond."""
    for on, where, greatest in (
        ("least and greatest batch", "the batches between", None),
        (f"batches up to {SMALL_BATCH:g}", "greater batches", SMALL_BATCH),
    ):
        predicted, seconds = batch.held_out(run, greatest=greatest)
        if len(seconds):
            yield _claim(f"step over batch, {key}", (on, where), _errors(predicted, seconds), BAR_SERVED)


def _edge(data: Path) -> Iterator[Refit]:
    run = measured.read_edge(data)
    if run is None:
        return
    device = load_device("agx-orin")
    claims = (_edge_models(run, device), _edge_two_points(run, device))
    yield Refit(source="edge decode", devices={"agx-orin": fit.fit_edge(run, device)}, claims=claims)


def _edge_models(run: EdgeRun, device: Device) -> PublishedClaim:
    """Leave out each model with all its quantisations and fine-tunes in turn."""
    names = np.array([model.name for model in run.models])
    errors = []
    for name in np.unique(names):
        trained = fit.fit_edge(run, device, names != name)
        errors.append(_errors(fit.edge_s(run, trained), run.seconds)[names == name])
    on = ("all other models", "each model in turn")
    return _claim("edge decode, agx-orin", on, np.concatenate(errors), BAR_EDGE)


def _edge_two_points(run: EdgeRun, device: Device) -> PublishedClaim:
    """Calibrate with each pair of rows whose times are far apart, test on all other rows."""
    errors = []
    for i, j in itertools.combinations(range(len(run.models)), 2):
        ratio = run.seconds[i] / run.seconds[j]
        if max(ratio, 1 / ratio) < TWO_POINTS_APART:
            continue
        seen = np.isin(np.arange(len(run.models)), (i, j))
        errors.append(_errors(fit.edge_s(run, fit.fit_edge(run, device, seen)), run.seconds)[~seen])
    on = (f"each pair of models {TWO_POINTS_APART:g} x apart", "all others")
    return _claim("edge decode, agx-orin", on, np.concatenate(errors), BAR_EDGE)
