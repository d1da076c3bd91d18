"""What is left over after admission, shared out by a configured goal: in the plan, not in what the plan counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from core_cases import PROFILES, SITE, answer, points, report, session

from cosched.config.settings import load
from cosched.core.commands import Plan
from cosched.core.core import Core
from cosched.core.events import Offered, Tick
from cosched.core.policy import policy
from cosched.core.settings import Settings
from cosched.errors import BadInput
from cosched.workloads.context import session_memory_bytes
from solvers.objectives.second_stage import Goal, Objective

GOALS = ("latency", "max-latency", "alpha-fair:2", "energy")


def plans(spec: str, settings: Settings) -> list[Plan]:
    """Three sessions of one UE, which are asked for one after the other, then a tick."""
    core = Core(SITE, policy(spec), settings, points, session_memory_bytes(PROFILES))
    core.handle(report("ue00", 0.0, 2.0), 0.0)
    offers = (session("a", weight=5.0), session("b", private=False), session("c", tpot_s=0.1))
    found = answer(core, core.handle(Offered(offers), 0.0), 0.0)
    return found + answer(core, core.handle(Tick(), 0.1), 0.1)


@pytest.mark.parametrize("name", GOALS)
def test_shares_grow_into_what_is_left_and_nothing_else_changes(name: str):
    tight, wide = plans("joint", Settings()), plans(f"joint:objective={name}", Settings())
    assert len(tight) == len(wide) == 4
    assert set(tight[-1].tasks) == {"a", "b", "c"}
    for before, after in zip(tight, wide, strict=True):
        assert (before.tasks, before.point.tolist()) == (after.tasks, after.point.tolist())
        assert (before.promised == after.promised).all()
        for key in ("planned_use", "variance", "prices"):
            assert (getattr(before, key) == getattr(after, key)).all()
        assert after.share[:, :2].sum() > 1.1 * before.share[:, :2].sum()
        assert (after.share <= 1 + 1e-9).all()
        assert [d.reason for d in before.decisions] == [d.reason for d in after.decisions]


@pytest.mark.parametrize("name", ["latency", "energy"])
def test_the_setting_and_the_policys_option_are_one(name: str):
    by_setting, by_option = plans("joint", Settings(objective=name)), plans(f"joint:objective={name}", Settings())
    for a, b in zip(by_setting, by_option, strict=True):
        assert (a.share == b.share).all()
        assert (a.prbs == b.prbs).all()


def test_the_option_goes_before_the_setting_and_other_policies_have_none():
    assert policy("joint:objective=alpha-fair:2").goal("energy") == Goal(Objective.ALPHA_FAIR, 2.0)
    assert policy("joint").goal("energy") == Goal(Objective.ENERGY)
    assert policy("joint").goal("none") is None
    assert policy("joint:objective=none").goal("energy") is None
    assert policy("greedy").goal("energy") is None
    joint = policy("joint:nodes=7,objective=max-latency")
    assert (joint.options["nodes"], joint.goal("none")) == (7.0, Goal(Objective.MAX_LATENCY))


def test_more_weight_gets_more_of_what_is_left():
    tight, wide = (plans(spec, Settings())[0] for spec in ("joint", "joint:objective=latency"))
    gain = dict(zip(wide.tasks, np.max(wide.share[:, :2] / np.maximum(tight.share[:, :2], 1e-9), axis=1), strict=True))
    assert gain["a"] > 1


def test_objectives_that_there_are_not_are_refused_by_name(tmp_path: Path):
    with pytest.raises(BadInput, match="max-latency"):
        policy("joint:objective=fast")
    file = tmp_path / "c.toml"
    file.write_text('[core]\nobjective = "fast"\n')
    with pytest.raises(BadInput, match=r"core\.objective.*latency"):
        load(file, {})
