"""What cannot be started, or dies again and again: a daemon goes on, and pauses grow."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from daemon_cases import PATIENCE_S
from hypothesis import given
from hypothesis import strategies as st
from two_nodes import TWO

from cosched.children.framing import framed
from cosched.cluster.backoff import SOUND_S, Backoff
from cosched.cluster.messages import Connected
from cosched.config.settings import load
from cosched.daemon import cluster_link as link
from cosched.daemon.store import Store

PAUSES_S = (0.1, 0.3, 0.6)

lives = st.floats(0.0, 2 * SOUND_S)


@given(st.lists(lives, max_size=9))
def test_pauses_grow_with_deaths_in_a_row_and_begin_anew_after_a_sound_life(lives_s: list[float]):
    backoff, in_a_row = Backoff(PAUSES_S), 0
    for lived_s in lives_s:
        in_a_row = 1 if lived_s >= SOUND_S else in_a_row + 1
        assert backoff.died(lived_s) == PAUSES_S[min(in_a_row, 3) - 1]


class Joined:
    """A link of a daemon that joins a cluster, with the alarms that it has raised."""

    def __init__(self, folder: Path) -> None:
        settings = msgspec.structs.replace(load(environ={}).settings.cluster, mode="join", address="127.0.0.1:1")
        self.alarms: list[str] = []
        self.link = link.ClusterLink(
            settings, TWO, Store(folder / "state.sqlite"), 0.1, folder / "note", lambda: None,
            lambda _, text: self.alarms.append(text),
        )  # fmt: skip

    def run(self, is_over: Callable[[], bool]) -> None:
        """Run until `is_over` says so; whatever ends the link's own task is raised."""

        async def work() -> None:
            self.link.start()
            task = self.link._task
            assert task is not None
            async with asyncio.timeout(PATIENCE_S):
                while not is_over() and not task.done():  # noqa: ASYNC110  # a file tells nobody that it has grown
                    await asyncio.sleep(0.01)
            if task.done():
                task.result()
            await self.link.close()

        asyncio.run(work())


def program(folder: Path, text: str) -> str:
    path = folder / "python"
    path.write_text(text)
    path.chmod(0o700)
    return str(path)


def test_a_dispatcher_that_cannot_be_started_is_an_alarm_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(link, "RETRY_S", PAUSES_S)
    monkeypatch.setattr(link.sys, "executable", str(tmp_path / "nothing"))
    joined = Joined(tmp_path)
    joined.run(lambda: len(joined.alarms) >= 2)
    assert joined.link.state == "unreachable"
    assert "no dispatcher: " in joined.alarms[-1]
    assert "No such file or directory" in joined.alarms[-1]


def test_a_dispatcher_that_dies_as_soon_as_it_has_a_cluster_is_started_ever_more_seldom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "said").write_bytes(framed(msgspec.msgpack.encode(Connected(epoch=1, address="here"))))
    starts = tmp_path / "starts"
    starts.touch()
    text = f"#!/bin/sh\ndate +%s.%N >> {starts}\ncat {tmp_path}/said\n"
    monkeypatch.setattr(link, "RETRY_S", PAUSES_S)
    monkeypatch.setattr(link.sys, "executable", program(tmp_path, text))
    joined = Joined(tmp_path)
    joined.run(lambda: len(starts.read_text().splitlines()) >= 4)
    assert joined.link.epoch == 1
    at_s = [float(line) for line in starts.read_text().splitlines()][:4]
    for (before, after), pause_s in zip(itertools.pairwise(at_s), PAUSES_S, strict=True):
        assert after - before >= 0.9 * pause_s
