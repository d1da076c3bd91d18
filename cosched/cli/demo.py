"""`cosched demo`: the whole chain once, on the sample trace that ships with the package: live, replayed, verified."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from cosched.cli.common import EXIT_FAILED
from cosched.errors import BadInput

if TYPE_CHECKING:
    from cosched.cli.demo_live import Played
    from cosched.report.model import ReplayResult


def demo(
    report: Annotated[Path, typer.Option(help="Where the HTML report goes.")] = Path("cosched-report.html"),
    speed: Annotated[float, typer.Option(min=0.1, max=20.0, help="Of the live part, as a multiple of real time.")] = 2.0,
) -> None:
    """Run the whole chain once on the shipped sample trace.

    A daemon is started; a player sends it the trace's radio reports and tasks over ZeroMQ. Then the same trace is
    replayed with every policy, and what the daemon recorded is recomputed. Under a minute; needs no file, no root, no
    GPU, and leaves nothing but the report.

    Example: cosched demo --report /tmp/report.html
    """
    from cosched.cli.demo_live import play_live, prepare
    from cosched.cli.replay import read_book, run, show, write_report_file
    from cosched.core.policy import POLICIES
    from cosched.resources import sample_trace

    _refuse_unwritable(report)
    path = sample_trace()
    book, sha256 = read_book(path)
    site = book.site
    typer.echo(
        f"site {site.name}: {len(site.cells)} cells, {len(site.nodes)} nodes, {len(book.ue_rows)} UEs; "
        f"{len(book.offers)} tasks need the network in {book.duration_s:.0f} s, "
        f"{len(book.local)} more are served by their device alone"
    )
    with _ended_in_order(), _folder() as folder:
        typer.echo(
            f"\n1. Live: a daemon of its own, and a player that sends it the recording over ZeroMQ, {speed:g} x as fast.\n"
            f"   Reports and tasks come {speed:g} x as often and tasks are as much shorter; deadlines stay what they are."
        )
        played = asyncio.run(play_live(prepare(folder, path, book), book, speed))
        typer.echo(
            f"\n2. Replay: the recording at its own pace with {len(POLICIES)} policies. What becomes of a task is worked out on the "
            "channel that came.\n   Every decision is checked by code that shares nothing with the solvers."
        )
        result = run(book, list(POLICIES.values()), path=path, sha256=sha256)
        show(result)
        typer.echo(_side_by_side(played, result))
        write_report_file(result, [], report)
        typer.echo("\n3. Verify: every decision of the live daemon, recomputed from what it recorded.")
        _verify(played)
