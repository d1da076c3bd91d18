"""`cosched run`: the daemon."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cosched.cli.common import complain

ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="Configuration (TOML); left out: the defaults.")
]


def run(config: ConfigOption = None) -> None:
    """Run the daemon: telemetry in, leases out.

    Until SIGTERM or Ctrl-C. SIGHUP reloads the configuration as a whole or not at all. State and captures go to
    $STATE_DIRECTORY, sockets to $RUNTIME_DIRECTORY, where they are set, else to the user's folders ('cosched config
    show').

    Example: cosched run --config /etc/cosched/cosched.toml
    """
    from cosched.config import log
    from cosched.config.settings import load
    from cosched.daemon.daemon import serve
    from cosched.daemon.store import StoreFailed

    loaded = load(config)
    log.configure(loaded.settings.log.level)
    try:
        code = serve(loaded)
    except StoreFailed as error:  # the disk, not the configuration: systemd tries again
        complain(str(error))
        code = 1
    raise typer.Exit(code)
