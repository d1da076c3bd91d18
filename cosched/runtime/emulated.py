"""A device slower than this machine, an uplink slower than this wire: held back by waiting.

What is computed and sent is real; the time that it takes is at least what a device's profile, or a rate, says.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from cosched.profiles import latency
from cosched.profiles.device import Device
from cosched.runtime.kv import KvCache
from cosched.runtime.link import Link
from cosched.runtime.model import ModelSource
from cosched.runtime.parts import Part
from cosched.runtime.protocol import Body
from telemetry.bus import Curve

BITS: int = 8  # of a byte


class SlowPart(Part):
    """Layers that take as long as `pace` says for the device's profile, where this machine is faster."""

    def __init__(self, source: ModelSource, pace: Device, weight_bits: int) -> None:
        super().__init__(source)
        self._pace, self._weight_bits = pace, weight_bits

    def run(self, hidden: torch.Tensor, cache: KvCache, start: int, stop: int) -> torch.Tensor:
        """Run layers [start, stop) as Part does, at the device's pace."""
        began_s, past = time.perf_counter(), cache.length
        found = super().run(hidden, cache, start, stop)
        _wait_until(began_s + (stop - start) * self._layer_s(hidden.shape[1], past))
        return found

    def _layer_s(self, new: int, past: int) -> float:
        sizes = self.source.sizes
        if new > 1:
            return float(latency.prefill_layer_s(sizes, self._pace, float(new), float(past), self._weight_bits))
        return float(latency.decode_layer_s(sizes, self._pace, float(past), self._weight_bits))


class SlowLink(Link):
    """A connection whose messages, framing of `frame_bytes` included, take as long to send as at `rate_bps()`."""

    def __init__(
        self, rate_bps: Callable[[], float], frame_bytes: float, endpoint: str, keys: Curve | None, patience_s: float
    ) -> None:
        super().__init__(endpoint, keys, patience_s)
        self._rate_bps, self._frame_bytes = rate_bps, frame_bytes

    def post(self, body: Body, tensors: Sequence[bytes] = ()) -> int:
        """Send as Link does, at that rate."""
        began_s = time.perf_counter()
        _wait_until(began_s + BITS * (self._frame_bytes + sum(map(len, tensors))) / self._rate_bps())
        return super().post(body, tensors)


def _wait_until(end_s: float) -> None:
    """Sleep to an instant of perf_counter, if it is still to come."""
    time.sleep(max(0.0, end_s - time.perf_counter()))
