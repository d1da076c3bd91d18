"""Puts refitted numbers into a profile's TOML text: everything else in it, comments too, stays as it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from cosched.errors import BadInput
from cosched.profiles import fit
from cosched.profiles.device import Device, Host

Places = Mapping[str, tuple[str, str, float]]  # field of the structure -> (table, key, file units per SI unit)

DEVICE_PLACES: Final[Places] = {
    "compute_efficiency": ("linear", "compute_efficiency", 1.0),
    "memory_efficiency": ("linear", "memory_efficiency", 1.0),
    "gemm_overhead_s": ("linear", "overhead_us", 1e6),
    "layer_overhead_s": ("linear", "overhead_us", 1e6),
    "elementwise_efficiency": ("elementwise", "efficiency", 1.0),
    "elementwise_overhead_s": ("elementwise", "overhead_us", 1e6),
    "attention_efficiency": ("attention", "compute_efficiency", 1.0),
    "attention_prefill_overhead_s": ("attention", "prefill_overhead_us", 1e6),
    "kv_efficiency": ("attention", "kv_efficiency", 1.0),
    "attention_decode_overhead_s": ("attention", "decode_overhead_us", 1e6),
    "link_bytes_s": ("link", "bandwidth_gb_s", 1e-9),
    "link_latency_s": ("link", "latency_us", 1e6),
}
HOST_PLACES: Final[Places] = {
    "layer_s": ("terms", "layer_us", 1e6),
    "sequence_s": ("terms", "sequence_ms", 1e3),
    "prompt_token_s": ("terms", "prompt_token_us", 1e6),
}
FITTED_FIELDS: Final[dict[str, tuple[str, ...]]] = {
    "operators": (*fit.LINEAR_FIELDS, *fit.SMALL_FIELDS),
    "attention": (*fit.PREFILL_FIELDS, *fit.DECODE_FIELDS),
    "link": fit.LINK_FIELDS,
    "edge decode": fit.EDGE_FIELDS,
    "splitwise": fit.HOST_FIELDS,
    "argonne": fit.HOST_FIELDS,
}
KNOWN_AFTER: Final[dict[str, tuple[str, ...]]] = {  # what is no guess any more
    "operators": ("prefill", "decode"),
    "attention": ("attention",),
    "link": ("link",),
    "edge decode": ("decode",),
    "splitwise": (),
    "argonne": (),
}
SOURCE_TEXT: Final = {
    "operators": "cosched profile fit on Vidur's kernel times (prof-vidur, MIT)",
    "attention": "cosched profile fit on Vidur's attention kernel times (prof-vidur, MIT)",
    "link": "cosched profile fit on Vidur's send_recv times (prof-vidur, MIT)",
    "edge decode": "cosched profile fit on llama.cpp decode of 19 GGUF models (prof-edge-llamacpp, MIT)",
    "splitwise": "cosched profile fit on Splitwise's prompt and token times, DGX A100 (prof-splitwise, MIT)",
    "argonne": "cosched profile fit on LLM-Inference-Bench, A100 (prof-argonne, BSD-3-Clause)",
}


def fitted_values(profile: Device | Host, source: str) -> dict[tuple[str, str], float]:
    """Return {(table, key): value in the file's unit} of what `source` fitted, to three significant digits."""
    places = DEVICE_PLACES if isinstance(profile, Device) else HOST_PLACES
    values = {}
    for field in FITTED_FIELDS[source]:
        table, key, scale = places[field]
        values[table, key] = float(f"{getattr(profile, field) * scale:.3g}")
    return values


def rewrite(text: str, profile: Device | Host, source: str) -> str:
    """Return the TOML `text` with the numbers that `source` fitted, their source, and fewer guesses.

    Raises BadInput where a key to be set does not stand in `text`.
    """
    values = fitted_values(profile, source)
    lines: list[str] = []
    table, found = "", set()
    for line in text.splitlines():
        table = match[1] if (match := re.match(r"\[(\w+)\]", line)) else table
        key = line.partition("=")[0].strip()
        if (table, key) in values:
            found.add((table, key))
            lines.append(f"{key} = {values[table, key]}")
        elif key == "source" and any(table == t for t, _ in values):
            lines.append(f'source = "{SOURCE_TEXT[source]}"')
        else:
            lines.append(_fewer_guesses(line, KNOWN_AFTER[source]) if key == "guess" else line)
    if missing := sorted(set(values) - found):
        raise BadInput(f"profile {profile.key}: [{missing[0][0]}] {missing[0][1]} is missing: start from a shipped one")
    return "\n".join(lines) + "\n"


def _fewer_guesses(line: str, known: tuple[str, ...]) -> str:
    """Take groups that are measured now out of a line `guess = ["prefill", ...] # comment`."""
    inside, _, after = line.partition("[")[2].partition("]")
    left = [group for group in re.findall(r'"([^"]*)"', inside) if group not in known]
    quoted = ", ".join(f'"{group}"' for group in left)
    return f"guess = [{quoted}]{after}"
