"""Who asks for what in a simulated trace: prompt and answer lengths, drawn or recorded, and the rate of arrivals.

Default lengths: lognormal with the mean and standard deviation of the logarithms in the conversation trace of
AzurePublicDataset 2023 (its first 12 000 rows; docs/scenarios.md says how well that fits).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec
import numpy as np

from cosched.simulate.offers import RecordedRequest
from telemetry.importers.registry import request_importer

POOL: Final = 4096  # drawn requests; draw_offers starts anywhere in them and goes round


class Lognormal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Tokens: exp(N(mu, sigma)), rounded, clipped to 1 .. greatest."""

    mu: float
    sigma: float
    greatest: int

    def draw(self, count: int, rng: np.random.Generator) -> list[int]:
        """Return `count` numbers of tokens."""
        tokens = np.rint(rng.lognormal(self.mu, self.sigma, count))
        return [int(n) for n in np.clip(tokens, 1, self.greatest)]


class Recorded(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Recorded requests: an importer of `cosched import` and its files, relative to the scenario file."""

    source: str
    files: tuple[str, ...]


class Arrivals(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When tasks arrive, and how long prompts and answers are.

    `poisson` draws instants, `recorded` keeps the spacing of `requests`; both at `rate_per_s`, or at `load` times the
    rate whose least work just fits the site (cosched/replay/load.py). Without `requests` lengths are drawn.
    """

    kind: Literal["poisson", "recorded"] = "poisson"
    rate_per_s: float | None = None
    load: float | None = None
    bursts_s: float | None = None  # on and off every that many seconds, at twice the rate while on
    requests: Recorded | None = None
    prompt_tokens: Lognormal = Lognormal(mu=6.71, sigma=0.98, greatest=14050)
    output_tokens: Lognormal = Lognormal(mu=4.96, sigma=0.89, greatest=1000)


def requests_of(arrivals: Arrivals, folder: Path, rng: np.random.Generator) -> Sequence[RecordedRequest]:
    """Return the requests that sessions are made of. Raises TelemetryError for a file that cannot be read."""
    if arrivals.requests is not None:
        paths = [folder / name for name in arrivals.requests.files]
        return request_importer(arrivals.requests.source)(paths).requests
    prompts = arrivals.prompt_tokens.draw(POOL, rng)
    outputs = arrivals.output_tokens.draw(POOL, rng)
    return [RecordedRequest(float(i), p, o) for i, (p, o) in enumerate(zip(prompts, outputs, strict=True))]
