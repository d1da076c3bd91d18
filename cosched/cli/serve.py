"""`cosched serve`: an OpenAI-compatible endpoint in front of the daemon."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from cosched.errors import BadInput
from cosched.runtime.extra import prepare


def serve(
    *,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="Configuration (TOML), docs/serve.md.")] = None,
    new_key: Annotated[str, typer.Option(help="Make an API key of that name, print it and its lines; then stop.")] = "",
    check: Annotated[
        bool, typer.Option("--check", help="Read the configuration, say whether it is right, stop.")
    ] = False,
) -> None:
    """Serve an OpenAI-compatible endpoint of the daemon.

    Requests become its tasks. Until SIGTERM or Ctrl-C; SIGHUP reads the keys anew. Prints the base URL when it listens.
    A request is admitted with its deadlines, or refused with 429 and the reason.

    Example: cosched serve --config /etc/cosched/serve.toml
    """
    if new_key:
        _new_key(new_key)
        return
    if config is None:
        raise BadInput("--config: give a file with the models to serve; docs/serve.md has an example")
    if lacking := [name for name in ("starlette", "uvicorn", "jinja2") if find_spec(name) is None]:
        raise BadInput(f"{lacking[0]} is not installed: pip install 'cosched[llm,serve]'")
    from cosched.config import log
    from cosched.serve.settings import load

    loaded = load(config)
    if loaded.settings.log.level not in log.LEVELS:
        raise BadInput(f"{config}: log.level '{loaded.settings.log.level}': one of {', '.join(log.LEVELS)}")
    if check:
        typer.echo(f"{config}: {len(loaded.settings.models)} models, {len(loaded.settings.keys)} keys")
        return
    prepare(1)  # what little is computed here goes on beside many threads
    log.configure(loaded.settings.log.level)
    from cosched.serve.listening import run

    run(loaded, typer.echo)


def _new_key(name: str) -> None:
    """Print a secret, which is kept nowhere, and what the configuration is to say of it."""
    from cosched.serve.clients import digest_of, new_secret

    secret = new_secret()
    typer.echo(secret)
    typer.echo(
        f'\n[[keys]]\nname = "{name}"\nsha256 = "{digest_of(secret)}"\nue = ""  # whose channel to plan with', err=True
    )
