"""What a node actor holds: whoever carries out its orders. Names and implementations: `EXECUTORS`.

`hold` is quick: it runs between two reports. `load` and `unload` may take long: they run in a thread of their own, one
at a time. `in_force` tells what is, not what was asked, and may be called from any thread.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from cosched.cluster.messages import Layer, LayersOrder, Session, runs, single
from cosched.errors import BadInput, CoschedError


class InUse(CoschedError):
    """Layers that sessions run on cannot be given back yet; nothing has changed."""


class InForce(NamedTuple):
    """What an executor does at present."""

    sessions: dict[str, float]  # task -> weight
    layers: tuple[LayersOrder, ...]
    used_bytes: float


class Memory(NamedTuple):
    """Of the device that an executor computes on. 0: it does not say."""

    device: str = ""
    total_bytes: float = 0.0
    free_bytes: float = 0.0


class Executor(Protocol):
    """Carries out a node's orders. Raises CoschedError where it cannot; the node then reports `failed`."""

    endpoint: str  # where clients send activations, "" = nowhere
    public_key: str  # CURVE key of that endpoint, "" = a plain connection

    def hold(self, *, whole: bool, sessions: Sequence[Session], end: Sequence[str], step_s: float = 0.0) -> None:
        """Serve these with these weights and paces; end those, and with `whole` all others too.

        step_s: planned length of a step, 0 where nobody decodes.
        """

    def load(self, layers: LayersOrder) -> None:
        """Have these layers ready."""

    def unload(self, layers: LayersOrder) -> None:
        """Give their memory back. Raises InUse: that is no fault, it is tried again later."""

    def in_force(self) -> InForce:
        """Return what is in force."""
        ...

    def memory(self) -> Memory:
        """Return what it has to work with."""
        ...

    def stop(self) -> None:
        """End all."""


class Ledger:
    """Keeps the table of sessions and layers, for nodes whose serving is done by another program."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.endpoint = self.public_key = ""
        self._sessions: dict[str, float] = {}
        self._layers: dict[Layer, float] = {}

    def hold(self, *, whole: bool, sessions: Sequence[Session], end: Sequence[str], step_s: float = 0.0) -> None:  # noqa: ARG002
        """Write down who is served with which weight."""
        if whole:
            self._sessions.clear()
        for task in end:
            self._sessions.pop(task, None)
        self._sessions.update((s.task, s.weight) for s in sessions)

    def load(self, layers: LayersOrder) -> None:
        """Count their weights."""
        self._layers.update(single([layers]))

    def unload(self, layers: LayersOrder) -> None:
        """Count them no more."""
        self._layers = {layer: size for layer, size in self._layers.items() if layer not in single([layers])}

    def in_force(self) -> InForce:
        """Return the table."""
        layers = runs(self._layers)
        return InForce(dict(self._sessions), layers, sum(one.weight_bytes for one in layers))

    def memory(self) -> Memory:
        """Say nothing: who serves has another device."""
        return Memory()

    def stop(self) -> None:
        """Nothing runs."""


EXECUTORS: Final = {  # name -> module:class, called with the node's id
    "ledger": f"{__name__}:Ledger",
    "host": "cosched.cluster.serving:Serving",
}


def make(name: str, node: str) -> Executor:
    """Return a new executor by its name or as `module:class`. Raises BadInput."""
    target = EXECUTORS.get(name, name)
    module, _, attribute = target.partition(":")
    try:
        executor: Executor = getattr(importlib.import_module(module), attribute)(node)
    except (ImportError, AttributeError, ValueError) as error:
        raise BadInput(
            f"cluster.executor '{name}': {error}; there are {', '.join(EXECUTORS)}, or module:class"
        ) from None
    return executor
