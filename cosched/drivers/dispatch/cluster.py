"""Ray itself: joining a cluster, a local one of one's own, which nodes are alive, actors on them.

A local cluster is a head without work and one Ray node for each node of the site, all processes of this machine and
children of this process: Linux ends them with it, however it ends (prctl(2), PR_SET_PDEATHSIG, which Ray sets).
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import ray
from ray.cluster_utils import Cluster
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cosched.drivers.dispatch import processes
from cosched.drivers.dispatch.messages import Claim, NodeSpec
from cosched.drivers.dispatch.node_actor import NAMESPACE, NodeActor, Registry
from cosched.errors import CoschedError

LABEL: Final = "cosched_node"  # of a Ray node: the id of the site's node that it is
STORE_BYTES: Final = 80 * 1024 * 1024  # object store of a local node, nearly unused: the least that Ray takes is 75 MiB
HEAD: Final = {"node:__internal_head__": 0.001}  # resource that Ray gives to the head alone
REGISTRY: Final = "registry"
PROBE_S: Final = 3.0  # a GCS that listens accepts a connection within
ANSWER_S: Final = 20.0  # what a working cluster answers within


class NoCluster(CoschedError):
    """No Ray can be reached, or it does not answer."""


class Local:
    """A cluster of this machine. Ended by `close`, or with this process."""

    def __init__(self, nodes: Sequence[str], note: Path) -> None:
        self._note = note
        self.folder = os.environ["RAY_TMPDIR"]
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE_BYTES},
        )
        self.note()
        self.raylets: dict[str, int] = {}  # site node -> process that its Ray node is
        for node in nodes:
            made = self._cluster.add_node(
                num_cpus=1, labels={LABEL: node}, object_store_memory=STORE_BYTES, include_dashboard=False, wait=False
            )
            self.raylets[node] = made.all_processes["raylet"][0].process.pid
            self.note()

    @property
    def address(self) -> str:
        """Where its GCS listens."""
        return str(self._cluster.address)

    def reap(self) -> None:
        """Let those of its processes that have died go: the workers of a Ray node live on while it is a zombie."""
        nodes: Any = self._cluster
        for node in nodes.list_all_nodes():
            for infos in node.all_processes.values():
                for info in infos:
                    info.process.poll()

    def note(self) -> None:
        """Write down its processes."""
        processes.note(self._note, self.folder)

    def close(self) -> None:
        """Kill all of it; there is nothing in it that is worth a farewell."""
        processes.kill_descendants()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._note.unlink(missing_ok=True)


def join(address: str) -> None:
    """Become a driver of the cluster at `address` (host:port of its GCS). Raises NoCluster."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), PROBE_S).close()  # ray.init tries for minutes
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    except (RayError, RuntimeError, ValueError, OSError) as error:
        raise NoCluster(f"no Ray at {address}: {str(error).splitlines()[0]}") from None


def ray_nodes() -> dict[str, str]:
    """Site node -> id of the Ray node that carries its label; the first by id where there are several."""
    found = sorted((n["Labels"][LABEL], n["NodeID"]) for n in _alive() if LABEL in n["Labels"])
    return dict(reversed(found))


def has_gpu(ray_node: str) -> bool:
    """Whether a Ray node has any GPU to give."""
    return any(n["NodeID"] == ray_node and n["Resources"].get("GPU", 0) > 0 for n in _alive())


def _alive() -> list[dict[str, Any]]:
    api: Any = ray  # parts of it have no types
    return [n for n in api.nodes() if n["Alive"]]


def claim(asked: Claim, least: int) -> tuple[Claim, Claim]:
    """Ask for command of the cluster; (claim before, claim now). Raises NoCluster."""
    data = _registry("claim", msgspec.msgpack.encode(asked), least)
    before, after = msgspec.msgpack.decode(data, type=tuple[Claim, Claim])
    return before, after


def release(epoch: int) -> None:
    """Give command up. Raises NoCluster."""
    _registry("release", epoch)


def _registry(method: str, *arguments: object) -> Any:  # noqa: ANN401  # what the method returns
    actor: Any = ray.remote(Registry)
    try:
        registry = actor.options(
            name=REGISTRY, namespace=NAMESPACE, lifetime="detached", get_if_exists=True,
            num_cpus=0, resources=HEAD, max_restarts=-1, max_task_retries=3,
        ).remote()  # fmt: skip
        return ray.get(getattr(registry, method).remote(*arguments), timeout=ANSWER_S)
    except RayError as error:
        raise NoCluster(f"the cluster's registry does not answer: {str(error).splitlines()[0]}") from None


def node_actor(spec: NodeSpec, ray_node: str, executor: str) -> Any:  # noqa: ANN401  # Ray's handles have no type
    """Handle of the node's actor, which is made where there is none; on the given Ray node and no other."""
    actor: Any = ray.remote(NodeActor)
    return actor.options(
        name=f"node/{spec.id}", namespace=NAMESPACE, lifetime="detached", get_if_exists=True, max_restarts=0,
        num_cpus=0, num_gpus=spec.fraction if has_gpu(ray_node) else 0,
        scheduling_strategy=NodeAffinitySchedulingStrategy(ray_node, soft=False),
    ).remote(spec.id, executor)  # fmt: skip


def end_actor(handle: Any) -> None:  # noqa: ANN401
    """End an actor that does not answer, so that its name is free."""
    ray.kill(handle, no_restart=True)
