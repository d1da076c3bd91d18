"""A site of two equal nodes, and a core that serves sessions on both."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from core_cases import answer, report

from cosched.config.wiring import plant
from cosched.core.commands import Plan
from cosched.core.core import Core
from cosched.core.events import Offered
from cosched.core.settings import Settings
from telemetry.messages import LlmSession, TaskOffer

NODES = """
v = 1
name = "two"
cells = [{ id = "cell0", ul_prbs = 273, scs_khz = 30 }]
nodes = [{ id = "edge0", device = "h100" }, { id = "edge1", device = "h100" }]
models = [{ id = "llama-3-8b", config = "llama-3-8b" }]
ues = { count = 30, devices = [{ device = "phone", share = 1.0 }] }
"""


TWO = plant(NODES, "two", {})
ONE = plant(NODES.replace(', { id = "edge1", device = "h100" }', ""), "one", {})


WORK = LlmSession(
    model="llama-3-8b", context_tokens=4000, new_tokens=512, max_output_tokens=200, ttft_s=2.0, tpot_s=0.05
)  # more than a phone does alone


def offer(task: str, at_s: float) -> TaskOffer:
    return TaskOffer(at_ns=round(at_s * 1e9), source="s", seq=0, task=task, ue="ue00", work=WORK)


def serving(where: str = "two", n: int = 4, policy: str = "joint") -> tuple[Core, Plan]:
    core = (TWO if where == "two" else ONE).core(policy, Settings())
    core.handle(msgspec.structs.replace(report("ue00", 0.0, 4.0), cell="cell0"), 0.0)
    for i in range(n):  # one by one: each goes where there is more room
        (plan,) = answer(core, core.handle(Offered((offer(f"t{i}", 0.1),)), 0.1), 0.1)
    assert set(plan.tasks) == {f"t{i}" for i in range(n)}
    return core, plan


def nodes_of(core: Core) -> dict[str, str]:
    ids = [n.id for n in core.state.site.nodes]
    return {name: ids[t.table.node[t.point]] for name, t in core.state.tasks.items()}


def reasons(plans: Sequence[Plan]) -> dict[str, str]:
    return {d.task: str(d.reason) for p in plans for d in p.decisions}
