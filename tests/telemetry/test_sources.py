"""`cosched adapter` on real sockets: a WebSocket server, UDP, a foreign publisher, stdin; to a real bus."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from cosched.cli import main
from telemetry.adapters.sources import payloads
from telemetry.bus import TelemetrySocket
from telemetry.errors import BadEndpoint
from telemetry.messages import Message
from telemetry.wire import Intake

GOLDEN = Path(__file__).parents[1] / "golden" / "adapters"
SRSRAN = 'ul_mcs_table = "qam64"\ndl_mcs_table = "qam256"\n[cells]\n1 = "cell0"\n'
EDGERIC = 'schema = "tti"\ncell = "cell0"\n'
KPM = 'time_unit = "us"\n[units]\n"RRU.PrbTotUl" = "PRB slots"\n"DRB.PdcpSduVolumeUL" = "kbit"\n'
PATIENCE_S = 30.0


@pytest.fixture
def bus() -> Iterator[TelemetrySocket]:
    made = TelemetrySocket()
    made.bind(["tcp://127.0.0.1:*"])
    yield made
    made.close()


@contextmanager
def running(
    bus: TelemetrySocket, folder: Path, name: str, source: str, options: str
) -> Iterator[subprocess.Popen[bytes]]:
    file = folder / "options.toml"
    file.write_text(options)
    command = [sys.executable, "-m", "cosched.cli.main", "adapter", name, "--from", source, "--options", str(file)]
    with (folder / "stderr").open("wb") as told:
        process = subprocess.Popen([*command, "--connect", bus.endpoints[0]], stdin=subprocess.PIPE, stderr=told)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def heard(bus: TelemetrySocket, n: int, poke: Callable[[], object] = lambda: None) -> list[Message]:
    """The first `n` messages; `poke` is done again and again meanwhile."""
    intake, found = Intake(), []
    end_s = time.monotonic() + PATIENCE_S
    while len(found) < n and time.monotonic() < end_s:
        poke()
        bus.wait(0.05)
        found += [intake.decode(frame.topic, frame.payload) for frame in bus.drain()]
    assert not intake.quarantine.counts, "what is impossible is blanked before it leaves"
    assert len(found) >= n
    return [message for message in found if message is not None]


def test_a_websocket_is_subscribed_to_and_found_again(bus: TelemetrySocket, tmp_path: Path) -> None:
    asked: list[str] = []

    def gnb(peer: ServerConnection) -> None:
        asked.append(str(peer.recv()))
        try:
            for line in (GOLDEN / "srsran-25.ndjson").read_text().splitlines()[:3] * 20:
                peer.send(line)
                time.sleep(0.02)
        except ConnectionClosed:
            return

    with serve(gnb, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.socket.getsockname()[1]
        with running(bus, tmp_path, "srsran", f"ws://127.0.0.1:{port}", SRSRAN) as process:
            reports = heard(bus, 70)  # more than one connection brings
            assert process.poll() is None
        server.shutdown()
    assert set(asked) == {'{"cmd": "metrics_subscribe"}'}
    assert len(asked) >= 2
    assert {(r.ue, r.cell) for r in reports} == {("4601", "cell0"), ("4602", "cell0"), ("460a", "2")}  # type: ignore[union-attr]
    seqs = [r.seq for r in reports]  # type: ignore[union-attr]
    assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))
    told = (tmp_path / "stderr").read_text()
    assert told == "cosched: warning: srsran: dl_cqi outside 0..15\n", "once, however often it comes"


def test_udp(bus: TelemetrySocket, tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    line = (GOLDEN / "srsran-24.ndjson").read_bytes().splitlines()[0]
    with (
        running(bus, tmp_path, "srsran", f"udp://127.0.0.1:{port}", SRSRAN),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gnb,
    ):
        (first, *_) = heard(bus, 1, lambda: gnb.sendto(line, ("127.0.0.1", port)))
    assert (first.ue, first.ul_mcs) == ("4601", 28)  # type: ignore[union-attr]


def test_a_foreign_publisher(bus: TelemetrySocket, tmp_path: Path) -> None:
    gnb = zmq.Context.instance().socket(zmq.PUB)
    gnb.bind(f"ipc://{tmp_path}/metrics_data")
    payload = (GOLDEN / "edgeric-tti.bin").read_bytes()
    with running(bus, tmp_path, "edgeric", f"ipc://{tmp_path}/metrics_data", EDGERIC):
        reports = heard(bus, 3, lambda: gnb.send(payload))
    assert [r.ue for r in reports[:3]] == ["4601", "4602", "4603"]  # type: ignore[union-attr]
    gnb.close(linger=0)


def test_lines_on_stdin(bus: TelemetrySocket, tmp_path: Path) -> None:
    line = (GOLDEN / "kpm-oai.json").read_bytes().replace(b"\n", b" ") + b"\n"

    with running(bus, tmp_path, "e2sm-kpm", "-", KPM) as process:
        stdin = process.stdin
        assert stdin is not None

        def say() -> None:
            stdin.write(line)
            stdin.flush()

        (first, *_) = heard(bus, 1, say)
        stdin.close()
        assert process.wait(PATIENCE_S) == 0, "the end of the input is the end"
    assert first.ul_efficiency_bps_hz == pytest.approx(1185e3 / (6048 * 180))  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "url", ["http://x", "udp://1", "udp://127.0.0.1:99999", "ws://", "file", "", "ipc://", "tcp:/x"]
)
def test_a_source_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(BadEndpoint):
        payloads(url)


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        (("srsran", "--from", "ftp://x"), SRSRAN, "ftp://x: a source is ws://"),
        (("srsran", "--from", "-"), "ul_mcs_table = 3", "options of the adapter 'srsran'"),
        (("srsran", "--from", "-"), "ul_mcs_table", "options.toml: "),
        (("oai", "--from", "-"), "", "unknown adapter 'oai'; there are: srsran, e2sm-kpm, edgeric"),
        (("srsran", "--from", "-", "--key", "x"), SRSRAN, "go together (--key and --server)"),
    ],
)
def test_wrong_usage_is_one_line(
    args: tuple[str, ...], options: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "options.toml"
    file.write_text(options)
    with pytest.raises(SystemExit) as caught:
        main.main(["adapter", *args, "--options", str(file)])
    out, err = capsys.readouterr()
    assert (caught.value.code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
