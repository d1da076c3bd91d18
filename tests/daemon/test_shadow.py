"""The shadow comparison: the same fates as replay, through the real process, over the windows that are kept."""

from __future__ import annotations

import asyncio
import io
import time

import msgspec
import pytest
import structlog
from replay_cases import sample, sample_book

from cosched.api.messages import ShadowTally, ShadowView
from cosched.children.framing import read_framed
from cosched.core.policy import policy
from cosched.core.settings import Settings
from cosched.daemon import shadow_feed
from cosched.daemon.children import shadow
from cosched.daemon.children.shadow import compare
from cosched.daemon.shadow_feed import Item, ShadowFeed, ShadowFrame, ShadowWindow, WindowOutcome
from cosched.replay.replayer import Replayer, Workbook, explode
from telemetry.messages import SiteMessage, TaskOffer, UeReport

SECONDS = 4.0
TOML = next(m.toml for m in sample() if isinstance(m, SiteMessage))
LATER_NS = 5_000_000_000  # the daemon's clock when the window began


def window(begun_ns: int = LATER_NS, ended_ns: int = LATER_NS + round(SECONDS * 1e9)) -> ShadowWindow:
    devices = _devices()
    return ShadowWindow(
        site_toml=TOML, ue_devices=devices, core=Settings(), policy="joint", baseline="pf-admit", begun_ns=begun_ns,
        ended_ns=ended_ns,
    )  # fmt: skip


def _devices() -> dict[str, str]:
    """UEs have the devices that replay gives them."""
    from cosched.simulate.offers import assign_devices

    site = sample_book(SECONDS).site
    ues = sorted({r.ue for _, r in explode(sample(SECONDS)) if isinstance(r, UeReport)})
    return {ue: site.ues.devices[i].device for ue, i in assign_devices(site, ues).items()}


def items() -> list[Item]:
    messages = sample(SECONDS)
    reports = [
        Item(at_ns=LATER_NS + round(at_s * 1e9), ue=r) for at_s, r in explode(messages) if isinstance(r, UeReport)
    ]
    offers = [Item(at_ns=LATER_NS + m.at_ns, offer=m) for m in messages if isinstance(m, TaskOffer)]
    return sorted([*reports, *offers], key=lambda item: item.at_ns)


def test_a_window_is_decided_as_replay_decides_it():
    """But for the number of tokens, which a daemon does not know: sessions are taken to be as long as they may."""
    found = compare(items(), window())
    book = sample_book(SECONDS)
    assert found.error == ""
    assert found.offered == len(book.offers)
    assert 0 < found.live.met <= found.live.admitted <= found.offered
    assert found.shadow.met <= found.shadow.admitted
    runs = {name: Replayer(book, policy(name), Settings()).run() for name in ("joint", "pf-admit")}
    assert found.live.admitted == pytest.approx(len(runs["joint"].admitted), abs=6)
    assert found.shadow.admitted == pytest.approx(len(runs["pf-admit"].admitted), abs=6)


def test_ues_without_tasks_change_nothing_and_cost_nothing(monkeypatch: pytest.MonkeyPatch):
    idle = [Item(at_ns=LATER_NS + n, ue=_report(f"idle{n}")) for n in range(2_000)]
    books: list[Workbook] = []

    def replayer(book: Workbook, *args: object, **options: bool) -> Replayer:
        books.append(book)
        return Replayer(book, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(shadow, "Replayer", replayer)
    assert compare([*idle, *items()], window()) == compare(items(), window())
    assert len({len(book.reports) for book in books}) == 1


def test_a_window_that_cannot_be_replayed_says_why():
    bad = ShadowWindow(
        site_toml="v = 1", ue_devices={}, core=Settings(), policy="joint", baseline="pf-admit", begun_ns=0, ended_ns=1
    )
    assert "shadow" in compare([], bad).error


def test_the_process_answers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shadow_feed, "WINDOW_S", 0.3)

    async def follow() -> ShadowView:
        feed = ShadowFeed(20.0, lambda _begun, _ended: window())
        task = asyncio.create_task(feed.run(time.monotonic_ns))
        for _ in range(1_000_000):  # until the process is there: what comes before goes nowhere
            if feed._stdin is not None:
                break
            await asyncio.sleep(0)
        for item in items():
            if item.ue is not None:
                feed.reported((item.ue,), item.at_ns)
            elif item.offer is not None:
                feed.offered(msgspec.structs.replace(item.offer, at_ns=item.at_ns))
        for _ in range(2000):
            await asyncio.sleep(0.05)
            if feed.view().offered:
                break
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return feed.view()

    view = asyncio.run(follow())
    assert view.offered > 0
    assert view.live.admitted > 0


def test_without_a_process_nothing_is_remembered():
    feed = ShadowFeed(20.0, lambda _begun, _ended: window())
    feed.offered(next(m for m in sample(SECONDS) if isinstance(m, TaskOffer)))
    feed.reported([_report("ue0")], 0)
    assert not feed._sent_ns
    assert not feed._pending


def test_old_windows_go():
    feed = ShadowFeed(20.0, lambda _begun, _ended: window())
    assert feed.view() == ShadowView(baseline="")
    one, none = ShadowTally(admitted=3, met=2, value_met=2.0), ShadowTally()
    totals = []
    for ended_s, offered, tally in ((9, 5, one), (24, 0, none), (39, 1, one)):
        feed._take(WindowOutcome(ended_ns=ended_s * 10**9, window_s=15.0, offered=offered, live=tally, shadow=none))
        totals.append((feed.view().offered, feed.view().live.met, feed.view().window_s))
    assert totals == [
        (5, 2, 15.0),
        (5, 2, 30.0),
        (1, 2, 30.0),
    ]  # the first ended 30 s before the last: over the 20 s kept


def test_a_window_that_failed_counts_for_nothing():
    feed = ShadowFeed(20.0, lambda _begun, _ended: window())
    feed._take(
        WindowOutcome(ended_ns=1, window_s=15.0, offered=9, live=ShadowTally(), shadow=ShadowTally(), error="no site")
    )
    assert feed.view() == ShadowView(baseline="")


class _Stuck:
    """A pipe to a shadow that reads nothing."""

    def __init__(self) -> None:
        self.transport, self.data = self, bytearray()

    def get_write_buffer_size(self) -> int:
        return len(self.data)

    def write(self, data: bytes) -> None:
        self.data += data


def _report(ue: str) -> UeReport:
    return UeReport(at_ns=0, source="", seq=0, ue=ue, cell="cell0", ul_efficiency_bps_hz=1.0)


def _sent(pipe: _Stuck) -> list[Item]:
    stream = io.BytesIO(bytes(pipe.data))
    pipe.data.clear()
    frames = iter(lambda: read_framed(stream), None)
    return [one.item for one in (msgspec.msgpack.decode(f, type=ShadowFrame) for f in frames) if one.item is not None]


def test_invented_ues_are_not_compared_beyond_a_number_but_those_with_tasks_are():
    feed, pipe = ShadowFeed(20.0, lambda _begun, _ended: window()), _Stuck()
    feed._stdin = pipe  # type: ignore[assignment]
    offer = next(m for m in sample(SECONDS) if isinstance(m, TaskOffer))
    for n in range(shadow_feed.MOST_UES + 100):
        feed.reported([_report(f"evil{n}")], 0)
    feed.offered(offer)
    feed.reported([_report(offer.ue), _report("late"), _report("evil0")], 5_000_000_000)
    feed._close_window(window())
    sent = [item.ue.ue for item in _sent(pipe) if item.ue is not None]
    assert sent == [f"evil{n}" for n in range(shadow_feed.MOST_UES)] + [offer.ue, "evil0"]
    feed.reported([_report("late")], 6_000_000_000)  # another window, other UEs
    feed._close_window(window())
    assert [item.ue.ue for item in _sent(pipe) if item.ue is not None] == ["late"]


def test_a_window_with_more_than_can_be_replayed_is_left_out_and_the_next_is_not():
    feed, pipe = ShadowFeed(20.0, lambda _begun, _ended: window()), _Stuck()
    feed._stdin = pipe  # type: ignore[assignment]
    whole = WindowOutcome(ended_ns=0, window_s=1.0, offered=9, live=ShadowTally(), shadow=ShadowTally())
    for n in range(300_000):
        feed.reported([_report("ue0")], n * 10**9)
    assert (
        shadow_feed.MOST_QUEUED_BYTES < len(pipe.data) < shadow_feed.MOST_QUEUED_BYTES + 4 * shadow_feed.WRITTEN_BYTES
    )
    for ended_ns in (1, 2):
        feed._close_window(window(0, ended_ns))
        pipe.data.clear()
    with structlog.testing.capture_logs() as logged:
        feed._take(msgspec.structs.replace(whole, ended_ns=1))
    assert feed.view().offered == 0
    assert any(shadow_feed.BEHIND in str(line) for line in logged)
    feed._take(msgspec.structs.replace(whole, ended_ns=2))
    assert feed.view().offered == 9
