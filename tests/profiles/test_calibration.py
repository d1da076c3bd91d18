"""Factors learned from measured times: robust, bounded, steady, and the same after a restart."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from core_cases import PROFILES, SITE, answer, make_core, points, report, session
from hypothesis import given
from hypothesis import strategies as st

from cosched.core.commands import Decision
from cosched.core.core import Core
from cosched.core.events import Finished, Offered
from cosched.core.snapshot import Snapshot
from cosched.profiles.calibration import LEAST, STEP, WINDOW, Calibration, about, name, of_owner
from telemetry.messages import TaskTiming

MODEL = SITE.models[0].id
DEVICE = f"{PROFILES.context_of(0, 0).device.key}/{MODEL}"
NODE = f"{SITE.nodes[0].id}/{MODEL}"


def fed(ratios: list[float], most: float = 4.0) -> Calibration:
    calibration = Calibration(most)
    for ratio in ratios:
        calibration.measured("x", 0.2 * ratio, 0.2)
    return calibration


def test_a_few_measurements_change_nothing_and_then_the_median_counts():
    assert fed([2.0] * (LEAST - 1)).factors == ()
    assert fed([2.0] * LEAST).factors == (("x", pytest.approx(2.0)),)
    assert fed([2.0] * 3 + [900.0] * 2).factors == (("x", pytest.approx(2.0)),)


@given(st.lists(st.floats(1e-6, 1e6), min_size=LEAST, max_size=3 * WINDOW), st.floats(1.0, 10.0))
def test_a_factor_is_within_its_bound_and_within_a_step_of_the_median(ratios: list[float], most: float):
    (factor,) = dict(fed(ratios, most).factors).values() or (1.0,)
    assert 1 / most <= factor <= most
    median = np.clip(np.sort(np.array(ratios[-WINDOW:]) * 0.2 / 0.2)[len(ratios[-WINDOW:]) // 2], 1 / most, most)
    assert 1 / STEP * (1 - 1e-9) <= median / factor <= STEP * (1 + 1e-9)


@pytest.mark.parametrize(("most", "factor"), [(4.0, 3.0), (2.0, 2.0), (1.0, None)])
def test_a_factor_of_another_configuration_is_within_the_bound_of_this_one(most: float, factor: float | None):
    """A reload may allow less than what measurements have led to; at 1 nothing is corrected."""
    restored = Calibration(most)
    restored.restore(fed([3.0] * LEAST).rows())
    assert dict(restored.factors).get("x") == (factor if factor is None else pytest.approx(factor))
    restored.validate()


@given(st.lists(st.floats(0.1, 0.12), max_size=WINDOW // 2), st.permutations(range(WINDOW)))
def test_less_than_half_of_the_window_cannot_move_a_factor_off_the_rest(lies: list[float], places: list[int]):
    ratios = [1.5] * WINDOW
    for place, lie in zip(places, lies, strict=False):
        ratios[place] = lie
    window = fed(ratios)
    window.measured("x", 0.3, 0.2)
    assert dict(window.factors)["x"] == pytest.approx(1.5, rel=STEP - 1)


@pytest.mark.parametrize(("measured_s", "profile_s"), [(None, 1.0), (0.0, 1.0), (1.0, 0.0)])
def test_what_was_not_measured_or_has_no_profile_teaches_nothing(measured_s: float | None, profile_s: float):
    calibration = Calibration(4.0)
    for _ in range(WINDOW):
        calibration.measured("x", measured_s, profile_s)
    assert calibration.rows() == ()


def test_small_changes_leave_a_factor_alone_and_a_lasting_one_is_followed():
    calibration = fed([1.5] * WINDOW)
    before = calibration.factors
    for _ in range(WINDOW):
        calibration.measured("x", 1.52, 1.0)
    assert calibration.factors is before  # tables made with it stay
    for _ in range(WINDOW):
        calibration.measured("x", 1.0, 1.0)
    assert dict(calibration.factors)["x"] == pytest.approx(1.0)


def test_what_is_far_off_its_profile_is_named():
    assert fed([1.4] * LEAST).drifted == ()
    assert fed([1.8] * LEAST).drifted == ("x takes 1.8 x its profile",)
    assert fed([0.5] * LEAST).drifted == ("x takes 0.5 x its profile",)


# --- in the core --------------------------------------------------------------------------------------------------


def timing(task: str, point: str, at_s: float, **seconds: float) -> TaskTiming:
    return TaskTiming(at_ns=round(at_s * 1e9), source="runtime", seq=0, task=task, point=point, tokens=10, **seconds)


def admitted(core: Core, task: str, at_s: float) -> Decision:
    core.handle(report("ue00", at_s, 2.0), at_s)
    (plan,) = answer(core, core.handle(Offered((session(task, at_s),)), at_s), at_s)
    (made,) = [d for d in plan.decisions if d.task == task]
    assert made.point >= 0
    return made


def measure(core: Core, n: int, slow: float, first: int = 0) -> None:
    """Run n sessions, each on a device and a node that take `slow` times what their profile says."""
    plain = points(session("a"), 0, ())
    for i in range(first, first + n):
        made = admitted(core, f"s{i}", 0.1 + i)
        point = made.table.point_ids[made.point]
        j = plain.point_ids.index(point)
        assert plain.alone_s is not None
        seconds = slow * np.concatenate([plain.device_s[j], plain.alone_s[j]])
        names = ("device_prefill_s", "device_token_s", "node_prefill_s", "node_token_s")
        measured = dict(zip(names, seconds.tolist(), strict=True))
        core.handle(timing(f"s{i}", point, 0.2 + i, **measured), 0.2 + i)
        core.handle(Finished(f"s{i}"), 0.3 + i)


def test_tables_of_new_sessions_follow_what_sessions_measured():
    core = make_core()
    measure(core, LEAST, slow=1.25)
    factors = dict(core.state.calibration.factors)
    assert of_owner(factors, DEVICE) == pytest.approx((1.25, 1.25))
    assert of_owner(factors, NODE) == pytest.approx((1.25, 1.25))
    assert about(core.state.calibration.factors, (NODE,)) == {k: v for k, v in factors.items() if k.startswith(NODE)}
    made = admitted(core, "new", 50.0)
    point = made.table.point_ids[made.point]
    plain = points(session("new"), 0, ())
    j = plain.point_ids.index(point)
    assert made.table.device_s[made.point] == pytest.approx(1.25 * plain.device_s[j])
    assert made.table.node_s[made.point] == pytest.approx(1.25 * plain.node_s[j])
    assert made.table.ul_bits[made.point] == pytest.approx(plain.ul_bits[j])


def test_factors_settle_and_do_not_chase_themselves():
    """What is measured is held against the profile, not against the corrected time."""
    core = make_core()
    measure(core, 2 * WINDOW, slow=1.25)
    assert dict(core.state.calibration.factors)[name(DEVICE, "decode")] == pytest.approx(1.25)


def test_a_running_session_keeps_what_it_was_promised_by():
    core = make_core()
    made = admitted(core, "kept", 0.05)
    measure(core, LEAST, slow=1.25)
    assert core.state.tasks["kept"].table is made.table
    assert core.state.tasks["kept"].factors == ()


def test_strangers_and_strange_points_teach_nothing():
    core = make_core()
    admitted(core, "known", 0.05)
    for _ in range(2 * LEAST):
        core.handle(timing("unknown", "local", 0.1, device_token_s=9.0), 0.1)
        core.handle(timing("known", "k=99/8bit/moon", 0.1, device_token_s=9.0), 0.1)
    assert core.state.calibration.rows() == ()


def test_a_core_that_takes_over_plans_with_the_same_factors_and_tables():
    core = make_core()
    measure(core, LEAST - 1, slow=1.25)
    admitted(core, "early", 20.0)
    measure(core, LEAST, slow=1.25, first=30)
    admitted(core, "late", 50.0)
    other = make_core()
    other.restore(msgspec.json.decode(msgspec.json.encode(core.snapshot()), type=Snapshot))
    assert other.state.calibration.rows() == core.state.calibration.rows()
    for task in ("early", "late"):
        one, two = core.state.tasks[task], other.state.tasks[task]
        assert one.factors == two.factors
        np.testing.assert_array_equal(one.table.fixed_s, two.table.fixed_s)
    measure(core, LEAST, slow=1.6, first=60)
    measure(other, LEAST, slow=1.6, first=60)
    assert other.state.calibration.factors == core.state.calibration.factors
