"""Who asks for what, when: tasks drawn from a site's mix and a recorded request source, and channels mapped on UEs.

All randomness comes from the generator handed in; every function draws in a fixed order, which its docstring states,
so that one seed gives one trace.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from cosched.errors import BadInput
from cosched.site import Mix, Site
from cosched.workloads.base import Floats
from telemetry.importers.base import S_NS, RecordedRequest
from telemetry.messages import LlmSession, TaskOffer, TaskTruth, UeReport, VideoClip

__all__ = ["RecordedRequest", "assign_devices", "channel_reports", "draw_offers", "usable_channels"]

Bools = npt.NDArray[np.bool_]
Arrivals = Literal["poisson", "recorded"]

OFFER_SOURCE: Final = "offers"
MIN_VALID_SAMPLES: Final = 20  # 5 s of activity at SCOPE's 250 ms; fewer say nothing of a channel
REATTACH_GAP_NS: Final = 2 * S_NS  # the UE was detached: no channel to be mapped
MAX_TASKS: Final = 5_000_000  # 2 GB of messages


def draw_offers(
    site: Site,
    requests: Sequence[RecordedRequest],
    *,
    rate_per_s: float,
    duration_s: float,
    rng: np.random.Generator,
    ues: Sequence[str],
    bursts_s: float | None = None,
    arrivals: Arrivals = "poisson",
) -> tuple[list[TaskOffer], list[TaskTruth]]:
    """Draw the tasks of a trace; offers are sorted by time, truths stand beside them.

    An arrival is a video clip with probability `mix.video_share`, else an LLM session made of the next request row
    (rows are taken in order from a random first one, around the end). What a session will have generated goes only
    to its TaskTruth. A task is the drawn UE's, or where that is busy the next one's that is not
    (`mix.concurrent_sessions`). `poisson`: Poisson arrivals at `rate_per_s`; with `bursts_s` switched on and off every
    that many seconds, at twice the rate while on (an interrupted Poisson process of the same mean). `recorded`: the
    spacing of the request rows, scaled to the mean `rate_per_s`.

    Draws, in order: first row; arrivals (number, times, phase of the bursts); then one array over all arrivals each
    for kind, UE, weight, privacy, TTFT, TPOT, frame rate, frame work. Raises BadInput.
    """
    _check_numbers(rate_per_s, duration_s, bursts_s)
    if not ues:
        raise BadInput("no UE to draw tasks for: the RAN source has none with enough samples")
    _check_requests(site.mix, requests, bursts_s, arrivals)
    first = int(rng.integers(max(1, len(requests))))
    at_s = (
        _recorded_times(requests, first, rate_per_s, duration_s)
        if arrivals == "recorded"
        else _poisson_times(rate_per_s, duration_s, bursts_s, rng)
    )
    draws = _draw(site.mix, len(at_s), ues, rng)
    free = _Free(ues, site.mix.concurrent_sessions)
    rows = itertools.cycle(itertools.chain(requests[first:], requests[:first]))
    offers: list[TaskOffer] = []
    truths: list[TaskTruth] = []
    for i, at in enumerate(at_s):
        offer, output_tokens = _offer(site.mix, draws, i, round(at * S_NS), rows)
        offer = msgspec.structs.replace(offer, ue=free.taken(offer, output_tokens))
        offers.append(offer)
        if output_tokens is not None:
            truths.append(TaskTruth(at_ns=offer.at_ns, task=offer.task, output_tokens=output_tokens))
    return offers, truths


class _Free:
    """Which UEs are free: a task whose UE has as many as it may goes to the next in order of the list that has not.

    Where none has, it stays with the one that was drawn, and overlaps.
    """

    def __init__(self, ues: Sequence[str], most: int) -> None:
        self._place = {ue: k for k, ue in enumerate(ues)}
        self._ues, self._most = tuple(ues), most
        self._ends_s: list[list[float]] = [[] for _ in ues]

    def taken(self, offer: TaskOffer, output_tokens: int | None) -> str:
        """Return the UE that has the task, which may last as long as its deadlines allow."""
        at_s, drawn = offer.at_ns / S_NS, self._place[offer.ue]
        if not self._most:
            return offer.ue
        order = (*range(drawn, len(self._ues)), *range(drawn))
        mine = next((k for k in order if self._running(k, at_s) < self._most), drawn)
        self._ends_s[mine].append(at_s + _longest_s(offer, output_tokens))
        return self._ues[mine]

    def _running(self, k: int, at_s: float) -> int:
        self._ends_s[k] = [end for end in self._ends_s[k] if end > at_s]
        return len(self._ends_s[k])


def _longest_s(offer: TaskOffer, output_tokens: int | None) -> float:
    work = offer.work
    if isinstance(work, VideoClip):
        return (work.frames - 1) / work.fps + work.deadline_s
    return work.ttft_s + work.tpot_s * ((output_tokens or work.max_output_tokens) - 1)


def _check_numbers(rate_per_s: float, duration_s: float, bursts_s: float | None) -> None:
    for name, value in (("rate", rate_per_s), ("duration", duration_s), ("bursts", bursts_s or 1.0)):
        if not (math.isfinite(value) and value > 0):
            raise BadInput(f"{name} must be a positive number, not {value}")
    if rate_per_s * duration_s > MAX_TASKS:
        raise BadInput(f"{rate_per_s:g} tasks/s for {duration_s:g} s is more than {MAX_TASKS} tasks: lower either")


def _check_requests(mix: Mix, requests: Sequence[RecordedRequest], bursts_s: float | None, arrivals: Arrivals) -> None:
    if mix.video_share < 1 and not requests:
        raise BadInput("LLM sessions are made from recorded requests, and there is none: name a request source")
    if arrivals == "recorded" and (len(requests) < 2 or requests[-1].at_s <= requests[0].at_s):
        raise BadInput("recorded arrivals need at least two requests at different times")
    if arrivals == "recorded" and bursts_s is not None:
        raise BadInput("bursts are for Poisson arrivals; recorded ones have their own")


def _poisson_times(rate_per_s: float, duration_s: float, bursts_s: float | None, rng: np.random.Generator) -> Floats:
    """(n,) sorted instants in [0, duration)."""
    peak = rate_per_s if bursts_s is None else 2 * rate_per_s
    times: Floats = np.sort(rng.uniform(0.0, duration_s, int(rng.poisson(peak * duration_s))))
    if bursts_s is None:
        return times
    phase = rng.uniform(0.0, 2 * bursts_s)
    on: Bools = np.floor((times + phase) / bursts_s) % 2 == 0
    return times[on]


def _recorded_times(requests: Sequence[RecordedRequest], first: int, rate_per_s: float, duration_s: float) -> Floats:
    """(n,) instants in [0, duration): the rows' own spacing from row `first`, around the end, at another mean rate."""
    rows = np.array([r.at_s for r in requests])  # (N,)
    mean_gap_s = (rows[-1] - rows[0]) / (len(rows) - 1)
    cycle_s = rows[-1] - rows[0] + mean_gap_s
    cycles = math.ceil(duration_s * rate_per_s / len(rows)) + 1
    unrolled = np.concatenate([rows + k * cycle_s for k in range(cycles + 1)])[first:]
    times: Floats = (unrolled - unrolled[0]) / (mean_gap_s * rate_per_s)
    return times[times < duration_s]


@dataclass(frozen=True, slots=True)
class _Draws:
    """One entry per arrival, (n,) each."""

    video: Bools
    ue: list[str]
    weight: Floats
    private: Bools
    ttft_s: Floats
    tpot_s: Floats
    fps: Floats
    gflop: Floats


def _draw(mix: Mix, n: int, ues: Sequence[str], rng: np.random.Generator) -> _Draws:
    """Draw every array for every arrival, so that another share of video leaves all else as it was."""
    return _Draws(
        video=rng.random(n) < mix.video_share,
        ue=[ues[u] for u in rng.integers(len(ues), size=n)],
        weight=_choose(mix.weights, n, rng),
        private=rng.random(n) < mix.private_share,
        ttft_s=_choose(mix.ttft_s, n, rng),
        tpot_s=_choose(mix.tpot_s, n, rng),
        fps=_choose(mix.video_fps, n, rng),
        gflop=_choose(mix.video_gflop, n, rng),
    )


def _choose(values: Sequence[float], n: int, rng: np.random.Generator) -> Floats:
    return np.array(values, dtype=np.float64)[rng.integers(len(values), size=n)]


def _offer(
    mix: Mix, draws: _Draws, i: int, at_ns: int, rows: Iterator[RecordedRequest]
) -> tuple[TaskOffer, int | None]:
    """Make arrival i: the offer, and the tokens that its session will have generated (None for a clip)."""
    output_tokens: int | None = None
    work: LlmSession | VideoClip
    if draws.video[i]:
        work = _clip(mix, float(draws.fps[i]), float(draws.gflop[i]))
    else:
        row = next(rows)
        work = _session(mix, row, float(draws.ttft_s[i]), float(draws.tpot_s[i]), bool(draws.private[i]))
        output_tokens = max(1, min(row.output_tokens, mix.max_output_tokens))
    offer = TaskOffer(
        at_ns=at_ns,
        source=OFFER_SOURCE,
        seq=i,
        task=f"t{i:05d}",
        ue=draws.ue[i],
        work=work,
        weight=float(draws.weight[i]),
    )
    return offer, output_tokens


def _session(mix: Mix, row: RecordedRequest, ttft_s: float, tpot_s: float, private: bool) -> LlmSession:
    """Split a recorded prompt into a turn's new tokens and the context that the KV cache has kept."""
    new = min(max(row.context_tokens // mix.context_divisor, mix.new_tokens_min), mix.new_tokens_max)
    return LlmSession(
        model=mix.model,
        context_tokens=max(0, row.context_tokens - new),
        new_tokens=new,
        max_output_tokens=mix.max_output_tokens,
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        private=private,
    )


def _clip(mix: Mix, fps: float, gflop: float) -> VideoClip:
    return VideoClip(
        frame_flop=gflop * 1e9,
        frame_bits=mix.video_frame_bits,
        fps=fps,
        deadline_s=1 / fps,
        frames=max(1, round(fps * mix.video_clip_s)),
    )


def assign_devices(site: Site, ues: Sequence[str]) -> dict[str, int]:
    """Map each UE to its index into `site.ues.devices`: as many as the shares say (largest remainder), in blocks.

    Channels and cells go round by position (`channel_reports`), so blocks of positions spread every device over all of
    them; to interleave devices as well would line them up with channels wherever the two periods meet.
    """
    counts = _quotas([d.share for d in site.ues.devices], len(ues))
    devices = [index for index, count in enumerate(counts) for _ in range(count)]
    return dict(zip(ues, devices, strict=True))


def _quotas(shares: Sequence[float], n: int) -> list[int]:
    """Largest remainder method; of equal remainders the first in order."""
    counts = [math.floor(share * n + 1e-9) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: (counts[i] - shares[i] * n, i))
    for i in by_remainder[: n - sum(counts)]:
        counts[i] += 1
    return counts


def usable_channels(
    reports_by_ue: Mapping[str, Sequence[UeReport]], min_valid: int = MIN_VALID_SAMPLES
) -> tuple[dict[str, list[UeReport]], list[str]]:
    """Return the recorded channels with at least `min_valid` uplink samples, by name, and a line on those left out."""
    valid = {ue: sum(map(_is_valid, reports)) for ue, reports in sorted(reports_by_ue.items())}
    usable = {ue: sorted(reports_by_ue[ue], key=lambda r: r.at_ns) for ue, n in valid.items() if n >= min_valid}
    left_out = [f"{ue} ({n})" for ue, n in valid.items() if n < min_valid]
    if not left_out:
        return usable, []
    return usable, [f"{len(left_out)} channels left out, under {min_valid} valid samples: {', '.join(left_out)}"]


def channel_reports(
    reports_by_ue: Mapping[str, Sequence[UeReport]],
    site: Site,
    duration_s: float,
    rng: np.random.Generator,
    *,
    min_valid: int = MIN_VALID_SAMPLES,
    cut_idle: bool = False,
) -> list[UeReport]:
    """Map recorded channels on the UEs "ue00", "ue01", ... of the site; sorted by (at_ns, ue), times in [0, duration).

    UE u gets channel u mod (number of usable channels, by name) from a random valid sample of it on, looped where it is
    shorter than `duration_s`, and the cell u mod (number of cells). Time in which a recorded UE was detached (gaps of
    over 2 s) is cut out. Idle stretches stay, as reports without a sample; with `cut_idle` they are cut out too, as a
    UE that is busy with our tasks would show.

    Draws one start per UE, in order. Raises BadInput when no channel is usable.
    """
    usable, _ = usable_channels(reports_by_ue, min_valid)
    if not usable:
        raise BadInput(f"no UE of the RAN source has {min_valid} valid uplink samples: there is no channel to map")
    channels = [_Loop.of(reports, cut_idle=cut_idle) for reports in usable.values()]
    width = max(2, len(str(site.ues.count - 1)))
    mapped: list[UeReport] = []
    for u in range(site.ues.count):
        channel = channels[u % len(channels)]
        start = channel.valid[int(rng.integers(len(channel.valid)))]
        mapped += channel.play(start, f"ue{u:0{width}d}", site.cells[u % len(site.cells)].id, round(duration_s * S_NS))
    return sorted(mapped, key=lambda r: (r.at_ns, r.ue))


@dataclass(frozen=True, slots=True)
class _Loop:
    """A recorded channel as a loop: reports, the step in ns from each to the next (the last to the first)."""

    reports: list[UeReport]
    step_ns: list[int]
    valid: list[int]  # indices of reports with a sample

    @classmethod
    def of(cls, reports: Sequence[UeReport], *, cut_idle: bool) -> _Loop:
        steps = [b.at_ns - a.at_ns for a, b in itertools.pairwise(reports)]
        period = Counter(steps).most_common(1)[0][0] if steps else S_NS
        steps = [period if step > REATTACH_GAP_NS else step for step in (*steps, period)]
        kept = [i for i, r in enumerate(reports) if _is_valid(r) or not cut_idle]
        chosen = [reports[i] for i in kept]
        return cls(chosen, [steps[i] for i in kept], [i for i, r in enumerate(chosen) if _is_valid(r)])

    def play(self, start: int, ue: str, cell: str, duration_ns: int) -> list[UeReport]:
        played: list[UeReport] = []
        at_ns, i = 0, start
        while at_ns < duration_ns:
            changes = {"at_ns": at_ns, "ue": ue, "cell": cell, "source": f"ran/{ue}", "seq": len(played)}
            played.append(msgspec.structs.replace(self.reports[i], **changes))
            at_ns += self.step_ns[i]
            i = (i + 1) % len(self.reports)
        return played


def _is_valid(report: UeReport) -> bool:
    return report.ul_efficiency_bps_hz is not None
