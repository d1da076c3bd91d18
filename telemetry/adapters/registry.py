"""Adapters by name. Adding one is one file and one line here; it is imported when it is first used."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Final, cast

import msgspec

from telemetry.adapters.base import Adapter, Decode, Options
from telemetry.errors import BadMessage, UnknownSource

ADAPTERS: Final[dict[str, str]] = {
    "srsran": "telemetry.adapters.srsran",
    "e2sm-kpm": "telemetry.adapters.e2sm_kpm",
    "edgeric": "telemetry.adapters.edgeric",
}


def adapter(name: str, options: Mapping[str, Any]) -> Adapter:
    """Return a new stream of the adapter `name`. `options`: keys of its Options (docs/adapters.md).

    Raises UnknownSource, naming those there are, and BadMessage when the options are wrong.
    """
    if name not in ADAPTERS:
        raise UnknownSource(f"unknown adapter '{name}'; there are: {', '.join(ADAPTERS)}")
    module = importlib.import_module(ADAPTERS[name])
    try:
        parsed = msgspec.convert({"source": name, **options}, cast("type[Options]", module.Options))
    except msgspec.ValidationError as error:
        raise BadMessage(f"options of the adapter '{name}': {error}; docs/adapters.md lists them") from None
    return Adapter(cast("Decode", module.decode), parsed)
