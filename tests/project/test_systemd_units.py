"""The units: what systemd-analyze says of them, and a real systemd that boots with them where one can.

The boot needs root, systemd-nspawn and a root file system with systemd 253 or newer, named by TEST_SYSTEMD_ROOT:

    debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus trixie /var/tmp/trixie
    TEST_SYSTEMD_ROOT=/var/tmp/trixie python -m pytest tests/project/test_systemd_units.py
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cosched.api import keys
from cosched.api.access import Identity
from cosched.api.zap import new_pair

ROOT = Path(__file__).resolve().parents[2]
UNITS = sorted((ROOT / "systemd").glob("*.service"))
NOTIFY_RELOAD = 253  # the first systemd with Type=notify-reload
MOST_EXPOSED = 20  # tenths
MOST_EXPOSED_JOINED = 25


def version() -> int:
    """Version of this machine's systemd, 0 without."""
    if shutil.which("systemd-analyze") is None:
        return 0
    done = subprocess.run(["systemd-analyze", "--version"], capture_output=True, text=True, timeout=30, check=False)
    found = re.match(r"systemd (\d+)", done.stdout)
    return int(found[1]) if found else 0


needs_analyze = pytest.mark.skipif(version() == 0, reason="systemd-analyze is not installed")


def unit_for(path: Path, folder: Path) -> Path:
    """Copy a unit with a program that exists; an old systemd gets the type that README.md names for it."""
    text = path.read_text().replace("/opt/cosched/bin/cosched", shutil.which("true") or "/bin/true")
    if version() < NOTIFY_RELOAD:
        text = text.replace("Type=notify-reload", "Type=notify")
    copy = folder / path.name
    copy.write_text(text)
    return copy


@needs_analyze
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_verify_prints_nothing(unit: Path, tmp_path: Path) -> None:
    command = ["systemd-analyze", "verify", unit_for(unit, tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    ours = [
        line for line in (done.stdout + done.stderr).splitlines() if "cosched" in line
    ]  # not the machine's own units
    assert ours == []


@needs_analyze
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_exposure_is_at_most_2(unit: Path, tmp_path: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=yes", f"--threshold={MOST_EXPOSED}", unit_for(unit, tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout[-400:]


@needs_analyze
def test_joining_a_ray_costs_little_of_the_protection(tmp_path: Path) -> None:
    unit = unit_for(ROOT / "systemd" / "cosched.service", tmp_path)
    joined = unit.read_text() + (ROOT / "systemd" / "join.conf").read_text()
    unit.write_text(joined.replace("User=ray\n", "User=nobody\n"))
    command = ["systemd-analyze", "security", "--offline=yes", f"--threshold={MOST_EXPOSED_JOINED}", unit]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout[-400:]


def test_the_daemons_unit_says_what_the_issue_asks() -> None:
    text = (ROOT / "systemd" / "cosched.service").read_text()
    for line in ("Type=notify-reload", "DynamicUser=yes", "StateDirectory=cosched", "RuntimeDirectory=cosched"):
        assert f"\n{line}\n" in text
    assert re.search(r"\nWatchdogSec=\d+\n", text)
    assert "\nLoadCredential=daemon.key:" in text


def installed(folder: Path, says: str | None) -> tuple[str, dict[str, str]]:
    """Run install.sh where `systemctl --version` says that, or as it is; return what it says and the units."""
    path = os.environ["PATH"]
    if says is not None:
        fake = folder / "bin" / "systemctl"
        fake.parent.mkdir()
        fake.write_text(f"#!/bin/sh\ncat <<'E'\n{says}\nE\n")
        fake.chmod(0o755)
        path = f"{fake.parent}:{path}"
    units = folder / "units"
    units.mkdir()
    done = subprocess.run(
        ["sh", ROOT / "systemd" / "install.sh", "/srv/c", "/srv/etc", units],
        env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return done.stdout, {path.name: path.read_text() for path in units.iterdir()}


@pytest.mark.parametrize(
    ("says", "is_old"),
    [
        ("systemd 252 (252.38-1~deb12u1)\n+PAM", True),
        ("systemd 249 (249.11-0ubuntu3)", True),
        ("systemd 219\n+PAM", True),
        ("systemd 253 (253)", False),
        ("systemd 257 (257.7-1)\n+PAM", False),
        ("Running in chroot, ignoring command", False),
    ],
)
def test_an_older_systemd_gets_the_type_that_it_knows(says: str, is_old: bool, tmp_path: Path) -> None:
    told, units = installed(tmp_path, says)
    unit = units["cosched.service"]
    assert ("\nType=notify\nExecReload=/bin/kill -HUP $MAINPID\n" in unit) is is_old
    assert ("\nType=notify-reload\n" in unit) is not is_old
    assert ("is older than 253" in told) is is_old
    assert "\nType=exec\n" in units["cosched-agent.service"]
    assert "ExecStart=/srv/c/bin/cosched run --config /srv/etc/cosched.toml" in unit
    assert set(units) == {path.name for path in UNITS}


@needs_analyze
def test_this_machines_systemd_knows_every_line_of_what_is_installed(tmp_path: Path) -> None:
    _, units = installed(tmp_path, None)
    unit = tmp_path / "cosched.service"
    unit.write_text(units["cosched.service"].replace("/srv/c/bin/cosched", shutil.which("true") or "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60, check=False)
    assert [line for line in (done.stdout + done.stderr).splitlines() if "cosched" in line] == []


# ---- a real systemd

IMAGE = os.environ.get("TEST_SYSTEMD_ROOT", "")
NO_BOOT = (
    "TEST_SYSTEMD_ROOT names no root file system"
    if not IMAGE
    else "needs root"
    if os.geteuid()
    else ""
    if shutil.which("systemd-nspawn")
    else "systemd-nspawn is not installed"
)
PROGRAM = """#!/bin/sh
export LD_LIBRARY_PATH=/opt/py/lib PYTHONHOME=/opt/py PYTHONPATH=/opt/src:/opt/site PYTHONDONTWRITEBYTECODE=1
exec /opt/py/bin/python3 -m cosched.cli.main "$@"
"""
RAY = """#!/bin/sh
export LD_LIBRARY_PATH=/opt/py/lib PYTHONHOME=/opt/py PYTHONPATH=/opt/src:/opt/site PYTHONDONTWRITEBYTECODE=1
export HOME=/tmp RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=/etc/cosched/own.token RAY_USAGE_STATS_ENABLED=0
exec /opt/py/bin/python3 -m ray.scripts.scripts "$@"
"""
HEAD = "start --head --port=6379 --num-cpus=1 --labels=cosched_node=edge0 --include-dashboard=false --block"
PATIENCE_S = 300  # this machine may be busy


class Machine:
    """A booted container: commands in it, and waiting for a unit's properties."""

    def __init__(self, root: Path, init: int) -> None:
        self.root, self._init = root, init

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        command = ["nsenter", "-t", str(self._init), "-m", "-u", "-i", "-n", "-p", "--", *args]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)

    def log(self) -> str:
        return self.run("journalctl", "-u", "cosched", "-o", "cat").stdout

    def show(self, name: str, unit: str = "cosched") -> str:
        return self.run("systemctl", "show", unit, "-p", name, "--value").stdout.strip()

    def until(self, holds: Callable[[], bool], patience_s: float = PATIENCE_S) -> float:
        """Wait until `holds`; return how long it took."""
        start_s = time.monotonic()
        while not holds():
            assert time.monotonic() - start_s < patience_s, self.run("journalctl", "-n", "30", "-o", "cat").stdout
            time.sleep(0.2)
        return time.monotonic() - start_s

    def ctl(self, *args: str) -> str:
        endpoint = "ipc:///run/cosched/control.sock"
        done = self.run("/opt/cosched/bin/cosched", "ctl", "--endpoint", endpoint, "--timeout", "20", *args)
        assert done.returncode == 0, done.stderr
        return done.stdout


def inside(root: Path) -> list[str | Path]:
    """What systemd-nspawn needs for a container that runs this checkout with this interpreter."""
    site = sysconfig.get_path("purelib")
    binds = [f"--bind-ro={sys.base_prefix}:/opt/py", f"--bind-ro={site}:/opt/site", f"--bind-ro={ROOT}:/opt/src"]
    return ["systemd-nspawn", "-q", "-D", root, "--register=no", "--keep-unit", *binds]


def compile_kernels(root: Path) -> None:
    """As `make install` does; the image keeps them for the next time."""
    variables = ["-E", "NUMBA_CACHE_DIR=/opt/cosched/cache", "-E", "LD_LIBRARY_PATH=/opt/py/lib"]
    variables += ["-E", "PYTHONHOME=/opt/py", "-E", "PYTHONPATH=/opt/src:/opt/site", "-E", "PYTHONDONTWRITEBYTECODE=1"]
    warm_up = [*inside(root), *variables, "/opt/py/bin/python3", "-m", "cosched.warmup"]
    subprocess.run(warm_up, stdin=subprocess.DEVNULL, capture_output=True, timeout=900, check=True)


def furnish(root: Path) -> None:
    """Put program, units, configuration and keys where `make install` puts them."""
    for folder in ("opt/cosched/bin", "opt/py", "opt/site", "opt/src", "etc/cosched/keys"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    program = root / "opt/cosched/bin/cosched"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    (root / "etc/cosched/cosched.toml").write_text("")
    folder = root / "etc/cosched/keys"
    for file in folder.iterdir():
        file.unlink()
    daemon, agent = new_pair("daemon"), new_pair("agent")
    keys.write_pair(folder, daemon)
    keys.write_pair(folder, agent)
    keys.allow(folder / keys.ALLOWED, Identity(name="agent", public=agent.public, role="publisher", nodes=("edge0",)))
    folder.chmod(0o755)
    options = (
        f"--node edge0 --period 0.2 --key /run/credentials/cosched-agent.service/agent.key --server {daemon.public}"
    )
    (root / "etc/cosched/agent.env").write_text(f"OPTIONS={options}\n")
    for unit in UNITS:
        shutil.copy(unit, root / "etc/systemd/system")


@pytest.fixture
def machine() -> Iterator[Machine]:
    root = Path(IMAGE)
    furnish(root)
    compile_kernels(root)
    boot = [*inside(root), "--volatile=overlay", "--boot"]
    with subprocess.Popen(boot, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as nspawn:
        children = Path(f"/proc/{nspawn.pid}/task/{nspawn.pid}/children")
        deadline_s = time.monotonic() + 60
        while not (found := children.read_text().split()) and time.monotonic() < deadline_s:
            time.sleep(0.1)
        made = Machine(root, int(found[0]))
        made.until(lambda: made.run("systemctl", "is-system-running").stdout.strip() in {"running", "degraded"})
        try:
            yield made
        finally:
            nspawn.send_signal(signal.SIGTERM)  # systemd-nspawn(1): an orderly shutdown of the container
            nspawn.wait(60)


@pytest.mark.slow
@pytest.mark.skipif(bool(NO_BOOT), reason=NO_BOOT)
def test_a_real_systemd_runs_the_daemon(machine: Machine) -> None:
    verify = machine.run("systemd-analyze", "verify", *(f"/etc/systemd/system/{unit.name}" for unit in UNITS))
    assert (verify.returncode, verify.stdout + verify.stderr) == (0, "")

    started = machine.run("systemctl", "start", "cosched")
    assert started.returncode == 0, machine.log()[-3000:]
    assert "balanced, policy " in machine.ctl("status")

    machine.run("sh", "-c", "printf '[core]\nz = 0.8\n' > /etc/cosched/cosched.toml")
    assert machine.run("systemctl", "reload", "cosched").returncode == 0
    assert '"changed": ["core.z"]' in machine.log()
    machine.run("sh", "-c", "echo 'polcy = \"joint\"' > /etc/cosched/cosched.toml")
    machine.run("systemctl", "reload", "cosched")
    assert "did you mean 'policy'?" in machine.log()
    assert (machine.show("ActiveState"), machine.show("NRestarts")) == ("active", "0")
    machine.run("sh", "-c", "printf '[core]\nz = 0.8\n' > /etc/cosched/cosched.toml")
    assert '"changed": []' in machine.ctl("reload", "--json"), "the configuration of before the bad one was in force"
    machine.run("sh", "-c", "echo > /etc/cosched/cosched.toml")

    assert machine.run("systemctl", "start", "cosched-agent").returncode == 0
    machine.until(lambda: '"messages": 0' not in machine.ctl("status", "--json"))
    assert '"refused": []' in machine.ctl("status", "--json")
    assert machine.run("systemctl", "stop", "cosched-agent").returncode == 0
    assert machine.show("Result", "cosched-agent") == "success"

    machine.run("systemctl", "kill", "-s", "STOP", "--kill-whom=main", "cosched")  # no plan is made any more
    machine.until(lambda: machine.show("NRestarts") == "1" and machine.show("ActiveState") == "active")
    assert "Failed with result 'watchdog'" in machine.log()
    machine.run("systemctl", "kill", "-s", "KILL", "--kill-whom=main", "cosched")
    machine.until(lambda: machine.show("NRestarts") == "2" and machine.show("ActiveState") == "active")

    begun_s = time.monotonic()
    assert machine.run("systemctl", "stop", "cosched").returncode == 0
    assert time.monotonic() - begun_s < 5
    assert (machine.show("Result"), machine.show("ExecMainStatus")) == ("success", "0")

    machine.run("sh", "-c", "echo 'polcy = \"joint\"' > /etc/cosched/cosched.toml")
    assert machine.run("systemctl", "start", "cosched").returncode != 0
    assert machine.show("NRestarts") == "0", "a wrong configuration is not mended by starting again"


@pytest.mark.slow
@pytest.mark.skipif(bool(NO_BOOT), reason=NO_BOOT)
def test_the_daemon_joins_the_ray_of_another_unit(machine: Machine) -> None:
    """As README.md and join.conf have it: Ray runs as a user of its own, and the daemon as that one."""
    own = "install -o ray -m 600 ray.token own.token && chmod 755 /usr/local/bin/ray"
    shell = [
        "rm -f /var/lib/cosched /var/cache/cosched",  # links of an earlier start, to what this boot does not have
        "useradd -r ray && mkdir -p /etc/systemd/system/cosched.service.d",
        f"cd /etc/cosched && printf {'ab' * 32} > ray.token && printf '%s' '{RAY}' > /usr/local/bin/ray && {own}",
        "cp /opt/src/systemd/join.conf /etc/systemd/system/cosched.service.d && systemctl daemon-reload",
        f"systemd-run --uid=ray --unit=ray /usr/local/bin/ray {HEAD}",
    ]
    for line in shell:
        done = machine.run("sh", "-c", line)
        assert done.returncode == 0, done.stderr
    machine.until(lambda: machine.run("sh", "-c", "test -S /tmp/ray/session_latest/sockets/raylet").returncode == 0)
    started = machine.run("systemctl", "start", "cosched")
    assert started.returncode == 0, machine.log()[-3000:]
    machine.until(lambda: '"state": "up"' in machine.ctl("status", "--json"))
    assert "cluster connected, epoch 1: edge0 up" in machine.ctl("status")
    assert machine.run("systemctl", "stop", "cosched").returncode == 0
    assert (machine.show("Result"), machine.show("ExecMainStatus")) == ("success", "0")
    assert "Traceback" not in machine.log()
