"""The executor `host`: a node's actor serves layers of models itself, by cosched.runtime (extra `[llm]`).

What it serves with is the node's own affair, so it stands in the environment of the node's Ray:
COSCHED_HOST_MODELS: a folder with a checkpoint's folder for each model of the site, by its id there.
COSCHED_HOST_BIND: the endpoint of activations, tcp://127.0.0.1:0 unless it is set.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cosched.drivers.dispatch.executor import InForce
from cosched.drivers.dispatch.messages import Layers, Session
from cosched.errors import BadInput
from cosched.runtime.host import Host
from cosched.runtime.model import ModelSource, open_model

MODELS: Final = "COSCHED_HOST_MODELS"
BIND: Final = "COSCHED_HOST_BIND"
LEAST_WEIGHT: Final = 1e-6  # who is served with what the others leave has weight 0 in a plan; a host wants more


class Serving:
    """A Host with the weights and layers that the daemon wants. Raises BadInput, BadModel, BadEndpoint."""

    def __init__(self, node: str) -> None:
        self._host = Host(node, _sources(), bind=[os.environ.get(BIND, "tcp://127.0.0.1:0")])
        self._host.start()
        self.endpoint = self._host.endpoint
        self._sessions: dict[str, float] = {}
        self._layers: dict[Layers, None] = {}  # asked for

    def hold(self, *, whole: bool, sessions: Sequence[Session], end: Sequence[str]) -> None:
        """Share the host by these weights; clients open and close what is computed. Raises BadModel."""
        fresh = {} if whole else {task: w for task, w in self._sessions.items() if task not in set(end)}
        fresh.update((s.task, s.weight) for s in sessions)
        self._host.apply_weights({task: max(weight, LEAST_WEIGHT) for task, weight in fresh.items()})
        self._sessions = fresh

    def load(self, layers: Layers) -> None:
        """Read them into memory. Raises BadModel."""
        self._host.load(layers.model, layers.first, layers.last)
        self._layers[layers] = None

    def unload(self, layers: Layers) -> None:
        """Forget them. Raises Refused while sessions run on them."""
        self._host.unload(layers.model, layers.first, layers.last)
        self._layers.pop(layers, None)

    def in_force(self) -> InForce:
        """Return the weights applied, and those layers that the host really has."""
        models = self._host.report().models
        held = {(name, layer) for name, model in models.items() for layer in model.layers}
        there = tuple(one for one in self._layers if {(one.model, k) for k in range(one.first, one.last)} <= held)
        return InForce(dict(self._sessions), there, float(sum(model.weight_bytes for model in models.values())))

    def stop(self) -> None:
        """Serve nobody any more."""
        self._host.stop()


def _sources() -> list[ModelSource]:
    folder = os.environ.get(MODELS, "")
    if not folder or not Path(folder).is_dir():
        raise BadInput(f"{MODELS}='{folder}': to serve, a folder with a checkpoint's folder for each model of the site")
    return [open_model(path, name=path.name) for path in sorted(Path(folder).iterdir()) if path.is_dir()]
