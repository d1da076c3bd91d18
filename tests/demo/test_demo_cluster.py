"""The demo's cluster part: its set-up, what the site makes of good and bad channels, its words, and all of it once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from replay_cases import sample

from cosched.api.messages import ClusterNode, Lease
from cosched.cli import demo_cluster
from cosched.config.wiring import Plant, plant
from cosched.core.commands import Command, Dispatch, Solve
from cosched.core.core import Core
from cosched.core.events import Barred, Event, Offered, Solved
from cosched.core.settings import Settings
from cosched.daemon.verify import verify
from cosched.demo.messages import Checked, Said, Token, UeEnded, UeMoved
from cosched.demo.play import Played, play, started
from cosched.demo.stage import TOKENS, UES, Stage, prepare, work
from cosched.errors import BadInput
from cosched.resources import sample_trace
from solvers import registry as solvers
from telemetry.messages import TaskOffer, UeReportBatch
from telemetry.trace import write_trace


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return prepare(tmp_path / "cluster", sample_trace())


# --- set-up ---------------------------------------------------------------------------------------------------------


def test_the_radio_is_the_samples(stage: Stage):
    recorded = [m for m in sample(41.0) if isinstance(m, UeReportBatch)]
    assert len(stage.messages) == len(recorded)
    for ours, theirs in zip(stage.messages, recorded, strict=True):
        assert ours.ue == UES
        for i, ue in enumerate(UES):
            j = theirs.ue.index(ue)
            assert (ours.cell[i], ours.ul_efficiency_bps_hz[i]) == (theirs.cell[j], theirs.ul_efficiency_bps_hz[j])
    assert {cell for m in stage.messages for cell in m.cell} == {"cell0"}
    typical = [sorted(stage.channel(ue).efficiency_bps_hz)[80] for ue in UES]
    assert typical == sorted(typical, reverse=True)
    assert typical[0] > 5 * typical[-1], "four channels that differ"


def test_a_trace_without_these_ues_is_refused(tmp_path: Path):
    trace = tmp_path / "other.mcap"
    write_trace(trace, [m for m in sample(2.0) if not isinstance(m, UeReportBatch)])
    with pytest.raises(BadInput, match="no radio reports of ue07, ue26, ue09, ue31"):
        prepare(tmp_path / "cluster", trace)


def planned(core: Core, at_s: float, event: Event) -> Iterator[tuple[str, int, int, str]]:
    """Tell the core; yield each new decision, which is an admission, as task, split layer, bits and node."""
    todo: list[Command] = list(core.handle(event, at_s))
    while todo:
        command = todo.pop(0)
        if isinstance(command, Solve):
            solution = solvers.solve(
                command.policy.solver, command.problem, warm=command.warm, options=command.policy.options
            )
            todo += core.handle(Solved(command.request, solution=solution), at_s)
        elif isinstance(command, Dispatch):
            for found in command.plan.decisions:
                assert found.point >= 0, f"{found.task}: {found.reason}"
                table, j = found.table, found.point
                name = table.point_ids[j].rpartition("/")[2]
                yield found.task, int(table.split[j]), int(table.precision_bits[j]), name


def test_the_channels_decide_the_split_and_one_node_holds_all(stage: Stage):
    """The weakest channel leaves the device least time: fewer layers there, fewer bits on the air."""
    site = stage.folder / "site.toml"
    made: Plant = plant(site.read_text(), str(site), {})
    core = made.core("joint", Settings())
    list(core.handle(stage.messages[0], 0.0))
    places = {}
    for i, ue in enumerate(UES):
        at_s = 0.1 + 0.2 * i
        offer = TaskOffer(at_ns=round(1e9 * at_s), source="s", seq=i, task=ue, ue=ue, work=work(TOKENS))
        for task, *place in planned(core, at_s, Offered((offer,))):
            places[task] = place
    best, worst = places[UES[0]], places[UES[-1]]
    assert best[0] > worst[0] >= 1
    assert best[1] > worst[1]
    assert {node for _, _, node in places.values()} == {"edge0", "edge1"}
    moved = {task: place for task, *place in planned(core, 2.0, Barred(("edge1",)))}
    assert set(moved) == {ue for ue, (_, _, node) in places.items() if node == "edge1"}
    assert {node for _, _, node in moved.values()} == {"edge0"}


# --- words ----------------------------------------------------------------------------------------------------------


def lease(ue: str, point: str, node: str, reason: str = "admitted") -> Lease:
    return Lease(
        at_ns=0, source="cosched", seq=1, task=ue, plan=1, reason=reason, point=point, split_layer=6, precision_bits=8,
        node=node, weight_prb=2.0, predicted_s=(0.5, 0.1), slack_s=(1.0, 0.05), efficiency_bps_hz=2.6,
    )  # fmt: skip


def told(ue: str, tokens: int) -> Iterator[Said]:
    for token in range(tokens):
        yield Token(ue=ue, token=token, ttft_s=0.4, tpot_s=0.12)
    yield UeEnded(ue=ue, tokens=tokens, why="")
    yield Checked(ue=ue, equal=tokens, unrounded=tokens - 2, tpot_s=0.11)


def played(tokens: int = 5) -> Played:
    """What is known after a run without a fault."""
    found = Played(tokens, victim="edge1", nodes=(ClusterNode(node="edge1", state="lost"),))
    for ue in UES:
        found.sessions[ue].granted(lease(ue, "k=6/8bit/edge1", "edge1"))
        found.heard(UeMoved(ue=ue, tokens=2, point="k=6/8bit/edge0", how="recomputed"))
        found.sessions[ue].granted(lease(ue, "k=6/8bit/edge0", "edge0", "moved_node_lost"))
        for said in told(ue, tokens):
            found.heard(said)
    return found


def test_a_run_without_a_fault_holds_and_is_told():
    found = played()
    assert list(demo_cluster.what_fails(found)) == []
    text = "\n".join(demo_cluster.summary(found))
    assert "ue31: 5 tokens; the first after 400 ms (planned 500, asked 2500), then one every 110 ms" in text
    assert "k=6/8bit/edge1, then k=6/8bit/edge0 from token 3 (recomputed);" in text
    assert "5 equal to the unsplit model's with the same seed and the same rounding; without rounding 2 would" in text
    assert "s ago: lost; ue07, ue26, ue09, ue31 moved, their KV made anew." in text
    found.nodes = (ClusterNode(node="edge1", state="up"),)
    assert "s ago: not missed yet" in demo_cluster.news(found)
    found.noticed = True
    assert "s ago: up again" in demo_cluster.news(found)


def test_what_does_not_hold_is_said():
    found = played()
    found.sessions["ue07"].checked = Checked(ue="ue07", equal=3, unrounded=3, tpot_s=0.1)
    found.sessions["ue26"].tokens.pop()
    found.sessions["ue09"].ended = UeEnded(ue="ue09", tokens=0, why="there is no lease: rejected_no_capacity")
    found.sessions["ue09"].checked = None
    found.victim = ""
    assert list(demo_cluster.what_fails(found)) == [
        "no node was killed: the sessions had ended before",
        "ue07: token 4 is not the whole model's",
        "ue26 has 4 tokens of 5 without a reason",
        "ue09 was not served: there is no lease: rejected_no_capacity",
    ]


def test_a_session_that_ends_early_with_its_reason_is_no_fault():
    found = played(tokens=5)
    found.sessions["ue31"].tokens[:] = [0, 1]
    found.sessions["ue31"].ended = UeEnded(ue="ue31", tokens=2, why="the host cannot be reached")
    found.sessions["ue31"].checked = Checked(ue="ue31", equal=2, unrounded=2, tpot_s=0.1)
    assert list(demo_cluster.what_fails(found)) == []
    assert demo_cluster.line(found.sessions["ue31"]).endswith(" ended: the host cannot be reached")
    assert "         ended early: the host cannot be reached;" in list(demo_cluster.summary(found))


def test_figures_stand_under_their_names():
    found = played(tokens=12)
    found.sessions["ue07"].came_s.clear()
    under = demo_cluster.line(found.sessions["ue07"])
    for name, value in (("b/s/Hz", "2.60"), ("PRBs", "2"), ("tokens", "12"), ("TTFT, ms", "400/2500")):
        end = demo_cluster.HEAD.index(name) + len(name)
        assert under[:end].endswith(f" {value}")
    assert under.endswith(" (all)")
    assert found.busiest() == "", "all have ended"
    assert not [line for line in demo_cluster.picture(found).splitlines() if len(line) > 120]


# --- all of it ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_four_ues_generate_split_and_survive_the_death_of_a_node(tmp_path: Path):
    pytest.importorskip("torch", reason="the extra [llm] is not installed")
    stage = prepare(tmp_path / "c", sample_trace(), tokens=24)

    async def run() -> Played:
        async with started(stage) as cluster:
            return await play(cluster, lambda _, __: None)

    found = asyncio.run(run())
    assert list(demo_cluster.what_fails(found)) == []
    survivors = [s for s in found.sessions.values() if s.ended is not None and not s.ended.why]
    assert all(len(s.tokens) == 24 for s in survivors)
    hit = [s for s in found.sessions.values() if any(one.node == found.victim for one in s.leases)]
    assert hit
    for session in hit:
        assert session in survivors or "cannot be reached" in session.ended.why
    (capture,) = (stage.folder / "state" / "captures").glob("*.mcap")
    assert verify(capture).difference == ""
    log = (stage.folder / "log").read_text()
    assert "Traceback" not in log
    assert (stage.folder / "ues.log").read_text() == ""
