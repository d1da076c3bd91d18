"""The dashboard: a real daemon, real keys through textual's Pilot; what it says, as plain text, by itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from daemon_cases import CLIP, PATIENCE_S, SESSION, Daemon, Place, a_status, cosched, radio
from hypothesis import given
from hypothesis import strategies as st
from textual.pilot import Pilot
from textual.widgets import Input, Static

from cosched.api import messages as api
from cosched.api.async_client import AsyncClient
from cosched.api.client import Client
from cosched.top import view
from cosched.top.app import Page, Tasks, Top
from telemetry.messages import Reserved

HOSTILE = "[red]x\x1b[31m"  # markup of the toolkit's, and a terminal's
QUICK = {"TELEMETRY_STALE_INPUT_S": "1000", "TELEMETRY_STALE_UE_S": "1000", "SHADOW_ENABLED": "false"}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with two sessions, a clip with a hostile name, and one that was refused."""
    place = Place(tmp_path_factory.mktemp("top"), QUICK)
    with place.daemon() as running, running.ready() as client, radio(place, client, 3) as source:
        source.batch(2.0, 2.2, 200.0)  # the last is impossible: refused by source and reason
        client.submit("t1", "ue0", SESSION, weight=2.0)
        client.submit("t2", "ue1", SESSION)
        client.submit(HOSTILE, "ue2", CLIP)
        yield running


@contextlib.asynccontextmanager
async def dashboard(place: Place, size: tuple[int, int] = (100, 40)) -> AsyncIterator[tuple[Top, Pilot[None]]]:
    top = Top(lambda: AsyncClient(place.control, None, 5.0), 0.1)
    async with top.run_test(size=size) as pilot:
        yield top, pilot


async def until(pilot: Pilot[None], condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        await pilot.pause(0.02)


def said(top: Top, where: str) -> str:
    return str(top.query_one(where, Static).render())


def column(top: Top, name: str) -> list[str]:
    table = top.query_one(Tasks)
    return [str(cell).strip() for cell in table.get_column(name)]


def page(top: Top) -> str:
    return str(top.screen.query_one("#text", Static).render())


# --- with a daemon --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(80, 24), (160, 50)])
def test_it_shows_mode_cells_nodes_alarms_and_tasks(daemon: Daemon, size: tuple[int, int]):
    async def look() -> None:
        async with dashboard(daemon.place, size) as (top, pilot):
            await until(pilot, lambda: len(column(top, "task")) == 3)
            assert said(top, "#head").startswith("STEADY for ")
            assert "3 tasks, 3 promised" in said(top, "#head")
            assert "gain over pf-admit" in said(top, "#head")
            assert max(map(len, said(top, "#head").splitlines())) <= 80
            assert "cell0" in said(top, "#cells")
            assert "edge0" in said(top, "#nodes")
            assert "REFUSED 1 from ran" in said(top, "#alarms")
            assert column(top, "UE") == ["ue2", "ue0", "ue1"]
            assert column(top, "task")[0] == "[red]x [31m", "as it is called, without what would steer a terminal"
            assert top.query_one(Tasks).size.height >= 8, "room for tasks"

    asyncio.run(look())


def test_keys_sort_filter_help_and_quit(daemon: Daemon):
    async def press() -> None:
        async with dashboard(daemon.place) as (top, pilot):
            await until(pilot, lambda: len(column(top, "task")) == 3)
            await pilot.press("s")
            assert column(top, "UE") == ["ue0", "ue1", "ue2"]
            assert said(top, "#count") == "tasks by UE, ascending"
            await pilot.press("r")
            assert column(top, "UE") == ["ue2", "ue1", "ue0"]
            await pilot.press("S", "slash", *"t2")
            assert column(top, "task") == ["t2"]
            assert "1 of 3 contain 't2'" in said(top, "#count")
            await pilot.press("escape")
            assert len(column(top, "task")) == 3
            assert not top.query_one("#filter", Input).has_class("open")
            await pilot.press("question_mark")
            assert isinstance(top.screen, Page)
            assert "why a task has what it has" in page(top)
            await pilot.press("escape", "q")
            await until(pilot, lambda: not top.is_running)

    asyncio.run(press())


def test_the_cursor_stays_with_its_task_and_enter_explains_it(daemon: Daemon):
    async def ask() -> None:
        async with dashboard(daemon.place) as (top, pilot):
            await until(pilot, lambda: len(column(top, "task")) == 3)
            await pilot.press("s", "down", "down", "r")  # the last by UE is the first now
            assert top.query_one(Tasks).cursor_row == 0
            await pilot.press("enter")
            await until(pilot, lambda: isinstance(top.screen, Page) and "operating point" in page(top))
            assert page(top).startswith("[red]x [31m of ue2\n\nAdmitted")
            assert "cell0/ul" in page(top)

    asyncio.run(ask())


def test_a_refused_task_appears_and_says_what_would_have_helped(daemon: Daemon):
    hasty = msgspec.structs.replace(SESSION, ttft_s=0.2, new_tokens=256, private=True)

    async def watch() -> None:
        async with dashboard(daemon.place) as (top, pilot):
            await until(pilot, lambda: len(column(top, "task")) == 3)
            with Client(daemon.place.control) as client:
                lease = await asyncio.to_thread(client.submit, "big", "ue0", hasty)
            assert not lease.point
            await until(pilot, lambda: "big" in column(top, "task"))
            await pilot.press("slash", *"refused", "enter", "enter")
            await until(pilot, lambda: isinstance(top.screen, Page) and "What would change it" in page(top))
            assert "admitted with" in page(top)

    asyncio.run(watch())


def test_a_daemon_that_goes_away_is_told_and_waited_for(tmp_path: Path):
    place = Place(tmp_path, QUICK)

    async def live() -> None:
        async with dashboard(place, (80, 24)) as (top, pilot):
            await until(pilot, lambda: said(top, "#head") == "NO DAEMON")
            assert "'cosched run' starts one" in said(top, "#alarms")
            with place.daemon() as first:
                await until(pilot, lambda: said(top, "#head").startswith(("STARTING", "STEADY")))
                first.process.kill()
                await until(pilot, lambda: said(top, "#head").startswith("NO DAEMON for"))
                await pilot.press("s", "r", "enter", "question_mark", "escape")  # keys work without it
            with place.daemon() as second:
                await until(pilot, lambda: said(top, "#head").startswith(("STARTING", "STEADY")))
                second.process.kill()

    asyncio.run(live())


# --- from a shell ---------------------------------------------------------------------------------------------------


def test_without_a_terminal_it_says_what_to_use():
    done = cosched("top")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "needs a terminal; 'cosched ctl status --json'" in done.stderr


def test_a_key_without_the_daemons_key_is_refused():
    done = cosched("top", "--key", "mine")
    assert done.returncode == 2
    assert "--key and --server" in done.stderr


def test_in_a_terminal_it_draws_and_q_ends_it(daemon: Daemon):
    """The program itself, on a pseudo-terminal."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ |= {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
        command = [sys.executable, "-m", "cosched.cli.main", "top", "--endpoint", daemon.place.control]
        os.execv(command[0], command)  # noqa: S606
    drawn = b""
    while b"STEADY" not in drawn:
        drawn += os.read(terminal, 1 << 16)
    os.write(terminal, b"q")
    with contextlib.suppress(OSError):  # EIO: the other end is closed
        while chunk := os.read(terminal, 1 << 16):
            drawn += chunk
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert b"Traceback" not in drawn


# --- the text -------------------------------------------------------------------------------------------------------


def lease(task: str = "t", **changes: object) -> api.Lease:
    plain = api.Lease(
        at_ns=0, source="cosched", seq=1, task=task, plan=1, reason="admitted", point="k=4/8bit/edge0", cell="cell0",
        node="edge0", weight_prb=3.0, reserved=Reserved(node=0.25), predicted_s=(0.4, 0.09), slack_s=(0.1, 0.01),
        ue="ue0", promised=True,
        valid_for_ms=400.0,
    )  # fmt: skip
    return msgspec.structs.replace(plain, **changes)


def task(name: str = "t", phase: int = 1, **changes: object) -> api.TaskView:
    return api.TaskView(
        task=name, ue="ue0", kind="llm", weight=1.0, age_s=1.0, phase=phase, done=0, reported=True,
        lease=lease(name, **changes),
    )  # fmt: skip


def shown(row: view.TableRow) -> dict[str, str]:
    return {name: cell.text for name, cell in zip(view.COLUMNS, row.cells, strict=True)}


def test_a_row_is_of_the_present_phase():
    (prefill,), (decoding,) = view.rows([task(phase=0)], []), view.rows([task(phase=1)], [])
    assert shown(prefill)["ms/limit"] == "400/500"
    assert shown(decoding)["ms/limit"] == "90/100"
    assert shown(decoding) | {"split": "k=4/8bit", "node": "edge0", "node%": "25.0", "slack": "10"} == shown(decoding)


def test_what_has_no_share_never_ends_and_what_is_late_says_so():
    (row,) = view.rows([task(promised=False, predicted_s=(None, None), slack_s=(None, None))], [])
    assert (shown(row)["ms/limit"], shown(row)["slack"], shown(row)["reason"]) == ("never", "-", "no promise")


def test_a_refusal_has_no_numbers():
    (row,) = view.rows([], [lease(point="", reason="rejected_no_capacity", node="")])
    assert (shown(row)["split"], shown(row)["reason"], shown(row)["PRBs"]) == ("refused", "no capacity", "")


@given(
    prbs=st.lists(st.floats(0, 100) | st.none(), min_size=1, max_size=20),
    name=st.sampled_from(view.COLUMNS),
    descending=st.booleans(),
)
def test_every_order_keeps_all_rows_and_puts_blanks_last(prbs: list[float | None], name: str, descending: bool):
    views = [task(f"t{i}", weight_prb=p) for i, p in enumerate(prbs) if p is not None]
    away = [lease(f"t{i}", point="", reason="rejected_no_point") for i, p in enumerate(prbs) if p is None]
    rows = view.rows(views, away)
    ordered = view.arranged(rows, name, "", descending=descending)
    assert sorted(r.task for r in ordered) == sorted(r.task for r in rows)
    assert ordered == view.arranged(rows[::-1], name, "", descending=descending), "whatever the order before"
    at = view.COLUMNS.index(name)
    blanks = [r.cells[at].blank for r in ordered]
    assert blanks == sorted(blanks)
    values = [r.cells[at].number for r in ordered if not r.cells[at].blank]
    assert values == sorted(values, reverse=descending)


def test_the_filter_looks_into_every_column():
    rows = view.rows([task("a"), task("b", cell="cell7")], [lease("c", point="", reason="rejected_no_point")])
    assert [r.task for r in view.arranged(rows, "task", "CELL7", descending=False)] == ["b"]
    assert [r.task for r in view.arranged(rows, "task", "no point", descending=False)] == ["c"]


def test_more_alarms_than_lines_are_counted():
    counted = tuple(api.Counted(source=f"s{i}", reason="cqi", n=i) for i in range(1, 9))
    ingest = api.IngestView(refused=counted, lost={"ran": 3}, stale_ues=2)
    status = a_status(mode="DEGRADED", alarms=("telemetry: none",), ingest=ingest)
    lines = view.alarms(status)
    assert lines[:3] == [
        "ALARM telemetry: none",
        "STALE 2 UEs with tasks are not reported any more",
        "REFUSED 8 from s8: cqi",
    ]
    assert lines[3] == "and 8 more: 'cosched ctl status'"
    gained = api.ShadowView(
        baseline="pf", window_s=600.0, offered=60, live=api.ShadowTally(met=45), shadow=api.ShadowTally(met=36)
    )
    assert view.gain(gained) == "over pf: 1.25 x met (45, 36 of 60 in 10 min)"
    assert (
        "x"
        not in view.gain(msgspec.structs.replace(gained, shadow=api.ShadowTally())).partition(":")[2].split("met")[0]
    )
