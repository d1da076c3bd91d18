"""On a real Ray cluster whose demand changes: layers are loaded and given back while sessions run on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from daemon_cases import Place, Radio, cosched, radio, repeated, until

from cosched.api.client import Client
from cosched.api.messages import ClusterNode, Lease
from telemetry.messages import LlmSession

if TYPE_CHECKING:
    from cosched.runtime.chain import Route

SITE = """
v = 1
name = "two"
cells = [{ id = "cell0", ul_prbs = 273, scs_khz = 30 }]
nodes = [
  { id = "edge0", device = "a100", memory_bytes = MEMORY },
  { id = "edge1", device = "a100", memory_bytes = MEMORY },
]
models = [
  { id = "llama", config = "FOLDER/llama.json", weight_bits = 16, activation_bits = [16] },
  { id = "qwen3", config = "FOLDER/qwen3.json", weight_bits = 16, activation_bits = [16] },
]
[ues]
count = 8
devices = [{ device = "phone", share = 1.0, max_layers = 1 }]
[mix]
model = "llama"
"""
ROOM = 1.2  # models that a node has room for


LONG, SHORT = 20_000, 200  # tokens


def work(model: str, tokens: int = LONG) -> LlmSession:
    return LlmSession(
        model=model, context_tokens=0, new_tokens=37, max_output_tokens=tokens, ttft_s=30.0, tpot_s=0.5, private=True
    )


def two_models(folder: Path) -> Path:
    """Checkpoints of two small models, and a site whose nodes have no room for both."""
    import runtime_cases as cases

    from cosched.profiles.device import load_device
    from cosched.profiles.model import load_model

    sizes = []
    for family in ("llama", "qwen3"):
        cases.checkpoint(cases.seeded(folder, family, max_position_embeddings=LONG), folder / "models" / family)
        sizes.append(load_model(str(folder / f"{family}.json")).weight_bytes(16))
    memory = load_device("a100").memory_bytes - ROOM * max(sizes)
    text = SITE.replace("FOLDER", str(folder)).replace("MEMORY", f"{memory:.1f}")
    (folder / "site.toml").write_text(text)
    return folder / "site.toml"


def nodes(client: Client) -> dict[str, ClusterNode]:
    return {n.node: n for n in client.status().cluster.nodes}


def whole(client: Client, model: str) -> set[str]:
    """Nodes that hold all layers of a model but those that every device has."""
    found = nodes(client).values()
    return {n.node for n in found if any(x.model == model and x.first <= 1 and x.last == 6 for x in n.layers)}


@contextmanager
def asked_for(client: Client, channel: Radio, model: str, tokens: int = LONG) -> Iterator[None]:
    """Tasks of a model arrive, three a second, and are released as soon as they are decided."""
    numbers = itertools.count()
    with Client(client.endpoint, timeout_s=60) as mine:

        def ask() -> None:
            n = next(numbers)
            channel.report(*[3.0] * 8)
            mine.submit(f"{model}-{n}", f"ue{n % 4}", work(model, tokens))
            mine.release(f"{model}-{n}")

        with repeated(ask, 0.3):
            yield


class Runner:
    """A generation that follows its lease from node to node."""

    def __init__(self, client: Client, lease: Lease, folder: Path) -> None:
        from runtime_cases import PROMPT

        from cosched.runtime.chain import Links
        from cosched.runtime.generation import Generation
        from cosched.runtime.model import open_model
        from cosched.runtime.parts import Part

        self.client, self.task, self.node = client, lease.task, lease.node
        self.links, self.moves = Links(), list[str]()
        part = Part(open_model(folder / "models" / "llama", name="llama"))
        self.run = Generation(part, lease.task, PROMPT, self.route(lease), self.links)

    def route(self, lease: Lease) -> Route:
        from runtime_cases import LAYERS

        from cosched.runtime.chain import Hop, Route

        return Route(lease.split_layer, (Hop(lease.node_endpoint, LAYERS),), 32)

    def advance(self) -> None:
        """A token, on the node that the lease says by now."""
        lease = self.client.show(self.task).lease
        if lease.node != self.node:
            self.moves.append(self.run.resplit(self.route(lease)).how)
            self.node = lease.node
        self.run.advance()

    def end(self) -> list[int]:
        """All its tokens."""
        self.run.close()
        self.links.close()
        self.client.release(self.task)
        return self.run.output


def one_on_each_node(client: Client, folder: Path) -> tuple[Runner, Runner]:
    """Sessions on both nodes, and none besides."""
    leases: dict[str, Lease] = {}
    for i in range(20):
        lease = client.submit(f"runner{i}", "ue5", work("llama"))
        assert lease.reason == "admitted"
        if leases.setdefault(lease.node, lease) is not lease:
            client.release(lease.task)
        if len(leases) == 2:
            break
    first, second = (Runner(client, lease, folder) for lease in leases.values())
    return first, second


@pytest.mark.slow
def test_layers_follow_demand_on_ray_while_sessions_run_on(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the extra [llm] is not installed")
    from runtime_cases import reference_tokens

    own = {"SITE": str(two_models(tmp_path)), "CLUSTER_MODE": "local", "CLUSTER_EXECUTOR": "host",
           "CLUSTER_PLACEMENT_S": "0.5", "LEASE_LIFE_S": "20000", "CORE_BID_WINDOW_S": "6.0",
           "TELEMETRY_STALE_UE_S": "1000", "TELEMETRY_STALE_INPUT_S": "1000"}  # fmt: skip
    place = Place(tmp_path, own, extra={"COSCHED_HOST_MODELS": str(tmp_path / "models")})
    with ExitStack() as stack:
        daemon = stack.enter_context(place.daemon())
        client = stack.enter_context(daemon.ready())
        channel = stack.enter_context(radio(place, client, 8))
        until(lambda: client.status().cluster.state == "connected", 120)
        assert client.status().cluster.placement.state == "chosen"
        until(lambda: whole(client, "llama") | whole(client, "qwen3") == {"edge0", "edge1"}, 120)  # one each

        with asked_for(client, channel, "llama"):  # more than one node can do
            until(lambda: whole(client, "llama") == {"edge0", "edge1"})
        both = one_on_each_node(client, tmp_path)
        with asked_for(client, channel, "qwen3", SHORT):  # one node can do it: its session moves to the other
            while not whole(client, "qwen3"):
                for runner in both:
                    runner.advance()
        assert len({runner.node for runner in both}) == 1
        moved, stayed = sorted(both, key=lambda runner: not runner.moves)
        assert (moved.moves, stayed.moves) == (["migrated"], [])
        assert client.show(moved.task).lease.reason == "moved"

        with asked_for(client, channel, "qwen3"):  # more than one node can do: the other waits for its sessions
            while not nodes(client)[stayed.node].waits:
                for runner in both:
                    runner.advance()
            assert whole(client, "llama") == {stayed.node}
            assert all(n.state == "up" and not n.retries for n in nodes(client).values())
            for runner in both:
                runner.advance()
            expected = reference_tokens(tmp_path, "llama", 60)
            for runner in both:
                found = runner.end()
                assert found[:60] == expected[: len(found)]
            until(lambda: whole(client, "qwen3") == {"edge0", "edge1"})
        assert all(n.load_bytes_per_s > 0 for n in nodes(client).values())
        reasons = client.status().reasons
        assert "rejected_not_loaded" in reasons
        assert not {"node_lost", "moved_node_lost"} & {*reasons}
        assert daemon.stop()[0] == 0
    done = cosched("verify", *map(str, place.captures))
    assert done.returncode == 0, done.stdout + done.stderr
