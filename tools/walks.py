#!/usr/bin/env python3
"""Count the walks of docs/architecture.md: files and functions that one piece of work passes, and hops between files.

    python tools/walks.py [--list] [NAME...]

A walk is run twice in this process and traced the second time, when all is imported and compiled. Counted are Python
functions of this repository (comprehensions belong to their function); a hop is a call whose caller, the nearest
function of this repository, is in another file. COSCHED_KERNEL=numpy shows compiled functions as well.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
PACKAGES: Final = tuple(str(ROOT / name) + "/" for name in ("cosched", "solvers", "telemetry"))
INSIDE: Final = {"<listcomp>", "<dictcomp>", "<setcomp>", "<genexpr>", "<lambda>", "<module>"}

sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers"), str(ROOT / "tests" / "fuzz")]


class Walk:
    """What was passed since `trace` began."""

    def __init__(self) -> None:
        self.functions: Counter[tuple[str, str]] = Counter()  # (file, function) -> calls
        self.hops = 0

    @property
    def files(self) -> list[str]:
        """Files of this repository, as paths in it."""
        return sorted({file for file, _ in self.functions})

    def _event(self, frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(PACKAGES) or code.co_name in INSIDE:
            return
        self.functions[str(Path(code.co_filename).relative_to(ROOT)), code.co_qualname] += 1
        caller = frame.f_back
        while caller is not None and not caller.f_code.co_filename.startswith(PACKAGES):
            caller = caller.f_back
        self.hops += caller is not None and caller.f_code.co_filename != code.co_filename

    @contextlib.contextmanager
    def trace(self) -> Iterator[None]:
        """Count what is called meanwhile, in this thread."""
        sys.setprofile(self._event)
        try:
            yield
        finally:
            sys.setprofile(None)


def report_to_lease() -> Callable[[], None]:
    """A UE's report changes its session's share: report, tick, solve, plan, lease told."""
    from desk import Desk

    desk, n = Desk(), iter(range(10**6))
    desk.radio()
    _must(desk.request(_submit(0)))

    def walk() -> None:
        from telemetry.messages import UeReport
        from telemetry.wire import encode

        report = UeReport(
            at_ns=0, source="ran", seq=next(n), ue="ue0", cell="cell0", ul_efficiency_bps_hz=1.0 + next(n) % 5
        )
        desk.now_ns += 100_000_000
        _must(desk.bus(*encode(report)))
        desk.engine.tick(10.0)
        desk.settle()

    return walk


def submit_to_answer() -> Callable[[], None]:
    """A client's submit, as bytes, to the bytes of its answer."""
    from desk import Desk

    desk, n = Desk(), iter(range(10**6))
    desk.radio()

    def walk() -> None:
        _must(desk.request(_submit(next(n))))

    return walk


def _must(was_taken: bool) -> None:
    if not was_taken:
        raise RuntimeError("a walk came to no end")


def _submit(n: int) -> bytes:
    import msgspec
    from daemon_cases import SESSION

    args = {"task": f"walk{n}", "ue": f"ue{n % 4}", "work": msgspec.to_builtins(SESSION)}
    return msgspec.msgpack.encode({"verb": "submit", "id": n, "args": args})


def problem_to_plan() -> Callable[[], None]:
    """`cosched solve PROBLEM --json`."""
    from cosched.bench.instances import make
    from cosched.cli import main
    from solvers.codec import problem_to_json

    file = Path(tempfile.mkdtemp(prefix="cosched-walk-")) / "problem.json"
    file.write_bytes(problem_to_json(make(20, 0).problem))
    return lambda: _typed(main.main, "solve", str(file), "--solver", "joint", "--json")


def record_to_table() -> Callable[[], None]:
    """`cosched replay` of the shipped sample with two policies, as a table."""
    from cosched.cli import main
    from cosched.resources import sample_trace

    return lambda: _typed(main.main, "replay", str(sample_trace()), "--policy", "joint", "--policy", "greedy")


def _typed(command: Callable[[list[str]], object], *words: str) -> None:
    with Path(os.devnull).open("w") as sink, contextlib.redirect_stdout(sink), contextlib.suppress(SystemExit):
        command(list(words))


WALKS: Final[dict[str, Callable[[], Callable[[], None]]]] = {
    one.__name__: one for one in (report_to_lease, submit_to_answer, problem_to_plan, record_to_table)
}


def main() -> None:
    """Print a row for each walk, and with --list its functions."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--list", action="store_true", help="name the functions, by file")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(WALKS)}; all by default")
    asked = parser.parse_args()
    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    sys.stdout.write(f"{'walk':18} files  of solvers  functions   hops\n")
    for name in asked.names or WALKS:
        walk, run = Walk(), WALKS[name]()
        run()
        with walk.trace():
            run()
        solvers = sum(file.startswith("solvers/") for file in walk.files)
        sys.stdout.write(f"{name:18} {len(walk.files):5} {solvers:11} {len(walk.functions):10} {walk.hops:6}\n")
        if asked.list:
            for (file, function), calls in sorted(walk.functions.items()):
                sys.stdout.write(f"    {file:40} {function:50} {calls}\n")


if __name__ == "__main__":
    main()
