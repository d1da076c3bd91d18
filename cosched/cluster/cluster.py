"""Ray itself: joining a cluster, a local one of one's own, which nodes are alive, actors on them.

A local cluster is a head without work and one Ray node for each node of the site, all processes of this machine and
children of this process: Linux ends them with it, however it ends (prctl(2), PR_SET_PDEATHSIG, which Ray sets). Linux
does so already when the thread ends that started them, and Ray installs a signal handler: so it is the main thread's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import ray
from ray.cluster_utils import Cluster
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cosched.api.messages import RayNode
from cosched.cluster import processes
from cosched.cluster.backoff import Backoff
from cosched.cluster.messages import Claim, NodeSpec
from cosched.cluster.node_actor import NAMESPACE, NodeActor, Registry
from cosched.errors import CoschedError

LABEL: Final = "cosched_node"  # of a Ray node: the id of the site's node that it is
STORE_BYTES: Final = 80 * 1024 * 1024  # object store of a local node, nearly unused: the least that Ray takes is 75 MiB
MODEL: Final = "accelerator_type:"  # of a resource that Ray makes of a GPU's model
HEAD: Final = {"node:__internal_head__": 0.001}  # resource that Ray gives to the head alone
REGISTRY: Final = "registry"
PROBE_S: Final = 3.0  # a GCS that listens accepts a connection within
ANSWER_S: Final = 20.0  # what a working cluster answers within
AGAIN_S: Final = (1.0, 2.0, 5.0, 10.0, 30.0)  # from the death of a local Ray node to its next start


class NoCluster(CoschedError):
    """No Ray can be reached, or it does not answer."""


@dataclass(slots=True)
class Raylet:
    """The process that a local Ray node is."""

    node: Any  # ray's own account of its processes
    began_s: float
    backoff: Backoff = field(default_factory=lambda: Backoff(AGAIN_S))
    due_s: float = 0.0  # when it is started again, 0 = it lives

    @property
    def process(self) -> Any:  # noqa: ANN401  # a Popen, as Ray wraps it
        """Its process."""
        return self.node.all_processes["raylet"][0].process


class Local:
    """A cluster of this machine. Ended by `close`, or with this thread."""

    def __init__(self, nodes: Sequence[str], note: Path) -> None:
        self._note = note
        self.folder = os.environ["RAY_TMPDIR"]
        self.note()  # a head takes seconds to start, and whoever is killed meanwhile leaves the folder
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE_BYTES},
        )
        self.note()
        self._raylets: dict[str, Raylet] = {}
        for node in nodes:
            self._raylets[node] = Raylet(self._start(node), time.monotonic())

    def _start(self, node: str) -> Any:  # noqa: ANN401
        made = self._cluster.add_node(
            num_cpus=1, labels={LABEL: node}, object_store_memory=STORE_BYTES, include_dashboard=False, wait=False
        )
        self.note()
        return made

    @property
    def address(self) -> str:
        """Where its GCS listens."""
        return str(self._cluster.address)

    @property
    def raylets(self) -> dict[str, int]:
        """Site node -> process that its Ray node is."""
        return {node: raylet.process.pid for node, raylet in self._raylets.items()}

    def reap(self) -> None:
        """Let those of its processes that have died go: the workers of a Ray node live on while it is a zombie."""
        nodes: Any = self._cluster
        for node in nodes.list_all_nodes():
            for infos in node.all_processes.values():
                for info in infos:
                    info.process.poll()

    def revive(self) -> None:
        """Start Ray nodes again that have died, each after a while; it takes seconds."""
        for node, raylet in self._raylets.items():
            now_s = time.monotonic()
            if raylet.process.poll() is None:
                continue
            if not raylet.due_s:
                raylet.due_s = now_s + raylet.backoff.died(now_s - raylet.began_s)
            elif now_s >= raylet.due_s and node not in ray_nodes():  # two with its label would be one too many
                self._cluster.remove_node(raylet.node, allow_graceful=False)
                self._raylets[node] = Raylet(self._start(node), time.monotonic(), raylet.backoff)

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


def ray_nodes() -> dict[str, RayNode]:
    """Site node -> the Ray node that lives and carries its label; the first by id where there are several."""
    api: Any = ray  # parts of it have no types
    found = sorted((n["Labels"][LABEL], n["NodeID"], n) for n in api.nodes() if n["Alive"] and LABEL in n["Labels"])
    return {name: _ray_node(told) for name, _, told in reversed(found)}


def _ray_node(told: dict[str, Any]) -> RayNode:
    has, labels = told["Resources"], told["Labels"]
    models = sorted(name.removeprefix(MODEL) for name in has if name.startswith(MODEL))
    return RayNode(
        id=told["NodeID"], address=told["NodeManagerAddress"], cpus=has.get("CPU", 0.0), gpus=has.get("GPU", 0.0),
        memory_bytes=has.get("memory", 0.0), accelerator=", ".join(models), labels=labels,
    )  # fmt: skip


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


def node_actor(spec: NodeSpec, ray_node: RayNode, executor: str) -> Any:  # noqa: ANN401  # Ray's handles have no type
    """Handle of the node's actor, which is made where there is none; on the given Ray node and no other."""
    actor: Any = ray.remote(NodeActor)
    return actor.options(
        name=f"node/{spec.id}", namespace=NAMESPACE, lifetime="detached", get_if_exists=True, max_restarts=0,
        num_cpus=0, num_gpus=spec.fraction if ray_node.gpus > 0 else 0,
        scheduling_strategy=NodeAffinitySchedulingStrategy(ray_node.id, soft=False),
    ).remote(spec.id, executor)  # fmt: skip


def end_actor(handle: Any) -> None:  # noqa: ANN401
    """End an actor, so that its name is free."""
    with contextlib.suppress(RayError, ValueError):  # it may be dead already, or half alive
        ray.kill(handle, no_restart=True)
