"""`cosched host`: a node process that runs layers of models."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cosched.cli.common import EXIT_FAILED, JsonFlag, complain, one_line
from cosched.cli.llm import DeviceOption, DtypeOption, SeedOption, ThreadsOption, named_model
from cosched.errors import BadInput
from cosched.runtime.extra import prepare

if TYPE_CHECKING:
    from cosched.api.zap import Authenticator
    from cosched.runtime.host import LayerHost
    from telemetry.bus import Curve

TELLING_S: Final = 0.5  # between two looks for news


def host(
    *,
    model: Annotated[list[str], typer.Option(help="Folder of a checkpoint, or config.json; NAME=PATH names it.")],
    layers: Annotated[list[str] | None, typer.Option(help="NAME:A:B: load layers A to B - 1; none: all.")] = None,
    node: Annotated[str, typer.Option(help="This node's id in the site.")] = "host",
    bind: Annotated[list[str] | None, typer.Option(help="Where to serve; tcp://127.0.0.1:0 picks a port.")] = None,
    seed: SeedOption = None,
    dtype: DtypeOption = "float32",
    device: DeviceOption = "cpu",
    threads: ThreadsOption = 0,
    key: Annotated[str, typer.Option(help="Own key pair: a name in the keys folder, or a file.")] = "",
    allowed: Annotated[Path | None, typer.Option(help="Who may connect ('cosched keys allow'), with --key.")] = None,
    limit: Annotated[list[str] | None, typer.Option(help="NAME=VALUE, as in docs/runtime.md; sessions_each=8.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Serve layers of models to UEs and to other hosts.

    Until SIGTERM or Ctrl-C. Prints its endpoint when it is ready (--json: with what it holds). tcp beyond this machine
    needs --key and --allowed; UEs come as publishers. What it refuses is counted by identity and said on stderr.

    Example: cosched host --model llama=/models/llama-3.2-1b --layers llama:4:16 --bind tcp://127.0.0.1:5561
    """
    prepare(threads, device)
    from cosched.runtime.host import LayerHost
    from cosched.runtime.limits import limits_of
    from cosched.runtime.model import dtype_of

    limits = limits_of(limit or [])
    keys, guard = _keys(key, allowed)
    sources = [named_model(text, seed) for text in model]
    serving = LayerHost(
        node, sources, bind=bind or ["tcp://127.0.0.1:0"], limits=limits, dtype=dtype_of(dtype), device=device,
        keys=keys, guard=guard,
    )  # fmt: skip
    for name, start, stop in map(_layers, layers) if layers else [(s.name, 0, s.n_layers) for s in sources]:
        serving.load(name, start, stop)
    serving.start()
    _say(serving.endpoints, serving.report() if as_json else None)
    threading.Thread(target=_tell, args=(serving,), name="log", daemon=True).start()
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    while serving.is_serving and not ended.wait(1.0):
        pass
    failed = not serving.is_serving
    serving.stop()
    if guard is not None:
        guard.close()
    if failed:
        complain("the serving thread has ended for a defect; the lines above say which")
        raise typer.Exit(EXIT_FAILED)


def _tell(serving: LayerHost) -> None:
    """Say on stderr what the host has to say: in a thread of its own, for a pipe that nobody reads holds it up."""
    while True:
        for line in serving.news.take():
            os.write(2, f"cosched: warning: {one_line(line)}\n".encode(errors="replace"))  # no lock held while it waits
        time.sleep(TELLING_S)


def _say(endpoints: list[str], report: object | None) -> None:
    import msgspec

    for endpoint in endpoints:
        typer.echo(endpoint if report is None else msgspec.json.encode({"endpoint": endpoint, "report": report}))
    sys.stdout.flush()


def _layers(text: str) -> tuple[str, int, int]:
    name, _, numbers = text.partition(":")
    start, _, stop = numbers.partition(":")
    if not (name and start.isdigit() and stop.isdigit()):
        raise BadInput(f"--layers {text}: give NAME:A:B, such as llama:4:16")
    return name, int(start), int(stop)


def _keys(key: str, allowed: Path | None) -> tuple[Curve | None, Authenticator | None]:
    """Return CURVE keys and who is let in; both None for a plain host."""
    if bool(key) != (allowed is not None):
        raise BadInput("--key and --allowed go together: whoever connects must be known")
    if allowed is None:
        return None, None
    from cosched.api.zap import guarded

    return guarded(key, allowed)
