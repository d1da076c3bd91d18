"""`cosched import`: a RAN recording, a request recording and a site become one trace."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cosched.cli.common import JsonFlag, print_json, progress, warn

if TYPE_CHECKING:
    from collections.abc import Callable

    from cosched.traces.importing import ImportOptions, ImportSummary
    from telemetry.messages import Message


class ArrivalKind(StrEnum):
    """When tasks arrive."""

    POISSON = "poisson"
    RECORDED = "recorded"


RequestsOption = Annotated[
    str | None,
    typer.Option(
        metavar="SOURCE:FILE[,FILE]", help="Who asks for what: azure-llm:FILE or mooncake:FILE. Without it: drawn."
    ),
]
RateOption = Annotated[float | None, typer.Option(help="Tasks a second. 1 where neither --rate nor --load is given.")]
StartOption = Annotated[
    float | None, typer.Option(help="With --keep-ues: start of the window, s. Without: where most UEs are active.")
]


def import_(
    source: Annotated[str, typer.Argument(help="RAN source: tractor (or coloran), uccmisl, oai-kpm.")],
    files: Annotated[list[Path], typer.Argument(help="Its files, or folders of them; plain or gzip.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Trace to write (MCAP).")],
    requests: RequestsOption = None,
    site: Annotated[str, typer.Option(help="Site file (TOML), or the name of one in config/sites/.")] = "node-bound",
    rate: RateOption = None,
    load: Annotated[float | None, typer.Option(help="Instead of --rate: 1 is what the site can just carry.")] = None,
    arrivals: Annotated[
        ArrivalKind, typer.Option(help="Poisson, or the spacing of the recording.")
    ] = ArrivalKind.POISSON,
    bursts: Annotated[float | None, typer.Option(help="Switch arrivals on and off every that many seconds.")] = None,
    duration: Annotated[float, typer.Option(help="Seconds of the trace.")] = 120.0,
    seed: Annotated[int, typer.Option(min=0, help="One seed gives one trace.")] = 0,
    keep_ues: Annotated[
        bool, typer.Option("--keep-ues/--map-ues", help="The recording's own UEs and times, or the site's UEs.")
    ] = False,
    start: StartOption = None,
    cut_idle: Annotated[
        bool, typer.Option("--cut-idle", help="Cut a recorded UE's idle time out of the channel that is mapped.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Turn public data sets into one trace.

    Merges a RAN source (how the channel was) with a request source (who asked for what) and a site (cells, nodes,
    devices, mix of tasks). By default the recorded channels are mapped on the site's UEs.

    Example: cosched import tractor logs/Multi10/ --requests azure-llm:conv.csv --site node-bound --load 1 -o trace.mcap
    """
    from cosched.traces.importing import ImportOptions

    options = ImportOptions(
        source=source,
        files=tuple(files),
        requests=requests,
        site=site,
        rate_per_s=rate,
        load=load,
        duration_s=duration,
        start_s=start,
        seed=seed,
        keep_ues=keep_ues,
        cut_idle=cut_idle,
        bursts_s=bursts,
        arrivals=arrivals.value,
    )
    summary = _run(options, output)
    for line in summary.warnings:
        warn(line)
    if as_json:
        print_json(summary)
    else:
        _print(summary, output)


def _run(options: ImportOptions, output: Path) -> ImportSummary:
    """Read and draw, then write; a bar of the two steps on a terminal."""
    from cosched.traces.importing import import_trace
    from telemetry.trace import write_trace

    done: list[tuple[list[Message], ImportSummary]] = []
    steps: list[Callable[[], None]] = [
        lambda: done.append(import_trace(options)),
        lambda: write_trace(output, done[0][0]),
    ]
    for step in progress(steps, "import"):
        step()
    return done[0][1]


def _print(summary: ImportSummary, output: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    table.add_column("what")
    table.add_column("count", justify="right")
    for what, count in _rows(summary):
        table.add_row(what, count)
    typer.echo(f"{output}: {summary.source} at site {summary.site}, seed {summary.seed}")
    Console().print(table)


def _rows(summary: ImportSummary) -> list[tuple[str, str]]:
    window = f" (from {summary.start_s:g} s of the recording)" if summary.start_s else ""
    rows = [
        ("rows read", str(summary.rows)),
        ("  with an uplink sample", str(summary.rows_valid)),
        ("  idle (no sample)", str(summary.rows_idle)),
    ]
    rows += [(f"  dropped: {reason}", str(n)) for reason, n in summary.rows_dropped.items()]
    return [
        *rows,
        (f"duration{window}", f"{summary.duration_s:g} s"),
        (f"UEs, on {summary.channels} recorded channels", str(summary.ues)),
        ("reports in the trace", str(summary.reports)),
        ("  with an uplink sample", str(summary.reports_valid)),
        (f"tasks, at {summary.rate_per_s:.3g} a second", str(summary.sessions + summary.clips)),
        (f"  LLM sessions ({summary.sessions_private} private)", str(summary.sessions)),
        ("  video clips", str(summary.clips)),
    ]
