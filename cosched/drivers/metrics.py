"""Prometheus metrics, made of the daemon's status once a second and served over HTTP from a thread.

Names follow Prometheus' conventions (base units, `_total` on what only grows, `_ratio` for fractions). Labels are of
small fixed sets: resource, reason, event, mode, quantile; never a UE, a task or a source, of which there may be any
number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cosched.control_messages import Quantiles, Status
from cosched.drivers.mode import Mode
from cosched.errors import BadInput

PREFIX: Final = "cosched_"


class Exporter(Collector):
    """Serves `latest`, the status that the daemon put there last, at http://`listen`/metrics; nothing before the first.

    Raises BadInput when `listen` is no host:port, or the port is taken.
    """

    def __init__(self, listen: str) -> None:
        host, _, port = listen.rpartition(":")
        if not host or not port.isdigit():
            raise BadInput(f"metrics.listen = '{listen}': give host:port, such as 127.0.0.1:9464")
        self.latest: Status | None = None
        registry = CollectorRegistry()
        registry.register(self)
        ProcessCollector(registry=registry)
        try:
            self._server, self._thread = start_http_server(int(port), host.strip("[]"), registry)
        except (OSError, OverflowError) as error:
            raise BadInput(f"metrics.listen = '{listen}': {getattr(error, 'strerror', None) or error}") from None
        self.port = int(self._server.server_port)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of the latest status."""
        if (status := self.latest) is not None:
            yield from families(status)

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def families(status: Status) -> Iterator[Metric]:
    """Yield every metric of a status."""
    yield from _daemon(status)
    yield from _plan(status)
    yield from _delays(status)
    yield from _telemetry(status)
    yield from _shadow(status)


def _daemon(status: Status) -> Iterator[Metric]:
    info = {"version": status.version, "site": status.site, "policy": status.policy, "baseline": status.baseline}
    yield _labelled("info", "What runs: always 1.", tuple(info), [(tuple(info.values()), 1.0)])
    modes = [((mode.value,), float(mode.value == status.mode)) for mode in Mode]
    yield _labelled("mode", "Mode of the daemon: 1 for the one that it is in.", ("mode",), modes)
    yield _gauge("alarms", "Alarms that stand.", len(status.alarms))
    yield _gauge("capture_bytes", "Size of the capture being written.", status.capture_bytes)
    yield _counted("events", "What happened since the start.", "event", status.counts)
    yield _counted("decisions", "Decisions by reason code since the start.", "reason", status.reasons)


def _plan(status: Status) -> Iterator[Metric]:
    yield _gauge("plan_generation", "Generation of the plan in force; only grows.", status.generation)
    tasks = [(("promised",), status.promised), (("unpromised",), status.tasks - status.promised)]
    yield _labelled("tasks", "Accepted tasks, by whether the plan holds their deadlines.", ("promise",), tasks)
    yield _gauge("plan_value", "Value of the plan in force.", status.value)
    yield _gauge("plan_bound", "Proven bound on the value of any plan of the same problem.", status.bound)
    yield _gauge("plan_gap_ratio", "Distance of the plan's value to the bound.", status.gap)
    for name, help_text, values in (
        ("planned_ratio", "Share of a resource that the plan counts.", [r.planned for r in status.resources]),
        ("background_ratio", "Share of a resource used by others.", [r.background for r in status.resources]),
        ("price", "Price of a resource in the plan in force.", [r.price for r in status.resources]),
    ):
        samples = [((r.id, r.kind), value) for r, value in zip(status.resources, values, strict=True)]
        yield _labelled(f"resource_{name}", help_text, ("resource", "kind"), samples)


def _delays(status: Status) -> Iterator[Metric]:
    for name, help_text, found in (
        ("submit", "From a submit to its decision, recent ones.", status.submit_ms),
        ("solve", "From a problem handed to the solver to its answer, recent ones.", status.solve_ms),
        ("telemetry", "From a plan's instant to its decisions published, recent ones.", status.telemetry_ms),
    ):
        yield _labelled(f"{name}_latency_seconds", help_text, ("quantile",), _quantiles(found))


def _telemetry(status: Status) -> Iterator[Metric]:
    ingest = status.ingest
    refused: Counter[str] = Counter()
    for counted in ingest.refused:
        refused[counted.reason] += counted.n
    yield _counter("telemetry_messages", "Messages that came in on the bus.", ingest.messages)
    yield _counter("telemetry_reports", "UE reports that came in, rows of batches counted one by one.", ingest.reports)
    yield _counter("telemetry_lost", "Messages lost on the way, from sequence numbers.", sum(ingest.lost.values()))
    yield _counted("telemetry_refused", "Frames dropped and values blanked.", "reason", refused)
    yield _gauge("telemetry_input_age_seconds", "Since the last valid radio report.", ingest.input_age_s)
    yield _gauge("telemetry_stale_ues", "UEs with a task whose last report is too old.", ingest.stale_ues)


def _shadow(status: Status) -> Iterator[Metric]:
    shadow = status.shadow
    both = (("live", shadow.live), ("baseline", shadow.shadow))
    samples = [((who, fate), float(getattr(tally, fate))) for who, tally in both for fate in ("admitted", "met")]
    yield _gauge("shadow_window_seconds", "Length of the window of the comparison.", shadow.window_s)
    yield _gauge("shadow_offered_tasks", "Tasks offered in the window.", shadow.offered)
    yield _labelled("shadow_tasks", "Tasks of the window, live and under the baseline.", ("policy", "fate"), samples)


def _gauge(name: str, help_text: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, help_text, value=value)


def _counter(name: str, help_text: str, value: float) -> Metric:
    return CounterMetricFamily(PREFIX + name, help_text, value=value)


def _labelled(
    name: str, help_text: str, labels: tuple[str, ...], samples: Iterable[tuple[tuple[str, ...], float]]
) -> Metric:
    family = GaugeMetricFamily(PREFIX + name, help_text, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


def _counted(name: str, help_text: str, label: str, counts: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(PREFIX + name, help_text, labels=(label,))
    for value, n in sorted(counts.items()):
        family.add_metric((value,), n)
    return family


def _quantiles(found: Quantiles) -> list[tuple[tuple[str, ...], float]]:
    if not found.n:
        return []
    return [(("0.5",), found.p50 * 1e-3), (("0.99",), found.p99 * 1e-3), (("1",), found.max * 1e-3)]
