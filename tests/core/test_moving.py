"""What moving a session costs in a plan, against the sizes of the model and against a move that is really made."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from layer_cases import WIDE, answer, core_of, offer, place_of, reasons, submit

from cosched.core.core import Core
from cosched.core.events import Barred, Placed, Progress, Progressed, Tick
from cosched.core.layers import NodeLayers
from cosched.core.moving import DOWN_BPS, PEER_BPS, Moves, charged, move_s, moves_of
from cosched.core.settings import Settings
from cosched.workloads.base import LOCAL, PointTable
from telemetry.messages import LlmSession

LLAMA_KV_BYTES = 4096  # a token and layer in 16 bit: 2 x 8 heads x 128
UP_BPS = 20e6


def decoding(core: Core, task: str, done: int, at_s: float) -> None:
    progress = Progress(task=task, phase=1, done=done, late=0, first_s=0.3, last_s=at_s, ul_bits_left=0.0,
                        node_s_left=0.0, fixed_s_left=0.0)  # fmt: skip
    core.handle(Progressed((progress,)), at_s)


def row(table: PointTable, node: int, split: int) -> int:
    return next(j for j in range(table.n_points) if table.node[j] == node and table.split[j] == split)


def moved(done: int, *, stranded: bool) -> tuple[PointTable, int, Moves, int]:
    """All moves of a session at split 4 of edge0 after `done` tokens; its tokens so far."""
    core = core_of(WIDE)
    asked = offer("t", 0.1, private=True)
    table = core._points(asked, 0, ())
    point = row(table, 0, 4)
    progress = Progress(task="t", phase=1, done=done, late=0, first_s=0.3, last_s=2.0, ul_bits_left=0.0,
                        node_s_left=0.0, fixed_s_left=0.0)  # fmt: skip
    assert isinstance(asked.work, LlmSession)
    everywhere = np.arange(table.n_points)
    found = moves_of(table, everywhere, point, asked.work, progress, stranded=stranded)
    return table, point, found, asked.work.context_tokens + asked.work.new_tokens + done


@pytest.mark.parametrize("done", [1, 50, 199])
def test_sending_counts_the_kv_of_the_layers_that_change_hands(done: int):
    table, point, found, tokens = moved(done, stranded=False)
    for j in range(table.n_points):
        split, node = int(table.split[j]), int(table.node[j])
        up, down = max(4 - split, 0), max(split - 4, 0)
        peer = 32 - max(4, split) if node not in {0, LOCAL} else 0
        size = 8 * tokens * LLAMA_KV_BYTES
        assert found.bits[j, 0] == pytest.approx(up * size)
        assert found.seconds[j, 0] == pytest.approx(down * size / DOWN_BPS + peer * size / PEER_BPS)
    assert found.stays[point]
    assert (table.split[found.stays] == 4).all()
    assert not table.node[found.stays].any()
    assert found.left_s == pytest.approx(0.05 * (200 - done))


def test_computing_again_counts_the_whole_prefill_and_the_sooner_of_both_is_taken():
    table, _, found, tokens = moved(50, stranded=False)
    again = tokens / 256
    for j in range(table.n_points):
        work_s = table.device_s[j, 0] + table.node_s[j, 0]
        assert found.seconds[j, 1] == pytest.approx(again * work_s + table.fixed_s[j, 0] - table.device_s[j, 0])
        assert found.bits[j, 1] == pytest.approx(again * table.ul_bits[j, 0])
        each = found.seconds[j] + found.bits[j] / UP_BPS
        assert move_s(found, UP_BPS)[j] == (0.0 if found.stays[j] else pytest.approx(min(each)))
    lost = moved(50, stranded=True)[2]
    assert np.isinf(lost.seconds[:, 0]).all()  # what a lost node held is lost
    assert (move_s(lost, UP_BPS)[~lost.stays] >= move_s(found, UP_BPS)[~lost.stays]).all()


def test_nothing_is_worth_less_than_the_part_of_its_time_that_a_move_eats():
    table, _, found, _ = moved(199, stranded=False)  # 50 ms are left
    value = np.full(table.n_points, 5.0)
    left = charged(value, [(slice(0, table.n_points), 3.0, found)], [UP_BPS], Settings())
    assert left[found.stays] == pytest.approx(5.0 - 3.0 * 0.4)
    assert left[~found.stays].min() == pytest.approx(2.0)  # all of it, and no more
    assert (value == 5.0).all()
    stranded = moved(199, stranded=True)[2]
    worth = charged(value, [(slice(0, table.n_points), 3.0, stranded)], [UP_BPS], Settings())
    assert worth.min() == pytest.approx(5.0 + 3.0 * (1.0 - 0.2 - 1.0))


@pytest.mark.parametrize(("done", "fate"), [(1, "moved"), (980, "stays")])
def test_a_session_leaves_layers_that_are_to_go_while_that_is_cheap(done: int, fate: str):
    """At 50 ms a token of 1000: its KV cache takes about 2 s to the other node, of 50 s left or of 1 s."""
    core = core_of(WIDE)
    asked = offer("t", 0.1, private=True)
    assert isinstance(asked.work, LlmSession)
    asked = msgspec.structs.replace(asked, work=msgspec.structs.replace(asked.work, max_output_tokens=1000))
    assert submit(core, 0.1, asked) == {"t": "admitted"}
    home, _ = place_of(core, "t")
    at_s = 0.3 + 0.05 * done
    decoding(core, "t", done, at_s)
    going = NodeLayers(node=home, holds={"llama": 0}, keeps={})
    assert core.handle(Placed((going,)), at_s) == [], "nobody must go"
    plans = answer(core, core.handle(Tick(), at_s), at_s)
    assert reasons(plans).get("t", "stays") == fate
    assert (place_of(core, "t")[0] == home) == (fate == "stays")


def test_who_must_move_is_worth_more_than_a_newcomer_and_most_where_it_is_soonest_at_work():
    core = core_of(WIDE)
    submit(core, 0.1, offer("t", 0.1))
    home, _ = place_of(core, "t")
    decoding(core, "t", 100, 5.0)
    solves = core.handle(Barred((home,)), 5.0)
    assert core._open is not None
    problem = core._open[1].planned.problem
    task = core.state.tasks["t"]
    more = problem.value - task.table.quality[task.candidates(core.state.places)]
    assert (more <= 1.0 - 0.2).all()
    assert (more >= -0.2 - 1e-9).all()
    assert len(set(np.round(more, 9))) > 1  # places differ in what they cost
    assert reasons(answer(core, solves, 5.0)) == {"t": "moved_node_lost"}


def test_a_move_that_is_made_takes_about_what_was_reckoned(tmp_path: Path):
    """Split 2 to 4 on another host after 200 tokens, computed again: against a profile measured on a shorter prompt."""
    pytest.importorskip("torch", reason="the extra [llm] is not installed")
    import runtime_cases as cases

    from cosched.runtime.chain import Hop, Links, Route
    from cosched.runtime.generation import Generation
    from cosched.runtime.move import MIGRATED, RECOMPUTED, MoveCosts, volume
    from cosched.runtime.parts import Part

    source = cases.seeded(tmp_path, hidden_size=512, intermediate_size=1536)
    n, prompt = cases.LAYERS, [(7 * i) % cases.VOCAB for i in range(200)]
    with cases.host_threads(source) as (a, b):
        links = Links()
        costs = MoveCosts(up_bps=1e-3, down_bps=1e-3, peer_bps=1e-3, device_layer_s=1e-9, node_layer_s=1e-9)
        new = Route(4, (Hop(b.endpoint, n),), 32)
        prefills = []
        for _ in range(3):  # the profile: a prefill of 64 tokens on the new route
            probe = Generation(Part(source), "probe", prompt[:64], new, links)
            began = time.thread_time()
            wall = time.perf_counter()
            probe.advance()
            prefills.append((time.perf_counter() - wall, time.thread_time() - began))
            probe.close()
        run = Generation(Part(source), "t", prompt, Route(2, (Hop(a.endpoint, n),), 32), links)
        run.advance()
        layout = run.part.kv_layout
        sent = volume(run.route, new, run.done, layout)
        assert run.resplit(new, costs).how == RECOMPUTED
        wall = time.perf_counter()
        run.advance()
        took_s = time.perf_counter() - wall
        run.close()
        links.close()
    prefill_s = min(wall_s for wall_s, _ in prefills)
    two = np.zeros((2, 2))
    kv = 32 * layout.bytes_per_token  # of the greatest context, a layer
    table = PointTable(
        point_ids=("k=2/a", "k=4/b"), split=np.array([2, 4]), precision_bits=np.array([32, 32]), node=np.array([0, 1]),
        quality=np.ones(2), fixed_s=two.copy(), device_s=two.copy(), ul_bits=two.copy(),
        node_s=np.array([[prefill_s, 0.0]] * 2), node_bytes=np.array([(n - 2) * kv, (n - 4) * kv]) * 300 / 32,
        device_energy_j=two, deadline_s=np.array([1.0, 1.0]), rate_hz=np.ones(2),
    )  # fmt: skip
    work = LlmSession(model="llama", context_tokens=0, new_tokens=64, max_output_tokens=236, ttft_s=1.0, tpot_s=1.0)
    progress = Progress(task="t", phase=1, done=136, late=0, first_s=0.0, last_s=1.0, ul_bits_left=0.0,
                        node_s_left=0.0, fixed_s_left=0.0)  # fmt: skip
    found = moves_of(table, np.arange(2), 0, work, progress, stranded=False)
    reckoned_s = float(found.seconds[1, 1])
    assert sent.how == MIGRATED
    sent_s = 8 * sent.down_bytes / DOWN_BPS + 8 * sent.peer_bytes / PEER_BPS
    assert found.seconds[1, 0] == pytest.approx(sent_s)
    assert 0.2 <= took_s / reckoned_s <= 5.0, (took_s, reckoned_s)
