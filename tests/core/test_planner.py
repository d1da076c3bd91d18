"""From what the core knows to solver columns: against the same rules written out point by point, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from cosched.core.events import Progress
from cosched.core.planner import Planned, make_layout, plan_problem
from cosched.core.settings import Settings
from cosched.core.state import State, Task
from cosched.resources import config_file
from cosched.site import load_site
from cosched.workloads import registry
from cosched.workloads.base import LOCAL, Floats
from cosched.workloads.context import load_profiles, session_memory_bytes
from solvers.steps import change
from telemetry.messages import LlmSession, TaskOffer, UeReport, VideoClip

SITE = load_site(config_file("sites", "urban-llm.toml"))
PROFILES = load_profiles(SITE)
BYTES = session_memory_bytes(PROFILES)
SETTINGS = Settings()
NOW_S = 20.0
UES = 5
MODEL = SITE.models[0].id


def new_state(rng: np.random.Generator) -> State:
    state = State(SITE, SETTINGS)
    for at_s in (1.0, 4.0, 18.0):
        for u in range(UES):
            observe(state, f"ue{u}", at_s, int(rng.integers(len(SITE.cells))), float(rng.uniform(0.05, 6.0)))
    return state


def observe(state: State, ue: str, at_s: float, cell: int, efficiency: float) -> None:
    where = SITE.cells[cell].id
    report = UeReport(at_ns=round(at_s * 1e9), source="r", seq=0, ue=ue, cell=where, ul_efficiency_bps_hz=efficiency)
    state.observe(at_s, report)


def new_task(state: State, name: str, rng: np.random.Generator) -> Task:
    if rng.random() < 0.3:
        fps = float(rng.choice([2.0, 5.0, 10.0]))
        work: LlmSession | VideoClip = VideoClip(
            frame_flop=60e9, frame_bits=5e5, fps=fps, deadline_s=1 / fps, frames=40
        )
    else:
        work = LlmSession(
            model=MODEL, context_tokens=int(rng.integers(0, 2000)), new_tokens=64, max_output_tokens=200,
            ttft_s=2.0, tpot_s=float(rng.choice([0.05, 0.2])), private=bool(rng.random() < 0.5),
        )  # fmt: skip
    ue = int(rng.integers(UES))
    at_ns = round(float(rng.uniform(18.5, 19.9)) * 1e9)
    weight = float(rng.choice([1.0, 5.0]))
    offer = TaskOffer(at_ns=at_ns, source="s", seq=0, task=name, ue=f"ue{ue}", work=work, weight=weight)
    cell = state.cell_of_ue[offer.ue]
    table = registry.points(offer, PROFILES.context_of(ue % len(SITE.ues.devices), cell))
    return Task(offer, table, state.channel.index(offer.ue), cell)


def progress_of(task: Task, phase: int, rng: np.random.Generator) -> Progress:
    done = int(rng.integers(1, 50)) if phase else 0
    first_s = float(rng.uniform(19.0, 19.5))
    left = [float(x) for x in rng.uniform(0, [1e5, 0.2, 0.1])]
    return Progress(task.offer.task, phase, done, 0, first_s, first_s + float(rng.uniform(0, 9)), *left)


def admit(state: State, task: Task, rng: np.random.Generator) -> None:
    if task.table.n_points:
        task.point = int(rng.integers(task.table.n_points))
        state.tasks[task.offer.task] = task
        state.version += 1


def plan(state: State, newcomers: list[Task], busy: Floats | None = None) -> Planned:
    return plan_problem(state, make_layout(state, newcomers, SETTINGS, BYTES), NOW_S, SETTINGS, busy=busy)


def expected_deadlines(task: Task) -> tuple[float, float]:
    work, progress = task.offer.work, task.progress
    if isinstance(work, VideoClip):
        return work.deadline_s * SETTINGS.deadline_margin, np.inf
    aim = work.tpot_s * SETTINGS.deadline_margin
    if progress is None or progress.phase == 0:
        return work.ttft_s * SETTINGS.deadline_margin - (NOW_S - task.offer.at_ns * 1e-9), aim
    ahead_s = (progress.done - 1) * aim - (progress.last_s - progress.first_s)
    paced = aim + ahead_s / SETTINGS.pace_horizon
    return np.inf, min(max(paced, SETTINGS.pace_least * aim), SETTINGS.pace_most * aim)


def expected_rates(task: Task) -> tuple[float, float]:
    """A decoder that is ahead of the promised pace asks for less, one that is behind for more.

    A prefill that has begun comes once in the time that is left.
    """
    first, second = (float(r) for r in task.table.rate_hz)
    if task.is_llm and task.phase == 0 and task.progress is not None and task.point >= 0:
        left_s = expected_deadlines(task)[0]
        return (max(first, 1.0 / left_s) if left_s > 0 else first), second
    if task.is_llm and task.phase == 1:
        return first, SETTINGS.deadline_margin / expected_deadlines(task)[1]
    return first, second


def physics(task: Task, row: int, q: int) -> tuple[float, float, float]:
    """Bits, node seconds, fixed seconds of phase q that still lie ahead."""
    table, progress = task.table, task.progress
    if task.is_llm and q == 0 and progress is not None and task.point >= 0:
        if progress.phase == 1:
            return 0.0, 0.0, float(table.fixed_s[row, 0])
        return progress.ul_bits_left, progress.node_s_left, progress.fixed_s_left
    return float(table.ul_bits[row, q]), float(table.node_s[row, q]), float(table.fixed_s[row, q])


def expected_slack(state: State, task: Task, row: int, newcomers: Sequence[Task] = ()) -> list[float]:
    """Of a point's phases, before anybody waits for steps: deadline less what is fixed and what its device is busy.

    Of the tasks of one UE the earlier come first on its device; who runs leaves it to who comes.
    """
    table, deadlines = task.table, expected_deadlines(task)
    same = [t for t in state.tasks.values() if t.ue == task.ue]
    all_load = sum(float(t.table.device_use[t.point]) for t in same)
    load = expected_load(state, task)
    own = float(table.device_use[task.point]) if task.point >= 0 else 0.0
    use, others = float(table.device_use[row]), all_load - own
    comes = any(t.ue == task.ue for t in newcomers)
    fits = others + use <= 1.0 + 1e-9 if task.point < 0 else others <= 1e-9 and not comes
    if (use > own + 1e-9 and not fits) or (task.point < 0 and not has_memory(task, row, same)):
        return (
            [-np.inf, -np.inf] if use > own + 1e-9 and not fits else [-np.inf, deadlines[1] - physics(task, row, 1)[2]]
        )
    slack = [deadline - physics(task, row, q)[2] for q, deadline in enumerate(deadlines)]
    if load > 0:
        slack = [s - float(table.device_s[row, q]) * (1.0 / (1.0 - min(load, 0.99)) - 1.0) for q, s in enumerate(slack)]
    return slack


def expected_load(state: State, task: Task) -> float:
    """Part of its device that those who came before it take."""
    load = 0.0
    for t in state.tasks.values():
        if t is task:
            break
        load += float(t.table.device_use[t.point]) if t.ue == task.ue else 0.0
    return load


def has_memory(task: Task, row: int, same: list[Task]) -> bool:
    """Whether the device has memory for a newcomer beside the UE's other tasks: layers once a model, caches each."""
    layers: dict[str, float] = {}
    cached = 0.0
    for t, point in [(t, t.point) for t in same] + [(task, row)]:
        if t.table.device_bytes is not None:
            layers[t.model] = max(layers.get(t.model, 0.0), float(t.table.device_bytes[point, 0]))
            cached += float(t.table.device_bytes[point, 1])
    return not same or task.table.device_bytes is None or sum(layers.values()) + cached <= 1 + 1e-9


def expected_efficiency(state: State, task: Task, newcomers: Sequence[Task]) -> float:
    risk = SETTINGS.session_risk_sd if task.is_llm else SETTINGS.frame_risk_sd
    careful = float(state.channel.planned(NOW_S, risk)[task.ue])
    seconds_per_bit = 1.0 / (careful * SITE.cells[task.cell].ul_bandwidth_hz)
    for row in task.candidates():
        slack = expected_slack(state, task, row, newcomers)
        alone_s = [0.0, float(task.table.steps[row, 0] + task.table.steps[row, 1])]  # of a step, for it alone
        ahead = [physics(task, row, q)[:2] for q in (0, 1)]
        if all(b * seconds_per_bit <= s - n - t for (b, n), s, t in zip(ahead, slack, alone_s, strict=True)):
            return careful
    return float(state.channel.planned(NOW_S, 0.0)[task.ue])


def expected_wait(task: Task, row: int, busy: Floats) -> list[float]:
    """Lengths of a step that each phase waits; who comes and is asked for each token waits for others' as well."""
    node = int(task.table.node[row])
    if node == LOCAL:
        return [0.0, 0.0]
    if not task.is_llm:
        return [0.5, 0.0]
    decodes = task.progress is not None and task.phase == 1
    is_new = task.progress is None or task.point < 0
    asked = is_new and task.table.ul_bits[row, 1] > 0
    return [0.0 if decodes else 1.0, 1.0 + 0.5 * float(busy[node]) * asked if task.table.steps[row, 1] > 0 else 0.0]


def assert_columns(state: State, newcomers: list[Task], busy: Floats | None = None) -> None:
    found = plan(state, newcomers, busy)
    problem, layout, steps, devices = found.problem, found.layout, found.problem.steps, found.problem.devices
    assert steps is not None
    assert devices is not None
    busy = np.ones(len(SITE.nodes)) if busy is None else np.minimum(busy, 1.0)
    n_cells, n_nodes = len(SITE.cells), len(SITE.nodes)
    j = 0
    tasks = [*state.tasks.values(), *newcomers]
    assert problem.task_ids == tuple(t.offer.task for t in tasks)
    for i, task in enumerate(tasks):
        assert problem.first[i] == j
        assert found.efficiency[i] == problem.channel[i] == expected_efficiency(state, task, newcomers)
        assert found.device_load[i] == expected_load(state, task)
        assert steps.weight[i] == task.offer.weight
        assert found.pace_s[i] == (1.0 / expected_rates(task)[1] if expected_rates(task)[1] else np.inf)
        assert devices.ue[i] == task.ue
        seconds_per_bit = 1.0 / (problem.channel[i] * SITE.cells[task.cell].ul_bandwidth_hz)
        assert steps.lead_s[i] == pytest.approx(expected_lead(task), abs=1e-9)
        held = -1
        for row in task.candidates():
            assert (layout.owner[j], layout.row[j], problem.point_ids[j]) == (i, row, task.table.point_ids[row])
            node = int(task.table.node[row])
            places = (
                [task.cell, n_cells + node, n_cells + n_nodes + node] if node != LOCAL else [n_cells + 2 * n_nodes] * 3
            )
            assert problem.slot[j].tolist() == places
            memory = task.table.node_bytes[row] / BYTES[node] if node != LOCAL else 0.0
            assert problem.rigid[j].tolist() == [0.0, 0.0, memory]
            rates = expected_rates(task)
            used = [0.0, 0.0]
            slack = expected_slack(state, task, row, newcomers)
            assert problem.slack[j].tolist() == slack
            shared_s, own_s = task.table.steps[row].tolist()
            assert found.alone_slack[j].tolist() == [slack[0], slack[1] - (shared_s + own_s)]
            assert (steps.slot[j], steps.shared_s[j], steps.own_s[j]) == (1 if node != LOCAL else -1, shared_s, own_s)
            assert steps.pace_s[j] == float(task.table.deadline_s[1]) * SETTINGS.deadline_margin
            assert steps.streams[j] == (task.table.ul_bits[row, 1] <= 0)
            assert steps.wait[j].tolist() == expected_wait(task, row, busy)
            assert steps.group[j] == 0, "the site has one model"
            assert devices.use[j] == task.table.device_use[row]
            for q in (0, 1):
                bits, node_s, _ = physics(task, row, q)
                assert problem.work[j, q].tolist() == [bits * seconds_per_bit, node_s, 0.0]
                used = [max(u, min(w * rates[q], 1.0)) for u, w in zip(used, problem.work[j, q], strict=False)]
            assert problem.floor[j].tolist() == [*used, 0.0]
            # of a split session first the prefill, then the tokens: the node is asked for the greater of the two
            waits = is_queued(task, row, len(newcomers))
            assert steps.queued[j] == waits
            assert steps.demand[j] == max(0.0, own_s * rates[1] - (0.0 if waits else used[1]))
            assert found.mean_use[j].tolist() == [used[0], 0.0 if waits else used[1], 0.0]
            assert found.queue_use[j] == (used[1] if waits else 0.0)
            assert problem.value[j] == pytest.approx(expected_value(task, row), rel=1e-12)
            held = j if row == task.point else held
            j += 1
        assert problem.held[i] == held
    assert j == problem.first[-1] == problem.n_points == len(problem.value)


def is_queued(task: Task, row: int, newcomers: int) -> bool:
    """Who runs, or comes alone, waits with a prefill that needs nothing but the node once its prompt is there."""
    alone = int(task.table.node[row]) != LOCAL and task.table.steps[row, 1] > 0 and task.table.ul_bits[row, 1] <= 0
    begins = task.is_llm and not (task.progress is not None and task.phase == 1)
    return bool(alone and begins and (row == task.point if task.point >= 0 else newcomers == 1))


def expected_lead(task: Task) -> float:
    """Until the next token is due."""
    if not task.is_llm or task.progress is None or task.phase == 0:
        return np.inf
    work = task.offer.work
    assert isinstance(work, LlmSession)
    aim = work.tpot_s * SETTINGS.deadline_margin
    return float(max(0.0, task.progress.first_s + task.progress.done * aim - NOW_S))


def expected_value(task: Task, row: int) -> float:
    weight = task.offer.weight
    worth = weight * float(task.table.quality[row])
    if task.point < 0:
        return worth
    return worth + weight * SETTINGS.stickiness - (SETTINGS.switch_cost * weight if row != task.point else 0.0)


@given(st.integers(0, 2**32 - 1), st.integers(0, 12), st.integers(0, 4))
@hypothesis_settings(max_examples=25, deadline=None)
def test_columns_are_the_rules_point_by_point(seed: int, running: int, coming: int) -> None:
    rng = np.random.default_rng(seed)
    state = new_state(rng)
    for k in range(running):
        admit(state, new_task(state, f"t{k}", rng), rng)
    for task in list(state.tasks.values()):
        if rng.random() < 0.7:
            state.progressed(progress_of(task, int(task.is_llm and rng.random() < 0.6), rng))
    fresh = [new_task(state, f"n{k}", rng) for k in range(coming)]
    busy = rng.uniform(0.0, 1.3, len(SITE.nodes)) if rng.random() < 0.8 else None
    assert_columns(state, list({t.ue: t for t in fresh}.values()), busy)  # of a UE one at a time


@given(st.integers(0, 2**32 - 1))
@hypothesis_settings(max_examples=15, deadline=None)
def test_what_is_kept_from_tick_to_tick_never_differs_from_a_fresh_start(seed: int) -> None:
    """Tasks come, move, hand over, make progress and go; after each event all columns are as the rules say."""
    rng = np.random.default_rng(seed)
    state = new_state(rng)
    for k in range(30):
        names = list(state.tasks)
        task = state.tasks[str(rng.choice(names))] if names else None
        what = int(rng.integers(5))
        if task is None or what == 0:
            admit(state, new_task(state, f"t{k}", rng), rng)
        elif what == 1:
            state.remove(task.offer.task)
        elif what == 2:
            state.progressed(progress_of(task, max(task.phase, int(task.is_llm and rng.random() < 0.6)), rng))
        elif what == 3:
            task.point = int(rng.choice(task.candidates()))
            state.version += 1
        else:
            observe(state, task.offer.ue, NOW_S, int(rng.integers(len(SITE.cells))), float(rng.uniform(0.05, 6.0)))
        assert_columns(state, [])


def test_an_old_layout_serves_as_long_as_the_version_stays() -> None:
    """Progress within a phase and new channel samples reach the columns without gathering the points again."""
    rng = np.random.default_rng(5)
    state = new_state(rng)
    for k in range(6):
        admit(state, new_task(state, f"t{k}", rng), rng)
    for task in list(state.tasks.values()):
        state.progressed(progress_of(task, int(task.is_llm), rng))
    layout, version = make_layout(state, (), SETTINGS, BYTES), state.version
    for task in list(state.tasks.values()):
        state.progressed(progress_of(task, task.phase, rng))
        observe(state, task.offer.ue, NOW_S, task.cell, 1.5)
    assert state.version == version
    kept, fresh = plan_problem(state, layout, NOW_S, SETTINGS), plan(state, [])
    for name in ("slack", "work", "floor", "value", "rigid", "slot", "held", "channel"):
        assert np.array_equal(getattr(kept.problem, name), getattr(fresh.problem, name)), name


def test_a_session_that_is_behind_is_planned_faster_within_limits() -> None:
    rng = np.random.default_rng(1)
    state = new_state(rng)
    task = new_task(state, "a", rng)
    while not task.is_llm or not task.table.n_points:
        task = new_task(state, "a", rng)
    admit(state, task, rng)
    work = task.offer.work
    assert isinstance(work, LlmSession)
    aim = work.tpot_s * SETTINGS.deadline_margin
    for late_s, wanted in (
        (0.0, aim), (0.02, aim - 0.02 / SETTINGS.pace_horizon), (40.0, aim * SETTINGS.pace_least),
        (-40.0, aim * SETTINGS.pace_most),
    ):  # fmt: skip
        state.progressed(Progress("a", 1, 11, 0, 1.0, 1.0 + 10 * aim + late_s, 0.0, 0.0, 0.0))
        problem = plan(state, []).problem
        fixed_s = task.table.fixed_s[task.candidates(), 1]
        assert problem.slack[:, 1] + fixed_s == pytest.approx(np.full(len(fixed_s), wanted))


def test_waits_are_what_is_less_of_each_slack_at_lengths_of_steps() -> None:
    rng = np.random.default_rng(15)
    state = new_state(rng)
    for k in range(8):
        admit(state, new_task(state, f"t{k}", rng), rng)
    for task in state.tasks.values():
        whole = np.flatnonzero((task.table.steps[:, 1] > 0) & (task.table.ul_bits[:, 1] <= 0))
        task.point = int(whole[0]) if whole.size else task.point
    state.version += 1
    found = plan(state, [])
    n = len(SITE.cells), len(SITE.nodes)
    step_s = np.concatenate([np.full(n[0], np.inf), np.full(n[1], 0.03), np.full(n[1], np.inf)])
    period_s = np.where(np.isinf(step_s), np.inf, 0.02)
    steps = found.problem.steps
    assert steps is not None
    made = change(found.problem, steps, step_s, period_s)
    at = made.of(found.problem)
    assert at.steps is None
    assert steps.queued.any()
    waits = ~steps.queued[:, None] | [False, True]  # the slack of a queue is what its prompt needs elsewhere
    has = np.isfinite(found.problem.slack) & np.isfinite(at.slack) & waits
    assert found.problem.slack[has] - at.slack[has] == pytest.approx(made.wait_s[has])
    assert made.wait_s[:, 0] == pytest.approx(0.03 * steps.wait[:, 0])
    tokens = made.wait_s[:, 1] - 0.03 * steps.wait[:, 1]
    assert set(np.round(tokens, 9).tolist()) <= {0.0, 0.01}, "half a period for who is asked for each token and rides"
    assert tokens[steps.streams] == pytest.approx(0.0)


def test_nobody_there_is_an_empty_problem() -> None:
    problem = plan(State(SITE, SETTINGS), []).problem
    assert (problem.n_tasks, problem.n_points) == (0, 0)
    assert problem.work.shape == (0, 2, 3)


def test_other_peoples_load_that_changes_while_a_solve_is_open_changes_no_problem() -> None:
    state = State(SITE, SETTINGS)
    problem = plan(state, []).problem
    state.background[0] = 0.9
    assert problem.background[0] == SITE.cells[0].background_fraction
