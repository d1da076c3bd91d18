"""Suites by name. Adding one is one file and one line here; it is imported when it is run."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Final, cast

from cosched.bench.model import Result, Scope, ScopedSuite, Suite
from cosched.errors import BadInput

SUITES: Final[dict[str, str]] = {
    "codesign": "cosched.bench.codesign:run",
    "codesign-sensitivity": "cosched.bench.sensitivity:run",
    "mixed": "cosched.bench.mixed:run",
    "closed-loop": "cosched.bench.closed_loop:run",
    "constant-batch": "cosched.bench.constant_batch:run",
    "regret": "cosched.bench.regret:run",
    "bid-prices": "cosched.bench.bid_prices:run",
    "ingest": "cosched.bench.ingest:run",
    "attack": "cosched.bench.attack:run",
    "soak": "cosched.bench.soak:run",
    "replay-speed": "cosched.bench.replay_speed:run",
    "tick": "cosched.bench.tick:run",
    "solvers": "cosched.bench.solvers:run",
    "split": "cosched.bench.split:run",
    "serving": "cosched.bench.serving:run",
    "gpu": "cosched.bench.card:run",
    "network": "cosched.bench.network:run",
    "node": "cosched.bench.node:run",
}

SCOPED: Final = (
    "closed-loop",
    "constant-batch",
    "regret",
)  # of which sites, loads and mix can be chosen; they take long


def get_scoped(name: str, scope: Scope) -> Suite:
    """Return a part of a suite. Raises BadInput where it is all or nothing."""
    suite = get(name)
    if scope == Scope():
        return suite
    if name not in SCOPED:
        raise BadInput(f"suite '{name}' has no sites, loads or mixes to choose from; these have: {', '.join(SCOPED)}")

    def run(*, seeds: int, progress: Callable[[float], None]) -> Result:
        return cast("ScopedSuite", suite)(seeds=seeds, progress=progress, scope=scope)

    return run


def get(name: str) -> Suite:
    """Return the suite called `name`. Raises BadInput, naming those there are."""
    if name not in SUITES:
        raise BadInput(f"unknown suite '{name}'; there are: {', '.join(SUITES)}")
    module, function = SUITES[name].split(":")
    return cast("Suite", getattr(importlib.import_module(module), function))
