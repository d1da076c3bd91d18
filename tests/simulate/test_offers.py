"""Drawing tasks and mapping channels: distributions, deadlines, what a decision may know, and one seed one trace."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosched.errors import BadInput
from cosched.resources import config_file
from cosched.simulate.offers import RecordedRequest, assign_devices, channel_reports, draw_offers, usable_channels
from cosched.site import DeviceShare, Site, Ues, load_site
from telemetry.messages import LlmSession, TaskOffer, TaskTruth, UeReport, VideoClip

UES = tuple(f"ue{i:02d}" for i in range(24))
GOLDEN_COUNT, GOLDEN_DIGEST = 339, "ae8207a174a1ce46"
REQUESTS = tuple(RecordedRequest(i * 0.5, 100 * (i + 1), 7 * (i + 1)) for i in range(90))


@pytest.fixture(scope="module")
def site() -> Site:
    return load_site(config_file("sites", "node-bound.toml"))


def with_mix(site: Site, **changes: object) -> Site:
    return msgspec.structs.replace(site, mix=msgspec.structs.replace(site.mix, **changes))


def draw(
    site: Site, *, seed: int = 1, requests: Sequence[RecordedRequest] = REQUESTS, **options: object
) -> tuple[list[TaskOffer], list[TaskTruth]]:
    arguments: dict[str, Any] = {"rate_per_s": 5.0, "duration_s": 400.0, "ues": UES} | options
    return draw_offers(site, requests, rng=np.random.default_rng(seed), **arguments)


def test_one_seed_one_trace(site: Site) -> None:
    assert draw(site) == draw(site)
    assert draw(site) != draw(site, seed=2)


def test_the_draws_of_a_seed_do_not_change_between_versions(site: Site) -> None:
    """A golden value: whoever changes the order of draws changes every recorded figure, and must know it."""
    offers, truths = draw(site, duration_s=60.0)
    digest = hashlib.sha256(msgspec.json.encode((offers, truths))).hexdigest()
    assert (len(offers), digest[:16]) == (GOLDEN_COUNT, GOLDEN_DIGEST)


def test_poisson_arrivals(site: Site) -> None:
    offers, _ = draw(site, rate_per_s=50.0)
    times = np.array([o.at_ns for o in offers]) / 1e9
    assert np.all(np.diff(times) >= 0)
    assert 0 <= times[0] <= times[-1] < 400
    assert len(offers) == pytest.approx(20_000, abs=4 * 20_000**0.5)
    gaps = np.diff(times)
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=0.05)  # exponential
    assert [o.seq for o in offers] == list(range(len(offers)))
    assert len({o.task for o in offers}) == len(offers)


def test_bursts_keep_the_mean_and_leave_half_of_the_time_empty(site: Site) -> None:
    offers, _ = draw(site, rate_per_s=50.0, bursts_s=5.0)
    assert len(offers) == pytest.approx(20_000, rel=0.05)
    per_second = np.bincount([o.at_ns // 10**9 for o in offers], minlength=400)
    assert np.mean(per_second < 10) == pytest.approx(0.45, abs=0.06)
    assert np.median(per_second[per_second > 10]) == pytest.approx(100, rel=0.1)


def test_recorded_arrivals_keep_their_spacing_at_another_rate(site: Site) -> None:
    requests = [RecordedRequest(t, 100, 10) for t in (0.0, 1.0, 1.0, 4.0, 10.0)]  # mean gap 2.5 s
    offers, _ = draw(site, requests=requests, arrivals="recorded", rate_per_s=4.0, duration_s=50.0)
    gaps = np.diff([o.at_ns for o in offers]) / 1e9
    assert len(offers) == pytest.approx(200, abs=5)
    assert sorted({round(float(g) * 10, 3) for g in gaps}) == [0, 1, 2.5, 3, 6]  # a tenth, and the mean gap at the seam


@pytest.mark.parametrize(("divisor", "most"), [(1, 4096), (8, 512)])
def test_an_llm_session_is_made_of_its_row(divisor: int, most: int, site: Site) -> None:
    assert (site.mix.context_divisor, site.mix.new_tokens_max) == (1, 4096)  # node-bound: nothing is in a cache
    offers, truths = draw(with_mix(site, video_share=0.0, context_divisor=divisor, new_tokens_max=most))
    tokens = {t.task: t.output_tokens for t in truths}
    assert len(tokens) == len(offers)
    first = next(i for i, r in enumerate(REQUESTS) if r.output_tokens == min(tokens[offers[0].task], 400) or i == 89)
    for k, offer in enumerate(offers[:200]):
        row = REQUESTS[(first + k) % 90]
        assert isinstance(offer.work, LlmSession)
        assert offer.work.new_tokens == min(max(row.context_tokens // divisor, 16), most)
        assert offer.work.context_tokens == max(0, row.context_tokens - offer.work.new_tokens)
        assert offer.work.max_output_tokens == 400
        assert tokens[offer.task] == min(row.output_tokens, 400)


def test_no_offer_tells_what_will_have_been_generated(site: Site) -> None:
    """Two request sources that differ only in the answers' lengths give the same offers, but for who is free when."""
    longer = [r._replace(output_tokens=r.output_tokens + 50) for r in REQUESTS]
    anybody = with_mix(site, concurrent_sessions=0)
    ours, truths = draw(anybody)
    theirs, other_truths = draw(anybody, requests=longer)
    assert ours == theirs
    assert truths != other_truths
    ours, _ = draw(site)
    theirs, _ = draw(site, requests=longer)
    assert [msgspec.structs.replace(o, ue="") for o in ours] == [msgspec.structs.replace(o, ue="") for o in theirs]


@pytest.mark.parametrize(("most", "rate_per_s"), [(1, 0.8), (2, 1.6), (1, 5.0)])
def test_a_task_goes_to_the_next_ue_that_is_free(most: int, rate_per_s: float, site: Site) -> None:
    """A UE is busy until its task's deadlines have passed; a task that nobody is free for overlaps on the drawn UE."""
    asked, _ = draw(with_mix(site, concurrent_sessions=0), rate_per_s=rate_per_s)
    offers, truths = draw(with_mix(site, concurrent_sessions=most), rate_per_s=rate_per_s)
    tokens = {t.task: t.output_tokens for t in truths}
    ends: dict[str, list[float]] = {ue: [] for ue in UES}
    moved = overlapping = 0
    for wish, offer in zip(asked, offers, strict=True):
        now = offer.at_ns / 1e9
        order = UES[UES.index(wish.ue) :] + UES[: UES.index(wish.ue)]
        free = [ue for ue in order if sum(end > now for end in ends[ue]) < most]
        assert offer.ue == (free[0] if free else wish.ue), offer.task
        moved += offer.ue != wish.ue
        overlapping += not free
        work = offer.work
        if isinstance(work, VideoClip):
            lasts = (work.frames - 1) / work.fps + work.deadline_s
        else:
            lasts = work.ttft_s + work.tpot_s * (tokens[offer.task] - 1)
        ends[offer.ue].append(now + lasts)
    assert moved > 20
    assert overlapping < len(offers) / 4 or rate_per_s == 5.0


def test_clips(site: Site) -> None:
    offers, truths = draw(with_mix(site, video_share=1.0), requests=())
    assert not truths
    for offer in offers:
        assert isinstance(offer.work, VideoClip)
        assert offer.work.deadline_s == pytest.approx(1 / offer.work.fps)
        assert offer.work.frames == offer.work.fps * 8
        assert offer.work.frame_bits == 0.5e6
        assert offer.work.frame_flop in {60e9, 250e9}


def test_shares_of_the_mix(site: Site) -> None:
    offers, _ = draw(with_mix(site, video_share=0.3, private_share=0.8, weights=(1.0, 5.0)), rate_per_s=50.0)
    n = len(offers)
    sessions = [o.work for o in offers if isinstance(o.work, LlmSession)]
    assert len(sessions) / n == pytest.approx(0.7, abs=0.02)
    assert np.mean([s.private for s in sessions]) == pytest.approx(0.8, abs=0.02)
    assert np.mean([o.weight == 5.0 for o in offers]) == pytest.approx(0.5, abs=0.02)
    assert set(Counter(s.ttft_s for s in sessions)) == {0.5, 1.0, 2.0}
    by_ue = Counter(o.ue for o in offers)
    assert set(by_ue) == set(UES)
    assert max(by_ue.values()) / min(by_ue.values()) < 1.4


def test_another_share_of_video_leaves_all_other_draws_as_they_were(site: Site) -> None:
    a, _ = draw(with_mix(site, video_share=0.3, concurrent_sessions=0))  # who is free depends on what the others do
    b, _ = draw(with_mix(site, video_share=0.6, concurrent_sessions=0))
    assert [(o.at_ns, o.ue, o.weight) for o in a] == [(o.at_ns, o.ue, o.weight) for o in b]
    turned = [(x.work, y.work) for x, y in zip(a, b, strict=True) if type(x.work) is not type(y.work)]
    assert all(isinstance(x, LlmSession) and isinstance(y, VideoClip) for x, y in turned)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rate_per_s": 0.0}, "rate"),
        ({"rate_per_s": float("nan")}, "rate"),
        ({"duration_s": -1.0}, "duration"),
        ({"bursts_s": float("inf")}, "bursts"),
        ({"rate_per_s": 1e12}, "more than"),
        ({"ues": ()}, "no UE"),
        ({"requests": ()}, "request source"),
        ({"requests": REQUESTS[:1], "arrivals": "recorded"}, "two requests"),
        ({"arrivals": "recorded", "bursts_s": 5.0}, "bursts are for Poisson"),
    ],
)
def test_what_cannot_be_drawn_is_said(options: dict[str, Any], says: str, site: Site) -> None:
    with pytest.raises(BadInput, match=says):
        draw(site, **options)


# ---- devices


@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=5),
    st.integers(1, 80),
)
def test_devices_are_as_many_as_their_shares_say(weights: list[int], n: int) -> None:
    shares = [w / sum(weights) for w in weights]
    site = load_site(config_file("sites", "node-bound.toml"))
    devices = tuple(DeviceShare(device=f"d{i}", share=s) for i, s in enumerate(shares))
    site = msgspec.structs.replace(site, ues=Ues(count=n, devices=devices))
    ues = [f"ue{i}" for i in range(n)]
    given_devices = assign_devices(site, ues)
    assert list(given_devices) == ues
    counts = Counter(given_devices.values())
    for i, share in enumerate(shares):
        assert abs(counts[i] - share * n) < 1


def test_devices_do_not_line_up_with_channels_or_cells(site: Site) -> None:
    devices = assign_devices(site, UES)
    assert Counter(devices.values()) == {0: 12, 1: 7, 2: 5}
    for stride in range(2, 11):  # numbers of cells or channels, which go round by position
        for offset in range(stride):
            there = Counter(devices[ue] for ue in UES[offset::stride])
            assert len(there) > 1, (stride, offset)
            for device, count in Counter(devices.values()).items():
                assert abs(there[device] - count / stride) <= 1, (stride, offset)


# ---- channels


def channel(
    ue: str, count: int = 40, *, valid_every: int = 2, period_ms: int = 250, gap_at: int | None = None
) -> list[UeReport]:
    """Make reports whose efficiency tells which one they are."""
    reports = []
    for i in range(count):
        at_ms = i * period_ms + (60_000 if gap_at is not None and i >= gap_at else 0)
        efficiency = (i + 1) / 100 if i % valid_every == 0 else None
        reports.append(
            UeReport(at_ns=at_ms * 10**6, source="s", seq=i, ue=ue, cell="old", ul_efficiency_bps_hz=efficiency)
        )
    return reports


def test_channels_are_mapped_in_turn_looped_and_retimed(site: Site) -> None:
    reports = channel_reports({"b": channel("b"), "a": channel("a", 60)}, site, 30.0, np.random.default_rng(0))
    assert [(r.at_ns, r.ue) for r in reports] == sorted((r.at_ns, r.ue) for r in reports)
    by_ue = {ue: [r for r in reports if r.ue == ue] for ue in UES}
    for ue, mine in by_ue.items():
        assert mine[0].at_ns == 0
        assert mine[0].ul_efficiency_bps_hz is not None, ue  # each starts with a sample
        assert [r.at_ns for r in mine] == [k * 250_000_000 for k in range(120)]
        assert [r.seq for r in mine] == list(range(120))
        assert {r.cell for r in mine} == {"cell0"}
    period = [len({r.ul_efficiency_bps_hz for r in by_ue[ue]}) for ue in UES[:2]]
    assert period == [31, 21]  # ue00 has channel "a" (30 valid samples and None), ue01 "b"
    starts = {by_ue[ue][0].ul_efficiency_bps_hz for ue in UES[::2]}
    assert len(starts) > 4


def test_time_in_which_a_ue_was_detached_is_cut_out(site: Site) -> None:
    reports = channel_reports({"a": channel("a", gap_at=20)}, site, 10.0, np.random.default_rng(0))
    assert {r.at_ns for r in reports} == {k * 250_000_000 for k in range(40)}


def test_cut_idle_leaves_samples_only(site: Site) -> None:
    reports = channel_reports({"a": channel("a", 80)}, site, 10.0, np.random.default_rng(0), cut_idle=True)
    assert all(r.ul_efficiency_bps_hz is not None for r in reports)
    assert len(reports) == site.ues.count * 40


def test_cells_go_round() -> None:
    urban = load_site(config_file("sites", "urban-llm.toml"))
    reports = channel_reports({"a": channel("a")}, urban, 1.0, np.random.default_rng(0))
    cells = {r.ue: r.cell for r in reports}
    assert Counter(cells.values()) == {"cell0": 20, "cell1": 20, "cell2": 20}
    assert cells["ue00"] != cells["ue01"]


def test_channels_with_few_samples_are_left_out_and_counted(site: Site) -> None:
    by_ue = {"a": channel("a"), "b": channel("b", 38), "c": channel("c", 40, valid_every=50)}
    usable, lines = usable_channels(by_ue)
    assert list(usable) == ["a"]
    assert lines == ["2 channels left out, under 20 valid samples: b (19), c (1)"]
    with pytest.raises(BadInput, match="20 valid uplink samples"):
        channel_reports({"c": by_ue["c"]}, site, 1.0, np.random.default_rng(0))


def test_mapping_is_a_function_of_its_arguments_whatever_the_order_of_the_map(site: Site) -> None:
    a, b = channel("a"), channel("b", 60)
    ours = channel_reports({"a": a, "b": b}, site, 20.0, np.random.default_rng(5))
    theirs = channel_reports({"b": b, "a": a[::-1]}, site, 20.0, np.random.default_rng(5))
    assert ours == theirs
