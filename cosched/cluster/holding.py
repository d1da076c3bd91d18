"""Brings the layers that an executor holds to those that it is to hold, one layer at a time.

From the last layer of a model down, so that what is there can be used while the rest is on its way, and given back
from the first one up. A layer is loaded as soon as there is room, and one makes room for it only if it must.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Final

from cosched.cluster.executor import Executor, InUse
from cosched.cluster.messages import Layer, LayersOrder, Order, single
from cosched.errors import CoschedError

AGAIN_S: Final = 0.5  # between two looks whether layers have become free
REMEMBERED: Final = 15  # loads whose median rate is told


class Holding:
    """Layers of one executor. `ask` may be called from any thread, `settle` from one."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._wanted: dict[Layer, float] = {}
        self._bytes: dict[Layer, float] = {}  # of all that were ever asked for
        self._room_bytes = 0.0
        self._rates: deque[float] = deque(maxlen=REMEMBERED)
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._defect = ""  # that has ended `run`
        self.loading = False
        self.waits = ""
        self.failed = ""

    @property
    def load_bytes_per_s(self) -> float:
        """Median of the latest loads, 0 = there was none."""
        rates = sorted(self._rates)
        return rates[len(rates) // 2] if rates else 0.0

    def ask(self, order: Order) -> None:
        """Take in what is to be held from here on."""
        if not (order.whole or order.load or order.unload):
            return
        with self._lock:
            left = {} if order.whole else {k: b for k, b in self._wanted.items() if k not in single(order.unload)}
            self._wanted = {**left, **single(order.load)}
            self._bytes.update(self._wanted)
            self._room_bytes = order.room_bytes or float("inf")
            self.failed, self.loading = self._defect, not self._defect
            self._changed.set()

    def run(self) -> None:
        """Settle whenever something is asked, and again while something waits; without end.

        An executor that raises what it should not ends it: that is reported from then on, so the node is drained.
        """
        try:
            while True:
                self._changed.wait(AGAIN_S if self.waits else None)
                self.settle()
        finally:
            with self._lock:
                self._defect = self.failed = f"layers are held no more, a defect: {sys.exc_info()[1]!r}"
                self.loading = False

    def settle(self) -> None:
        """Load and unload until all is as asked, or nothing more can be done for now."""
        self._changed.clear()
        failed = ""
        in_use: dict[Layer, str] = {}  # and by whom
        given_up: set[Layer] = set()  # what came to nothing: whoever reads the report asks again
        while (step := self._next(in_use, given_up)) is not None:
            layer, is_load = step
            try:
                (self._load if is_load else self._unload)(layer)
            except InUse as error:
                in_use[layer] = str(error)
            except CoschedError as error:
                failed = f"{'load' if is_load else 'unload'} {layer[0]}: {error}"
                self._say(failed)
                given_up.add(layer)
            if (layer in self._held()) != is_load:
                given_up.add(layer)
        self._say(failed)

    def _say(self, failed: str) -> None:
        """Report what failed; what was asked meanwhile has not been tried yet."""
        with self._lock:
            if not self._changed.is_set():
                self.failed = failed

    def _next(self, in_use: Mapping[Layer, str], given_up: set[Layer]) -> tuple[Layer, bool] | None:
        """Return the next layer, and whether it is to be loaded or given back; None when there is none."""
        with self._lock:
            held, wanted = self._held(), self._wanted
            models = list(dict.fromkeys(model for model, _ in wanted))  # in the order in which they were asked for
            missing = sorted({*wanted} - {*held} - given_up, key=lambda layer: (models.index(layer[0]), -layer[1]))
            extra = sorted(layer for layer in held if layer not in wanted and layer not in given_up)
            free = [layer for layer in extra if layer not in in_use]
            used = sum(self._bytes.get(layer, size) for layer, size in held.items())
            fits = bool(missing) and used + wanted[missing[0]] <= self._room_bytes * (1 + 1e-9)
            if fits or free:
                return (missing[0], True) if fits else (free[0], False)
            self.waits = next(iter(in_use.values()), "")
            if missing and not self.waits:
                self.waits = f"no room for layer {missing[0][1]} of {missing[0][0]} among {used:.3g} bytes"
            self.loading = bool(self.waits) or self._changed.is_set()
            return None

    def _held(self) -> dict[Layer, float]:
        return single(self._executor.in_force().layers)

    def _load(self, layer: Layer) -> None:
        model, k = layer
        size = self._bytes[layer]
        began = time.perf_counter()
        self._executor.load(LayersOrder(model, k, k + 1, size))
        took = time.perf_counter() - began
        if size > 0 and took > 0:
            self._rates.append(size / took)

    def _unload(self, layer: Layer) -> None:
        model, k = layer
        self._executor.unload(LayersOrder(model, k, k + 1, self._bytes.get(layer, 0.0)))
