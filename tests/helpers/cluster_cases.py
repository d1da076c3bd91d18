"""The site of the tests on a real Ray cluster."""

from __future__ import annotations

from cosched.api.client import Client
from cosched.api.messages import ClusterNode
from telemetry.messages import LlmSession

SITE = """
v = 1
name = "three"
cells = [{ id = "cell0", ul_prbs = 273, scs_khz = 30 }]
nodes = [{ id = "edge0", device = "h100" }, { id = "edge1", device = "h100" }, { id = "missing", device = "h100" }]
models = [{ id = "llama-3-8b", config = "llama-3-8b" }]
ues = { count = 30, devices = [{ device = "phone", share = 1.0 }] }
"""


WORK = LlmSession(
    model="llama-3-8b", context_tokens=4000, new_tokens=512, max_output_tokens=20_000, ttft_s=5.0, tpot_s=0.05
)  # more than a phone does alone


def nodes(client: Client) -> dict[str, ClusterNode]:
    return {n.node: n for n in client.status().cluster.nodes}


def in_force(client: Client, n: int) -> bool:
    """Whether all nodes that are up have applied what they were asked, n sessions in all."""
    up = [node for node in nodes(client).values() if node.state == "up"]
    return sum(node.sessions for node in up) == n and all(node.applied == node.asked for node in up)
