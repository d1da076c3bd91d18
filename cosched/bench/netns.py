"""Hosts of their own in network namespaces on one bridge, each uplink shaped by `tc`: a real network on one machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

BRIDGE: Final = "br0"
MTU: Final = 1500
TICK_S: Final = 0.002  # of traffic that may pass at once: the bucket's depth
QUEUE_S: Final = 30.0  # a full queue holds this much traffic: nothing is dropped, TCP waits


def why_not() -> str:
    """Reason why there can be no namespaces here, "" when there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if missing:
        return f"needs {', '.join(missing)} (iproute2)"
    name = f"cs{os.getpid()}-try"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"no network namespaces: {made.stderr.strip()}"
    shape = (
        "tc",
        "-n",
        name,
        "qdisc",
        "add",
        "dev",
        "lo",
        "root",
        "tbf",
        "rate",
        "1mbit",
        "burst",
        "2kb",
        "limit",
        "9kb",
    )
    shaped = subprocess.run(shape, capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "del", name], check=True)
    return f"the kernel cannot shape traffic: {shaped.stderr.strip()}" if shaped.returncode else ""


def _do(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


@dataclass
class Namespace:
    """One namespace with one interface."""

    namespace: str
    address: str
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def shape(self, bits_per_s: float) -> None:
        """Let no more than this out (token bucket); at once for what is sent from now on."""
        burst = max(2 * MTU, round(bits_per_s / 8 * TICK_S))
        limit = round(bits_per_s / 8 * QUEUE_S) + burst
        _do(
            "tc", "-n", self.namespace, "qdisc", "replace", "dev", "up0", "root", "tbf",
            "rate", f"{round(bits_per_s)}bit", "burst", str(burst), "limit", str(limit),
        )  # fmt: skip

    def start(
        self,
        command: Sequence[str],
        env: Mapping[str, str] | None = None,
        stdout: int | None = None,
        stdin: int | None = None,
    ) -> subprocess.Popen[str]:
        """Run a program in it; ended with the network."""
        inside = ("ip", "netns", "exec", self.namespace, *command)
        process = subprocess.Popen(
            inside, env=None if env is None else dict(env), text=True, stdout=stdout, stdin=stdin
        )
        self.processes.append(process)
        return process


class Net:
    """Hosts on a bridge, 10.77.0.0/24. Gone, with all processes in it, at the end of the `with`."""

    def __init__(self) -> None:
        self._prefix = f"cs{os.getpid()}"
        self._switch = f"{self._prefix}-switch"
        self.hosts: dict[str, Namespace] = {}

    def __enter__(self) -> Self:
        _do("ip", "netns", "add", self._switch)
        _do("ip", "-n", self._switch, "link", "add", BRIDGE, "type", "bridge")
        _do("ip", "-n", self._switch, "link", "set", BRIDGE, "up")
        return self

    def host(self, name: str) -> Namespace:
        """Add a host."""
        number = len(self.hosts) + 1
        host = Namespace(f"{self._prefix}-{name}", f"10.77.0.{number}")
        self.hosts[name] = host
        port = f"port{number}"
        _do("ip", "netns", "add", host.namespace)
        _do(
            "ip", "link", "add", "up0", "netns", host.namespace, "type", "veth",
            "peer", "name", port, "netns", self._switch,
        )  # fmt: skip
        _do("ip", "-n", self._switch, "link", "set", port, "master", BRIDGE, "up")
        _do("ip", "-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", "up0")
        for device in ("lo", "up0"):
            _do("ip", "-n", host.namespace, "link", "set", device, "up")
        _do("ip", "netns", "exec", host.namespace, "sysctl", "-qw", "net.ipv4.tcp_slow_start_after_idle=0")
        return host

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for host in self.hosts.values():
            for process in host.processes:
                process.kill()
                process.wait()
        for namespace in (*(h.namespace for h in self.hosts.values()), self._switch):
            subprocess.run(["ip", "netns", "del", namespace], check=False)
