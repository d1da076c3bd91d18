"""This node's compute telemetry: CPU and memory from the kernel, GPU by NVML where there is one, RTT to the daemon.

Two readings make a report: load is the busy time between them. What our own runtime uses is not background: the
processes named in `own` are taken off. The RTT is that of a TCP handshake with the daemon's telemetry port, which
takes one round trip and nothing of the daemon but its kernel.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import psutil

from telemetry.messages import NodeReport

RTT_PATIENCE_S: Final = 1.0

Load = Literal["cpu", "gpu"]


class Gpu(NamedTuple):
    """One reading of a GPU; fractions over NVML's sampling period (1/6 to 1 s, by device)."""

    busy: float
    memory: float
    own: float  # of its compute, by the processes that are ours
    memory_bytes: float  # all of it


class Reading(NamedTuple):
    """Counters at one instant. CPU seconds are summed over all cores."""

    at_s: float
    cpu_busy_s: float
    cpu_total_s: float
    own_cpu_s: Mapping[tuple[int, float], float]  # (pid, start time) of ours -> CPU seconds
    memory: float  # fraction of RAM that cannot be had by a new process
    gpu: Gpu | None
    rtt_s: float | None


def read(
    own: Collection[str], gpu: Callable[[Collection[int]], Gpu | None], rtt: Callable[[], float | None]
) -> Reading:
    """Read all counters. `own`: names of our runtime's processes; `gpu`: of these pids."""
    times = psutil.cpu_times()
    idle_s = times.idle + getattr(times, "iowait", 0.0)
    guest_s = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # is in user and nice already
    total_s = sum(times) - guest_s
    memory = psutil.virtual_memory()
    ours = _own_cpu_s(own) if own else {}
    return Reading(
        at_s=time.monotonic(),
        cpu_busy_s=total_s - idle_s,
        cpu_total_s=total_s,
        own_cpu_s=ours,
        memory=1 - memory.available / memory.total,
        gpu=gpu({pid for pid, _ in ours}),
        rtt_s=rtt(),
    )


def _own_cpu_s(names: Collection[str]) -> dict[tuple[int, float], float]:
    found = {}
    for process in psutil.process_iter(["name", "pid", "create_time", "cpu_times"]):
        info = process.info
        if info["name"] in names and info["cpu_times"] is not None:
            found[info["pid"], info["create_time"]] = info["cpu_times"].user + info["cpu_times"].system
    return found


@dataclass(slots=True)
class Reporter:
    """Turns readings into numbered reports. `load`: whose load is the node's background, the GPU's or the CPU's."""

    node: str
    load: Load
    last: Reading
    seq: int = 0

    def report(self, now: Reading, at_ns: int) -> NodeReport:
        """Return the report of the time since the last reading; `at_ns` is Unix time."""
        cpu, own = _cpu_fractions(self.last, now)
        busy, ours = (cpu, own) if self.load == "cpu" or now.gpu is None else (now.gpu.busy, now.gpu.own)
        self.last, self.seq = now, self.seq + 1
        return NodeReport(
            at_ns=at_ns,
            source=f"agent/{self.node}",
            seq=self.seq - 1,
            node=self.node,
            background_fraction=_fraction(busy - ours),
            cpu_fraction=cpu,
            memory_fraction=_fraction(now.memory),
            gpu_fraction=None if now.gpu is None else _fraction(now.gpu.busy),
            gpu_memory_fraction=None if now.gpu is None else _fraction(now.gpu.memory),
            gpu_memory_bytes=None if now.gpu is None or now.gpu.memory_bytes < 1 else now.gpu.memory_bytes,
            rtt_s=now.rtt_s,
        )


def _cpu_fractions(before: Reading, now: Reading) -> tuple[float, float]:
    """Busy fraction of all cores between two readings, and the part of it that is ours."""
    total_s = now.cpu_total_s - before.cpu_total_s
    if total_s <= 0:
        return 0.0, 0.0
    own_s = sum(used - before.own_cpu_s.get(process, 0.0) for process, used in now.own_cpu_s.items())
    return _fraction((now.cpu_busy_s - before.cpu_busy_s) / total_s), _fraction(own_s / total_s)


def _fraction(value: float) -> float:
    return min(1.0, max(0.0, value))


def tcp_rtt(endpoint: str) -> float | None:
    """Seconds that a TCP handshake with `tcp://host:port` takes; None for another transport, or without an answer."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    if not endpoint.startswith("tcp://") or not port.isdigit():
        return None
    start_s = time.perf_counter()
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=RTT_PATIENCE_S):
            return time.perf_counter() - start_s
    except OSError:
        return None


class Nvml:
    """One NVIDIA GPU by NVML (extra `nvml`). `Nvml.open(index)` is None without the package, the driver or the GPU."""

    def __init__(self, nvml: Any, handle: Any) -> None:  # noqa: ANN401  # the package has no types
        self._nvml, self._handle = nvml, handle
        self._seen_us = 0

    @classmethod
    def open(cls, index: int) -> Nvml | None:
        """Return GPU `index`, None where there is none."""
        try:
            import pynvml
        except ImportError:
            return None
        try:
            pynvml.nvmlInit()
            return cls(pynvml, pynvml.nvmlDeviceGetHandleByIndex(index))
        except pynvml.NVMLError:
            return None

    def read(self, pids: Collection[int]) -> Gpu | None:
        """Read the GPU; None when the driver does not answer. `pids`: processes that are ours."""
        try:
            busy = self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu / 100
            memory = self._nvml.nvmlDeviceGetMemoryInfo(self._handle)
        except self._nvml.NVMLError:
            return None
        return Gpu(busy, memory.used / memory.total, self._own(pids) if pids else 0.0, float(memory.total))

    def _own(self, pids: Collection[int]) -> float:
        """Share of the SMs that these processes used: the mean of the samples since the last call."""
        try:
            samples = self._nvml.nvmlDeviceGetProcessUtilization(self._handle, self._seen_us)
        except self._nvml.NVMLError:  # NOT_FOUND when no process ran since
            return 0.0
        finally:
            self._seen_us = time.time_ns() // 1000
        per_pid: dict[int, list[int]] = {}
        for sample in samples:
            if sample.pid in pids:
                per_pid.setdefault(sample.pid, []).append(sample.smUtil)
        return sum(sum(used) / len(used) for used in per_pid.values()) / 100
