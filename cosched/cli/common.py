"""What the commands share: errors as one line with exit code 2, JSON on stdout, progress on a terminal's stderr."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Annotated, Final, TypeVar

import typer

from cosched.errors import CoschedError
from solvers.errors import SolverError
from telemetry.errors import TelemetryError

# What only some commands need (msgspec, rich, ...) is imported inside functions: `cosched --help` stays under 0.3 s.

Item = TypeVar("Item")

EXIT_FAILED: Final = 1  # what was to be checked does not hold
EXIT_USAGE: Final = 2  # wrong usage or bad input

PATIENCE_S: Final = 2.0  # what is done sooner needs no bar

COMPILING: Final = "the solvers' inner loops are being compiled, once after an install: some minutes in all"

JsonFlag = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]

OUR_ERRORS: Final = (CoschedError, SolverError, TelemetryError)


@contextlib.contextmanager
def own_stdout() -> Iterator[None]:
    """Let what C and C++ libraries print meanwhile go to stderr, as HiGHS does unasked: stdout is for results."""
    if sys.stdout is None or sys.stderr is None:  # closed by whoever started us
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        ctypes.CDLL(None).fflush(None)
        os.dup2(kept, 1)
        os.close(kept)


def one_line(text: str) -> str:
    """Make text safe for a terminal: control characters, of which a hostile file name may be full, become blanks."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def explain(error: BaseException) -> str | None:
    """Return the line that tells a user what is wrong, or None where the fault is ours and a traceback is due."""
    if isinstance(error, OUR_ERRORS):
        return str(error)
    if isinstance(error, OSError) and (error.filename is not None or error.errno == errno.ENOSPC):
        where = "" if error.filename is None else f"{error.filename}: "
        return f"{where}{error.strerror}"
    return None


def complain(message: str) -> None:
    """Print `cosched: error: <message>` on stderr."""
    typer.echo(f"cosched: error: {one_line(message)}", err=True)


def warn(message: str) -> None:
    """Print `cosched: warning: <message>` on stderr: part of the input was dropped, the rest was used."""
    typer.echo(f"cosched: warning: {one_line(message)}", err=True)


@contextlib.contextmanager
def told_of_compiling() -> Iterator[None]:
    """Say on stderr when the solvers' inner loops have to be compiled first, and how long that has taken."""
    from solvers import jit

    begun_s: list[float] = []

    def began() -> None:
        begun_s.append(time.monotonic())
        if len(begun_s) == 1:
            typer.echo(f"cosched: {COMPILING}", err=True)

    def ended() -> None:
        if (took_s := time.monotonic() - begun_s[-1]) >= PATIENCE_S:
            typer.echo(f"cosched: compiled one of them in {took_s:.0f} s", err=True)

    with jit.watched(began, ended):
        yield


def print_json(value: object) -> None:
    """Print a value of plain or msgspec types as indented JSON on stdout; NaN and infinity become null."""
    import msgspec

    typer.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))


def progress(items: Iterable[Item], what: str, total: float | None = None) -> Iterator[Item]:
    """Yield the items; where stderr is a terminal and it takes over two seconds, draw a bar labelled `what` there.

    `total` is the number of items where they have no length. The bar is removed at the end.
    """
    if not sys.stderr.isatty():
        yield from items
        return
    total = len(items) if total is None and isinstance(items, Sized) else total
    start_s = time.monotonic()
    with contextlib.ExitStack() as stack:
        advance: Callable[[int], None] | None = None
        for done, item in enumerate(items):
            if advance is None and time.monotonic() - start_s >= PATIENCE_S:
                advance = _bar(stack, what, total)
            if advance is not None:
                advance(done)
            yield item


def _bar(stack: contextlib.ExitStack, what: str, total: float | None) -> Callable[[int], None]:
    """Start a bar on stderr that goes with `stack`; return the function that moves it."""
    from rich.console import Console
    from rich.progress import Progress

    bar = stack.enter_context(Progress(console=Console(stderr=True), transient=True))
    task = bar.add_task(what, total=total)
    return lambda done: bar.update(task, completed=done)
