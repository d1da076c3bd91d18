"""The node agent: its arithmetic, the kernel's counters, a real NVML binding over a made library, and real sockets."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosched.api import keys
from cosched.api.access import Access, Identity
from cosched.api.zap import Authenticator, new_pair
from cosched.cli import main
from telemetry import quality
from telemetry.agent import Gpu, Nvml, Reading, Reporter, read, tcp_rtt
from telemetry.bus import Curve, TelemetrySocket
from telemetry.messages import NodeReport
from telemetry.wire import Intake

START = Reading(
    at_s=0.0, cpu_busy_s=100.0, cpu_total_s=1000.0, own_cpu_s={(1, 0.0): 5.0}, memory=0.5, gpu=None, rtt_s=None
)


def later(busy_s: float, total_s: float, own_s: float, gpu: Gpu | None = None) -> Reading:
    own = {(1, 0.0): 5.0 + own_s, (2, 3.0): 1.0} if own_s else {}
    return Reading(1.0, 100.0 + busy_s, 1000.0 + total_s, own, 0.25, gpu, 0.002)


def test_background_is_what_is_busy_less_what_is_ours() -> None:
    reporter = Reporter("edge0", "cpu", START)
    report = reporter.report(later(6.0, 8.0, 1.0), at_ns=7)
    # 6 of 8 core seconds busy; 1 of the old process and 1 of a new one are ours
    assert report == NodeReport(
        at_ns=7,
        source="agent/edge0",
        seq=0,
        node="edge0",
        background_fraction=0.5,
        cpu_fraction=0.75,
        memory_fraction=0.25,
        rtt_s=0.002,
    )
    assert reporter.report(later(6.0, 8.0, 1.0), at_ns=8).cpu_fraction == 0.0, "no time has passed"
    assert reporter.seq == 2


def test_on_a_gpu_node_the_gpu_is_the_background() -> None:
    report = Reporter("edge0", "gpu", START).report(later(6.0, 8.0, 0.0, Gpu(0.9, 0.4, 0.3, 80e9)), at_ns=7)
    assert report.background_fraction == pytest.approx(0.6)
    assert (report.cpu_fraction, report.gpu_fraction, report.gpu_memory_fraction) == (0.75, 0.9, 0.4)


@given(st.floats(-10, 10), st.floats(-1, 10), st.floats(0, 10), st.none() | st.builds(Gpu, *[st.floats(-1, 3)] * 4))
def test_odd_counters_make_no_implausible_report(busy: float, total: float, own: float, gpu: Gpu | None) -> None:
    report = Reporter("edge0", "gpu", START).report(later(busy, total, own, gpu), at_ns=1)
    assert quality.inspect(report).reasons == ()


def spin(seconds: float) -> None:
    """Burn CPU time, not wall time."""
    end_s = time.process_time() + seconds
    while time.process_time() < end_s:
        pass


def test_own_processes_are_counted_by_name() -> None:
    name = psutil.Process().name()
    before = read({name}, lambda _: None, lambda: None)
    worker = multiprocessing.get_context("fork").Process(target=spin, args=(0.2,))
    worker.start()
    spin(0.1)
    after = read({name}, lambda _: None, lambda: None)
    worker.join()
    mine = next(key for key in after.own_cpu_s if key[0] == os.getpid())
    assert after.own_cpu_s[mine] - before.own_cpu_s[mine] > 0.05
    assert any(pid == worker.pid for pid, _ in after.own_cpu_s)
    assert after.cpu_busy_s - before.cpu_busy_s > 0.05
    assert 0 < after.memory < 1
    assert read((), lambda _: None, lambda: None).own_cpu_s == {}


def test_rtt_is_that_of_a_handshake() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        rtt_s = tcp_rtt(f"tcp://127.0.0.1:{port}")
    assert rtt_s is not None
    assert 0 < rtt_s < 1
    assert tcp_rtt(f"tcp://127.0.0.1:{port}") is None, "nobody listens any more"
    assert tcp_rtt("ipc:///run/x") is tcp_rtt("tcp://127.0.0.1:*") is None


# ---- NVML: nvidia-ml-py over a library made here, with the entry points of the driver's

NVML = """
#include <stddef.h>
typedef struct { unsigned gpu, memory; } util_t;
typedef struct { unsigned long long total, free, used; } mem_t;
typedef struct { unsigned pid; unsigned long long t; unsigned sm, mem, enc, dec; } proc_t;
int nvmlInitWithFlags(unsigned f) { return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **h) { *h = (void *)1; return i == 0 ? 0 : 2; }
int nvmlDeviceGetUtilizationRates(void *h, util_t *u) { u->gpu = 80; u->memory = 5; return 0; }
int nvmlDeviceGetMemoryInfo(void *h, mem_t *m) { m->total = 1000; m->free = 600; m->used = 400; return 0; }
int nvmlDeviceGetProcessUtilization(void *h, proc_t *p, unsigned *n, unsigned long long since) {
  if (since) return 6;
  if (!p) { *n = 3; return 7; }
  proc_t s[3] = {{10, 1, 20}, {10, 2, 40}, {11, 1, 50}};
  for (int i = 0; i < 3; i++) p[i] = s[i];
  return 0;
}
const char *nvmlErrorString(int e) { return "no"; }
"""
READ = (
    "from telemetry.agent import Nvml; g = Nvml.open(0);"
    "print(g.read({10}), g.read({10}), g.read(()), Nvml.open(1), sep='\\n')"
)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler to make the library with")
def test_nvml_readings(tmp_path: Path) -> None:
    (tmp_path / "nvml.c").write_text(NVML)
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "nvml.c"], check=True, timeout=60)
    env = os.environ | {"LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", READ], env=env, capture_output=True, text=True, timeout=60, check=True)
    first, second, third, no_gpu = done.stdout.splitlines()
    assert first == "Gpu(busy=0.8, memory=0.4, own=0.3, memory_bytes=1000.0)", (
        "the mean of a process's samples, of our processes alone"
    )
    assert second == third == "Gpu(busy=0.8, memory=0.4, own=0.0, memory_bytes=1000.0)", (
        "nothing new since the last reading"
    )
    assert no_gpu == "None"


def test_a_node_without_a_gpu_says_so() -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("there is a GPU here")
    assert Nvml.open(0) is None


# ---- the command


def agent(*args: str, **environ: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cosched.cli.main", "agent", "--node", "edge0", "--period", "0.05", *args]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environ
    )


def heard(bus: TelemetrySocket, process: subprocess.Popen[str], gate: Authenticator | None = None) -> list[NodeReport]:
    intake, reports = Intake(), []
    end_s = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < end_s and len(reports) < 5:
        if gate is not None:
            gate.drain()
        bus.wait(0.01)
        for frame in bus.drain():
            message = intake.decode(frame.topic, frame.payload, frame.user)
            assert isinstance(message, NodeReport)
            reports.append(message)
    assert not intake.quarantine.counts
    process.terminate()
    process.wait(30)
    return reports


def test_the_agent_publishes_on_the_bus_until_it_is_told_to_stop() -> None:
    bus = TelemetrySocket()
    bus.bind(["tcp://127.0.0.1:*"])
    process = agent("--connect", bus.endpoints[0], "--json")
    reports = heard(bus, process)
    assert len(reports) >= 5
    assert process.returncode == 0
    assert [r.seq for r in reports] == list(range(reports[0].seq, reports[0].seq + len(reports)))
    assert {(r.node, r.source, r.up) for r in reports} == {("edge0", "agent/edge0", True)}
    assert all(r.rtt_s is not None and r.cpu_fraction is not None and r.memory_fraction for r in reports)
    assert process.stdout is not None
    printed = [json.loads(line) for line in process.stdout.read().splitlines()]
    assert [line["seq"] for line in printed[:3]] == [0, 1, 2]
    bus.close()


def test_the_agent_speaks_under_its_key(tmp_path: Path) -> None:
    daemon, edge0 = new_pair("daemon"), new_pair("edge0")
    keys.write_pair(tmp_path, edge0)
    gate = Authenticator(Access([Identity(name="edge0", public=edge0.public, role="publisher", nodes=("edge0",))]))
    bus = TelemetrySocket(Curve(daemon.public, daemon.secret))
    bus.bind(["tcp://127.0.0.1:*"])
    args = ("--connect", bus.endpoints[0], "--key", "edge0", "--server", daemon.public)
    process = agent(*args, COSCHED_KEYS=str(tmp_path))
    assert len(heard(bus, process, gate)) >= 5
    assert gate.let_in == {"edge0": 1}
    bus.close()
    gate.close()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--key", "edge0"), "go together (--key and --server)"),
        (("--key", "none", "--server", "x" * 40), "none.key: No such file"),
        (("--load", "gpu", "--gpu", "99"), "NVML finds no GPU 99"),
        (("--connect", "tcp:/x"), "tcp:/x: "),
    ],
)
def test_wrong_usage_is_one_line(
    args: tuple[str, ...],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COSCHED_KEYS", str(tmp_path))
    with pytest.raises(SystemExit) as caught:
        main.main(["agent", *args])
    out, err = capsys.readouterr()
    assert (caught.value.code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
