"""Importers by name. Adding one is one file and one line here; it is imported when it is first used."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Final, cast

from telemetry.errors import UnknownSource
from telemetry.importers.base import RanImporter, RequestImporter

RAN: Final[dict[str, str]] = {
    "tractor": "telemetry.importers.tractor:read",
    "coloran": "telemetry.importers.tractor:read",
    "uccmisl": "telemetry.importers.uccmisl:read",
    "oai-kpm": "telemetry.importers.oai_kpm:read",
}

REQUESTS: Final[dict[str, str]] = {
    "azure-llm": "telemetry.importers.azure_llm:read",
    "mooncake": "telemetry.importers.mooncake:read",
}


def ran_importer(name: str) -> RanImporter:
    """Return the importer of a RAN source. Raises UnknownSource, naming those there are."""
    if name in REQUESTS:
        raise UnknownSource(
            f"'{name}' says who asks for what, not what the radio does: name a RAN source "
            f"({', '.join(RAN)}) and give this one as --requests {name}:FILE"
        )
    return cast("RanImporter", _load(RAN, name, "RAN source"))


def request_importer(name: str) -> RequestImporter:
    """Return the importer of a request source. Raises UnknownSource, naming those there are."""
    return cast("RequestImporter", _load(REQUESTS, name, "request source"))


def _load(registry: Mapping[str, str], name: str, what: str) -> object:
    if name not in registry:
        raise UnknownSource(f"unknown {what} '{name}'; there are: {', '.join(registry)}")
    module, function = registry[name].split(":")
    return getattr(importlib.import_module(module), function)
