"""`cosched profile`: the layer table of a model on a device, and the refit of device numbers from measured profiles."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
import typer.core

from cosched.cli.common import JsonFlag, print_json, progress
from cosched.errors import BadInput

if TYPE_CHECKING:
    from rich.table import Table

    from cosched.profiles.device import Device, Host
    from cosched.profiles.heldout import PublishedClaim, Refit
    from cosched.profiles.table import LayerTable, TablePart

CONTEXT: Final = {"help_option_names": ["-h", "--help"]}


class ModelOrCommand(typer.core.TyperGroup):
    """A group whose command `show` may be left out: `cosched profile MODEL` is `cosched profile show MODEL`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `show` first where the arguments begin with neither a command nor the group's own help."""
        if args and args[0] not in self.commands and args[0] not in CONTEXT["help_option_names"]:
            args = ["show", *args]
        return list(super().parse_args(ctx, args))


app = typer.Typer(
    cls=ModelOrCommand, no_args_is_help=True, add_completion=False, rich_markup_mode=None, context_settings=CONTEXT
)


@app.callback()
def profile() -> None:
    """Print the layer table of a model on a device.

    `cosched profile MODEL` needs no further word; `cosched profile show --help` lists its options.

    Example: cosched profile llama-3-8b --device jetson --tokens 256 --weight-bits 4
    """


@app.command("show", context_settings=CONTEXT)
def show(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A key of config/models/, a config.json, or the folder that holds one."),
    ],
    *,
    device: Annotated[str, typer.Option(help="A key of config/devices/ or a TOML file.")] = "a100",
    host: Annotated[str | None, typer.Option(help="A key of config/hosts/: adds what the server adds.")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="New tokens of the prefill.")] = 512,
    context: Annotated[int, typer.Option(min=0, help="Tokens in the KV cache before it.")] = 0,
    weight_bits: Annotated[
        int | None, typer.Option(help="16, 8 or 4; by default what the checkpoint states, else 16.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Print FLOP, bytes and times of embedding, layers and head.

    Example: cosched profile llama-3-8b --device jetson --tokens 256 --weight-bits 4
    """
    from cosched.profiles.device import load_device, load_host
    from cosched.profiles.model import load_model
    from cosched.profiles.table import layer_table

    what = load_model(model)
    table = layer_table(
        what,
        load_device(device),
        load_host(host) if host else None,
        tokens=tokens,
        context=context,
        weight_bits=weight_bits or what.stored_weight_bits or 16,
    )
    if json:
        print_json(table)
    else:
        _print_layers(table)


@app.command("fit", context_settings=CONTEXT)
def fit(
    data: Annotated[
        Path, typer.Argument(metavar="DATA_DIR", help="Folder with prof-vidur, prof-splitwise, prof-argonne, ...")
    ],
    device: Annotated[str | None, typer.Option(help="Only this device or host, by its key.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write its profile with the new numbers (needs --device).")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Refit device and host numbers from measured profiles, with the errors on what a fit did not see.

    Example: cosched profile fit ../shared/data --device a100 -o a100.toml
    """
    from cosched.profiles.heldout import refit

    if output is not None and device is None:
        raise BadInput(f"-o {output}: one file holds one profile; name it with --device")
    if not data.is_dir():
        raise BadInput(f"{data}: no such folder; it should hold prof-vidur, prof-splitwise, prof-argonne, ...")
    refits = [part for part in progress(refit(data), "refitting") if _touches(part, device)]
    if not refits:
        raise BadInput(f"{data}: nothing to refit{f' {device} from' if device else ''} there")
    if output is not None and device is not None:
        _write(output, device, refits)
    if json:
        print_json(_as_json(refits))
    else:
        _print_refits(refits)


def _touches(part: Refit, key: str | None) -> bool:
    return key is None or key in part.devices or key in part.hosts


def _write(output: Path, key: str, refits: list[Refit]) -> None:
    """Write the shipped profile `key` with the refitted numbers in it."""
    from cosched.profiles.rewrite import rewrite
    from cosched.resources import config_file

    group = "hosts" if any(key in part.hosts for part in refits) else "devices"
    text = config_file(group, f"{key}.toml").read_text(encoding="utf-8")
    for part in refits:
        text = rewrite(text, part.devices.get(key) or part.hosts[key], part.source)
    output.write_text(text, encoding="utf-8")


def _as_json(refits: list[Refit]) -> dict[str, Any]:
    return {"v": 1, "numbers": _numbers(refits), "claims": [claim for part in refits for claim in part.claims]}


def _numbers(refits: list[Refit]) -> list[dict[str, Any]]:
    """Every refitted number beside the shipped one, in the files' units."""
    from cosched.profiles.device import load_device, load_host
    from cosched.profiles.rewrite import fitted_values

    rows = []
    for part in refits:
        fitted: dict[str, Device | Host] = {**part.devices, **part.hosts}
        for key, new in sorted(fitted.items()):
            shipped = fitted_values(load_device(key) if key in part.devices else load_host(key), part.source)
            for (table, name), value in fitted_values(new, part.source).items():
                number = f"{table}.{name}"
                rows.append({"profile": key, "number": number, "refitted": value, "shipped": shipped[table, name]})
    return rows


def _print_refits(refits: list[Refit]) -> None:
    from rich.console import Console
    from rich.table import Table

    numbers = Table(title="Refitted numbers", title_justify="left")
    for heading in ("profile", "number", "refitted", "shipped"):
        numbers.add_column(heading, justify="right" if heading.endswith("ted") or heading == "shipped" else "left")
    for row in _numbers(refits):
        numbers.add_row(row["profile"], row["number"], f"{row['refitted']:g}", f"{row['shipped']:g}")
    console = Console()
    console.print(numbers)
    claims = [claim for part in refits for claim in part.claims]
    if claims:
        console.print(_claims_table(claims))


def _claims_table(claims: list[PublishedClaim]) -> Table:
    from rich.table import Table

    out = Table(title="Errors on what the fit did not see: median / 90th percentile, percent", title_justify="left")
    for heading in ("what", "fitted on", "tested on"):
        out.add_column(heading)
    for heading in ("rows", "error", "bar", ""):
        out.add_column(heading, justify="right", no_wrap=True)
    for claim in claims:
        figures = (str(claim.rows), f"{claim.median_pct:.1f} / {claim.p90_pct:.1f}")
        bar = f"{claim.bar_pct[0]:g} / {claim.bar_pct[1]:g}"
        out.add_row(claim.what, claim.fitted_on, claim.tested_on, *figures, bar, "" if claim.holds else "missed")
    return out


def _print_layers(table: LayerTable) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    console.print(
        f"{escape(table.model)} ({table.family}): {table.layers} layers, {table.parameters:,} parameters\n"
        f"{escape(table.device)}, {table.weight_bits}-bit weights ({table.weight_format}): prefill of {table.tokens} "
        f"tokens after {table.context}, then one decoded token"
    )
    console.print(_parts_table(table))
    console.print(_bytes_table(table))
    if table.served is not None:
        prefill, decode = (_milliseconds(table.served[phase]) for phase in ("prefill_s", "decode_s"))
        console.print(f"served by {table.host}: prefill {prefill} ms, decode {decode} ms")
    for guess in table.guess:
        console.print(f"? guess, no measurement behind it: {escape(guess)}")


def _parts_table(table: LayerTable) -> Table:
    from rich.table import Table

    out = Table()
    out.add_column("part", no_wrap=True)
    for heading in ("prefill GFLOP", "decode GFLOP", "weights MB", "prefill ms", "decode ms"):
        phase, unit = heading.split()
        guessed = unit == "ms" and any(f": {phase} time" in guess for guess in table.guess)
        out.add_column(f"{heading} ?" if guessed else heading, justify="right")
    for part in table.parts:
        out.add_row(part.part if part.count == 1 else f"layer, each of {part.count}", *_part_cells(part))
    out.add_section()
    out.add_row("model", *_part_cells(table.total))
    return out


def _part_cells(part: TablePart) -> tuple[str, ...]:
    return (
        f"{part.prefill_flop / 1e9:,.2f}",
        f"{part.decode_flop / 1e9:,.3f}",
        f"{part.weight_bytes / 1e6:,.2f}",
        _milliseconds(part.prefill_s),
        _milliseconds(part.decode_s),
    )


def _bytes_table(table: LayerTable) -> Table:
    from rich.table import Table

    out = Table()
    out.add_column("bytes of one layer", no_wrap=True)
    for precision in table.precisions:
        out.add_column(f"{precision.bits} bit", justify="right")
    for label, field in (
        ("weights, scales counted", "weight_bytes"),
        ("KV cache per token", "kv_bytes_per_token"),
        ("activation per token", "activation_bytes_per_token"),
    ):
        out.add_row(label, *(f"{getattr(precision, field):,.0f}" for precision in table.precisions))
    return out


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.3f}"
