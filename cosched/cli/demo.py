"""`cosched demo`: the whole way once, on the sample trace that ships with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    report: Annotated[Path, typer.Option(help="Where the HTML report goes.")] = Path("cosched-report.html"),
) -> None:
    """Replay the shipped sample trace with every policy.

    Prints what it does, ends with the comparison and the path of the report. Needs no file, no root, no GPU.

    Example: cosched demo --report /tmp/report.html
    """
    from cosched.cli.replay import read_book, run, show, write_report_file
    from cosched.core.policy import POLICIES
    from cosched.resources import sample_trace

    path = sample_trace()
    book, sha256 = read_book(path)
    site = book.site
    typer.echo(
        f"site {site.name}: {len(site.cells)} cells, {len(site.nodes)} nodes, {len(book.ue_rows)} UEs; "
        f"{len(book.offers)} tasks need the network in {book.duration_s:.0f} s, "
        f"{len(book.local)} more are served by their device alone"
    )
    typer.echo(f"replaying it with {len(POLICIES)} policies; every decision is verified by independent code")
    result = run(book, list(POLICIES.values()), path=path, sha256=sha256)
    show(result)
    write_report_file(result, [], report)
