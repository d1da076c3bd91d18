"""Suites by name. Adding one is one file and one line here; it is imported when it is run."""

from __future__ import annotations

import importlib
from typing import Final, cast

from cosched.bench.model import Suite
from cosched.errors import BadInput

SUITES: Final[dict[str, str]] = {
    "codesign": "cosched.bench.codesign:run",
    "codesign-sensitivity": "cosched.bench.sensitivity:run",
    "mixed": "cosched.bench.mixed:run",
    "closed-loop": "cosched.bench.closed_loop:run",
    "regret": "cosched.bench.regret:run",
    "bid-prices": "cosched.bench.bid_prices:run",
    "ingest": "cosched.bench.ingest:run",
    "attack": "cosched.bench.attack:run",
    "soak": "cosched.bench.soak:run",
    "replay-speed": "cosched.bench.replay_speed:run",
    "tick": "cosched.bench.tick:run",
    "solvers": "cosched.bench.solvers:run",
    "split": "cosched.bench.split:run",
    "gpu": "cosched.bench.card:run",
    "network": "cosched.bench.network:run",
    "node": "cosched.bench.node:run",
}


def get(name: str) -> Suite:
    """Return the suite called `name`. Raises BadInput, naming those there are."""
    if name not in SUITES:
        raise BadInput(f"unknown suite '{name}'; there are: {', '.join(SUITES)}")
    module, function = SUITES[name].split(":")
    return cast("Suite", getattr(importlib.import_module(module), function))
