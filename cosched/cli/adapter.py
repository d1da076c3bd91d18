"""`cosched adapter`: a live radio source, read, checked and published to the daemon."""

from __future__ import annotations

import signal
import sys
import time
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from cosched.cli.common import JsonFlag, warn
from cosched.errors import BadInput


def adapter(
    name: Annotated[str, typer.Argument(help="srsran, e2sm-kpm or edgeric.")],
    source: Annotated[
        str,
        typer.Option("--from", help="ws://HOST:PORT, udp://HOST:PORT (bound here), ipc://, tcp://, or - for lines."),
    ],
    *,
    options: Annotated[Path | None, typer.Option(help="The adapter's options (TOML): docs/adapters.md.")] = None,
    connect: Annotated[str, typer.Option(help="The daemon's telemetry socket.")] = "tcp://127.0.0.1:5551",
    key: Annotated[str, typer.Option(help="Own key pair: a name in the keys folder, or a file.")] = "",
    server: Annotated[str, typer.Option(help="The daemon's public key, with --key.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Read a live radio source and publish its reports to the daemon.

    Impossible values never leave; what cannot be used is named on stderr when it is first seen. --json prints each
    report as well, one a line.

    Example: cosched adapter srsran --from ws://127.0.0.1:8001 --options srsran.toml
    """
    import msgspec

    from cosched.api.client import curve
    from telemetry.adapters.registry import adapter as open_adapter
    from telemetry.adapters.sources import payloads
    from telemetry.bus import Publisher
    from telemetry.wire import encode

    stream = open_adapter(name, _options(options))
    publisher = Publisher(connect, curve(key, server))
    incoming = payloads(source)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    said: set[str] = set()
    for payload in incoming:
        for report in stream.feed(payload, time.time_ns()):
            publisher.send(*encode(report))
            if as_json:
                typer.echo(msgspec.json.encode(report).decode())
        sys.stdout.flush()
        wrong = {*stream.problems, *(reason for _, reason in stream.quarantine.counts)}
        for reason in sorted(wrong - said):
            warn(f"{name}: {reason}")
        said |= wrong
    publisher.close(linger_ms=1000)


def _options(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: {error}") from None
