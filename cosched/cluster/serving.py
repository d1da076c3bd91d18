"""The executor `host`: a node's actor serves layers of models itself, by cosched.runtime (extra `[llm]`).

What it serves with is the node's own affair, so it stands in the environment of the node's Ray:
COSCHED_HOST_MODELS: a folder with a checkpoint's folder for each model of the site, by its id there.
COSCHED_HOST_BIND: the endpoint of activations, tcp://127.0.0.1:0 unless it is set.
COSCHED_HOST_LIMITS: NAME=VALUE of cosched.runtime's limits, with blanks between.
COSCHED_HOST_KEY, COSCHED_HOST_ALLOWED: its CURVE key pair and the list of who may connect; needed beyond this machine.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import structlog

from cosched.api.zap import Authenticator, guarded
from cosched.cluster.executor import InForce, InUse, Memory
from cosched.cluster.messages import Layer, LayersOrder, Session, runs, single
from cosched.errors import BadInput
from cosched.runtime.errors import BadModel, HostLost, HostRefused
from cosched.runtime.host import LayerHost
from cosched.runtime.limits import HostLimits, limits_of
from cosched.runtime.measure import best_device, card_name, memory_bytes
from cosched.runtime.model import ModelSource, open_model
from cosched.runtime.promises import Promise
from telemetry.bus import Curve
from telemetry.errors import BadEndpoint

MODELS: Final = "COSCHED_HOST_MODELS"
BIND: Final = "COSCHED_HOST_BIND"
LIMITS: Final = "COSCHED_HOST_LIMITS"
KEY: Final = "COSCHED_HOST_KEY"
ALLOWED: Final = "COSCHED_HOST_ALLOWED"
EVERYWHERE: Final = ("tcp://0.0.0.0:", "tcp://*:", "tcp://[::]:")  # no address to connect to
_log = structlog.get_logger()
LEAST_WEIGHT: Final = 1e-6  # who is served with what the others leave has weight 0 in a plan; a host wants more


class Serving:
    """A Host with the weights and layers that the daemon wants. Raises BadInput, BadModel, BadEndpoint."""

    def __init__(self, node: str) -> None:
        sources, bind, limits = _sources(), _bind(), _limits()
        keys, self._guard = _keys()
        self._device = best_device()
        self._host = LayerHost(
            node, sources, bind=[bind], limits=limits, device=self._device.type, keys=keys, guard=self._guard
        )
        try:
            self._host.start()
        except BadEndpoint as error:
            self._end_guard()
            mend = "" if keys else f", and {KEY} and {ALLOWED}"
            raise BadInput(f"{BIND}: {error}{mend}") from None
        self.endpoint = self._host.endpoint
        self.public_key = keys.public if keys is not None else ""
        self._sessions: dict[str, Session] = {}
        self._bytes: dict[Layer, float] = {}  # that layers weigh, as the daemon reckons

    def hold(self, *, whole: bool, sessions: Sequence[Session], end: Sequence[str], step_s: float = 0.0) -> None:
        """Share the host by these weights, and keep these paces; clients open and close what is computed.

        Raises BadModel.
        """
        ended = set(end)
        fresh = {} if whole else {task: one for task, one in self._sessions.items() if task not in ended}
        fresh.update((s.task, s) for s in sessions)
        self._host.apply_weights({task: max(one.weight, LEAST_WEIGHT) for task, one in fresh.items()})
        paces = {task: Promise(one.pace_s, one.priority) for task, one in fresh.items() if one.pace_s > 0}
        self._host.apply_promises(paces, step_s)
        self._sessions = fresh

    def load(self, layers: LayersOrder) -> None:
        """Read them into memory. Raises BadModel."""
        self._bytes.update(single([layers]))
        try:
            self._host.load(layers.model, layers.first, layers.last)
        except (RuntimeError, MemoryError) as error:  # so torch says that there is no memory left
            raise BadModel(f"layers [{layers.first}, {layers.last}): {str(error).partition('. ')[0]}") from None

    def unload(self, layers: LayersOrder) -> None:
        """Forget them. Raises InUse while sessions run on them, and BadModel."""
        try:
            self._host.unload(layers.model, layers.first, layers.last)
        except HostRefused as refused:
            raise InUse(str(refused)) from None

    def in_force(self) -> InForce:
        """Return the weights applied, and those layers that the host really has. Raises HostLost."""
        for line in self._host.news.take():
            _log.warning("host", said=line)
        if not self._host.is_serving:
            raise HostLost("its host has ended; the log of its actor says why")
        models = self._host.report().models
        held = {(name, k): self._bytes.get((name, k), 0.0) for name, model in models.items() for k in model.layers}
        used_bytes = float(sum(model.weight_bytes for model in models.values()))
        weights = {task: one.weight for task, one in self._sessions.items()}
        return InForce(weights, runs(held), used_bytes)

    def memory(self) -> Memory:
        """Return the GPU's memory where there is one, else the machine's."""
        total, free = memory_bytes(self._device)
        return Memory(card_name(self._device), float(total), float(free))

    def stop(self) -> None:
        """Serve nobody any more."""
        self._host.stop()
        self._end_guard()

    def _end_guard(self) -> None:
        if self._guard is not None:
            self._guard.close()


def _limits() -> HostLimits:
    try:
        return limits_of(os.environ.get(LIMITS, "").split())
    except BadInput as error:
        raise BadInput(f"{LIMITS}: {error}") from None


def _bind() -> str:
    """Where to serve. Raises BadInput for what a client could not connect to."""
    bind = os.environ.get(BIND, "tcp://127.0.0.1:0")
    if bind.startswith(EVERYWHERE):
        raise BadInput(f"{BIND}='{bind}': leases say where the node serves, so name its address or interface")
    return bind


def _keys() -> tuple[Curve | None, Authenticator | None]:
    """CURVE keys, and who answers handshakes; both None on a plain endpoint. Raises BadInput."""
    key, allowed = os.environ.get(KEY, ""), os.environ.get(ALLOWED, "")
    if bool(key) != bool(allowed):
        raise BadInput(f"{KEY} and {ALLOWED} go together: whoever connects must be known")
    return guarded(key, Path(allowed)) if key else (None, None)


def _sources() -> list[ModelSource]:
    folder = os.environ.get(MODELS, "")
    if not folder or not Path(folder).is_dir():
        raise BadInput(f"{MODELS}='{folder}': to serve, a folder with a checkpoint's folder for each model of the site")
    return [open_model(path, name=path.name) for path in sorted(Path(folder).iterdir()) if path.is_dir()]
