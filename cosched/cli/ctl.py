"""`cosched ctl`: the control API from a shell."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from cosched.cli import ctl_tables
from cosched.cli.common import EXIT_FAILED, JsonFlag, print_json
from cosched.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Callable

    from cosched.api.client import Client
    from cosched.api.messages import Lease, SubmitArgs

CONTEXT: Final = {"help_option_names": ["-h", "--help"]}
Number = TypeVar("Number", int, float)
Result = TypeVar("Result")

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, context_settings=CONTEXT)

TaskArgument = Annotated[str, typer.Argument(help="The task's id.")]
WorkOption = Annotated[
    str,
    typer.Option(help="The work as JSON, a file of it, or - for stdin: docs/telemetry.md, `work: llm`, `work: video`."),
]


@app.callback()
def ctl(
    ctx: typer.Context,
    endpoint: Annotated[
        str, typer.Option(help="Where the daemon answers; none: the socket of this user's or service's daemon.")
    ] = "",
    key: Annotated[str, typer.Option(help="Own key pair: a name in the keys folder, or a file.")] = "",
    server: Annotated[str, typer.Option(help="The daemon's public key, with --key.")] = "",
    timeout: Annotated[float, typer.Option(min=0.01, help="Seconds to wait for an answer.")] = 5.0,
) -> None:
    """Ask and steer a running daemon.

    Example: cosched ctl status
    """

    def connect() -> Client:
        from cosched.api.client import Client, curve

        return Client(endpoint, curve(key, server), timeout)

    ctx.obj = connect


def _client(ctx: typer.Context) -> Client:
    connect: Callable[[], Client] = ctx.obj
    return connect()


def _print(found: Result, draw: Callable[[Result], None], as_json: bool) -> None:
    """Print a result as JSON, or with a function of cosched/cli/ctl_tables.py."""
    if as_json:
        print_json(found)
    else:
        draw(found)


@app.command("status", context_settings=CONTEXT)
def status(ctx: typer.Context, as_json: JsonFlag = False) -> None:
    """Print mode, alarms, load, counts, delays and the gain over the baseline.

    Example: cosched ctl status --json
    """
    with _client(ctx) as daemon:
        _print(daemon.status(), ctl_tables.status, as_json)


@app.command("submit", context_settings=CONTEXT)
def submit(
    ctx: typer.Context,
    task: TaskArgument,
    *,
    ue: Annotated[str, typer.Option(help="Who asks.")],
    work: WorkOption,
    weight: Annotated[float, typer.Option(help="Value of meeting it.")] = 1.0,
    fallback: Annotated[str, typer.Option(help="Past the lease: local, drop or keep.")] = "local",
    as_json: JsonFlag = False,
) -> None:
    """Offer a task and print its decision; exit 1 when it is refused.

    Example: cosched ctl submit t1 --ue ue7 --work session.json
    """
    with _client(ctx) as daemon:
        lease = daemon.submit(task, ue, _work(work), weight=weight, fallback=fallback)
    _print(lease, ctl_tables.lease, as_json)
    _fail_without(lease)


@app.command("release", context_settings=CONTEXT)
def release(ctx: typer.Context, task: TaskArgument, as_json: JsonFlag = False) -> None:
    """Let a task go; exit 1 when there was no such task.

    Example: cosched ctl release t1
    """
    with _client(ctx) as daemon:
        found = daemon.release(task)
    _print(found, ctl_tables.released, as_json)
    if not found.released:
        raise typer.Exit(EXIT_FAILED)


@app.command("list", context_settings=CONTEXT)
def list_(
    ctx: typer.Context,
    prefix: Annotated[str, typer.Argument(help="Only tasks whose id begins so.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 1000,
    as_json: JsonFlag = False,
) -> None:
    """List the accepted tasks.

    Example: cosched ctl list
    """
    with _client(ctx) as daemon:
        _print(daemon.list(prefix, limit), ctl_tables.tasks, as_json)


@app.command("show", context_settings=CONTEXT)
def show(ctx: typer.Context, task: TaskArgument, as_json: JsonFlag = False) -> None:
    """Print one accepted task and its lease.

    Example: cosched ctl show t1
    """
    with _client(ctx) as daemon:
        _print(daemon.show(task), ctl_tables.task, as_json)


@app.command("explain", context_settings=CONTEXT)
def explain(ctx: typer.Context, task: TaskArgument, as_json: JsonFlag = False) -> None:
    """Print why a task has what it has or was refused, and what would change it.

    Example: cosched ctl explain t1
    """
    with _client(ctx) as daemon:
        _print(daemon.explain(task), ctl_tables.explanation, as_json)


@app.command("whatif", context_settings=CONTEXT)
def whatif(
    ctx: typer.Context,
    *,
    node_gone: Annotated[list[str] | None, typer.Option(help="A node that is gone; again for more.")] = None,
    cell_gone: Annotated[list[str] | None, typer.Option(help="A cell that is gone.")] = None,
    more_prbs: Annotated[list[str] | None, typer.Option(help="CELL=PRBS more, or fewer: cell0=10.")] = None,
    more_mhz: Annotated[list[str] | None, typer.Option(help="CELL=MHZ more: cell0=20.")] = None,
    work: Annotated[str, typer.Option(help="A further task's work, as for submit.")] = "",
    ue: Annotated[str, typer.Option(help="Who asks for the further task.")] = "",
    copies: Annotated[int, typer.Option(min=1, help="How many of the further task.")] = 1,
    as_json: JsonFlag = False,
) -> None:
    """Plan a changed site without touching the live one.

    Example: cosched ctl whatif --node-gone edge0 --more-mhz cell0=20
    """
    from cosched.api.client import whatif_args
    from cosched.api.messages import SubmitArgs

    if bool(work) != bool(ue):
        raise BadInput("--work and --ue go together: what is asked for, and by whom")
    further: list[SubmitArgs] = [SubmitArgs(task="whatif", ue=ue, work=_work(work))] if work else []
    args = whatif_args(
        nodes_gone=node_gone or (),
        cells_gone=cell_gone or (),
        more_prbs=_assigned("--more-prbs", more_prbs, int),
        more_hz={cell: mhz * 1e6 for cell, mhz in _assigned("--more-mhz", more_mhz, float).items()},
        submit=further,
        copies=copies,
    )
    with _client(ctx) as daemon:
        _print(daemon.whatif(args), ctl_tables.whatif, as_json)


@app.command("policy", context_settings=CONTEXT)
def policy(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="The policy to change to; none: only ask.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Print or change the policy in force.

    Example: cosched ctl policy pf-admit
    """
    with _client(ctx) as daemon:
        _print(daemon.policy(name), ctl_tables.policy, as_json)


@app.command("drain", context_settings=CONTEXT)
def drain(ctx: typer.Context, as_json: JsonFlag = False) -> None:
    """Take no new task; those that run go on.

    Example: cosched ctl drain
    """
    with _client(ctx) as daemon:
        _print(daemon.drain(), ctl_tables.mode, as_json)


@app.command("resume", context_settings=CONTEXT)
def resume(ctx: typer.Context, as_json: JsonFlag = False) -> None:
    """Take new tasks again.

    Example: cosched ctl resume
    """
    with _client(ctx) as daemon:
        _print(daemon.resume(), ctl_tables.mode, as_json)


@app.command("reload", context_settings=CONTEXT)
def reload(ctx: typer.Context, as_json: JsonFlag = False) -> None:
    """Read the configuration anew; a wrong one is refused as a whole, and the old one stays.

    Example: cosched ctl reload
    """
    with _client(ctx) as daemon:
        _print(daemon.reload(), ctl_tables.reloaded, as_json)


@app.command("watch", context_settings=CONTEXT)
def watch(
    ctx: typer.Context,
    task: Annotated[list[str] | None, typer.Argument(metavar="[TASK]...", help="Only these; none: all.")] = None,
    count: Annotated[int, typer.Option(min=0, help="Stop after so many decisions; 0: never.")] = 0,
    quiet: Annotated[float, typer.Option(min=0, help="Stop after so many seconds without one; 0: never.")] = 0.0,
    as_json: JsonFlag = False,
) -> None:
    """Print the present decision of each task, then every change, one a line.

    Example: cosched ctl watch t1 --json
    """
    import msgspec

    with _client(ctx) as daemon:
        for n, lease in enumerate(daemon.follow(*(task or ()), timeout_s=quiet or None), start=1):
            typer.echo(msgspec.json.encode(lease).decode() if as_json else ctl_tables.lease_line(lease))
            sys.stdout.flush()
            if n == count:
                break


def _fail_without(lease: Lease) -> None:
    if not lease.point:
        raise typer.Exit(EXIT_FAILED)


def _work(text: str) -> Any:
    """Parse work given as JSON, a file of it, or - for stdin. Raises BadInput."""
    import msgspec

    from cosched.api.messages import SubmitArgs

    where, data = "--work", text.encode()
    if text == "-":
        data = sys.stdin.buffer.read()
    elif not text.lstrip().startswith("{"):
        where, data = text, Path(text).read_bytes()
    try:
        raw = {"task": "t", "ue": "u", "work": msgspec.json.decode(data)}
        return msgspec.convert(raw, SubmitArgs).work
    except msgspec.DecodeError as error:
        raise BadInput(f"{where}: {error}; docs/telemetry.md lists the keys of `work`") from None


def _assigned(option: str, texts: list[str] | None, kind: type[Number]) -> dict[str, Number]:
    """Parse CELL=NUMBER texts. Raises BadInput."""
    found = {}
    for text in texts or ():
        name, _, number = text.rpartition("=")
        try:
            found[name] = kind(number)
        except ValueError:
            name = ""
        if not name:
            raise BadInput(f"{option} {text}: give CELL=NUMBER, such as cell0=10")
    return found
