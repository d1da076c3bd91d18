"""One trace, one sequence of decisions: whatever the process, the hash seed or the number of threads."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import HELPERS
from replay_cases import fingerprint, sample_book, watched

from cosched.core.policy import POLICIES, policy
from cosched.core.settings import Settings
from cosched.fluid.nodes import SEQUENCES, STEPS
from cosched.replay.replayer import Replayer, Workbook
from cosched.replay.workbook import make_book
from cosched.simulate import stream
from cosched.simulate.scenario import parse_scenario

SECONDS = 4.0
SPECS = ("joint", "greedy", "pf-util:rho=0.9,overbook=2", "compute-only")
METRO_SPECS = ("joint", "predicted")
THREADS = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
CODE = f"""
import sys
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(HELPERS)!r}]
from test_determinism import digests
print(*digests())
"""


@functools.cache
def metro_book() -> Workbook:
    """Sessions that decode in steps, and clips, on four cells, four edge nodes and a cloud."""
    loaded = parse_scenario('v = 1\nname = "m"\nsite = "metro"\n[arrivals]\nrate_per_s = 20.0', "metro")
    messages = stream.messages(loaded, seed=1, duration_s=3.0, rate_per_s=20.0)
    return make_book(messages, "metro")


def digest(book: Workbook, spec: str) -> str:
    return Replayer(book, policy(spec), Settings()).run().decisions_sha256


def digests() -> list[str]:
    sample, metro = sample_book(SECONDS), metro_book()
    return [*(digest(sample, spec) for spec in SPECS), *(digest(metro, spec) for spec in METRO_SPECS)]


def elsewhere(hash_seed: str, threads: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONHASHSEED": hash_seed} | dict.fromkeys(THREADS, threads)
    root = Path(__file__).resolve().parents[2]
    return subprocess.Popen([sys.executable, "-c", CODE], cwd=root, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("spec", sorted(POLICIES))
def test_two_runs_in_one_process_decide_alike_to_the_last_bit(spec: str) -> None:
    first, second = (watched(sample_book(SECONDS), spec) for _ in range(2))
    assert len(first.plans) > 0
    assert list(map(fingerprint, first.plans)) == list(map(fingerprint, second.plans))
    assert first.run.decisions_sha256 == second.run.decisions_sha256


def test_neither_the_hash_seed_nor_the_number_of_threads_changes_a_decision() -> None:
    others = [elsewhere("1", "1"), elsewhere("2", "4")]
    here = digests()
    assert len(set(here)) == len(SPECS) + len(METRO_SPECS)  # a digest of nothing would be the same for all
    for other in others:
        told, _ = other.communicate(timeout=120)
        assert other.returncode == 0
        assert told.split() == here


def test_on_metro_there_are_sessions_in_steps_on_several_nodes() -> None:
    """Else its digests would say nothing of steps."""
    run = Replayer(metro_book(), policy("joint"), Settings()).run()
    decoding = run.figures[:, STEPS] > 0
    assert len(metro_book().site.nodes) == 5
    assert decoding.sum() >= 3
    assert run.figures[decoding, SEQUENCES].sum() > run.figures[decoding, STEPS].sum(), "some steps are shared"


def test_verifying_and_watching_change_nothing() -> None:
    book = sample_book(SECONDS)
    plain = Replayer(book, policy("joint"), Settings(), verify=False).run()
    assert plain.decisions_sha256 == watched(book, "joint").run.decisions_sha256


def test_the_digest_covers_the_prbs_of_the_last_plan() -> None:
    """Half a PRB's difference in the settings must not hide in a digest that only covers who was admitted."""
    book = sample_book(SECONDS)
    settings = Settings()
    other = Settings(deadline_margin=settings.deadline_margin - 0.01)
    runs = [Replayer(book, policy("joint"), s).run() for s in (settings, other)]
    assert runs[0].decisions_sha256 != runs[1].decisions_sha256
