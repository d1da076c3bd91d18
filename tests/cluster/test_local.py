"""A local cluster lives and ends with its daemon; a daemon that reaches no cluster schedules all the same."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import msgspec
import psutil
import pytest
from cluster_cases import SITE, WORK, in_force
from daemon_cases import Daemon, Place, radio, until

from cosched.api.client import Client
from cosched.cluster.processes import Left

pytestmark = pytest.mark.slow
SMALL = SITE.replace(', { id = "edge1", device = "h100" }, { id = "missing", device = "h100" }', "")


def local(folder: Path, **settings: str) -> Place:
    (folder / "site.toml").write_text(SMALL)
    return Place(folder, {"SITE": f"{folder}/site.toml", **settings})


def left(place: Place) -> Left:
    return msgspec.json.decode((place.folder / "state" / "cluster.json").read_bytes(), type=Left)


def running(noted: Left) -> list[int]:
    """Those of the noted processes that still run."""
    found = []
    for pid, began_s in noted.processes.items():
        if psutil.pid_exists(pid):
            process = psutil.Process(pid)
            if process.create_time() == began_s and process.status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
    return found


def up(client: Client) -> int:
    """Wait for the node's actor; return its process."""
    found = []

    def is_up() -> bool:
        found[:] = [n.pid for n in client.status().cluster.nodes if n.state == "up" and n.pid]
        return bool(found)

    until(is_up)
    return found[0]


def noted(daemon: Daemon, pid: int) -> Left:
    """Wait until the note names a process."""
    until(lambda: pid in left(daemon.place).processes)
    return left(daemon.place)


def test_a_local_cluster_ends_with_its_daemon_also_after_kill_9(tmp_path: Path):
    place = local(tmp_path, CLUSTER_MODE="local")
    with place.daemon() as daemon, daemon.ready() as client:
        assert client.status().cluster.state in {"starting", "connected"}  # decisions did not wait for it
        worker = up(client)
        first = noted(daemon, worker)
        assert len(first.processes) > 5
        os.kill(worker, signal.SIGSTOP)  # it cannot see that its Ray is gone
        dispatcher = next(p for p in psutil.Process(daemon.process.pid).children() if p.pid in first.processes)
        dispatcher.suspend()  # or it would clean up, as it does when the daemon alone is killed
        daemon.stop(signal.SIGKILL)
        dispatcher.kill()
        assert worker in running(first)  # and some of Ray's agents, which wait a minute for its GCS
    assert Path(first.folder).exists()
    with place.daemon() as daemon, daemon.ready() as client:
        second = noted(daemon, up(client))
        assert running(first) == []
        assert not Path(first.folder).exists()
        assert client.status().cluster.epoch > 1
        code, seconds = daemon.stop()
        assert code == 0
        assert seconds < 5
        assert running(second) == []
    assert not Path(second.folder).exists()
    assert not (tmp_path / "state" / "cluster.json").exists()
    assert "Traceback" not in daemon.log()


def is_lost(client: Client, node: str) -> bool:
    """Whether status says so, and an alarm with it."""
    status = client.status()
    is_said = any(f"{node} lost: " in alarm for alarm in status.alarms)
    return is_said and any(n.node == node and n.state == "lost" for n in status.cluster.nodes)


def test_a_local_ray_node_that_is_killed_comes_back_by_itself(tmp_path: Path):
    place = local(tmp_path, CLUSTER_MODE="local", TELEMETRY_STALE_UE_S="1000", TELEMETRY_STALE_INPUT_S="1000")
    with place.daemon() as daemon, daemon.ready() as client, radio(place, client):
        for _ in range(2):  # the second time it is not the first death
            worker = up(client)
            epoch = client.status().cluster.epoch
            raylet = psutil.Process(worker).parent()
            assert "raylet" in raylet.name()
            ray = client.status().cluster.nodes[0].ray
            assert (ray.cpus, ray.gpus, ray.labels["cosched_node"]) == (1, 0, "edge0")
            raylet.kill()
            until(lambda: is_lost(client, "edge0"))
            until(lambda old=worker: up(client) != old)
            assert client.status().cluster.nodes[0].ray.id != ray.id
            assert not psutil.pid_exists(worker)
            assert client.status().cluster.epoch == epoch  # the cluster is the same
            until(lambda: not client.status().alarms)
        until(lambda: in_force(client, 0))
        assert client.submit("t0", "ue0", WORK).node == "edge0"
        until(lambda: in_force(client, 1))
        code, seconds = daemon.stop()
        assert (code, seconds < 5) == (0, True)
    assert not (tmp_path / "state" / "cluster.json").exists()
    assert "Traceback" not in daemon.log()


def test_a_daemon_that_reaches_no_cluster_schedules_and_says_so(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # nobody listens there any more in a moment
    place = local(tmp_path, CLUSTER_MODE="join", CLUSTER_ADDRESS=f"127.0.0.1:{port}")
    with place.daemon() as daemon, daemon.ready() as client, radio(place, client):
        until(lambda: client.status().cluster.state == "unreachable")
        status = client.status()
        assert status.mode == "DEGRADED"
        (alarm,) = [a for a in status.alarms if a.startswith("cluster")]
        assert alarm.startswith(f"cluster: unreachable, decisions are not dispatched: no Ray at 127.0.0.1:{port}")
        assert client.submit("t0", "ue0", WORK).node == "edge0"
        assert daemon.stop()[0] == 0
