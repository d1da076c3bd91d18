"""`cosched keys`: CURVE keys of this machine, and whom the daemon lets in."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from cosched.cli.common import JsonFlag, print_json

if TYPE_CHECKING:
    from cosched.api.access import Identity

CONTEXT: Final = {"help_option_names": ["-h", "--help"]}
KeysOption = Annotated[
    Path | None,
    typer.Option("--keys", envvar="COSCHED_KEYS", help="Folder of keys.", show_default="~/.config/cosched/keys"),
]
Patterns = list[str]

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, context_settings=CONTEXT)


@app.callback()
def keys() -> None:
    """Make CURVE keys and say whom the daemon lets in.

    A key pair stays on the machine where it was made; only its public half goes to the daemon's machine.

    Example: cosched keys new edge0
    """


@app.command("new", context_settings=CONTEXT)
def new(
    name: Annotated[str, typer.Argument(help="What the key is called: a daemon, node, gNB or person.")],
    folder: KeysOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a key pair, readable by its owner alone, and print the public key.

    Example: cosched keys new edge0
    """
    from cosched.api import keys as store
    from cosched.api.zap import new_pair

    pair = new_pair(name)
    path = store.write_pair(folder or store.folder(), pair)
    if as_json:
        print_json({"v": 1, "name": name, "public": pair.public, "path": str(path)})
        return
    typer.echo(f"{path}\npublic key: {pair.public}")
    typer.echo(f"on the daemon's machine: cosched keys allow {name} {shlex.quote(pair.public)} --role ROLE")


@app.command("allow", context_settings=CONTEXT)
def allow(
    name: Annotated[str, typer.Argument(help="What the daemon calls it, in logs and counts.")],
    public: Annotated[str | None, typer.Argument(help="Its public key; none: of NAME.key in the folder.")] = None,
    *,
    role: Annotated[Literal["viewer", "publisher", "client", "operator"], typer.Option(help="What it may do.")],
    ue: Annotated[Patterns | None, typer.Option(help="UEs that it may speak and submit for, such as 'ue-*'.")] = None,
    cell: Annotated[Patterns | None, typer.Option(help="Cells; a UE's report needs its UE and its cell.")] = None,
    node: Annotated[Patterns | None, typer.Option(help="Nodes.")] = None,
    link: Annotated[Patterns | None, typer.Option(help="Links.")] = None,
    task: Annotated[Patterns | None, typer.Option(help="Tasks that it may report on, submit and release.")] = None,
    folder: KeysOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Let a public key in, or change what it may do.

    The daemon takes the list up with `cosched ctl reload`. To revoke a key, delete its entry in allowed.toml.

    Example: cosched keys allow gnb1 --role publisher --ue '*' --cell cell0

    Example: cosched keys allow phone7 --role client --ue ue07 --task 'ue07-*'
    """
    from msgspec import structs

    from cosched.api import keys as store
    from cosched.api.access import SCOPED, Identity
    from cosched.errors import BadInput

    where = folder or store.folder()
    scopes = {"ues": ue, "cells": cell, "nodes": node, "links": link, "tasks": task}
    given = {key: tuple(patterns) for key, patterns in scopes.items() if patterns}
    if (role in SCOPED) != bool(given):
        raise BadInput(
            f"a {role} needs at least one of --ue, --cell, --node, --link, --task"
            if role in SCOPED
            else f"--ue, --cell, --node, --link and --task are for publishers and clients, not for a {role}"
        )
    key = public or store.read_pair(where / f"{store.check_name(name)}.key").public
    identity = structs.replace(Identity(name=name, public=key, role=role), **given)
    store.allow(where / store.ALLOWED, identity)
    if as_json:
        print_json({"v": 1, "allowed": identity})
        return
    typer.echo(f"{where / store.ALLOWED}: {_line(identity)}")


@app.command("list", context_settings=CONTEXT)
def list_(folder: KeysOption = None, as_json: JsonFlag = False) -> None:
    """List the key pairs of this machine and whom its daemon lets in.

    Example: cosched keys list --keys /etc/cosched/keys
    """
    from cosched.api import keys as store

    where = folder or store.folder()
    pairs = [store.read_pair(path) for path in sorted(where.glob("*.key"))]
    identities = store.read_allowed(where / store.ALLOWED)
    if as_json:
        own = [{"name": pair.name, "public": pair.public} for pair in pairs]
        print_json({"v": 1, "folder": str(where), "pairs": own, "allowed": identities})
        return
    typer.echo(f"{where}: {len(pairs)} key pairs, {len(identities)} allowed")
    for pair in pairs:
        typer.echo(f"  pair     {pair.name:<16} {pair.public}")
    for identity in identities:
        typer.echo(f"  allowed  {_line(identity)}")


def _line(identity: Identity) -> str:
    scopes = {"UE": identity.ues, "cell": identity.cells, "node": identity.nodes}
    scopes |= {"link": identity.links, "task": identity.tasks}
    speaks = "; ".join(f"{what} {' '.join(patterns)}" for what, patterns in scopes.items() if patterns)
    return f"{identity.name:<16} {identity.public}  {identity.role}{f' for {speaks}' if speaks else ''}"
