"""Logging never waits for whoever reads: a full pipe, a full socket; order, counts, and the last lines at the end."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from daemon_cases import Place, until

from cosched.api import messages as api
from telemetry.bus import Dealer

LINE = 1_000
PIPE_BYTES = 1 << 16
PROGRAM = f"""
import os, sys, time
import structlog
from cosched.config import log
log.configure("info", environ={{}})
if "unblocked" in sys.argv:
    log.unblock()
say = structlog.get_logger().info
began = time.monotonic()
for n in range(int(sys.argv[1])):
    say("line", n=n, pad="x" * {LINE})
print(time.monotonic() - began, log.dropped(), flush=True, file=open(sys.argv[2], "w"))
sys.stdin.read(1)
if "warn" in sys.argv:
    import warnings
    warnings.warn("a warning")
if "raise" in sys.argv:
    raise SystemError("the last line")
say("the last line")
"""


def start(count: int, told: Path, *more: str, err: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", PROGRAM, str(count), str(told), *more]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=err, stderr=err)


def told(path: Path) -> tuple[float, int]:
    until(lambda: path.exists() and path.read_text().endswith("\n"))
    took, dropped = path.read_text().split()
    return float(took), int(dropped)


def let_go(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()


def everything(fd: int) -> str:
    found = b""
    while data := os.read(fd, 1 << 16):
        found += data
    return found.decode()


@pytest.mark.parametrize("ends", [("",), ("unblocked", "raise"), ("unblocked", "warn")], ids=["log", "raise", "warn"])
def test_an_unread_pipe_holds_nobody_up_and_what_is_dropped_is_counted(tmp_path: Path, ends: tuple[str, ...]) -> None:
    ours, theirs = os.pipe()
    process = start(4_000, tmp_path / "told", *ends, err=theirs)
    os.close(theirs)
    took_s, dropped = told(tmp_path / "told")
    assert took_s < 10.0
    assert 4_000 - (1 << 20) // LINE - PIPE_BYTES // LINE - 100 < dropped < 4_000 - (1 << 20) // (2 * LINE)
    text = "".join(os.read(ours, 1 << 12).decode() for _ in range(32))  # so there is room for what comes last
    let_go(process)
    text += everything(ours)
    assert process.wait(10) == (1 if "raise" in ends else 0)
    numbers = [int(n) for n in re.findall(r"n=(\d+)", text)]
    assert numbers == list(range(4_000 - dropped)), "in order, and the oldest are kept"
    assert f"cosched: {dropped} log lines were dropped" in text
    assert ("a warning" if "warn" in ends else "the last line") in text
    os.close(ours)


def test_a_process_whose_log_is_never_read_ends_all_the_same(tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    process = start(4_000, tmp_path / "told", "unblocked", "raise", err=theirs)
    os.close(theirs)
    told(tmp_path / "told")
    let_go(process)
    assert process.wait(10) == 1
    os.close(ours)


def test_a_socket_such_as_journalds_holds_nobody_up(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    process = start(4_000, tmp_path / "told", err=theirs.fileno())
    theirs.close()
    took_s, dropped = told(tmp_path / "told")
    assert took_s < 10.0
    assert dropped > 0
    let_go(process)
    text = everything(ours.detach())
    assert process.wait(10) == 0
    assert "the last line" in text


def test_what_is_logged_is_out_at_once_while_the_pipe_has_room(tmp_path: Path) -> None:
    """Nothing is lost with a process that is killed: lines wait for no thread."""
    ours, theirs = os.pipe()
    process = start(20, tmp_path / "told", err=theirs)
    os.close(theirs)
    told(tmp_path / "told")
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    assert everything(ours).count("line") == 20
    os.close(ours)


@pytest.mark.slow
def test_a_daemon_whose_log_nobody_reads_goes_on_and_says_how_much_was_dropped(tmp_path: Path) -> None:
    place = Place(tmp_path)
    ours, theirs = os.pipe()
    with place.daemon(output=theirs) as daemon:
        os.close(theirs)
        with daemon.ready() as client:
            raw = msgspec.Raw(msgspec.msgpack.encode(api.NoArgs()))
            asking = Dealer(place.control)
            began = time.monotonic()
            while client.status().log_dropped == 0:
                for verb in ("drain", "resume") * 100:  # each says a line
                    asking.send(msgspec.msgpack.encode(api.Request(verb=verb, id=1, args=raw)))
                for _ in range(200):
                    assert asking.wait(60)
                    asking.drain(1)
                assert time.monotonic() - began < 300
            asking.close()
            began = time.monotonic()
            client.drain()
            assert time.monotonic() - began < 5
        assert daemon.stop()[0] == 0
    os.close(ours)
