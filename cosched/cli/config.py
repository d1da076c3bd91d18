"""`cosched config`: is a configuration right, and what is in force."""

from __future__ import annotations

from typing import Any

import typer

from cosched.cli.common import JsonFlag, print_json, warn
from cosched.cli.run import ConfigOption

app = typer.Typer(
    name="config",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    help="""Check or show the daemon's configuration.

    Example: cosched config show --config cosched.toml""",
)


@app.command()
def check(config: ConfigOption = None) -> None:
    """Check a configuration as a start or a reload would, without touching a daemon. Exit 2: it is wrong.

    Example: cosched config check --config cosched.toml
    """
    from cosched.config.settings import load
    from cosched.daemon import endpoints as places

    loaded = load(config)
    places.plant(loaded)
    places.security(loaded)
    for line in places.warnings(loaded):
        warn(line)
    typer.echo(f"{config or 'defaults'}: right")


@app.command()
def show(config: ConfigOption = None, as_json: JsonFlag = False) -> None:
    """Print the configuration in force, and where each value comes from.

    Example: COSCHED_POLICY=greedy cosched config show
    """
    from cosched.config.settings import load

    loaded = load(config)
    flat = loaded.flat()
    if as_json:
        keys = {key: {"value": value, "origin": loaded.origin[key]} for key, value in flat.items()}
        print_json({"v": 1, "keys": keys})
        return
    lines = [(f"{key} = {_toml(value)}", loaded.origin[key]) for key, value in flat.items()]
    width = max(len(line) for line, _ in lines)
    for line, origin in lines:
        typer.echo(f"{line:{width}}  # {origin}")


def _toml(value: Any) -> str:
    """Write a scalar or a list of scalars as TOML."""
    import json

    return str(value).lower() if isinstance(value, bool) else json.dumps(value)
