"""`cosched top`: a live dashboard in a terminal."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

CLIENT_TIMEOUT_S = 3.0  # a daemon that is silent for longer is told as gone


def top(
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two refreshes.")] = 1.0,
    endpoint: Annotated[
        str, typer.Option(help="Where the daemon answers; none: the socket of this user's or service's daemon.")
    ] = "",
    key: Annotated[str, typer.Option(help="Own key pair: a name in the keys folder, or a file.")] = "",
    server: Annotated[str, typer.Option(help="The daemon's public key, with --key.")] = "",
) -> None:
    """Watch a running daemon in a terminal.

    Mode, gain, cells, nodes, alarms and tasks; keys sort, filter and open a task's explanation, ? lists them. The role
    viewer is enough. A daemon that goes away is waited for.

    Example: cosched top --every 2
    """
    from cosched.api.async_client import AsyncClient
    from cosched.api.client import curve
    from cosched.errors import BadInput

    keys = curve(key, server)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise BadInput("cosched top needs a terminal; 'cosched ctl status --json' prints the same figures to anything")
    from cosched.top.app import Top

    Top(lambda: AsyncClient(endpoint, keys, CLIENT_TIMEOUT_S), every).run()
