"""A daemon, a host with a tiny model and a front end, on real sockets; the host is in this process, to be looked at."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import runtime_cases as cases
from daemon_cases import PATIENCE_S, Daemon, Place, until

from cosched.api.client import Client
from cosched.runtime.host import LayerHost

POSITIONS = 4096
SHORT = "header_s = 1.0\nbody_s = 1.0\nwrite_s = 1.0\nheader_bytes = 16384\nrunning = 24\nconnections_each = 64\n"
SITE = """
v = 1
name = "tiny"
cells = [{ id = "lan", ul_prbs = 273, scs_khz = 30, one_way_s = 0.001 }]
nodes = [{ id = "edge0", device = "a100", fraction = 0.25, memory_bytes = 25e6 }]
models = [{ id = "llama", config = "CONFIG", activation_bits = [16] }]
mix = { model = "llama" }
[ues]
count = 4
[[ues.devices]]
device = "phone"
share = 0.5
max_layers = 0
[[ues.devices]]
device = "laptop"
share = 0.5
max_layers = 2
"""
DAEMON = """
[ue_devices]
desk = "phone"
desk2 = "phone"
home = "laptop"
"""


@dataclass
class Stand:
    """What a test has: the endpoint, and a view of all that is behind it."""

    url: str  # with /v1
    folder: Path
    place: Place
    daemon: Daemon
    client: Client  # of the daemon, an operator's
    host: LayerHost
    process: subprocess.Popen[str]
    source: cases.ModelSource
    stack: contextlib.ExitStack

    def restart_daemon(self) -> None:
        """Kill the daemon and start it again."""
        self.daemon.process.kill()
        self.daemon.process.wait()
        self.daemon = self.stack.enter_context(self.place.daemon())

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").removesuffix("/v1").rpartition(":")
        return host, int(port)

    def connect(self, receive_bytes: int = 0) -> socket.socket:
        """Open a connection. receive_bytes: of the kernel's buffer, for who is not to read."""
        connection = socket.socket()
        connection.settimeout(PATIENCE_S)
        if receive_bytes:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        connection.connect(self.address)
        return connection

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        """GET beside /v1."""
        connection = http.client.HTTPConnection(*self.address, timeout=PATIENCE_S)
        try:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def counted(self, name: str) -> float:
        """Sum over a metric's labels."""
        lines = self.get("/metrics")[1].splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.partition("{")[0].partition(" ")[0] == name)

    def is_free(self) -> bool:
        """Whether neither leases nor KV caches are held."""
        return not self.client.list().total and not self.host.report().sessions and not self.host.report().kv_bytes

    def log(self) -> str:
        return (self.folder / "serve.log").read_text()


def ask(path: str, body: dict[str, Any], **headers: str) -> bytes:
    """Return a request as bytes."""
    data = json.dumps(body).encode()
    own = {"host": "here", "content-type": "application/json", "content-length": str(len(data)), **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in own.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + data


def chat(*, stream: bool = True, **more: object) -> dict[str, Any]:
    """Return a body."""
    turns = [{"role": "user", "content": "Hello"}]
    return {"model": "llama", "messages": turns, "temperature": 0, "stream": stream, **more}


def configured(
    folder: Path, place: Place, host: LayerHost, more: str = "", limits: str = "", first: str = "", model: str = ""
) -> Path:
    """Write a front end's configuration. first: what goes before all tables; model: more of the model."""
    path = folder / f"serve-{len(list(folder.glob('serve-*.toml')))}.toml"
    path.write_text(f"""
listen = "127.0.0.1:0"
name = "{path.stem}"
{first}
[daemon]
control = "{place.control}"
telemetry = "{place.bus}"
[defaults]
ue = "desk"
ues = ["desk*", "home"]
ttft_ms = 20000
tpot_ms = 2000
[wired]
ues = ["desk", "desk2", "home"]
cell = "lan"
period_s = 0.1
[limits]
{limits}
[[models]]
id = "llama"
path = "{folder / "llama.json"}"
seed = {cases.SEED}
{model}
[nodes.edge0]
endpoint = "{host.endpoint}"
{more}
""")
    return path


@contextlib.contextmanager
def front_end(folder: Path, config: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `cosched serve`; give its process and URL."""
    with (folder / "serve.log").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "cosched.cli.main", "serve", "--config", str(config)],
            stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http"), (folder / "serve.log").read_text()
        yield process, url
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        process.stdout.close()


@contextlib.contextmanager
def stand(folder: Path, more: str = "", limits: str = "") -> Iterator[Stand]:
    """Start all of it, and wait until requests are admitted."""
    source = cases.seeded(folder, max_position_embeddings=POSITIONS)
    (folder / "site.toml").write_text(SITE.replace("CONFIG", str(folder / "llama.json")))
    (folder / "cosched.toml").write_text(DAEMON)
    settings = {"SITE": str(folder / "site.toml"), "SHADOW_ENABLED": "false"}
    place = Place(folder, settings, folder / "cosched.toml")
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(place.daemon())
        (host,) = stack.enter_context(cases.host_threads(source, 1))
        process, url = stack.enter_context(front_end(folder, configured(folder, place, host, more, limits)))
        client = stack.enter_context(daemon.ready())
        found = Stand(url, folder, place, daemon, client, host, process, source, stack)
        until(lambda: found.get("/ready")[0] == 200)
        yield found
