"""The shadow comparison: the same fates as replay, through the real process, over the windows that are kept."""

from __future__ import annotations

import asyncio
import time

import msgspec
import pytest
from replay_cases import sample, sample_book

from cosched.control_messages import Shadow
from cosched.core.policy import policy
from cosched.core.settings import Settings
from cosched.drivers import shadow_feed
from cosched.drivers.replay import Replayer, explode
from cosched.drivers.shadow import compare
from cosched.drivers.shadow_feed import Item, ShadowFeed, Window
from telemetry.messages import SiteMessage, TaskOffer, UeReport

SECONDS = 4.0
TOML = next(m.toml for m in sample() if isinstance(m, SiteMessage))
LATER_NS = 5_000_000_000  # the daemon's clock when the window began


def window(begun_ns: int = LATER_NS, ended_ns: int = LATER_NS + round(SECONDS * 1e9)) -> Window:
    devices = _devices()
    return Window(
        site_toml=TOML, ue_devices=devices, core=Settings(), policy="joint", baseline="pf-admit", begun_ns=begun_ns,
        ended_ns=ended_ns,
    )  # fmt: skip


def _devices() -> dict[str, str]:
    """UEs have the devices that replay gives them."""
    from cosched.offers import assign_devices

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


def test_a_window_that_cannot_be_replayed_says_why():
    bad = Window(
        site_toml="v = 1", ue_devices={}, core=Settings(), policy="joint", baseline="pf-admit", begun_ns=0, ended_ns=1
    )
    assert "shadow" in compare([], bad).error


def test_the_process_answers_and_old_windows_go(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shadow_feed, "WINDOW_S", 0.3)
    begin = LATER_NS + round(SECONDS * 1e9)
    ends = iter(range(begin, 10**18, 15 * 10**9))

    async def follow() -> list[Shadow]:
        feed = ShadowFeed(20.0, lambda _begun, _ended: window(ended_ns=next(ends)))
        task = asyncio.create_task(feed.run(time.monotonic_ns))
        views = [feed.view()]
        while feed._stdin is None:  # the first window begins when the process is there
            await asyncio.sleep(0)
        for item in items():
            if item.ue is not None:
                feed.heard(item.ue, item.at_ns)
            elif item.offer is not None:
                feed.offered(msgspec.structs.replace(item.offer, at_ns=item.at_ns))
        for _ in range(2000):
            await asyncio.sleep(0.05)
            if feed.view() != views[-1]:
                views.append(feed.view())
            if len(views) == 4:
                break
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return views

    first, *later = asyncio.run(follow())
    assert first == Shadow(baseline="")
    offered = [view.offered for view in later]
    assert offered[0] > 0
    assert later[0].live.admitted > 0
    assert offered[1] == offered[0]
    assert offered[2] == 0, "the first window is too old by then"
