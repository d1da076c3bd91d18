"""Worker processes that misbehave: the solve is lost, the process goes, another one answers the next."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cosched.bench.instances import make
from cosched.children import pool
from cosched.children.packing import pack
from cosched.children.pool import Pool, SolveLost, Worker, ask_of
from cosched.core.commands import Solve
from cosched.core.policy import POLICIES
from solvers.solution import Solution

BAD = """
import os, sys
from cosched.children.framing import framed, read_framed
from cosched.children.packing import pack
sys.stdout.buffer.write(framed(b"ready")); sys.stdout.buffer.flush()
while (data := read_framed(sys.stdin.buffer)) is not None:
    sys.stdout.buffer.write({answer}); sys.stdout.buffer.flush()
"""
ANSWERS = {
    "garbage": 'framed(b"garbage")',
    "another kind": 'framed(b"\\x93\\x01\\x02\\x03")',
    "an array of another shape": 'framed(pack(Answer(request=1)).replace(b"error", b"solution"))',
    "a length without end": 'b"\\xff" * 64',
}
BUDGET_S = 20.0


def solve(request: int) -> Solve:
    problem = make(3, 0).problem
    return Solve(request, problem, POLICIES["joint"], problem.background * 0)


@pytest.mark.parametrize("kind", ANSWERS)
def test_an_answer_that_is_none_loses_the_solve_and_the_process(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad_worker.py").write_text(BAD.format(answer=ANSWERS[kind]))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")

    async def main() -> None:
        worker = await Worker.start((), "bad_worker")
        with pytest.raises(SolveLost, match=r"no answer|died"):
            await worker.solve(pack(ask_of(solve(1))), BUDGET_S)
        async with asyncio.timeout(BUDGET_S):
            await worker._gone.wait()
        await worker.kill()

    asyncio.run(main())


SLOW = """
import sys, time
from cosched.children.framing import framed, read_framed
from cosched.children.packing import Answer, pack
sys.stdout.buffer.write(framed(b"ready")); sys.stdout.buffer.flush()
read_framed(sys.stdin.buffer)
{how}
sys.stdout.buffer.write(framed(pack(Answer(request=1, error="late")))); sys.stdout.buffer.flush()
sys.stdin.buffer.read()
"""
BUSY = "end = time.process_time() + 3.0\nwhile time.process_time() < end: pass"


@pytest.mark.parametrize(("how", "is_given_up"), [(BUSY, False), ("time.sleep(60)", True)], ids=["compiles", "hangs"])
def test_a_worker_may_compile_for_as_long_as_it_works_at_it(
    how: str, is_given_up: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow_worker.py").write_text(SLOW.format(how=how))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(pool, "IDLE_S", 1.5)
    monkeypatch.setattr(pool, "LOOK_S", 0.1)

    async def main() -> None:
        asked = [pack(ask_of(solve(1)))]
        if is_given_up:
            with pytest.raises(SolveLost, match="did nothing for"):
                await Worker.start(asked, "slow_worker")
        else:
            worker = await Worker.start(asked, "slow_worker")
            await worker.kill()

    asyncio.run(main())


def test_a_pool_replaces_a_worker_that_answers_garbage_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad_worker.py").write_text(BAD.format(answer=ANSWERS["garbage"]))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    told: list[tuple[int, Solution | None, str]] = []

    async def main() -> None:
        found = Pool(BUDGET_S, lambda *what: told.append(what))
        good = await Worker.start(())
        found._ready = [await Worker.start((), "bad_worker"), good]
        found.submit(solve(1))
        async with asyncio.timeout(BUDGET_S):
            while not told:  # noqa: ASYNC110  # answered in a callback
                await asyncio.sleep(0.01)
            assert told == [(1, None, pool.GARBAGE)]
            found.submit(solve(2))
            while len(told) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await found.close()

    asyncio.run(main())
    request, solution, why = told[1]
    assert (request, why) == (2, "")
    assert solution is not None
