"""A daemon in virtual time against a seeded adversary: what must hold, holds after every event."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from sim_play import Played, play, shrink
from sim_script import CALM, FAULTS, Script, draw

from cosched.core import core as core_module
from cosched.core.present import as_asked

RUN = Path(__file__).with_name("run.py")
ROOT = RUN.parents[2]
STEPS = 700
GROUPS = 11
EVENTS = 1_900  # of a group: 20 000 in all
SEEN: Counter[str] = Counter()


def explained(script: Script, played: Played) -> str:
    """What whoever reads a failed test needs: the shrunk script, and the command."""
    small = shrink(script, played.kind, patience_s=20.0)
    steps = "\n".join(f"  {step}" for step in small.steps)
    return f"{played.trace}\nagain: make simulate SEED={script.seed} EVENTS=1\nshrunk to:\n{steps}"


@pytest.mark.slow
@pytest.mark.parametrize("group", range(GROUPS))
def test_what_must_hold_holds_after_every_event(group: int):
    events, seed = 0, 100 * (group + 1)
    while events < EVENTS:
        script = draw(seed, STEPS)
        played = play(script)
        assert not played.error, explained(script, played)
        events += played.world.events
        SEEN.update(played.world.faults)
        seed += 1
    SEEN["events"] += events


@pytest.mark.slow
def test_every_kind_of_fault_came_up():
    if SEEN["events"] < GROUPS * EVENTS:
        pytest.skip("the groups ran elsewhere, or not all")
    wanted = {
        "crash in the midst", "kill -9", "disk refuses", "disk fills and tears", "solver wrong", "solver dead", "pause",
        "node lost or back", "node shrunk", "policy switch", "reload", "second daemon", "reboot", "message corrupt",
    }  # fmt: skip
    assert wanted <= SEEN.keys()


@pytest.mark.slow
def test_the_same_seed_is_the_same_world_in_every_process():
    digests = set()
    for hash_seed in ("0", "1"):
        environ = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, str(RUN), "--seed", "3", "--events", "1"]
        done = subprocess.run(command, capture_output=True, text=True, env=environ, cwd=ROOT, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        digests |= {line for line in done.stdout.splitlines() if line.startswith("digest ")}
    assert len(digests) == 1


def test_a_script_draws_every_kind_and_leaves_some_out():
    drawn = [{step.kind for step in draw(seed, 2_000).steps} for seed in range(12)]
    assert set().union(*drawn) >= {*CALM, *FAULTS} - {"fence", "questions"}
    assert any(not kinds >= FAULTS.keys() for kinds in drawn)


@pytest.mark.slow
def test_a_broken_daemon_is_found_and_the_script_that_finds_it_is_short(monkeypatch: pytest.MonkeyPatch):
    """With the check of what an answer is worth by then taken out."""
    monkeypatch.setattr(core_module, "settle", lambda _state, _asked, solution, _bytes: as_asked(solution))
    for seed in range(100, 160):
        script = draw(seed, STEPS)
        played = play(script)
        if played.error:
            break
    assert played.kind.startswith("Broken")
    small = shrink(script, played.kind, patience_s=30.0)
    assert play(small).kind == played.kind
    assert len(small.steps) < len(script.steps) / 4
