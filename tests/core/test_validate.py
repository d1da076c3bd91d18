"""Each invariant of the core's state, broken alone in a healthy state: `validate` says so."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from core_cases import answer, report
from two_nodes import TWO, offer

from cosched.core.bids import MOST_ARRIVALS
from cosched.core.commands import Decision, Plan
from cosched.core.core import EMPTY, Core
from cosched.core.events import Offered, Progress, Progressed, Tick
from cosched.core.known import KnownUes
from cosched.core.layers import Where
from cosched.core.settings import Settings
from cosched.errors import Broken
from cosched.profiles.calibration import LEAST, WINDOW, Calibration

UES = ("ue00", "ue01", "ue02")


def healthy() -> Core:
    """Two sessions that run, one reported; one that is asked for; one that waits for the next solve."""
    core = TWO.core("joint", Settings())
    for at_s in (0.0, 0.01, 2.0):
        for ue in UES:
            core.handle(msgspec.structs.replace(report(ue, at_s, 4.0), cell="cell0"), at_s)
    answer(core, core.handle(Offered((offer("t0", 2.1), offer("t1", 2.1))), 2.1), 2.1)
    core.handle(Progressed((Progress("t0", 1, 5, 0, 2.1, 2.2, 0.0, 0.0, 0.0),)), 2.2)
    core.handle(Offered((offer("asked", 2.3),)), 2.3)
    core.handle(Offered((offer("waits", 2.4),)), 2.4)
    for _ in range(LEAST):
        core.state.calibration.measured("edge0/m/prefill", 2.0, 1.0)
    core.validate()
    assert len(core.newcomers) == 2
    assert len(core.state.tasks) == 2
    return core


def refuse(broken: object, what: str) -> None:
    with pytest.raises(Broken, match=what):
        broken.validate()  # type: ignore[attr-defined]


def filed_elsewhere(core: Core) -> None:
    core.state.tasks["other"] = core.state.tasks.pop("t1")


def without_a_point(core: Core) -> None:
    core.state.tasks["t0"].point = -1


def beyond_its_points(core: Core) -> None:
    core.state.tasks["t0"].point = 10**6


def on_no_node(core: Core) -> None:
    task = core.state.tasks["t0"]
    task.table = replace(task.table, node=np.full_like(task.table.node, 2))


def in_no_cell(core: Core) -> None:
    core.state.tasks["t0"].cell = 1


def offered_in_no_cell(core: Core) -> None:
    core.state.tasks["t0"].table_cell = 7


def of_another_channel(core: Core) -> None:
    core.state.tasks["t0"].ue += 1


def elsewhere_than_its_ue(core: Core) -> None:
    core.state.cell_of_ue["ue00"] = 1


def progress_of_another(core: Core) -> None:
    core.state.tasks["t0"].progress = core.state.tasks["t0"].progress and replace_progress(core, task="t1")


def replace_progress(core: Core, **changes: object) -> Progress:
    progress = core.state.tasks["t0"].progress
    assert progress is not None
    return msgspec.structs.replace(progress, **changes)


def progress_not_noted(core: Core) -> None:
    core.state.tasks["t0"].progress = replace_progress(core, done=6)


def a_row_twice(core: Core) -> None:
    core.state.tasks["t1"].row = core.state.tasks["t0"].row


def a_row_in_use_and_free(core: Core) -> None:
    core.state._free_rows.append(core.state.tasks["t0"].row)


def a_row_lost(core: Core) -> None:
    core.state.progress = np.concatenate([core.state.progress, core.state.progress])


def heard_and_nowhere(core: Core) -> None:
    del core.state.cell_of_ue["ue02"]


def a_ue_in_no_cell(core: Core) -> None:
    core.state.cell_of_ue["ue02"] = 1


def a_price_below_nothing(core: Core) -> None:
    core.state.prices[0] = -1e-9


def no_number_taken_over(core: Core) -> None:
    core.state.variance[1] = np.nan


def a_background_too_many(core: Core) -> None:
    core.state.background = np.append(core.state.background, 0.0)


def a_node_barred_that_is_none(core: Core) -> None:
    core.state.places = Where(frozenset({2}))


def memory_beyond_all(core: Core) -> None:
    core.state.short_bytes = {"edge0": -1.0}


def a_newcomer_twice(core: Core) -> None:
    core._waiting.append(core._waiting[0])


def a_newcomer_that_runs(core: Core) -> None:
    core._waiting.append(replace(core.state.tasks["t0"], point=-1))


def a_newcomer_with_a_point(core: Core) -> None:
    core._waiting[0].point = 0


def gone_and_running(core: Core) -> None:
    core._dropped.append(Decision("t0", "tpot_missed", -1, EMPTY, 1.0))


def too_many_ues(core: Core) -> None:
    core.settings = Settings(max_ues=1)
    core.state.known.most = 1
    core.state.known.due = 1


def too_many_channels(core: Core) -> None:
    core.settings = Settings(max_ues=2)
    for i in range(20):
        core.state.channel.update(f"more {i}", 2.4, 1.0)


def use_that_is_no_number(core: Core) -> None:
    core._use = np.full_like(core._use, np.inf)


def use_of_another_site(core: Core) -> None:
    core._use = core._use[:-1]


def an_open_request_of_before(core: Core) -> None:
    core._request += 1


def a_layout_to_come(core: Core) -> None:
    assert core._layout is not None
    core._layout = (core.state.version + 1, core._layout[1])


def bids_out_of_order(core: Core) -> None:
    core.bids.arrivals.reverse()


def bids_without_points(core: Core) -> None:
    core.bids._fluid.pop()


def bids_of_no_cell(core: Core) -> None:
    core.bids.arrivals[-1] = replace(core.bids.arrivals[-1], cell=1)


def bids_below_nothing(core: Core) -> None:
    core.bids.arrivals[-1] = replace(core.bids.arrivals[-1], efficiency_bps_hz=-1.0)


def a_bid_price_below_nothing(core: Core) -> None:
    core.bids.price[0] = -1.0


def a_bid_price_too_few(core: Core) -> None:
    core.bids.price = core.bids.price[:-1]


def too_many_bids(core: Core) -> None:
    for _ in range(MOST_ARRIVALS):
        core.bids.arrivals.append(core.bids.arrivals[-1])
        core.bids._fluid.append(core.bids._fluid[-1])


BREAKS: list[tuple[Callable[[Core], None], str]] = [
    (filed_elsewhere, "task t1 is filed as other"),
    (without_a_point, "task t0 runs at point -1"),
    (beyond_its_points, "task t0 runs at point 1000000"),
    (on_no_node, "task t0 runs on no node"),
    (in_no_cell, "task t0 is in cell 1 of 1"),
    (offered_in_no_cell, "task t0 was offered in cell 7"),
    (of_another_channel, "task t0 has no channel"),
    (elsewhere_than_its_ue, "task t0 is not where its UE is"),
    (progress_of_another, "task t0 has the progress of another"),
    (progress_not_noted, "task t0 is not as far"),
    (a_row_twice, "two tasks share a row"),
    (a_row_in_use_and_free, "in use and free"),
    (a_row_lost, "rows of progress are lost"),
    (heard_and_nowhere, "heard of and in no cell"),
    (a_ue_in_no_cell, "UE ue02 is in cell 1 of 1"),
    (a_price_below_nothing, "prices is not a number from 0 on"),
    (no_number_taken_over, "variance is not a number from 0 on"),
    (a_background_too_many, "background is not one number a resource"),
    (a_node_barred_that_is_none, "a node is barred that the site does not have"),
    (memory_beyond_all, "lacks less than no memory"),
    (a_newcomer_twice, "a newcomer waits twice"),
    (a_newcomer_that_runs, "newcomers that run"),
    (a_newcomer_with_a_point, "has a point already"),
    (gone_and_running, "who has ended for good runs"),
    (too_many_ues, "more UEs than may be known: 3 of 2"),
    (too_many_channels, "more channels than UEs"),
    (use_that_is_no_number, "a planned use is no number"),
    (use_of_another_site, "planned use is not one number a resource"),
    (an_open_request_of_before, "the open request is not the latest"),
    (a_layout_to_come, "a state still to come"),
    (bids_out_of_order, "not in the order in which they came"),
    (bids_without_points, "arrivals are remembered without their points"),
    (bids_of_no_cell, "came in cell 1 of 1"),
    (bids_below_nothing, "had a channel below 0"),
    (a_bid_price_below_nothing, "a bid price is no number"),
    (a_bid_price_too_few, "bid prices are not one a resource"),
    (too_many_bids, "so many arrivals are remembered"),
]


@pytest.mark.parametrize(("breaks", "what"), BREAKS, ids=[b.__name__ for b, _ in BREAKS])
def test_a_broken_core_says_what_is_broken(breaks: Callable[[Core], None], what: str):
    core = healthy()
    breaks(core)
    refuse(core, what)


# --- UEs, channels, factors -----------------------------------------------------------------------------------------


def known() -> KnownUes:
    """One UE heard at one instant, one for a moment, two for long."""
    ues = KnownUes(40)
    for at_s, names in ((0.0, "cd"), (0.5, "b"), (0.7, "b"), (1.5, "cd"), (1.6, "a")):
        for name in names:
            ues.heard(name, at_s)
    ues.validate()
    return ues


@pytest.mark.parametrize(
    ("breaks", "what"),
    [
        (lambda u: u._queues[1].update(a=(0.0, 0.1)), "a UE is in two queues"),
        (lambda u: u._queues[2].update(c=(0.0, 9.0)), "queue 2 of UEs is not in the order"),
        (lambda u: u._queues[0].update(a=(1.7, 1.6)), "UE a was heard last before"),
        (lambda u: u._queues[0].update(e=(1.0, 1.8)), "UE e is in queue 0 of another rank"),
        (lambda u: setattr(u, "due", 42), "thinned out at 42"),
        (lambda u: setattr(u, "due", 0), "thinned out at 0"),
        (lambda u: setattr(u, "forgotten", -1), "UEs forgotten: -1"),
    ],
)
def test_broken_queues_of_ues_say_what_is_broken(breaks: Callable[[KnownUes], None], what: str):
    ues = known()
    breaks(ues)
    refuse(ues, what)


@pytest.mark.parametrize(
    ("column", "value", "what"),
    [
        ("_mean", -1.0, "a mean efficiency is no number"),
        ("_mean", np.nan, "a mean efficiency is no number"),
        ("_variance", -1e-9, "a variance of the channel is no number"),
        ("_at_s", np.inf, "a sample of the channel has no instant"),
    ],
)
def test_a_broken_channel_says_what_is_broken(column: str, value: float, what: str):
    channel = healthy().state.channel
    getattr(channel, column)[channel.index("ue01")] = value
    refuse(channel, what)


def test_rows_of_the_channel_are_one_ue_s_each():
    channel = healthy().state.channel
    free = copy.copy(channel._free)
    channel._free.append(channel.index("ue00"))
    refuse(channel, "rows of the channel are shared or lost")
    channel._free = free[1:]
    refuse(channel, "rows of the channel are shared or lost")
    channel._free = free
    channel._index["ue00"] = channel.index("ue01")
    refuse(channel, "rows of the channel are shared or lost")


def calibrated() -> Calibration:
    calibration = Calibration(4.0)
    for _ in range(LEAST):
        calibration.measured("x", 2.0, 1.0)
    calibration.validate()
    return calibration


@pytest.mark.parametrize(
    ("breaks", "what"),
    [
        (lambda c: setattr(c, "factors", ()), "not those worked out"),
        (lambda c: c._ratios.clear(), "a factor without a measurement"),
        (lambda c: c._ratios.update(x=(1.0,) * (WINDOW + 1)), "so many measurements are kept: 32"),
        (lambda c: c._ratios.update(x=(1.0, -1.0)), "a measurement of x is no number above 0"),
        (lambda c: setattr(c, "_most", 1.5), "the factor of x is 2.0 of at most 1.5"),
    ],
)
def test_broken_factors_say_what_is_broken(breaks: Callable[[Calibration], None], what: str):
    calibration = calibrated()
    breaks(calibration)
    refuse(calibration, what)


# --- a plan ---------------------------------------------------------------------------------------------------------


def plan() -> Plan:
    core = TWO.core("joint", Settings())
    core.handle(msgspec.structs.replace(report("ue00", 0.0, 4.0), cell="cell0"), 0.0)
    for name in ("t0", "t1"):
        answer(core, core.handle(Offered((offer(name, 0.1),)), 0.1), 0.1)
    (made,) = answer(core, core.handle(Tick(), 0.2), 0.2)
    return made


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"tasks": ("t0", "t0")}, "a task is planned twice"),
        ({"tasks": ("t0",)}, "has not one point a task"),
        ({"valid_until_s": 0.2}, "is over when it begins"),
        ({"point": np.array([0, -1])}, "planned without a point"),
        ({"share": np.full((2, 3), -0.1)}, "share is no number"),
        ({"prbs": np.array([np.nan, 1.0])}, "prbs is no number"),
        ({"prices": np.array([np.inf])}, "prices is no number"),
        ({"decisions": (Decision("t0", "moved", -1, EMPTY, 1.0),) * 2}, "decided twice in one plan"),
        ({"decisions": (Decision("new", "admitted", 0, EMPTY, 1.0),)}, "admitted, and not planned: \\['new'\\]"),
    ],
)
def test_a_broken_plan_says_what_is_broken(changes: dict[str, object], what: str):
    made = plan()
    made.validate()
    refuse(replace(made, **changes), what)  # type: ignore[arg-type]
