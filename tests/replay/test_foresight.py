"""What a replay foretells: only what was asked for; the best plan found is carried out, and nobody's is above it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from replay_cases import sample_book

from cosched.core.policy import POLICIES, policy
from cosched.core.settings import Settings
from cosched.fluid.world import ChannelTruth
from cosched.replay import clairvoyant, hindsight
from cosched.replay.clairvoyant import Attempt, attempt, best_plan
from cosched.replay.foresight import NOTHING, ComingChannel, Foresight
from cosched.replay.replayer import Replayer, Workbook
from telemetry.messages import LlmSession, TaskOffer, UeReportBatch, VideoClip

SECONDS = 4.0


def clip(**changes: object) -> TaskOffer:
    work = VideoClip(frame_flop=1e9, frame_bits=1e5, fps=1.0, deadline_s=0.5, frames=10, target_ratio=0.8)
    work = msgspec.structs.replace(work, **changes)
    return TaskOffer(at_ns=0, source="s", seq=0, task="c", ue="u", work=work)


def session() -> TaskOffer:
    work = LlmSession(model="m", context_tokens=0, new_tokens=9, max_output_tokens=99, ttft_s=2.0, tpot_s=0.1)
    return TaskOffer(at_ns=0, source="s", seq=0, task="t", ue="u", work=work)


@pytest.fixture
def coming() -> ComingChannel:
    """1 bit/s/Hz, from the fifth second on 3, in the ninth 0.1."""
    at_s = np.array([5.0, 8.0, 9.0])
    return ComingChannel(ChannelTruth(at_s, np.zeros(3, np.int64), np.array([3.0, 0.1, 3.0]), np.array([1.0])), 20.0)


def test_a_session_is_told_the_mean_until_its_first_token_is_due(coming: ComingChannel) -> None:
    assert coming.of(0, session(), 4.0, decodes=False) == pytest.approx((1.0 + 3.0) / 2)
    assert coming.of(0, session(), 4.5, decodes=True) == pytest.approx((0.5 + 1.5) / 1)


def test_a_clip_is_told_what_all_frames_but_those_it_may_lose_have(coming: ComingChannel) -> None:
    """Frame 8 has 0.1, of the ten two may be lost, and the next ones have 1."""
    assert coming.of(0, clip(), 0.0, decodes=False) == pytest.approx(1.0)
    assert coming.of(0, clip(target_ratio=1.0), 0.0, decodes=False) == pytest.approx(0.1)
    assert coming.of(0, clip(target_ratio=0.4), 0.0, decodes=False) == pytest.approx(3.0)
    assert coming.of(0, clip(target_ratio=1.0), 8.6, decodes=False) == pytest.approx(3.0)


def test_a_known_length_changes_the_offer_alone() -> None:
    known = Foresight(lengths=True)
    offer = known.offer(session(), 7)
    assert isinstance(offer.work, LlmSession)
    assert offer.work.max_output_tokens == 7
    assert msgspec.structs.replace(offer, work=session().work) == session()
    assert known.offer(clip(), 7) == clip()
    assert NOTHING.offer(session(), 7) == session()
    assert NOTHING.settings(Settings()) == Settings()


@functools.cache
def tried(name: str, foresight: Foresight) -> Attempt:
    return attempt(sample_book(SECONDS), policy(name), Settings(), foresight)


def test_nothing_foreseen_is_a_replay_as_ever() -> None:
    book = sample_book(SECONDS)
    run = Replayer(book, POLICIES["joint"], Settings()).run()
    assert tried("joint", NOTHING).result.summary.decisions_sha256 == run.decisions_sha256


def test_the_core_is_told_of_the_channel_only_where_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """By name of the source: what is foretold is a report of its own."""
    book = sample_book(1.0)
    for foresight, expected in ((NOTHING, False), (Foresight(lengths=True), False), (Foresight(channel=True), True)):
        replayer = Replayer(book, POLICIES["joint"], Settings(), verify=False, foresight=foresight)
        told = []
        handle = replayer._core.handle
        monkeypatch.setattr(
            replayer._core, "handle", lambda event, at_s, h=handle, t=told: (t.append(event), h(event, at_s))[1]
        )
        replayer.run()
        assert any(isinstance(e, UeReportBatch) and e.source == "foresight" for e in told) == expected


def test_who_is_refused_at_the_door_is_nobody_to_the_policy() -> None:
    names = [offer.task for _, offer in sample_book(SECONDS).offers]
    only = frozenset(names[::2])
    found = tried("engine", Foresight(only=only))
    assert found.ended("met") | found.ended("missed") == only
    assert found.ended("rejected") == frozenset(names) - only


def test_prices_of_those_to_come_are_not_asked_for_by_who_has_none() -> None:
    assert not POLICIES["greedy"].bids
    same = tried("greedy", Foresight(arrivals=True)).result.summary.decisions_sha256
    assert same == tried("greedy", NOTHING).result.summary.decisions_sha256


def crowded() -> Workbook:
    """The sample's first tasks within half a second, some worth five times as much."""
    book = sample_book(1.5)
    offers = tuple(
        (at_s * 0.35, msgspec.structs.replace(o, at_ns=round(o.at_ns * 0.35), weight=(1.0, 1.0, 5.0)[i % 3]))
        for i, (at_s, o) in enumerate(book.offers)
    )
    return replace(book, offers=offers)


def test_the_best_plan_found_is_between_what_is_known_and_the_bound() -> None:
    book = crowded()
    known = [attempt(book, POLICIES[name], Settings(), NOTHING) for name in ("joint", "predicted")]
    told: list[float] = []
    found = best_plan(book, Settings(), known=known, rounds=1, tell=told.append)
    assert max(one.value for one in known) <= found.value <= hindsight.bound(book) + 1e-6
    assert told == sorted(told)
    assert told[-1] == 1.0
    again = attempt(book, found.by, found.settings, found.foresight)
    assert again.result.summary.decisions_sha256 == found.result.summary.decisions_sha256
    assert best_plan(book, Settings(), known=known, rounds=1).foresight == found.foresight


def test_gains_are_of_the_slot_in_which_a_task_asks() -> None:
    before, after = tried("joint", NOTHING), tried("joint", Foresight(only=frozenset()))
    slots: Mapping[str, int] = {o.task: i % 2 for i, (_, o) in enumerate(sample_book(SECONDS).offers)}
    gain = clairvoyant._gains(slots, before, after)
    assert sum(gain.values()) == -before.value
    assert gain[0] == -sum(f.weight for f in before.result.fates if f.outcome == "met" and slots[f.task] == 0)
