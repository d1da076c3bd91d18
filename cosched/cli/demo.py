"""`cosched demo`: the whole chain once, on the sample trace that ships with the package: live, replayed, verified."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer

from cosched.cli.common import EXIT_FAILED, complain
from cosched.errors import BadInput
from cosched.runtime.extra import require

if TYPE_CHECKING:
    from cosched.cli.demo_live import PlayedLive
    from cosched.replay.replayer import Workbook
    from cosched.report.model import ReplayResult

PREFIX: Final = "cosched-demo-"  # of a folder for temporary files
SOCKET_PATH: Final = 108  # bytes of sockaddr_un.sun_path, unix(7)

LIVE: Final = """
1. Live: a daemon of its own, and a player that sends it the recording over ZeroMQ, {speed:g} x as fast.
   Reports and tasks come {speed:g} x as often, and tasks are so much shorter; deadlines stay what they are."""
LEFT_OUT: Final = "\n2. Cluster: left out, {why}."
REPLAY: Final = """
3. Replay: the recording at its own pace, with {n} policies. What becomes of a task is worked out on the channel
   that came after its decision; every decision is verified by independent code."""
VERIFY: Final = """
4. Verify: the daemons' decisions, recomputed from what they recorded."""


def demo(
    report: Annotated[Path, typer.Option(help="Where the HTML report goes.")] = Path("cosched-report.html"),
    speed: Annotated[float, typer.Option(min=0.1, max=20.0, help="Of the live part, in multiples of real time.")] = 2.0,
    cluster: Annotated[
        bool, typer.Option(help="Show the cluster part too, which needs the extra [llm] and a minute's patience.")
    ] = True,
) -> None:
    """Run the whole chain once on the shipped sample trace.

    A daemon is started, and a player sends it the trace's radio reports and tasks over ZeroMQ. On a local Ray of two
    nodes, four UEs generate with a model that is split between them and the nodes, one of which is killed. Then the
    trace is replayed with every policy, and what the daemons recorded is recomputed. Needs no file, no root, no GPU;
    leaves nothing but the report. Exit code 1: something that it shows does not hold.

    Example: cosched demo --report /tmp/report.html
    """
    from cosched.cli.replay import read_book, run, show, tell_failed, write_report_file
    from cosched.core.policy import POLICIES
    from cosched.resources import sample_trace

    _refuse_unwritable(report)
    path = sample_trace()
    book, sha256 = read_book(path)
    site = book.site
    typer.echo(
        f"Site {site.name}: {len(site.cells)} cells, {len(site.nodes)} nodes, {len(book.ue_rows)} UEs. "
        f"{len(book.offers)} tasks need the network in {book.duration_s:.0f} s;\n"
        f"{len(book.local)} more are served by their device alone and left out."
    )
    with _ended_in_order(), _folder() as folder:
        played = asyncio.run(_play(folder, path, book, speed, _left_out() if cluster else "as asked for"))
        typer.echo(REPLAY.format(n=len(POLICIES)))
        result = run(book, list(POLICIES.values()), path=path, sha256=sha256)
        show(result)
        typer.echo(_side_by_side(played, result))
        write_report_file(result, [], report)
        tell_failed([result])
        typer.echo(VERIFY)
        _verify(sorted(folder.glob("**/captures/*.mcap")))


def _left_out() -> str:
    """Why the cluster part cannot be shown here, and the mend; "" where it can."""
    if find_spec("ray") is None:
        return "ray is not installed: pip install cosched"
    try:
        require()
    except BadInput as error:
        return str(error)
    return ""


async def _play(folder: Path, path: Path, book: Workbook, speed: float, left_out: str) -> PlayedLive:
    """Play the live parts; the second's daemon starts its Ray while the first is shown. Exit code 1: it fails."""
    from cosched.cli.demo_cluster import show_cluster
    from cosched.cli.demo_live import play_live, prepare, summary
    from cosched.demo import play, stage

    async with contextlib.AsyncExitStack() as stack:
        if not left_out:
            cluster = await stack.enter_async_context(play.started(stage.prepare(folder / "c", path)))
        typer.echo(LIVE.format(speed=speed))
        played = await play_live(prepare(folder, path, book), book, speed)
        typer.echo(summary(played))
        if left_out:
            typer.echo(LEFT_OUT.format(why=left_out))
            return played
        try:
            await show_cluster(cluster)
        except play.DemoFailed as error:
            complain(str(error))
            raise typer.Exit(EXIT_FAILED) from None
    return played


def _refuse_unwritable(report: Path) -> None:
    """Say at once that the report cannot be written, not after a minute. Raises BadInput."""
    folder = report.resolve().parent
    if report.is_dir() or not folder.is_dir() or not os.access(report if report.exists() else folder, os.W_OK):
        raise BadInput(f"--report {report}: it cannot be written there; name a file in a folder of yours")


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """Yield a folder for the daemon's sockets, state and captures; it goes at the end. Raises BadInput."""
    try:
        _remove_leftovers()
        made = tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True)
    except OSError as error:
        raise BadInput(f"no folder for temporary files can be written ({error}); name one in $TMPDIR") from None
    with made as folder, _owned(Path(folder)):
        if len(folder) + len("/c/run/telemetry.sock") >= SOCKET_PATH:
            raise BadInput(f"{folder}: too long a path for a socket; name a shorter folder in $TMPDIR")
        yield Path(folder)


def _remove_leftovers() -> None:
    """Remove the folders of demos that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError), _owned(folder):  # else it is somebody's
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _owned(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder, which ends with this process however that ends. Raises OSError where another has it."""
    opened = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(opened)


@contextlib.contextmanager
def _ended_in_order() -> Iterator[None]:
    """Have SIGTERM and a closed terminal end the demo as Ctrl-C does: with its daemon, and its folder."""

    def end(number: int, _: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _side_by_side(played: PlayedLive, result: ReplayResult) -> str:
    """What the live part and the replay have in common, and what not."""
    joint = result.policies["joint"].summary
    return (
        f"Live, the daemon admitted {played.admitted} of {len(played.answers)} tasks; in the replay, joint admitted "
        f"{joint.admitted} of {joint.offered}.\nThe same core decided; pace, lengths of tasks and instants of arrival "
        "are not the same."
    )


def _verify(captures: Sequence[Path]) -> None:
    """Recompute the captures; exit 1 when anything differs."""
    from cosched.daemon.verify import verify

    for capture in captures:
        verdict = verify(capture)
        if verdict.difference:
            typer.echo(f"   NOT EQUAL: {verdict.difference}")
            raise typer.Exit(EXIT_FAILED)
        typer.echo(
            f"   {verdict.decisions} decisions in {verdict.plans} plans recomputed, equal to the last bit "
            f"({verdict.duration_s:.0f} s, {capture.stat().st_size / 1e6:.1f} MB of capture)."
        )
