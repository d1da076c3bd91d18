"""What nodes really have, held against what the site says of them. Pure.

Memory is all that a plan takes over from here: it does not change while a node lives, and a session that finds none is
lost. Compute is measured in the sessions themselves (cosched/profiles/calibration.py), load comes as background
(`cosched agent`), and memory that is free now says nothing: what our own sessions hold is missing in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from cosched.cluster.messages import NodeNews
from cosched.profiles.device import Device
from cosched.site import Node
from cosched.workloads.context import SiteProfiles
from telemetry.messages import NodeReport

GB: Final = 1e9
WORTH_SAYING: Final = 0.9  # of what the site says; what drivers keep for themselves is less


def short_bytes(
    profiles: SiteProfiles, nodes: Mapping[str, NodeNews], agents: Mapping[str, NodeReport]
) -> dict[str, float]:
    """Node -> memory that its slice lacks of what the site says, where it does."""
    found = ((node, device, _memory_bytes(node.id, nodes, agents)) for node, device in _nodes(profiles))
    return {
        node.id: node.fraction * (device.memory_bytes - real)
        for node, device, real in found
        if real is not None and real < device.memory_bytes
    }


def memory_notice(profiles: SiteProfiles, nodes: Mapping[str, NodeNews], agents: Mapping[str, NodeReport]) -> str:
    """Which nodes have far less memory than the site says, "" = none."""
    found = []
    for node, device in _nodes(profiles):
        real = _memory_bytes(node.id, nodes, agents)
        if real is not None and real < WORTH_SAYING * device.memory_bytes:
            there, said = f"{real / GB:.1f} GB", f"{device.memory_bytes / GB:.1f} GB"
            found.append(f"{node.id} has {there} of memory, the site's {device.key} {said}: planned with what it has")
    return "; ".join(found)


def without_gpu(profiles: SiteProfiles, nodes: Mapping[str, NodeNews]) -> list[str]:
    """Return a line for each Ray node that has no GPU where the site says one."""
    return [
        f"{node.id}: the site says {device.key}, and its Ray node has no GPU"
        for node, device in _nodes(profiles)
        if device.kind == "gpu" and (news := nodes.get(node.id)) is not None and news.ray is not None
        if news.ray.gpus == 0
    ]


def _nodes(profiles: SiteProfiles) -> Iterator[tuple[Node, Device]]:
    return zip(profiles.site.nodes, profiles.node_devices, strict=True)


def _memory_bytes(node: str, nodes: Mapping[str, NodeNews], agents: Mapping[str, NodeReport]) -> float | None:
    """The least that its executor and its agent say, None where neither does."""
    news, agent = nodes.get(node), agents.get(node)
    told = (news.memory_bytes if news is not None else 0.0, agent.gpu_memory_bytes if agent is not None else None)
    return min((one for one in told if one), default=None)
