"""`cosched verify`: what a daemon decided, recomputed from its capture."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from cosched.cli.common import EXIT_FAILED, JsonFlag, print_json, warn


def verify(
    captures: Annotated[list[Path], typer.Argument(metavar="CAPTURE.mcap...", help="Files that a daemon recorded.")],
    as_json: JsonFlag = False,
) -> None:
    """Recompute what a daemon decided, from its capture.

    Every decision, from the telemetry recorded with it. Exit 1: something differs by a bit, or the file is not as it
    was written; the first difference is named.

    Example: cosched verify ~/.local/state/cosched/captures/20260101T120000Z-0000.mcap
    """
    from cosched.daemon.verify import verify as recompute

    verdicts = []
    for path in captures:
        with _bar(path.name) as progress:
            verdicts.append(recompute(path, progress))
    for v in verdicts:
        for remark in v.remarks:
            warn(f"{v.path}: {remark}")
        if not as_json:
            typer.echo(
                f"{v.path}: {v.difference}"
                if v.difference
                else f"{v.path}: equal: {v.plans} plans, {v.decisions} decisions, {v.solves} solves "
                f"({v.failed_solves} given up), {v.duration_s:.1f} s"
            )
    if as_json:
        import dataclasses

        print_json({"v": 1, "captures": [dataclasses.asdict(v) | {"equal": not v.difference} for v in verdicts]})
    if any(v.difference for v in verdicts):
        raise typer.Exit(EXIT_FAILED)


@contextmanager
def _bar(name: str) -> Iterator[Callable[[float], None] | None]:
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task(name, total=1.0)
        yield lambda fraction: bars.update(bar, completed=fraction)
