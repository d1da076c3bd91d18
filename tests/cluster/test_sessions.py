"""Twenty LLM sessions that really run split on a local cluster; a node's worker is killed, and then a Ray node."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import psutil
import pytest

pytest.importorskip("torch", reason="the extra [llm] is not installed")
import runtime_cases as cases
import torch
from daemon_cases import PATIENCE_S, Place, cosched, radio, until

from cosched.api import keys
from cosched.api.access import Identity
from cosched.api.client import Client
from cosched.api.messages import ClusterNode, SubmitArgs
from cosched.api.zap import new_pair
from cosched.runtime.asking import Asking
from cosched.runtime.chain import Links, Route
from cosched.runtime.errors import CannotContinue
from cosched.runtime.generation import Generation
from cosched.runtime.model import ModelSource, open_model
from cosched.runtime.parts import Part
from cosched.runtime.ue import Change, UeSession
from telemetry.bus import Curve
from telemetry.messages import LlmSession
from telemetry.trace import read_records

pytestmark = pytest.mark.slow
N, PERIOD_S = 20, 0.1
MORE = 10  # tokens that a session must still bring when all is over
MOST = 4_000
START_S = 240.0  # actors that import torch while others compute
READING_S = 0.05  # a user takes that long over a token: sessions last, and the processor is free for what dies
ALIKE = 0.98  # of tokens are those of the unsplit model, given what came before: activations travel in 16 bits
SITE = """
v = 1
name = "tiny"
cells = [{ id = "cell0", ul_prbs = 273, scs_khz = 30 }]
nodes = [{ id = "edge0", device = "a100", fraction = 0.25 }, { id = "edge1", device = "a100", fraction = 0.25 }]
models = [{ id = "llama", config = "CONFIG", activation_bits = [16] }]
ues = { count = 20, devices = [{ device = "phone", share = 1.0, max_layers = 2 }] }
mix = { model = "llama" }
"""


@dataclass
class User:
    """A UE in a thread. It holds two layers, so it cannot go on alone; it reads until `over`, then a little more."""

    number: int
    source: ModelSource
    place: Place
    keys: Curve
    over: threading.Event
    tokens: list[int] = field(default_factory=list)
    ended: str = ""  # why, where it ended early
    session: UeSession | None = None

    @property
    def prompt(self) -> list[int]:
        return [*cases.PROMPT, self.number]

    def run(self) -> None:
        links, part = Links(self.keys), Part(self.source)
        work = LlmSession(
            model="llama", context_tokens=0, new_tokens=len(self.prompt), max_output_tokens=MOST, ttft_s=60.0,
            tpot_s=1.0, private=True,
        )  # fmt: skip
        asked = SubmitArgs(task=f"t{self.number}", ue=f"ue{self.number}", work=work)

        def make(route: Route) -> Generation:
            return Generation(part, asked.task, self.prompt, route, links, max_layers=2)

        try:
            with Asking(asked, control=self.place.control, telemetry=self.place.bus, keys=None) as asking:
                self.session = asking.begin(make, {}, self.source.n_layers, PATIENCE_S)
                self.read(self.session)
        except CannotContinue as error:
            self.ended = str(error)
        links.close()

    def read(self, session: UeSession) -> None:
        left = MORE
        for token in session.tokens(MOST):
            self.tokens.append(token)
            left -= self.over.wait(READING_S)
            if not left:
                return

    @property
    def changes(self) -> list[Change]:
        return self.session.changes if self.session is not None else []


def furnish(folder: Path) -> tuple[Place, ModelSource, list[Curve]]:
    """A model's checkpoint, a site that serves it, and keys of all."""
    models, held = folder / "models", folder / "keys"
    seeded = open_model(
        cases.write_config(folder, "llama", max_position_embeddings=MOST + 100), seed=cases.SEED, name="llama"
    )
    cases.checkpoint(seeded, models / "llama")
    (folder / "site.toml").write_text(SITE.replace("CONFIG", f"{models}/llama/config.json"))
    pairs = [new_pair(f"ue{i}") for i in range(N)]
    keys.write_pair(held, new_pair("node"))
    for pair in pairs:
        keys.allow(held / keys.ALLOWED, Identity(name=pair.name, public=pair.public, role="publisher"))
    place = Place(folder, {
        "SITE": f"{folder}/site.toml", "CLUSTER_MODE": "local", "CLUSTER_EXECUTOR": "host",
        "CLUSTER_PLACEMENT": "off", "LEASE_LIFE_S": "20000", "HOST_MODELS": str(models), "HOST_KEY": f"{held}/node.key",
        "HOST_ALLOWED": f"{held}/{keys.ALLOWED}", "TELEMETRY_STALE_UE_S": "1000", "TELEMETRY_STALE_INPUT_S": "1000",
    })  # fmt: skip
    source = open_model(models / "llama", name="llama")
    return place, source, [Curve(pair.public, pair.secret) for pair in pairs]


def nodes(client: Client) -> list[ClusterNode]:
    return list(client.status().cluster.nodes)


def serve(client: Client) -> bool:
    """Whether both nodes are up, and hold all layers."""
    found = nodes(client)
    return [n.state for n in found] == ["up", "up"] and all(
        n.endpoint and [(r.first, r.last) for r in n.layers] == [(0, cases.LAYERS)] for n in found
    )


def fullest(client: Client) -> ClusterNode:
    """The node with most sessions."""
    held = Counter(view.lease.node for view in client.list().tasks)
    return max(nodes(client), key=lambda n: held[n.node])


def seconds_to_plan(place: Place) -> list[float]:
    """From each notice that a node is lost to the next plan, as captured."""
    records = [r for path in place.captures for r in read_records(path).records]
    changes = [(at, msgspec.json.decode(payload)["nodes"]) for topic, at, payload in records if topic == "barred"]
    plans = [at for topic, at, _ in records if topic == "plan"]
    return [(min(p for p in plans if p >= at) - at) * 1e-9 for at, lost in changes if lost]


def alike(source: ModelSource, user: User) -> float:
    """Part of a user's tokens that the unsplit model chooses, given those before."""
    model, whole = cases.transformers_model(source), [*user.prompt, *user.tokens]
    with torch.inference_mode():
        chosen = model(torch.tensor([whole])).logits[0].argmax(-1).tolist()
    right = [a == b for a, b in zip(chosen[len(user.prompt) - 1 : -1], user.tokens, strict=True)]
    return sum(right) / len(right)


def test_sessions_outlive_a_worker_and_then_a_ray_node(tmp_path: Path):
    place, source, curves = furnish(tmp_path)
    over = threading.Event()
    users = [User(i, source, place, curve, over) for i, curve in enumerate(curves)]
    threads = [threading.Thread(target=user.run, name=f"ue{user.number}", daemon=True) for user in users]
    with ExitStack() as stack:
        daemon = stack.enter_context(place.daemon())
        client = stack.enter_context(daemon.ready())
        stack.callback(over.set)
        until(lambda: serve(client), START_S)
        for node in nodes(client):
            assert (node.device == "CPU") == (not torch.cuda.is_available())
            assert 0 < node.free_bytes < node.memory_bytes
            assert node.public_key == keys.read_pair(tmp_path / "keys" / "node.key").public
        stack.enter_context(radio(place, client, N))
        for thread in threads:
            thread.start()
        until(lambda: all(len(user.tokens) >= MORE for user in users))

        for kill_node in (False, True):
            lost = fullest(client)
            worker = psutil.Process(lost.pid)
            (worker.parent() if kill_node else worker).kill()
            read = [len(user.tokens) for user in users]
            until(lambda lost=lost: next(n for n in nodes(client) if n.node == lost.node).pid != lost.pid, START_S)
            until(lambda: serve(client), START_S)  # by itself
            until(lambda read=read: all(u.ended or len(u.tokens) >= n + MORE for u, n in zip(users, read, strict=True)))

        over.set()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert not any(thread.is_alive() for thread in threads)
        until(lambda: client.list().total == 0)
        assert daemon.stop()[0] == 0
    for user in users:
        assert not user.ended or "is lost" in user.ended, user.ended
        assert alike(source, user) >= ALIKE
    assert sum(not user.ended for user in users) > 0
    assert sum(len(user.changes) for user in users) >= N  # they moved
    waits = seconds_to_plan(place)
    assert len(waits) >= 2
    assert max(waits) <= 2 * PERIOD_S
    done = cosched("verify", *map(str, place.captures))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in daemon.log()
