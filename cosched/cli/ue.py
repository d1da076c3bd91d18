"""`cosched ue`: a reference UE: asks for an LLM session, follows its lease, generates, reports what it measured."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cosched.cli.common import EXIT_FAILED, JsonFlag, complain, print_json
from cosched.cli.llm import DeviceOption, DtypeOption, SeedOption, ThreadsOption, named_model
from cosched.errors import BadInput
from cosched.runtime.extra import prepare

if TYPE_CHECKING:
    from cosched.runtime.asking import Asking, Make
    from cosched.runtime.chain import Hop, Route
    from cosched.runtime.generation import Generation
    from cosched.runtime.text import Text
    from cosched.runtime.ue import UeSession


def ue(
    *,
    model: Annotated[
        str, typer.Option(help="Folder of a checkpoint, or config.json; NAME=PATH: as the site names it.")
    ],
    node: Annotated[
        list[str] | None, typer.Option(help="NAME=ENDPOINT of a node, with keys NAME=ENDPOINT,KEY.")
    ] = None,
    prompt: Annotated[str, typer.Option(help="Text to begin with; bytes are tokens where there is no tokenizer.")] = "",
    tokens: Annotated[str, typer.Option(help="Token ids to begin with instead, such as 1,15,2.")] = "",
    max_tokens: Annotated[int, typer.Option(min=1, help="How many to generate at most.")] = 64,
    endpoint: Annotated[str, typer.Option(help="Where the daemon answers; none: this user's or the service's.")] = "",
    connect: Annotated[str, typer.Option(help="The daemon's telemetry socket.")] = "tcp://127.0.0.1:5551",
    split: Annotated[
        int, typer.Option(min=-1, help="Without a daemon: layers on this device, the rest on --node.")
    ] = -1,
    precision: Annotated[int, typer.Option(help="With --split: bits of an activation, 32, 16, 8 or 4.")] = 16,
    task: Annotated[str, typer.Option(help="The task's id; none: made of this UE's and the process's.")] = "",
    name: Annotated[str, typer.Option("--ue", help="This UE's id in the radio reports.")] = "ue0",
    ttft: Annotated[float, typer.Option(help="Deadline of the first token, in seconds.")] = 2.0,
    tpot: Annotated[float, typer.Option(help="Deadline of the mean time per later token, in seconds.")] = 0.2,
    weight: Annotated[float, typer.Option(help="What serving it is worth.")] = 1.0,
    private: Annotated[bool, typer.Option("--private", help="Raw tokens stay on this device.")] = False,
    fallback: Annotated[Literal["local", "keep", "drop"], typer.Option(help="What to do past the lease.")] = "local",
    max_layers: Annotated[int, typer.Option(min=-1, help="Layers that this device can hold; -1: all.")] = -1,
    patience: Annotated[float, typer.Option(help="Seconds to wait for another lease when a node is lost.")] = 1.0,
    seed: SeedOption = None,
    dtype: DtypeOption = "float32",
    device: DeviceOption = "cpu",
    threads: ThreadsOption = 0,
    temperature: Annotated[float, typer.Option(min=0, help="0: the most probable token.")] = 0.0,
    sampling_seed: Annotated[int, typer.Option(min=0, help="With a temperature: same seed, same tokens.")] = 0,
    key: Annotated[str, typer.Option(help="Own key pair: a name in the keys folder, or a file.")] = "",
    server: Annotated[str, typer.Option(help="The daemon's public key, with --key.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Generate with an LLM that is split as the daemon decides.

    Measured TTFT and TPOT go back to it. Tokens are printed as they come; --json prints one object at the end. Exit
    code 1: it ended early, for the reason on stderr. --split goes without a daemon.

    Example: cosched ue --model /models/llama-3.2-1b --node edge0=tcp://10.0.0.7:5561 --prompt 'Once upon a time'
    """
    prepare(threads, device)
    from cosched.api.client import curve
    from cosched.api.messages import SubmitArgs
    from cosched.runtime.asking import Asking
    from cosched.runtime.chain import Links
    from cosched.runtime.generation import Generation
    from cosched.runtime.model import dtype_of
    from cosched.runtime.parts import Part
    from cosched.runtime.sampling import Sampling
    from cosched.runtime.text import text_of
    from telemetry.messages import LlmSession

    source, text = named_model(model, seed), text_of(model.rpartition("=")[2])
    begin, n_layers = _begin(prompt, tokens, text), source.n_layers
    most = n_layers if max_layers < 0 else min(max_layers, n_layers)
    part = Part(source, dtype=dtype_of(dtype), device=device)
    part.load(0, most)  # before anybody waits for a token
    task = task or f"{name}-{os.getpid()}"
    nodes = dict(_node(item, n_layers) for item in node or [])
    keys, sampling = curve(key, server), Sampling(temperature=temperature, seed=sampling_seed)
    work = LlmSession(
        model=source.name, context_tokens=0, new_tokens=len(begin), max_output_tokens=max_tokens, ttft_s=ttft,
        tpot_s=tpot, private=private,
    )  # fmt: skip
    asked = SubmitArgs(task=task, ue=name, work=work, weight=weight, fallback=fallback)

    with contextlib.closing(Links(keys)) as links:

        def make(route: Route) -> Generation:
            return Generation(part, task, begin, route, links, sampling=sampling, max_layers=most)

        if split >= 0:
            run = make(_route(split, precision, nodes, n_layers))
            _show(run, run.stream(max_tokens, source.end_tokens), text, None, as_json)
            return
        with Asking(asked, control=endpoint, telemetry=connect, keys=keys) as asking:
            session = _begun(asking, make, nodes, n_layers, patience)
            _show(session.generation, session.tokens(max_tokens, source.end_tokens), text, session, as_json)


def _begin(prompt: str, tokens: str, text: Text) -> list[int]:
    """Return the tokens to begin with. Raises BadInput."""
    if bool(prompt) == bool(tokens):
        raise BadInput("give either --prompt or --tokens")
    if prompt:
        return text.encode(prompt)
    try:
        return [int(word) for word in tokens.split(",")]
    except ValueError:
        raise BadInput(f"--tokens {tokens}: give token ids with commas between, such as 1,15,2") from None


def _node(item: str, n_layers: int) -> tuple[str, Hop]:
    """NAME=ENDPOINT or NAME=ENDPOINT,KEY to a hop. Raises BadInput."""
    from cosched.api.keys import check_public
    from cosched.runtime.chain import Hop

    name, _, rest = item.partition("=")
    endpoint, _, key = rest.partition(",")
    if not name or "://" not in endpoint:
        raise BadInput(f"--node {item}: give NAME=ENDPOINT, such as edge0=tcp://10.0.0.7:5561")
    return name, Hop(endpoint, n_layers, check_public(key) if key else "")


def _route(split: int, precision: int, nodes: dict[str, Hop], n_layers: int) -> Route:
    """Return the route of --split: the first --node has the other layers. Raises BadInput."""
    from cosched.runtime.follow import route_of

    if split < n_layers and not nodes:
        raise BadInput(f"--split {split} of {n_layers} layers needs a --node for the others")
    return route_of((split, precision, next(iter(nodes), "")), nodes, n_layers)


def _begun(asking: Asking, make: Make, nodes: dict[str, Hop], n_layers: int, patience_s: float) -> UeSession:
    """Begin as the lease says. Raises Exit(1) where that cannot be."""
    from cosched.runtime.errors import CannotContinue

    try:
        return asking.begin(make, nodes, n_layers, patience_s)
    except CannotContinue as error:
        complain(str(error))
        raise typer.Exit(EXIT_FAILED) from None


def _show(run: Generation, stream: Iterator[int], text: Text, session: UeSession | None, as_json: bool) -> None:
    """Print what is generated, and how it went. Raises Exit(1) where it ended early."""
    from cosched.runtime.errors import CannotContinue

    why, written = "", text.stream()
    try:
        for token in stream:
            if not as_json:
                typer.echo(written.push(token), nl=False)
                sys.stdout.flush()
    except CannotContinue as error:
        why = str(error)
    finally:
        run.close()
    if as_json:
        print_json(_result(run, text, session, why))
    else:
        typer.echo(written.end())
        typer.echo(_line(run, session), err=True)
    if why:
        complain(why)
        raise typer.Exit(EXIT_FAILED)


def _result(run: Generation, text: Text, session: UeSession | None, why: str) -> dict[str, object]:
    return {
        "v": 1,
        "task": run.task,
        "tokens": run.output,
        "text": text.decode(run.output),
        "ttft_s": run.watch.ttft_s,
        "tpot_s": run.watch.tpot_s,
        "split_layer": run.route.split,
        "changes": [change._asdict() for change in session.changes] if session else [],
        "ended_early": why,
    }


def _line(run: Generation, session: UeSession | None) -> str:
    changes = "; ".join(f"after {c.tokens} tokens to {c.point}: {c.how}" for c in session.changes) if session else ""
    ttft, tpot = run.watch.ttft_s, run.watch.tpot_s
    times = f"TTFT {1e3 * (ttft or 0):.0f} ms, TPOT {1e3 * (tpot or 0):.1f} ms"
    return f"{len(run.output)} tokens, {times}, {run.route.split} layers here{f'; {changes}' if changes else ''}"
