"""`cosched replay`: the daemon's core on recorded telemetry, several policies side by side."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cosched.cli.common import EXIT_FAILED, complain, told_of_compiling, warn

if TYPE_CHECKING:
    from cosched.core.policy import Policy
    from cosched.replay.compare import Tell
    from cosched.replay.replayer import Workbook
    from cosched.report.model import ReplayResult, Sweep


def replay(
    traces: Annotated[
        list[Path] | None, typer.Argument(metavar="[TRACE]...", help="MCAP traces; none: the shipped sample.")
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(help="A policy, again for more; with options: pf-util:rho=0.9,overbook=2. None: all."),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file; - for stdout.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write the HTML report to this file.")] = None,
    sweep: Annotated[
        list[Path] | None, typer.Option(help="Curves of 'cosched bench ... --sweep' to show in the report.")
    ] = None,
    record: Annotated[Path | None, typer.Option(help="Write the trace with the first policy's decisions.")] = None,
    speed: Annotated[str, typer.Option(help="max, or a multiple of real time.")] = "max",
) -> None:
    """Decide on recorded telemetry, several policies side by side.

    A task's fate comes from the channel and load that the trace shows after the decision. Prints the comparison; the
    best figure of each row is marked. Every decision is verified by code that shares nothing with the solvers: a policy
    that fails this is named with the reason, the others are compared, exit 1.

    Example: cosched replay trace.mcap --policy joint --policy pf-admit --report report.html
    """
    from cosched.core.policy import POLICIES
    from cosched.core.policy import policy as parse
    from cosched.errors import BadInput
    from cosched.resources import sample_trace

    policies = [parse(p) for p in policy or list(POLICIES)]
    pace, sweeps, aloud = parse_speed(speed), _read_sweeps(sweep or []), str(json) != "-"
    if record is not None and len(traces or []) > 1:
        raise BadInput(f"--record {record}: give one trace, not {len(traces or [])}: there is one file to write")
    results = []
    for path in traces or [sample_trace()]:
        book, sha256 = read_book(path)
        with told_of_compiling():
            results.append(run(book, policies, path=path, sha256=sha256, speed=pace))
        if record is not None and policies[0].name not in results[-1].failed:
            _record(path, record, book, policies[0], aloud=aloud)
    if aloud:
        for result in results:
            show(result)
    if json is not None:
        _write_json(results, json)
    if report is not None:
        write_report_file(results[0], sweeps, report, aloud=aloud)
    tell_failed(results)


def tell_failed(results: Sequence[ReplayResult]) -> None:
    """Name the policies whose plans did not pass verification, each with the reason; exit 1 if there are any."""
    lines = [why for result in results for why in result.failed.values()]
    for line in lines:
        complain(line)
    if lines:
        raise typer.Exit(EXIT_FAILED)


def parse_speed(text: str) -> float | None:
    """Multiple of real time, None for as fast as it goes. Raises BadInput."""
    from cosched.errors import BadInput

    if text == "max":
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise BadInput(f"--speed {text}: give 'max' or a positive multiple of real time, such as 10")
    return value


def read_book(path: Path) -> tuple[Workbook, str]:
    """Read a trace; print what had to be left out. Returns the book and the file's sha256. Raises BadInput."""
    from cosched.replay.workbook import make_book
    from telemetry.trace import read_trace

    trace = read_trace(path)
    for line in trace.warnings:
        warn(line)
    book = make_book(trace.messages, str(path))
    for line in book.warnings:
        warn(line)
    return book, trace.sha256


def run(
    book: Workbook, policies: Sequence[Policy], *, path: Path, sha256: str, speed: float | None = None
) -> ReplayResult:
    """Replay a book with each policy; a progress bar on a terminal."""
    from cosched.core.settings import Settings
    from cosched.replay.compare import compare

    with _progress(len(policies)) as tell:
        return compare(book, policies, Settings(), path=str(path), sha256=sha256, speed=speed, tell=tell)


@contextmanager
def _progress(n_policies: int) -> Iterator[Tell | None]:
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task("replay", total=float(n_policies))
        done: list[str] = []

        def tell(policy: str, fraction: float) -> None:
            if policy not in done:
                done.append(policy)
            bars.update(bar, description=policy, completed=len(done) - 1 + fraction)

        yield tell


def show(result: ReplayResult) -> None:
    """Print the comparison table on stdout."""
    from rich.console import Console

    from cosched.report.table import comparison_table

    Console().print(comparison_table(result))


def _write_json(results: Sequence[ReplayResult], path: Path) -> None:
    """One trace: an object; several: a list of them under "replays"."""
    from cosched.report.table import to_json

    documents = [to_json(result) for result in results]
    text = documents[0] if len(documents) == 1 else b'{"v": 1, "replays": [' + b", ".join(documents) + b"]}"
    if str(path) == "-":
        typer.echo(text.decode())
    else:
        path.write_bytes(text)


def write_report_file(result: ReplayResult, sweeps: Sequence[Sweep], path: Path, *, aloud: bool = True) -> None:
    """Write the HTML report; say where it is unless stdout is for JSON."""
    from cosched.report.html import write_report

    write_report(result, sweeps, path)
    if aloud:
        typer.echo(f"report: {path.resolve()}")


def _read_sweeps(paths: Sequence[Path]) -> list[Sweep]:
    import msgspec

    from cosched.errors import BadInput
    from cosched.report.model import Sweep

    sweeps = []
    for path in paths:
        try:
            sweeps.append(msgspec.json.decode(path.read_bytes(), type=Sweep))
        except msgspec.MsgspecError as error:
            raise BadInput(f"{path}: not a sweep of 'cosched bench ... --sweep': {error}") from None
    return sweeps


def _record(trace_path: Path, path: Path, book: Workbook, policy: Policy, *, aloud: bool) -> None:
    """Write the trace again, with the decisions of one policy in it."""
    from cosched.core.settings import Settings
    from cosched.replay.record import recorded
    from telemetry.trace import read_trace, write_trace

    write_trace(path, recorded(read_trace(trace_path).messages, book, policy, Settings()))
    if aloud:
        typer.echo(f"recorded: {path.resolve()}")
