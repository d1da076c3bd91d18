"""A node's actor that serves beyond its machine: with keys alone, and a UE finds key and endpoint in its lease."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

pytest.importorskip("torch", reason="the extra [llm] is not installed")
from runtime_cases import LAYERS, PROMPT, SEED, checkpoint, reference_tokens, write_config

from cosched.api import keys
from cosched.api.access import Identity
from cosched.api.messages import Lease
from cosched.api.zap import new_pair
from cosched.cluster import executor
from cosched.cluster.messages import LayersOrder
from cosched.errors import BadInput
from cosched.runtime.chain import Hop, Links, Route
from cosched.runtime.errors import BadModel, HostLost
from cosched.runtime.follow import hops_of, point_of, route_of
from cosched.runtime.generation import Generation
from cosched.runtime.model import ModelSource, open_model
from cosched.runtime.parts import Part
from telemetry.bus import Curve

SPLIT, N_TOKENS = 2, 6
Serve = Callable[..., executor.Executor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's config.json, and a folder `models` with its checkpoint."""
    found = tmp_path_factory.mktemp("model")
    checkpoint(open_model(write_config(found, "llama"), seed=SEED, name="llama"), found / "models" / "llama")
    return found


@pytest.fixture(scope="module")
def source(folder: Path) -> ModelSource:
    return open_model(folder / "models" / "llama", name="llama")


@pytest.fixture
def known(tmp_path: Path) -> Curve:
    """A UE's keys, which the node lets in; those of the node are beside them."""
    held, node, ue = tmp_path / "keys", new_pair("edge0"), new_pair("ue0")
    keys.write_pair(held, node)
    keys.allow(held / keys.ALLOWED, Identity(name="ue0", public=ue.public, role="publisher"))
    return Curve(ue.public, ue.secret)


@pytest.fixture
def serve(tmp_path: Path, folder: Path, known: Curve, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """The executor with what its node's environment says, all layers loaded; it is stopped at the end."""
    assert known.public
    running: list[executor.Executor] = []
    usual = {"MODELS": f"{folder}/models", "BIND": "tcp://127.0.0.1:0", "KEY": f"{tmp_path}/keys/edge0.key",
             "ALLOWED": f"{tmp_path}/keys/{keys.ALLOWED}"}  # fmt: skip

    def start(**environment: str) -> executor.Executor:
        for name, value in {**usual, **environment}.items():
            monkeypatch.setenv(f"COSCHED_HOST_{name}", value)
        running.append(executor.make("host", "edge0"))
        running[-1].load(LayersOrder("llama", 0, LAYERS))
        return running[-1]

    yield start
    for one in running:
        one.stop()


def lease_of(serving: executor.Executor) -> Lease:
    return Lease(
        at_ns=0, source="cosched", seq=1, task="t0", plan=1, point="edge0 k=2", reason="admitted", node="edge0",
        split_layer=SPLIT, precision_bits=32, node_endpoint=serving.endpoint, node_key=serving.public_key,
        valid_until_ns=0,
    )  # fmt: skip


def along(source: ModelSource, lease: Lease, links: Links) -> list[int]:
    """Tokens of a UE that goes where its lease says."""
    route = route_of(point_of(lease), hops_of(lease, {}), LAYERS)
    run = Generation(Part(source), "t0", PROMPT, route, links)
    try:
        return list(run.stream(N_TOKENS))
    finally:
        run.close()


def own_address() -> str:
    """An address of this machine that others could reach, "" without any; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return ""
        return str(probe.getsockname()[0])


@pytest.mark.parametrize("beyond", [False, True], ids=["loopback", "beyond"])
def test_a_ue_that_is_known_is_served_where_its_lease_says(
    folder: Path, source: ModelSource, serve: Serve, known: Curve, tmp_path: Path, *, beyond: bool
):
    host = own_address() if beyond else "127.0.0.1"
    if not host:
        pytest.skip("this machine has no address beyond itself")
    serving = serve(BIND=f"tcp://{host}:0")
    assert serving.endpoint.startswith(f"tcp://{host}:")
    assert serving.public_key == keys.read_pair(tmp_path / "keys" / "edge0.key").public
    lease = lease_of(serving)
    links = Links(known)
    assert along(source, lease, links) == reference_tokens(folder, "llama", N_TOKENS)
    links.close()


def test_who_is_not_known_is_not_served_and_is_told_why(source: ModelSource, serve: Serve, known: Curve):
    lease = lease_of(serve())
    stranger, other = new_pair("stranger"), new_pair("other")
    refused = [
        (None, lease, "lets in known keys alone, and this device has none"),
        (Curve(stranger.public, stranger.secret), lease, "cannot be reached"),
        (known, msgspec.structs.replace(lease, node_key=other.public), "cannot be reached|silent"),  # an impostor
        (known, msgspec.structs.replace(lease, node_key=""), "cannot be reached|silent"),  # in the clear
    ]
    for held, asked, why in refused:
        links = Links(held, patience_s=1.0)
        with pytest.raises(HostLost, match=why):
            along(source, asked, links)
        links.close()


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"BIND": "tcp://192.0.2.77:0", "KEY": "", "ALLOWED": ""}, "beyond this machine needs keys.*COSCHED_HOST_KEY"),
        ({"BIND": "tcp://0.0.0.0:0"}, "COSCHED_HOST_BIND='tcp://0.0.0.0:0': .* name its address"),
        ({"BIND": "tcp://*:5561"}, "COSCHED_HOST_BIND='tcp://\\*:5561'"),
        ({"BIND": "tcp://192.0.2.77:0"}, "COSCHED_HOST_BIND: tcp://192.0.2.77:0: Cannot assign"),
        ({"ALLOWED": ""}, "COSCHED_HOST_KEY and COSCHED_HOST_ALLOWED go together"),
        ({"KEY": ""}, "COSCHED_HOST_KEY and COSCHED_HOST_ALLOWED go together"),
        ({"ALLOWED": "/nowhere/allowed.toml"}, "/nowhere/allowed.toml: no such list"),
        ({"KEY": "/nowhere/edge0.key"}, "/nowhere/edge0.key: No such file"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_mend(serve: Serve, environment: dict[str, str], message: str):
    with pytest.raises(BadInput, match=message):
        serve(**environment)
    assert serve().public_key  # nothing of the refused one is left over


def test_a_node_that_has_no_memory_for_layers_says_so_and_goes_on(serve: Serve, monkeypatch: pytest.MonkeyPatch):
    from torch import OutOfMemoryError

    serving = serve()

    def full(_: object, layer: int) -> None:
        raise OutOfMemoryError(f"CUDA out of memory. Tried to allocate {layer} GiB.")

    serving.unload(LayersOrder("llama", 2, 3))
    with monkeypatch.context() as patch:
        patch.setattr(Part, "_read_layer", full)
        with pytest.raises(BadModel, match=r"^layers \[2, 3\): CUDA out of memory$"):
            serving.load(LayersOrder("llama", 2, 3))
    assert serving.in_force().layers == (LayersOrder("llama", 0, 2), LayersOrder("llama", 3, LAYERS))
    serving.load(LayersOrder("llama", 2, 3))
    assert serving.in_force().layers == (LayersOrder("llama", 0, LAYERS),)


def test_an_actor_whose_host_has_ended_has_nothing_in_force(serve: Serve):
    serving = serve()
    serving._host.stop()  # type: ignore[attr-defined]
    with pytest.raises(HostLost, match="its host has ended"):
        serving.in_force()


def test_a_plain_lease_needs_no_key():
    lease = Lease(at_ns=0, source="cosched", seq=1, task="t0", plan=1, point="p", reason="admitted", node="edge0",
                  node_endpoint="tcp://127.0.0.1:5561", valid_until_ns=0)  # fmt: skip
    assert hops_of(lease, {}) == {"edge0": Hop("tcp://127.0.0.1:5561", 0, "")}
    assert route_of((SPLIT, 16, "edge0"), hops_of(lease, {}), LAYERS) == Route(
        SPLIT, (Hop("tcp://127.0.0.1:5561", LAYERS, ""),), 16
    )
