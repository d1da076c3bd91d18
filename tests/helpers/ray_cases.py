"""A Ray cluster in a process of its own with a labelled node per site node, and a peer that speaks to its actors.

`python ray_cases.py cluster edge0 edge1` holds a cluster until its stdin ends; the first line that it prints is JSON.
`python ray_cases.py orders ADDRESS TOKEN_FILE NODE` sends the orders that stdin has as JSON lines to the node's actor.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import psutil

if TYPE_CHECKING:
    from cosched.cluster.cluster import Local
    from cosched.cluster.messages import Begin

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@dataclass
class RayCluster:
    address: str
    token_file: Path
    raylets: dict[str, int]  # site node -> process
    head: int  # the process of its GCS

    def settings(self) -> dict[str, str]:
        """COSCHED_* of a daemon that joins."""
        return {
            "CLUSTER_MODE": "join",
            "CLUSTER_ADDRESS": self.address,
            "CLUSTER_TOKEN_FILE": str(self.token_file),
        }

    def orders(self, actor: str, orders: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """What the actor of node `actor` answers to these orders, and at last what it reports. It lives on edge0."""
        command = [sys.executable, __file__, "orders", self.address, str(self.token_file), actor]
        done = subprocess.run(
            command, input="\n".join(map(json.dumps, orders)), capture_output=True, text=True, timeout=60,
            check=False, env=environment(),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]


def environment() -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "COSCHED_"))}
    return {**clean, "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}"}


@contextlib.contextmanager
def ray_cluster(folder: Path, nodes: Sequence[str]) -> Iterator[RayCluster]:
    """Start a cluster; all its processes are gone afterwards."""
    process = subprocess.Popen(
        [sys.executable, __file__, "cluster", str(folder), *nodes],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        found = json.loads(process.stdout.readline())
        yield RayCluster(found["address"], Path(found["token_file"]), found["raylets"], found["head"])
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(30)


def as_json(answer: bytes) -> str:
    return json.dumps(msgspec.msgpack.decode(answer))


def hold(folder: str, nodes: Sequence[str]) -> None:
    from cosched.cluster.process import set_environment

    token_file = Path(folder) / "token"
    set_environment(begin("local"))
    token_file.write_text(os.environ["RAY_AUTH_TOKEN"])
    from cosched.cluster.cluster import Local

    local = Local(nodes, Path(folder) / "processes.json")
    head = next(p.pid for p in psutil.Process().children(recursive=True) if p.name() == "gcs_server")
    told = {"address": local.address, "token_file": str(token_file), "raylets": local.raylets, "head": head}
    show(json.dumps(told))
    threading.Thread(target=reap, args=(local,), daemon=True).start()
    sys.stdin.read()
    local.close()
    os._exit(0)


def reap(local: Local) -> None:
    """Let a Ray node that was killed go: as long as it is a zombie, its workers live on."""
    while True:
        time.sleep(0.05)
        local.reap()


def begin(mode: str, token_file: str = "") -> Begin:
    from cosched.cluster.messages import Begin

    return Begin(
        mode=mode, token_file=token_file, address="", executor="ledger", nodes=(), who="test", daemon="test", epoch=0,
        least=0, period_s=0.1, unapplied_periods=3, retries=1, silent_s=2.0, processes="",
    )  # fmt: skip


def send(address: str, token_file: str, name: str) -> None:
    from cosched.cluster.messages import NodeSpec, Order
    from cosched.cluster.process import set_environment

    set_environment(begin("join", token_file))
    import ray

    from cosched.cluster import cluster

    cluster.join(address)
    actor = cluster.node_actor(NodeSpec(id=name, fraction=1.0), cluster.ray_nodes()["edge0"], "ledger")
    for line in sys.stdin:
        one = msgspec.json.decode(line, type=Order)
        show(as_json(ray.get(actor.apply.remote(msgspec.msgpack.encode(one)))))
    show(as_json(ray.get(actor.report.remote(2**40, "test"))))
    os._exit(0)


def show(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    if sys.argv[1] == "cluster":
        hold(sys.argv[2], sys.argv[3:])
    else:
        send(*sys.argv[2:])
