"""Two nodes that hold layers of two models, and a core that serves sessions of both."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from core_cases import answer, report

from cosched.config.wiring import Plant, plant
from cosched.core.bids import Arrival
from cosched.core.commands import Plan
from cosched.core.core import Core
from cosched.core.events import Offered
from cosched.core.layers import NodeLayers
from cosched.core.settings import Settings
from telemetry.messages import LlmSession, TaskOffer

SITE = """
v = 1
name = "two"
cells = [{ id = "cell0", ul_prbs = 273, scs_khz = 30 }]
nodes = [{ id = "edge0", device = "h100" MEMORY }, { id = "edge1", device = "h100" MEMORY }]
models = [{ id = "llama", config = "llama-3-8b" }, { id = "qwen", config = "qwen3-8b" }]
ues = { count = 30, devices = [{ device = "phone", share = 1.0, max_layers = 8 }] }
"""


GB = 1e9


H100_BYTES = 80e9


def site(room_bytes: float | None = None) -> Plant:
    """Two nodes; room_bytes for weights on each, or for all."""
    memory = "" if room_bytes is None else f", memory_bytes = {H100_BYTES - room_bytes:.0f}"
    return plant(SITE.replace(" MEMORY", memory), "two", {})


WIDE, TIGHT = site(), site(6.5 * GB)  # one model in 4 bit weighs 5.4 and 5.7 GB
LAYERS = {"llama": 32, "qwen": 36}


def offer(task: str, at_s: float, model: str = "llama", *, private: bool = False) -> TaskOffer:
    work = LlmSession(
        model=model, context_tokens=2000, new_tokens=256, max_output_tokens=200, ttft_s=2.0, tpot_s=0.05,
        private=private,
    )  # fmt: skip
    return TaskOffer(at_ns=round(at_s * 1e9), source="s", seq=0, task=task, ue="ue00", work=work)


def core_of(place: Plant) -> Core:
    core = place.core("joint", Settings())
    core.handle(msgspec.structs.replace(report("ue00", 0.0, 4.0), cell="cell0"), 0.0)
    return core


def submit(core: Core, at_s: float, *offers: TaskOffer) -> dict[str, str]:
    return reasons(answer(core, core.handle(Offered(offers), at_s), at_s))


def reasons(plans: Sequence[Plan]) -> dict[str, str]:
    return {d.task: str(d.reason) for p in plans for d in p.decisions}


def holds(**nodes: dict[str, int]) -> tuple[NodeLayers, ...]:
    return tuple(NodeLayers(node=node, holds=first, keeps=first) for node, first in nodes.items())


def place_of(core: Core, task: str) -> tuple[str, int]:
    held = core.state.tasks[task]
    return core.state.site.nodes[int(held.table.node[held.point])].id, int(held.table.split[held.point])


def homes(core: Core) -> tuple[str, str]:
    """The node that a task runs on, and the other."""
    home = place_of(core, min(core.state.tasks))[0]
    return home, "edge0" if home == "edge1" else "edge1"


def arrival(core: Core, task: str, at_s: float, model: str, *, private: bool) -> Arrival:

    asked = offer(task, at_s, model, private=private)
    return Arrival(at_s, asked, core._points(asked, 0, ()), 0, 4.0)


def demand(core: Core, counts: dict[str, int], *, private: bool = False) -> None:
    """Tasks that asked within the last 20 s, all of them gone by now."""
    for model, count in counts.items():
        for i in range(count):
            core._bids.note(arrival(core, f"{model}{i}", 10.0 + 20.0 * i / count, model, private=private))
    core._bids.arrivals = type(core.bids.arrivals)(sorted(core.bids.arrivals, key=lambda a: a.at_s))
