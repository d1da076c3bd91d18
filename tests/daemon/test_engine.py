"""The live engine: wrong answers go nowhere, its own pauses are nobody's silence, ends are on disk before told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from engine_cases import STALE_UE_S, Bench
from two_nodes import ONE, TWO, WORK, offer

from cosched.config import wiring as build
from cosched.config.wiring import Plant
from cosched.core.settings import Settings
from cosched.daemon.control import Control, RequestRefused
from solvers.solution import Solution
from telemetry.messages import TaskOffer, TaskProgress

LONG = msgspec.structs.replace(WORK, max_output_tokens=4000)  # 200 s when nobody reports it


def task(name: str, bench: Bench, **changes: object) -> TaskOffer:
    found = msgspec.structs.replace(offer(name, 0.0), at_ns=bench.now_ns, ue="ue0", work=LONG)
    return msgspec.structs.replace(found, **changes)


def serving(folder: Path, *names: str, plant: Plant = TWO) -> Bench:
    bench = Bench(folder, plant)
    bench.report()
    bench.submit(*(task(name, bench) for name in names))
    bench.solve()
    assert all(bench.told(name) == ["admitted"] for name in names)
    return bench


def test_a_task_that_has_ended_is_known_before_and_after_its_end_is_on_disk(tmp_path: Path):
    bench = serving(tmp_path, "a")
    control = Control(SimpleNamespace(engine=bench.engine), lambda *_: None, lambda _: None, 100, 1 << 20)  # type: ignore[arg-type]
    assert control.view("a").lease.reason == "admitted"
    bench.engine.end("a", "released")
    assert control.view("a").lease.reason == "admitted", "its end has not been told yet"
    bench.engine.flush()
    assert control.view("a").lease.reason == "released"
    with pytest.raises(RequestRefused, match="no task 'b'"):
        control.view("b")
    bench.close()


def test_a_site_that_loses_the_cell_before_a_tasks_own_goes_on_serving_it(tmp_path: Path):
    one, both = '{ id = "cell0", ul_prbs = 273, scs_khz = 30 }', '{ id = "cell1", ul_prbs = 100, scs_khz = 30 }'
    assert one in TWO.toml
    first = build.plant(TWO.toml.replace(one, f"{one}, {both}"), "two cells", {})
    second = build.plant(TWO.toml.replace(one, both), "one cell", {})
    bench = Bench(tmp_path, first)
    bench.report(cell="cell1")
    bench.submit(task("a", bench))
    bench.solve()
    ends_ns = bench.published[-1].valid_until_ns
    bench.wait(0.1)
    core = second.core("joint", Settings())
    assert core.restore(bench.engine.core.snapshot()) == ()
    bench.engine.adopt(second, core)
    for _ in range(5):
        bench.wait(0.1)
        bench.tick()
        bench.solve()
    lease = bench.published[-1]
    assert (lease.task, lease.cell) == ("a", "cell1")
    assert lease.valid_until_ns > ends_ns
    assert lease.bandwidth_hz == pytest.approx(lease.weight_prb * second.site.cells[0].ul_bandwidth_hz / 100)
    bench.engine.capture.close(bench.now_ns)
    bench.store.close()


# --- answers --------------------------------------------------------------------------------------------------------


def test_an_answer_that_nobody_awaits_is_counted_and_ends_nothing(tmp_path: Path):
    bench = serving(tmp_path, "a")
    bench.tick()
    (command,) = bench.asked
    bench.engine.end("a", "released")
    bench.engine.bar(("edge0",))
    bench.solve()
    for request in (command.request, 0, 10**9):
        bench.engine.solved(request, None, "its process died")
    assert bench.engine.counts["solves_superseded"] == 3
    assert bench.engine.counts["solves_failed"] == 0
    bench.close()


def overfull(solution: Solution) -> Solution:
    return replace(solution, share=solution.share * 1e6)


def not_a_number(solution: Solution) -> Solution:
    return replace(solution, share=np.full_like(solution.share, np.nan))


def out_of_range(solution: Solution) -> Solution:
    return replace(solution, chosen=np.full_like(solution.chosen, 10**6))


def of_another(solution: Solution) -> Solution:
    return replace(solution, chosen=solution.chosen[::-1].copy())


def too_short(solution: Solution) -> Solution:
    return replace(solution, chosen=solution.chosen[:1], share=solution.share[:1], promised=solution.promised[:1])


def of_another_type(solution: Solution) -> Solution:
    return replace(solution, chosen=solution.chosen.astype(np.float64))


def priced_below_nothing(solution: Solution) -> Solution:
    return replace(solution, prices=solution.prices - 1.0)


def in_steps_without_length(solution: Solution) -> Solution:
    return replace(solution, step_s=np.full_like(solution.step_s, np.nan))


def in_steps_of_nobody(solution: Solution) -> Solution:
    return replace(solution, step_s=solution.step_s[:-1])


def in_steps_too_long(solution: Solution) -> Solution:
    return replace(solution, step_s=solution.step_s * 100)


def in_steps_that_never_come(solution: Solution) -> Solution:
    return replace(solution, step_s=np.full_like(solution.step_s, np.inf))


def reading_too_often(solution: Solution) -> Solution:
    return replace(solution, period_s=solution.period_s / 100)


WRONG = [
    overfull, not_a_number, out_of_range, of_another, too_short, of_another_type, priced_below_nothing,
    in_steps_without_length, in_steps_of_nobody, in_steps_too_long, in_steps_that_never_come, reading_too_often,
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_answer_goes_nowhere(wrong: Callable[[Solution], Solution], tmp_path: Path):
    from cosched.children.packing import pack, solve_packed
    from cosched.children.pool import ask_of

    bench = serving(tmp_path, "a", "b")
    bench.wait(0.1)
    bench.submit(task("c", bench))
    command = bench.asked.pop()
    answer = solve_packed(pack(ask_of(command))).solution
    assert answer is not None
    plans = len(bench.plans)
    bench.engine.solved(command.request, wrong(answer), "")
    assert len(bench.plans) == plans
    assert bench.engine.counts["solves_wrong"] == bench.engine.counts["solves_failed"] == 1
    assert bench.alarms["solver"].startswith("a wrong answer: ")
    bench.solve()  # by the policy that follows
    assert bench.told("c") == ["admitted"]
    bench.close()


# --- the daemon's own pauses ----------------------------------------------------------------------------------------


def test_a_pause_of_the_machine_is_nobodys_silence(tmp_path: Path):
    bench = serving(tmp_path, "a")
    bench.tick()
    bench.wait(12.0)
    bench.tick()
    assert "a" in bench.engine.trackers
    assert bench.engine.counts["standstills"] == 1
    for _ in range(round(STALE_UE_S / 0.1) + 2):  # silent while the daemon is awake
        bench.wait(0.1)
        bench.tick()
    assert "a" not in bench.engine.trackers
    bench.solve()
    assert bench.told("a")[-1] == "stale"
    bench.close()


def test_a_slow_start_is_nobodys_silence(tmp_path: Path):
    serving(tmp_path, "a").close()
    later = Bench(tmp_path, TWO, now_ns=1001 * 10**9)
    later.wait(60.0)  # without a cache of compiled code
    later.tick()
    assert "a" in later.engine.trackers
    later.close()


def test_many_late_ticks_do_not_make_a_silent_radio_immortal(tmp_path: Path):
    bench = serving(tmp_path, "a")
    began_ns = bench.now_ns
    while "a" in bench.engine.trackers:
        bench.wait(0.5)  # a loaded machine
        bench.tick()
        bench.solve()
    assert bench.told("a")[-1] == "stale"
    assert bench.now_ns - began_ns < 2 * STALE_UE_S * 1e9
    bench.close()


# --- ends -----------------------------------------------------------------------------------------------------------


def test_an_end_is_on_disk_before_it_is_told(tmp_path: Path):
    bench = serving(tmp_path, "a", "b")
    stored: list[list[str]] = []

    def rows() -> list[str]:
        return [name for (name,) in bench.store._db.execute("SELECT task FROM tasks ORDER BY n")]

    bench.engine.board._publish = lambda _, __: stored.append(rows())
    bench.engine.end("a", "released")
    assert stored == []
    bench.engine.flush()
    assert stored == [["b"]]
    finished = TaskProgress(at_ns=0, source="r", seq=1, task="b", done=5, finished=True)
    bench.engine.report(finished, bench.now_ns)
    assert stored == [["b"], []]
    bench.close()


def test_an_end_before_the_first_plan_is_of_the_generation_of_before(tmp_path: Path):
    before = serving(tmp_path, "a")
    before.close()
    later = Bench(tmp_path, ONE, now_ns=before.now_ns + 10**9)
    later.engine.end("a", "released")
    later.engine.flush()
    (lease,) = later.published
    assert (lease.reason, lease.valid_for_ms) == ("released", 0.0)
    assert lease.plan == lease.seq >= before.plans[-1].generation
    later.close()


def test_a_task_released_while_it_is_planned_anew_and_back_under_its_id_is_decided_once(tmp_path: Path):
    bench = serving(tmp_path, "a", "b")
    bench.submit(task("c", bench))
    (command,) = bench.asked
    bench.engine.end("a", "released")
    bench.engine.flush()
    bench.answers.pop("a")
    bench.submit(task("a", bench))
    bench.solve()
    assert command.request
    assert bench.told("a") == ["admitted", "released", "admitted"]
    assert set(bench.engine.trackers) == set(bench.engine.core.state.tasks) == {"a", "b", "c"}
    bench.close()
