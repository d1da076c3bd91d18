"""What the front end counts, for Prometheus: names as vLLM's, with our prefix. Labels are of small fixed sets."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder

PREFIX: Final = "cosched_serve_"
TTFT_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0)
TPOT_S: Final = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.5)
E2E_S: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
QUEUE_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class ServeMetrics:
    """All metrics of one front end, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        by = ("model",)
        self.requests = Counter(
            f"{PREFIX}requests", "Requests by how they ended: an HTTP status, or `dropped` by the client.",
            ("endpoint", "outcome"), registry=registry,
        )  # fmt: skip
        self.refusals = Counter(f"{PREFIX}refusals", "Requests not served, by reason.", ("reason",), registry=registry)
        self.prompt_tokens = Counter(f"{PREFIX}prompt_tokens", "Tokens of prompts served.", by, registry=registry)
        self.tokens = Counter(f"{PREFIX}generation_tokens", "Tokens generated.", by, registry=registry)
        self.ttft = self._histogram("time_to_first_token", "From a request to its first token.", TTFT_S)
        self.tpot = self._histogram("time_per_output_token", "Mean per later token, of each request.", TPOT_S)
        self.e2e = self._histogram("e2e_request_latency", "From a request to its last token.", E2E_S)
        self.queued = self._histogram("request_queue_time", "From a request to its lease.", QUEUE_S)
        self.running = Gauge(f"{PREFIX}requests_running", "Requests that hold a lease.", registry=registry)
        self.waiting = Gauge(f"{PREFIX}requests_waiting", "Requests that wait for room.", registry=registry)

    def _histogram(self, name: str, what: str, bounds_s: tuple[float, ...]) -> Histogram:
        return Histogram(f"{PREFIX}{name}_seconds", what, ("model",), buckets=bounds_s, registry=self._registry)

    def exposed(self, accept: str) -> tuple[bytes, str]:
        """Return all in Prometheus' form, and its content type."""
        encode, kind = choose_encoder(accept)
        return encode(self._registry), kind
