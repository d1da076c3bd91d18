"""Where suite `network` runs: a UE and an edge host in namespaces, a shaped uplink, a daemon beside the host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from cosched.api.access import PUBLISHER, Identity
from cosched.api.client import Client
from cosched.api.keys import KeyPair, allow, write_pair
from cosched.api.zap import new_pair
from cosched.bench.netns import Namespace, Net
from cosched.bench.network_jobs import MODEL, SEED, VOCAB, Job, Measured, UeSetup
from cosched.config.paths import Home
from cosched.config.wiring import Plant, plant
from cosched.errors import BadInput
from cosched.profiles.calibration import Calibration
from telemetry.bus import Publisher
from telemetry.messages import UeReport
from telemetry.wire import encode

T = TypeVar("T", bound=msgspec.Struct)

EFFICIENCY_BPS_HZ: Final = 4.0
REPORT_S: Final = 0.05
UE: Final = "ue0"
PORT: Final = 5561
READY_S: Final = 120.0
MOST_OFF: Final = 8.0  # that calibration may correct a guessed profile by

CONFIG: Final = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 1024, "num_hidden_layers": 6,
    "num_attention_heads": 16, "num_key_value_heads": 8, "intermediate_size": 2816, "vocab_size": VOCAB,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True, "max_position_embeddings": 1024,
}  # fmt: skip

# One device for both sides: this machine's CPU on one thread. fp32 counts as 16 bit at half the bandwidth.
DEVICE: Final = """
v = 1
name = "this CPU"
kind = "gpu"
weight_format = "group128"
guess = ["prefill", "decode", "attention", "quantised", "power"]
[peak]
tflops = {tflops}
mem_bw_gb_s = {gb_s}
memory_gb = 8.0
source = "measured"
[linear]
compute_efficiency = 0.8
memory_efficiency = 0.8
overhead_us = 10.0
source = "guess: sessions calibrate it"
[elementwise]
efficiency = 0.5
overhead_us = 10.0
source = "guess"
[attention]
compute_efficiency = 0.4
kv_efficiency = 0.4
prefill_overhead_us = 50.0
decode_overhead_us = 50.0
source = "guess"
[power]
idle_w = 10.0
busy_w = 50.0
source = "guess"
"""

# A message of a decoded token: ZeroMQ's and CURVE's frames, the step's head, acknowledgements.
SITE: Final = """
v = 1
name = "two namespaces"
[[cells]]
id = "cell0"
ul_prbs = 50
scs_khz = 15
one_way_s = 0.0002
[[nodes]]
id = "edge0"
device = "{device}"
host = "ideal"
[[models]]
id = "small"
config = "{config}"
weight_bits = 16
activation_bits = [16, 8]
[ues]
count = 1
[[ues.devices]]
device = "{device}"
share = 1.0
[transport]
chunk_tokens = 64
message_bytes = {message_bytes}
overhead = {overhead}
"""
MESSAGE_BYTES: Final = 200.0
HEADERS: Final = 66 / 1448  # Ethernet, IPv4 and TCP with time stamps, of what a segment carries


@dataclass
class Setting:
    """The two hosts with what runs in them."""

    home: Home  # of the daemon: ipc knows no namespaces
    plant: Plant
    edge: Namespace
    ue: Namespace
    process: subprocess.Popen[str]
    environment: Mapping[str, str]
    calibration: Calibration = field(default_factory=lambda: Calibration(MOST_OFF))

    def tell(self, job: msgspec.Struct | None) -> None:
        """Send the UE a job, or a go."""
        assert self.process.stdin is not None  # noqa: S101  # opened as a pipe
        self.process.stdin.write(("" if job is None else msgspec.json.encode(job).decode()) + "\n")
        self.process.stdin.flush()

    def hear(self, kind: type[T]) -> T:
        """Wait for its answer. Raises BadInput where the process has ended."""
        assert self.process.stdout is not None  # noqa: S101  # opened as a pipe
        line = self.process.stdout.readline()
        if not line:
            raise BadInput(f"suite network: the UE's process ended with {self.process.wait()}; its errors are above")
        return msgspec.json.decode(line, type=kind)

    def run(self, job: Job, rate_bps: float) -> Measured:
        """Measure a generation on an uplink of that rate."""
        self.ue.shape(rate_bps)
        self.tell(job)
        return self.hear(Measured)


@contextmanager
def setting(folder: Path, tflops: float, gb_s: float, sizes: Mapping[str, object] = CONFIG) -> Iterator[Setting]:
    """Namespaces with the host and the UE running.

    tflops and gb_s: peaks of one core of this machine, in 16-bit terms; sizes: config.json of the model.
    """
    home, config, device = Home(folder), folder / "config.json", folder / "cpu.toml"
    config.write_text(json.dumps(sizes))
    device.write_text(DEVICE.format(tflops=tflops, gb_s=gb_s))
    site = SITE.format(device=device, config=config, message_bytes=MESSAGE_BYTES, overhead=HEADERS)
    (folder / "site.toml").write_text(site)
    pair, ue_key = _keys(folder)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COSCHED_KEYS": str(folder)}
    with Net() as net:
        edge, ue = net.host("edge"), net.host("ue")
        endpoint = f"tcp://{edge.address}:{PORT}"
        serving = edge.start(
            [*_program("host"), "--model", f"{MODEL}={config}", "--seed", str(SEED), "--bind", endpoint,
             "--key", "edge", "--allowed", str(folder / "allowed.toml"), "--node", "edge0", "--threads", "1"],
            environment, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert serving.stdout is not None  # noqa: S101  # opened as a pipe
        if not serving.stdout.readline():
            raise BadInput(f"suite network: the host ended with {serving.wait()}; its errors are above")
        found = Setting(home, plant(site, "suite network", {}), edge, ue, serving, environment)
        setup = UeSetup(str(config), str(ue_key), endpoint, pair.public, home.control, home.telemetry)
        told = msgspec.json.encode(setup).decode()
        command = [sys.executable, "-m", "cosched.bench.network_ue", told]
        found.process = ue.start(command, environment, stdout=subprocess.PIPE, stdin=subprocess.PIPE)
        found.hear(Measured)
        yield found


def _program(command: str) -> list[str]:
    return [sys.executable, "-m", "cosched.cli.main", command]


def _keys(folder: Path) -> tuple[KeyPair, Path]:
    """Write both sides' keys and let the UE in; return the host's pair and the UE's file."""
    edge, ue = new_pair("edge"), new_pair("ue")
    write_pair(folder, edge)
    allow(folder / "allowed.toml", Identity(name="ue", public=ue.public, role=PUBLISHER))
    return edge, write_pair(folder, ue)


@contextmanager
def daemon(at: Setting) -> Iterator[Client]:
    """A daemon in the host's namespace, told of a steady channel; the client is connected when it decides."""
    home = at.home
    environment = {
        **at.environment, **home.variables,
        "COSCHED_SITE": str(home.folder / "site.toml"), "COSCHED_TELEMETRY_BIND": f'["{home.telemetry}"]',
        "COSCHED_CORE_CALIBRATION_MOST": str(MOST_OFF), "COSCHED_LOG_LEVEL": "warning",
        "COSCHED_CLUSTER_MODE": "off",
    }  # fmt: skip
    at.edge.start(_program("run"), environment)
    ended = threading.Event()
    radio = threading.Thread(target=_report, args=(home.telemetry, ended))
    radio.start()
    try:
        until_s = time.monotonic() + READY_S
        while not Path(home.control.removeprefix("ipc://")).exists() and time.monotonic() < until_s:
            time.sleep(REPORT_S)
        with Client(home.control) as client:
            while client.status().mode == "STARTING" or not client.status().ingest.reports:
                if time.monotonic() > until_s:
                    raise BadInput(f"suite network: the daemon was not ready after {READY_S:.0f} s")
                time.sleep(REPORT_S)
            yield client
    finally:
        ended.set()
        radio.join()


def _report(endpoint: str, ended: threading.Event) -> None:
    """Report the same channel again and again."""
    publisher, seq = Publisher(endpoint), 0
    while not ended.wait(REPORT_S):
        report = UeReport(
            at_ns=time.monotonic_ns(), source="ran", seq=seq, ue=UE, cell="cell0",
            ul_efficiency_bps_hz=EFFICIENCY_BPS_HZ,
        )  # fmt: skip
        publisher.send(*encode(report))
        seq += 1
    publisher.close()
