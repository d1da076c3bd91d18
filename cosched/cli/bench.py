"""`cosched bench`: reproduces the figures that the README states."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cosched.cli.common import EXIT_FAILED, own_stdout

if TYPE_CHECKING:
    from cosched.bench.model import Result

DEFAULT_SEEDS: Final = 10  # what the README's figures were made with
STDOUT: Final = Path("-")
WIDTH: Final = 110  # of tables that go to a file or a pipe


def bench(
    suite: Annotated[str | None, typer.Argument(help="Suite to run; left out: all of them.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Random drops or traces per case.")] = DEFAULT_SEEDS,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all rows to this file; - is stdout.")] = None,
    sweep_file: Annotated[
        Path | None, typer.Option("--sweep", help="Write curves for 'replay --sweep'; of several, one file each.")
    ] = None,
    site: Annotated[list[str] | None, typer.Option(help="Site to run, again for more; not of all suites.")] = None,
    load: Annotated[list[float] | None, typer.Option(help="Offered load to run, again for more.")] = None,
    mix: Annotated[str, typer.Option(help="Of closed-loop: drawn (as the site says) or private.")] = "",
    batch: Annotated[float, typer.Option(min=0, help="Of constant-batch: sequences that a step is said to have.")] = 0,
    clairvoyant: Annotated[
        bool, typer.Option("--clairvoyant", help="Of closed-loop: the best plan found with all known, too; slow.")
    ] = False,
) -> None:
    """Measure what the README states, as a table and as JSON.

    Exit code 1: something that the README claims does not hold in this run.

    Example: cosched bench codesign --seeds 10 --json codesign.json
    """
    from cosched.bench import suites
    from cosched.bench.model import Scope

    names = list(suites.SUITES) if suite is None else [suite]
    scope = Scope(sites=tuple(site or ()), loads=tuple(load or ()), mix=mix, batch=batch, clairvoyant=clairvoyant)
    runs = [(name, suites.get_scoped(name, scope)) for name in names]
    _refuse_lost_work(json_file, sweep_file)
    results: list[Result] = []
    for name, run in runs:
        with _bar(name) as progress, own_stdout():
            results.append(run(seeds=seeds, progress=progress))
        if json_file != STDOUT:
            _show(name, results[-1])
    _write(results, json_file, sweep_file)
    if not all(claim.holds for result in results for claim in result.claims):
        raise typer.Exit(EXIT_FAILED)


def _refuse_lost_work(*files: Path | None) -> None:
    """Raise BadInput before minutes of work, not after them, when there is nowhere to write to."""
    from cosched.errors import BadInput

    for path in files:
        if path is not None and not path.parent.is_dir():
            raise BadInput(f"{path}: there is no folder {path.parent}; make it first")


@contextmanager
def _bar(name: str) -> Iterator[Callable[[float], None]]:
    """Draw a progress bar on a terminal's stderr, else of long suites a line now and then; hand out what moves it."""
    from cosched.bench.suites import SCOPED

    if not sys.stderr.isatty():
        yield _lines(name) if name in SCOPED else lambda _fraction: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(name, total=1.0)
        yield lambda fraction: bars.update(task, completed=fraction)


def _lines(name: str) -> Callable[[float], None]:
    """Return what writes a line to stderr whenever another twentieth is done."""
    told = 0

    def reached(fraction: float) -> None:
        nonlocal told
        if int(20 * fraction) > told:
            told = int(20 * fraction)
            typer.echo(f"{name}: {5 * told} %", err=True)

    return reached


def _show(name: str, result: Result) -> None:
    """One table per case and figure, subjects down; then the claims."""
    from rich.console import Console

    from cosched.bench.tables import capacity_tables, claims_table, tables

    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    for table in capacity_tables(result.capacities):
        console.print(table)
    for table in tables(name, result.rows):
        console.print(table)
    if result.claims:
        console.print(claims_table(result.claims))


def _write(results: list[Result], json_file: Path | None, sweep_file: Path | None) -> None:
    """Write what was asked for. Raises OSError that names the file."""
    import msgspec

    from cosched.bench.machine import describe

    if json_file is not None:
        whole = {"v": 1, "machine": describe(), "rows": [row for result in results for row in result.rows]}
        if capacities := [row for result in results for row in result.capacities]:
            whole["capacities"] = capacities
        text = msgspec.json.format(msgspec.json.encode(whole), indent=2)
        if json_file == STDOUT:
            typer.echo(text.decode())
        else:
            json_file.write_bytes(text + b"\n")
    if sweep_file is not None:
        sweeps = [sweep for result in results for sweep in result.sweeps]
        for sweep in sweeps:
            path = sweep_file if len(sweeps) == 1 else _beside(sweep_file, sweep.name)
            path.write_bytes(msgspec.json.encode(sweep) + b"\n")


def _beside(path: Path, name: str) -> Path:
    """Path with the curve's name before its suffix: `curves.json`, "mixed 4+4" -> `curves-mixed-4-4.json`."""
    slug = "-".join("".join(c if c.isalnum() else " " for c in name).split())
    return path.with_name(f"{path.stem}-{slug}{path.suffix}")
