"""From a RAN source, a request source and a site to one trace: who moves where in the radio, and who asks for what."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from cosched.errors import BadInput
from cosched.resources import config_file
from cosched.simulate.offers import (
    MIN_VALID_SAMPLES,
    Arrivals,
    RecordedRequest,
    channel_reports,
    draw_offers,
    usable_channels,
)
from cosched.site import Site, parse_site
from cosched.workloads.base import Floats, Ints
from telemetry.importers.base import S_NS, ImportTally, RanRecording
from telemetry.importers.registry import ran_importer, request_importer
from telemetry.messages import LlmSession, Message, SiteMessage, TaskOffer, UeReport

DEFAULT_DURATION_S: Final = 120.0
DEFAULT_RATE_PER_S: Final = 1.0
LOAD_SAMPLE_S: Final = 60.0  # of arrivals, dense ones, from which the rate of load 1 is computed


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """What `cosched import` is asked for. `rate_per_s` or `load`, not both; `start_s` only with `keep_ues`."""

    source: str
    files: tuple[Path, ...]
    requests: str | None = None  # "azure-llm:FILE"
    site: str = "node-bound"  # a file, or the name of one in config/sites/
    rate_per_s: float | None = None
    load: float | None = None
    duration_s: float = DEFAULT_DURATION_S
    start_s: float | None = None
    seed: int = 0
    keep_ues: bool = False
    cut_idle: bool = False
    bursts_s: float | None = None
    arrivals: Arrivals = "poisson"


class ImportSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What went into a trace. Rows are of the source's files, reports of the trace."""

    v: int = 1
    source: str
    site: str
    seed: int
    ues: int
    channels: int  # recorded ones that were used
    start_s: float  # of the window, from the recording's start; 0 where channels were mapped
    duration_s: float
    rows: int
    rows_valid: int
    rows_idle: int
    rows_dropped: dict[str, int]
    reports: int
    reports_valid: int
    rate_per_s: float
    sessions: int
    sessions_private: int
    clips: int
    warnings: list[str]


@dataclass(slots=True)
class _Radio:
    """The radio side of the trace."""

    reports: list[UeReport]
    ues: list[str]  # that tasks are drawn for
    channels: int
    start_s: float = 0.0
    warnings: list[str] = field(default_factory=list)


def import_trace(options: ImportOptions) -> tuple[list[Message], ImportSummary]:
    """Read, map and draw. One seed gives one trace; channels, lengths and arrivals have generators of their own.

    Raises BadInput, and the errors of the importers.
    """
    _check(options)
    site, toml = read_site(options.site)
    channel_rng, length_rng, offer_rng = (
        np.random.default_rng(s) for s in np.random.SeedSequence(options.seed).spawn(3)
    )
    recording = ran_importer(options.source)(options.files)
    radio = _kept(recording, site, options) if options.keep_ues else _mapped(recording, site, options, channel_rng)
    requests, warnings = _requests(options.requests, length_rng)
    head = SiteMessage(at_ns=0, toml=toml)
    rate_per_s = _rate(options, site, requests, radio, head)
    offers, truths = draw_offers(
        site,
        requests,
        rate_per_s=rate_per_s,
        duration_s=options.duration_s,
        rng=offer_rng,
        ues=radio.ues,
        bursts_s=options.bursts_s,
        arrivals=options.arrivals,
    )
    if not offers:
        raise BadInput(
            f"nothing arrives in {options.duration_s:g} s at {rate_per_s:g} tasks/s: raise --rate or --duration"
        )
    messages: list[Message] = [head, *radio.reports, *offers, *truths]
    lines = recording.tally.warnings(recording.source) + radio.warnings + warnings
    return messages, _summary(
        options, recording.tally, radio, offers, site=site.name, rate_per_s=rate_per_s, warnings=lines
    )


def read_site(site: str) -> tuple[Site, str]:
    """Read a site by path, or by the name of one that ships; return it and its TOML text. Raises BadInput."""
    path = Path(site)
    if not path.is_file() and path.suffix != ".toml" and len(path.parts) == 1:
        path = config_file("sites", f"{site}.toml")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise BadInput(f"{path}: {reason}; sites that ship are in config/sites/") from None
    return parse_site(text, str(path)), text


def _check(options: ImportOptions) -> None:
    if options.rate_per_s is not None and options.load is not None:
        raise BadInput("--rate and --load both say how much arrives: give one of them")
    if options.load is not None and not options.load > 0:
        raise BadInput(f"--load {options.load:g}: must be above 0")
    if options.start_s is not None and not options.keep_ues:
        raise BadInput("--start is a window of the recording's own time: give it with --keep-ues")
    if options.start_s is not None and options.start_s < 0:
        raise BadInput(f"--start {options.start_s:g}: the recording starts at 0")
    if options.keep_ues and options.cut_idle:
        raise BadInput("--cut-idle shortens the recording's time, --keep-ues keeps it: give one of them")
    if not 0 < options.duration_s <= 7 * 24 * 3600:
        raise BadInput(f"--duration {options.duration_s:g}: must be above 0 and at most a week in seconds")


def _requests(source: str | None, rng: np.random.Generator) -> tuple[Sequence[RecordedRequest], list[str]]:
    """Return the requests of `name:file[,file...]`, drawn ones without a source; and warnings."""
    if source is None:
        from cosched.simulate.arrivals import Arrivals as Lengths
        from cosched.simulate.arrivals import requests_of

        drawn = "no --requests: prompt and answer lengths are drawn (lognormal, fitted to azure-llm conversations)"
        return requests_of(Lengths(), Path(), rng), [drawn]
    name, colon, files = source.partition(":")
    if not (colon and files):
        raise BadInput(f"--requests {source}: give it as SOURCE:FILE, such as azure-llm:conv.csv")
    recording = request_importer(name)([Path(file) for file in files.split(",")])
    return recording.requests, recording.tally.warnings(recording.source)


def _by_ue(reports: Sequence[UeReport]) -> dict[str, list[UeReport]]:
    by_ue: dict[str, list[UeReport]] = defaultdict(list)
    for report in reports:
        by_ue[report.ue].append(report)
    return dict(sorted(by_ue.items()))


def _mapped(recording: RanRecording, site: Site, options: ImportOptions, rng: np.random.Generator) -> _Radio:
    by_ue = _by_ue(recording.reports)
    usable, left_out = usable_channels(by_ue)
    reports = channel_reports(by_ue, site, options.duration_s, rng, cut_idle=options.cut_idle)
    warnings = [f"{recording.source}: {line}" for line in left_out]
    if site.ues.count < len(usable):
        warnings.append(f"{len(usable) - site.ues.count} channels are not used: the site has {site.ues.count} UEs")
    return _Radio(reports, sorted({r.ue for r in reports}), min(len(usable), site.ues.count), warnings=warnings)


def _kept(recording: RanRecording, site: Site, options: ImportOptions) -> _Radio:
    """Take the reports of the window, re-timed to 0; UEs without a valid sample in it are left out."""
    by_ue = _by_ue(recording.reports)
    start_s = best_window(by_ue, options.duration_s) if options.start_s is None else options.start_s
    low, high = round(start_s * S_NS), round((start_s + options.duration_s) * S_NS)
    inside = {ue: [r for r in reports if low <= r.at_ns < high] for ue, reports in by_ue.items()}
    heard = [ue for ue, reports in inside.items() if any(r.ul_efficiency_bps_hz is not None for r in reports)]
    if not heard:
        end_s = recording.reports[-1].at_ns / S_NS
        raise BadInput(
            f"no UE has a valid uplink sample from {start_s:g} to {start_s + options.duration_s:g} s; "
            f"the recording goes from 0 to {end_s:g} s: choose another --start or --duration"
        )
    unheard = len(by_ue) - len(heard)
    warnings = [f"{recording.source}: {unheard} UEs left out: no valid sample in the window"] if unheard else []
    cells = _cells(recording, site)
    reports = [msgspec.structs.replace(r, at_ns=r.at_ns - low, cell=cells[r.cell]) for ue in heard for r in inside[ue]]
    return _Radio(sorted(reports, key=lambda r: (r.at_ns, r.ue)), heard, len(heard), start_s, warnings)


def _cells(recording: RanRecording, site: Site) -> dict[str, str]:
    """Map each recorded cell to the site's of that name, where there is none to the next in order, going round."""
    there = {c.id for c in site.cells}
    recorded = sorted({r.cell for r in recording.reports})
    return {c: c if c in there else site.cells[i % len(site.cells)].id for i, c in enumerate(recorded)}


def best_window(by_ue: Mapping[str, Sequence[UeReport]], duration_s: float) -> float:
    """Return the start (whole seconds) of the window with most UEs, then with most valid samples, then the earliest.

    A UE counts with at least 20 valid uplink samples in the window.
    """
    valid = [
        np.array([r.at_ns for r in reports if r.ul_efficiency_bps_hz is not None]) / S_NS for reports in by_ue.values()
    ]
    starts = np.unique(np.floor(np.concatenate([times for times in valid if times.size] or [np.zeros(1)])))  # (W,)
    counts = np.stack([_in_window(times, starts, duration_s) for times in valid])  # (U, W)
    ues, samples = (counts >= MIN_VALID_SAMPLES).sum(axis=0), counts.sum(axis=0)
    return float(starts[np.lexsort((starts, -samples, -ues))[0]])


def _in_window(times: Floats, starts: Floats, duration_s: float) -> Ints:
    return np.searchsorted(times, starts + duration_s) - np.searchsorted(times, starts)


def _rate(
    options: ImportOptions, site: Site, requests: Sequence[RecordedRequest], radio: _Radio, head: SiteMessage
) -> float:
    """Arrivals a second: as given, or load x what the site carries of this mix on these channels."""
    if options.load is None:
        return DEFAULT_RATE_PER_S if options.rate_per_s is None else options.rate_per_s
    # Imported here: only a load needs the whole planner, and with it its compiled kernels.
    from cosched.replay.load import SAMPLE_TASKS, capacity_per_s
    from cosched.replay.workbook import make_book

    dense = SAMPLE_TASKS / LOAD_SAMPLE_S
    sample, truths = draw_offers(
        site,
        requests,
        rate_per_s=dense,
        duration_s=LOAD_SAMPLE_S,
        rng=np.random.default_rng(options.seed),
        ues=radio.ues,
    )
    book = make_book([head, *radio.reports, *sample, *truths], f"--load {options.load:g}")
    return options.load * capacity_per_s(book)


def _summary(
    options: ImportOptions,
    tally: ImportTally,
    radio: _Radio,
    offers: Sequence[TaskOffer],
    *,
    site: str,
    rate_per_s: float,
    warnings: list[str],
) -> ImportSummary:
    sessions = [o.work for o in offers if isinstance(o.work, LlmSession)]
    return ImportSummary(
        source=options.source,
        site=site,
        seed=options.seed,
        ues=len(radio.ues),
        channels=radio.channels,
        start_s=radio.start_s,
        duration_s=options.duration_s,
        rows=tally.rows,
        rows_valid=tally.valid,
        rows_idle=tally.idle,
        rows_dropped=dict(sorted(tally.dropped.items())),
        reports=len(radio.reports),
        reports_valid=sum(r.ul_efficiency_bps_hz is not None for r in radio.reports),
        rate_per_s=rate_per_s,
        sessions=len(sessions),
        sessions_private=sum(s.private for s in sessions),
        clips=len(offers) - len(sessions),
        warnings=warnings,
    )
