"""The Makefile and the gate, as far as they can be tried without an installation."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(*args: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    # The variables by which an outer make would hand down its own options.
    environ = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MFLAGS", "MAKELEVEL"}}
    return subprocess.run(
        ["make", *args], cwd=cwd, capture_output=True, text=True, timeout=60, check=False, env=environ
    )


def test_bare_make_lists_every_target() -> None:
    done = make()
    assert done.returncode == 0
    phony = re.search(r"(?m)^\.PHONY: (.*)$", (ROOT / "Makefile").read_text())
    assert phony
    for target in phony[1].split():
        assert re.search(rf"(?m)^  {target}\s+\w", done.stdout), target


def test_without_a_python_it_says_what_to_do(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    done = make("setup", "PYTHON=/bin/false", cwd=tmp_path)
    assert done.returncode == 2
    assert "no Python 3.11 or newer with venv among: /bin/false" in done.stderr
    assert "make PYTHON=/path/to/python" in done.stderr
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("target", ["demo", "test", "lint", "bench", "format"])
def test_every_target_does_its_own_set_up(target: str, tmp_path: Path) -> None:
    """In an empty folder: what `make -n` would run begins with the environment and its packages."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    plan = make("-n", target, cwd=tmp_path).stdout
    steps = ["-m venv", "constraints.txt", "--editable", f".venv/bin/{'ruff' if target in {'lint', 'format'} else ''}"]
    positions = [plan.find(step) for step in steps]
    assert -1 not in positions
    assert positions[:3] == sorted(positions[:3])


def test_gate_runs_lint_and_test() -> None:
    gate = ROOT / ".ci" / "run"
    assert os.access(gate, os.X_OK)
    text = gate.read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in text
    assert text.index(" lint") < text.index(" test\n")
    subprocess.run(["bash", "-n", gate], check=True)
