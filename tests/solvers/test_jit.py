"""Compiled code on disk: kept, found again, made again where it cannot be read; compiling is told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import ROOT

from solvers.jit import COMPILED

pytestmark = pytest.mark.skipif(not COMPILED, reason="nothing is compiled (COSCHED_KERNEL=numpy)")
PROGRAM = """
from typing import NamedTuple
from solvers.jit import cached, watched

class {name}(NamedTuple):
    x: float

@cached
def twice(t):
    return 2 * t.x

told = []
with watched(lambda: told.append("began"), lambda: told.append("ended")):
    print(twice({name}(21.0)), *told)
"""


def said(folder: Path, name: str) -> str:
    path = folder / "program.py"
    path.write_text(PROGRAM.format(name=name))
    os.utime(path, (1e9, 1e9))  # numba goes by size and time: to it, this is the same source
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{folder}", "NUMBA_CACHE_DIR": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", "import program"],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_code_is_kept_and_compiling_is_told(tmp_path: Path) -> None:
    assert said(tmp_path, "Old") == "42.0 began ended"
    assert said(tmp_path, "Old") == "42.0"


def test_an_index_that_names_what_is_gone_is_made_again(tmp_path: Path) -> None:
    assert said(tmp_path, "Old") == "42.0 began ended"
    assert said(tmp_path, "New") == "42.0 began ended"
    assert said(tmp_path, "New") == "42.0"


def test_a_damaged_index_is_made_again(tmp_path: Path) -> None:
    said(tmp_path, "Old")
    (index,) = (tmp_path / "cache").rglob("*.nbi")
    index.write_bytes(index.read_bytes()[:100])
    assert said(tmp_path, "Old") == "42.0 began ended"
