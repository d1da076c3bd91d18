"""Entry of the `cosched` program: the table of commands, each imported when it is called, and the exit codes.

A command is one file, `cosched/cli/<command>.py`, and one line in `COMMANDS`. Help lines stand here as well as in the
commands' docstrings, because `cosched --help` may not import them (0.3 s); a test holds the two together.
"""

from __future__ import annotations

import importlib
import re
import sys
from typing import Annotated, Any, Final, NamedTuple

import typer
import typer.core
import typer.main

import cosched
from cosched.cli.common import EXIT_USAGE, OUR_ERRORS, complain, explain

MARKUP: Final = None  # docstrings are plain text: square brackets and asterisks in examples are what they are
CONTEXT: Final = {"help_option_names": ["-h", "--help"]}


class Command(NamedTuple):
    """Where a command is (`module:attribute`, a function or a typer app) and its line in `cosched --help`."""

    target: str
    help: str


COMMANDS: Final[dict[str, Command]] = {
    "demo": Command("cosched.cli.demo:demo", "Run the whole chain once on the shipped sample trace."),
    "replay": Command("cosched.cli.replay:replay", "Decide on recorded telemetry, several policies side by side."),
    "import": Command("cosched.cli.import_:import_", "Turn public data sets into one trace."),
    "simulate": Command("cosched.cli.simulate:simulate", "Draw a synthetic trace from a scenario."),
    "solve": Command("cosched.cli.solve:solve", "Solve one problem and print the plan with its certificate."),
    "run": Command("cosched.cli.run:run", "Run the daemon: telemetry in, leases out."),
    "verify": Command("cosched.cli.verify:verify", "Recompute what a daemon decided, from its capture."),
    "config": Command("cosched.cli.config:app", "Check or show the daemon's configuration."),
    "ctl": Command("cosched.cli.ctl:app", "Ask and steer a running daemon."),
    "top": Command("cosched.cli.top:top", "Watch a running daemon in a terminal."),
    "agent": Command("cosched.cli.agent:agent", "Publish this node's compute telemetry to the daemon."),
    "host": Command("cosched.cli.host:host", "Serve layers of models to UEs and to other hosts."),
    "serve": Command("cosched.cli.serve:serve", "Serve an OpenAI-compatible endpoint of the daemon."),
    "ue": Command("cosched.cli.ue:ue", "Generate with an LLM that is split as the daemon decides."),
    "adapter": Command(
        "cosched.cli.adapter:adapter", "Read a live radio source and publish its reports to the daemon."
    ),
    "keys": Command("cosched.cli.keys:app", "Make CURVE keys and say whom the daemon lets in."),
    "profile": Command("cosched.cli.profile:app", "Print the layer table of a model on a device."),
    "bench": Command("cosched.cli.bench:bench", "Measure what the README states, as a table and as JSON."),
}


class LazyGroup(typer.core.TyperGroup):
    """A group that lists its commands from a table and imports one only to run it."""

    def __init__(self, **attrs: Any) -> None:
        attrs["commands"] = {
            name: typer.core.TyperCommand(name, help=entry.help, rich_markup_mode=MARKUP)
            for name, entry in COMMANDS.items()
        }
        super().__init__(**attrs)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Find the command, with the base class's hint for a misspelt one, and put the real one in its place."""
        name, placeholder, rest = super().resolve_command(ctx, args)
        return name, None if placeholder is None or name is None else load(name), rest


def load(name: str) -> Any:
    """Import the command called `name` and return it as a click command."""
    module, attribute = COMMANDS[name].target.split(":")
    target = getattr(importlib.import_module(module), attribute)
    if not isinstance(target, typer.Typer):
        function, target = target, typer.Typer(add_completion=False, rich_markup_mode=MARKUP)
        target.command(name, context_settings=CONTEXT)(function)
    command = typer.main.get_command(target)
    command.name = name
    keep_examples(command)
    return command


def keep_examples(command: Any) -> None:
    """Mark the paragraphs of a command's help that begin with `Example`, so that their lines are not joined."""
    command.help = re.sub(r"(?m)^(?=Examples?:)", "\\b\n", command.help or "")
    for below in getattr(command, "commands", {}).values():
        keep_examples(below)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cosched {cosched.__version__}")
        raise typer.Exit


app = typer.Typer(
    name="cosched", cls=LazyGroup, rich_markup_mode=MARKUP, no_args_is_help=True, context_settings=CONTEXT
)


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Joint scheduler of radio bandwidth and compute for edge sites.

    Example: cosched demo
    """


def main(args: list[str] | None = None) -> None:
    """Run the program and exit.

    0: success. 1: the thing checked does not hold, or the reader of stdout has gone. 2: wrong usage or bad input, with
    one line on stderr. 130: interrupted. Whatever else is raised is a fault of ours and keeps its traceback.
    """
    try:
        typer.main.get_command(app).main(args=args, prog_name="cosched")
    except (*OUR_ERRORS, OSError) as error:
        line = explain(error)
        if line is None:
            raise
        complain(line)
        sys.exit(EXIT_USAGE)


if __name__ == "__main__":
    main()
