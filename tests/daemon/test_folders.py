"""Folders and socket files: nobody else's are used, taken over or removed; what a killed daemon left stops no start."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from daemon_cases import Place, until

from cosched.daemon import folders
from cosched.daemon.gate import listen
from cosched.errors import BadInput
from telemetry.errors import BadEndpoint

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes folders of other users")
OTHER = 12_345


def start(place: Place) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cosched.cli.main", "run"]
    return subprocess.run(command, env=place.environment(), capture_output=True, text=True, timeout=60, check=False)


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    return line


def test_a_second_daemon_takes_nothing_from_the_first(tmp_path: Path) -> None:
    first = Place(tmp_path)
    with first.daemon() as daemon, daemon.client() as client:
        client.status()  # by then it has opened all of them
        sockets = {path: path.stat().st_ino for path in (tmp_path / "run").glob("*.sock")}
        other_state = Place(tmp_path, extra={"STATE_DIRECTORY": str(tmp_path / "other")})
        assert f"another daemon (process {daemon.process.pid}) uses it" in one_line(start(other_state))
        elsewhere = Place(tmp_path, extra={"STATE_DIRECTORY": f"{tmp_path}/o", "RUNTIME_DIRECTORY": f"{tmp_path}/r"})
        assert f"{first.bus}: another daemon listens there" in one_line(start(elsewhere))
        assert {path: path.stat().st_ino for path in (tmp_path / "run").glob("*.sock")} == sockets
        assert client.status().pid == daemon.process.pid
        assert daemon.stop()[0] == 0
    assert not list((tmp_path / "run").glob("*.sock"))
    assert not Path(first.bus.removeprefix("ipc://")).exists()


def test_what_a_killed_daemon_left_stops_no_start(tmp_path: Path) -> None:
    place = Place(tmp_path)
    with place.daemon() as daemon:
        daemon.client().close()
        children = Path(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}/children").read_text().split()
        daemon.stop(signal.SIGKILL)
        assert (tmp_path / "run" / "control.sock").is_socket()
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))  # the door went with it
    with place.daemon() as daemon, daemon.client() as client:
        assert client.status().pid == daemon.process.pid


def test_a_file_that_somebody_else_put_in_our_place_meanwhile_stays(tmp_path: Path) -> None:
    place = Place(tmp_path)
    path = tmp_path / "run" / "control.sock"
    with place.daemon() as daemon:
        with daemon.client() as client:
            client.status()
        path.unlink()
        path.write_text("not ours")
        assert daemon.stop()[0] == 0
    assert path.read_text() == "not ours"


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        ("udp://127.0.0.1:1", "an endpoint is written as"),
        ("tcp://127.0.0.1", "an endpoint is written as"),
        ("tcp://127.0.0.1:70000", "an endpoint is written as"),
        ("tcp://0.0.0.0:0", "needs keys"),
        ("tcp://no.such.host.invalid:1", "no.such.host.invalid"),
        ("ipc:///nowhere/at/all.sock", "No such file or directory"),
        (f"ipc:///tmp/{'x' * 200}", "AF_UNIX path too long"),
    ],
)
def test_an_endpoint_that_is_none_is_refused_in_a_line(endpoint: str, said: str) -> None:
    with pytest.raises(BadEndpoint, match=said) as caught:
        listen(endpoint, guarded=endpoint.startswith("tcp://no"))
    assert "\n" not in str(caught.value)


def test_a_port_that_is_in_use_is_refused_and_a_file_that_is_no_socket_is_not_removed(tmp_path: Path) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    with taken, pytest.raises(BadEndpoint, match="Address already in use"):
        listen(f"tcp://127.0.0.1:{taken.getsockname()[1]}", guarded=False)
    path = tmp_path / "file"
    path.write_text("precious")
    with pytest.raises(BadEndpoint, match="Address already in use"):
        listen(f"ipc://{path}", guarded=False)
    assert path.read_text() == "precious"


def test_wildcards_and_interfaces_are_bound() -> None:
    here, all_of_them = "127.0.0.1", socket.inet_ntoa(bytes(4))
    for endpoint, host in (("tcp://*:*", all_of_them), ("tcp://lo:0", here), ("tcp://localhost:0", here)):
        with listen(endpoint, guarded=True) as made:
            assert made.getsockname()[0] == host


# ---- whose a folder is


def test_a_folder_of_our_own_is_made_and_taken_once(tmp_path: Path) -> None:
    made = folders.own(tmp_path / "a" / "b")
    assert made.stat().st_mode & 0o007 == 0
    folders.take(made)
    with pytest.raises(BadInput, match=rf"another daemon \(process {os.getpid()}\) uses it"):
        folders.take(made)
    folders.give_back(made)
    folders.take(made)
    folders.give_back(made)


@as_root
@pytest.mark.parametrize("what", ["runtime", "state", "captures", "link", "above"])
def test_a_folder_that_another_user_made_beforehand_is_refused(what: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    name = {"runtime": "run", "state": "state", "captures": "state/captures", "link": "run", "above": "theirs"}[what]
    bad = tmp_path / name
    if what == "link":
        (tmp_path / "real").mkdir()
        bad.symlink_to(tmp_path / "real")
        os.lchown(bad, OTHER, OTHER)
    else:
        bad.mkdir(parents=True)
        os.chown(bad, OTHER, OTHER)
    extra = {"RUNTIME_DIRECTORY": str(bad / "run")} if what == "above" else {}
    assert f"{bad}: belongs to user {OTHER}, who could replace what is in it: chown it to 0" in one_line(
        start(Place(tmp_path, extra=extra))
    )


@as_root
def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    for mode, group, said in (
        (0o777, 0, "everybody may write to it: chmod o-w"),
        (0o775, OTHER, "group 12345 may write"),
    ):
        bad.chmod(mode)
        os.chown(bad, 0, group)
        with pytest.raises(BadInput, match=said):
            folders.own(bad)
    bad.chmod(0o1777)
    folders.own(bad / "below")  # in a sticky folder nobody moves what is another's
    bad.chmod(0o770)
    os.chown(bad, 0, os.getegid())
    folders.own(bad)
