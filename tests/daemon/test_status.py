"""What `status` adds up, against a recount by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from life_cases import CLIP, S_NS, SESSION, Home

from cosched.api import messages as api
from cosched.daemon import status as statuses
from telemetry.bus import Frame

HEAVY = msgspec.structs.replace(CLIP, frame_flop=5e12, deadline_s=1.0)  # more than a phone does in time
EASY = msgspec.structs.replace(SESSION, new_tokens=1, max_output_tokens=5, ttft_s=100.0, tpot_s=10.0)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """Two UEs in two cells; the second cell's reports came first."""
    found = Home(tmp_path)
    found.report("ue1", "cell1")
    found.report("ue0", "cell0")
    yield found
    found.close()


def status(home: Home) -> api.Status:
    return home.result(api.Status, "status")


def test_a_site_without_tasks_has_no_plan_and_no_figures_of_one(home: Home):
    home.submit("a")
    assert status(home).promised == 1
    assert status(home).value > 0
    home.ask("release", {"task": "a"})
    now = status(home)
    assert (now.tasks, now.promised, now.value, now.bound, now.gap) == (0, 0, 0.0, 0.0, 0.0)
    assert all(r.planned == 0.0 and r.tasks == 0 for r in now.resources), "the last plan is past"


def test_resources_are_those_of_the_plan_with_who_holds_a_share(home: Home):
    home.submit("a", "b")
    home.submit("c", ue="ue1", work=HEAVY)
    now, plan = status(home), home.plans[-1]
    assert [r.id for r in now.resources] == ["cell0/ul", "cell1/ul", "edge0", "edge1", "edge0/mem", "edge1/mem"]
    assert [r.kind for r in now.resources] == ["comm", "comm", "compute", "compute", "memory", "memory"]
    assert [r.planned for r in now.resources] == plan.planned_use.tolist()
    held = {r.id: r.tasks for r in now.resources}
    assert all(lease.node for lease in home.published)
    by_hand = dict.fromkeys(held, 0)
    for lease in home.published:
        if lease.node:
            by_hand[f"{lease.cell}/ul"] += 1
            by_hand[lease.node] += 1
            by_hand[f"{lease.node}/mem"] += lease.task != "c"
    assert held == by_hand
    assert sum(held[f"{c}/ul"] for c in ("cell0", "cell1")) >= 2
    assert now.promised == sum(plan.promised.tolist())
    assert now.gap == pytest.approx(plan.bound - plan.value)


def test_who_is_served_by_the_device_alone_holds_nothing(home: Home):
    home.submit("alone", work=EASY)
    now = status(home)
    assert now.tasks == 1
    assert home.published[-1].point == "local"
    assert all(r.tasks == 0 for r in now.resources)


def test_a_task_that_ended_since_the_plan_is_promised_nothing(home: Home):
    home.submit("a", "b")
    assert status(home).promised == 2
    home.ask("release", {"task": "a"})
    now = status(home)
    assert (now.tasks, now.promised) == (1, 1)


def test_ues_of_cells_are_counted_with_those_that_are_silent(home: Home):
    limit_s = home.life.loaded.settings.telemetry.stale_input_s
    home.report("ue2", "cell1")
    home.submit("a", ue="ue1")
    assert [(c.id, c.ues, c.stale_ues) for c in status(home).cells] == [("cell0", 1, 0), ("cell1", 2, 0)]
    home.now_ns += round((limit_s + 0.5) * S_NS)
    home.report("ue2", "cell0")
    now = status(home)
    assert [(c.id, c.ues, c.stale_ues) for c in now.cells] == [("cell0", 2, 1), ("cell1", 1, 1)]
    assert now.ingest.stale_ues == 1, "only those with a task matter there"
    assert now.ingest.input_age_s == 0.0
    home.now_ns += S_NS
    assert status(home).ingest.input_age_s == pytest.approx(1.0)


def test_input_has_no_age_before_there_is_any(tmp_path: Path):
    home = Home(tmp_path)
    assert status(home).ingest.input_age_s == 0.0
    home.report(efficiency=None)
    home.now_ns += S_NS
    assert status(home).ingest.input_age_s == 0.0, "an idle UE says nothing of the channel"
    home.close()


def test_what_was_refused_is_named_with_its_source(home: Home):
    sockets, intake = home.life.sockets, home.life.intake
    home.life.bus.frames.append(Frame(b"ran.ue", b"\xc1", "radio", "radio"))
    home.life.ingest.drain()
    sockets.telemetry.malformed, sockets.control.malformed, sockets.control.unread = 2, 3, 4
    sockets.gate.counted = lambda: (("telemetry", "too many connections", 5),)
    intake.gaps.unfollowed = 6
    found = {(c.source, c.reason): c.n for c in status(home).ingest.refused}
    assert [n for (source, _), n in found.items() if source == "radio"] == [1]
    assert found["", "not a topic and a payload"] == 2
    assert found["", "a request without a payload"] == 3
    assert found["", "answers left unread"] == 4
    assert found["(telemetry)", "too many connections"] == 5
    assert found["(others)", "sequence numbers not followed"] == 6


def test_the_mode_the_counts_and_the_delays_are_the_engine_s(home: Home):
    home.submit("a")
    home.life.alarm("solver", "late")
    home.now_ns += 2 * S_NS
    now = status(home)
    assert (now.mode, now.alarms) == ("DEGRADED", ("solver: late",))
    assert now.mode_since_s == pytest.approx(2.0)
    assert now.uptime_s == pytest.approx(2.0)
    assert now.counts["offered"] == now.counts["solves"] == 1
    assert now.reasons == {"admitted": 1}
    assert now.generation == home.engine.core.generation
    assert (now.submit_ms.n, now.solve_ms.n, now.telemetry_ms.n) == (1, 1, 1)
    assert now.site == "two cells"
    assert now.config == str(home.folder / "cosched.toml")
    assert now.capture_bytes > 0


def test_numbers_that_no_encoding_holds_are_made_sound(home: Home):
    home.submit("a")
    home.engine.core.state.background[0], home.engine.counts["offered"] = np.inf, 2**70
    now = statuses.of(home.life)  # type: ignore[arg-type]
    assert now.resources[0].background > 1e300
    assert now.counts["offered"] == 2**63 - 1
    home.engine.core.state.background[0] = 0.0
