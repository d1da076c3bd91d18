"""Prometheus metrics, made of the daemon's status once a second and served over HTTP from a thread.

Names follow Prometheus' conventions (base units, `_total` on what only grows, `_ratio` for fractions). Labels are of
small fixed sets: resource, reason, event, mode, quantile; never a UE, a task or a source, of which there may be any
number.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from cosched.api.messages import Quantiles, Status
from cosched.daemon.mode import Mode
from cosched.errors import BadInput

MOST: Final = 16  # connections at one time: a scraper has one, and is served in milliseconds
BACKLOG: Final = 64
DEADLINE_S: Final = 5.0  # from a connection to the end of its answer
MOST_BYTES: Final = 8_192  # of a request
PREFIX: Final = "cosched_"


class Exporter(Collector):
    """Serves `latest`, the status that the daemon put there last, at http://`listen`/metrics; nothing before the first.

    At most MOST connections, each with DEADLINE_S for its request; where all are taken the oldest goes (`evicted`).
    Raises BadInput when `listen` is no host:port, or the port is taken.
    """

    def __init__(self, listen: str) -> None:
        host, _, port = listen.rpartition(":")
        if not host or not port.isdigit():
            raise BadInput(f"metrics.listen = '{listen}': give host:port, such as 127.0.0.1:9464")
        host = host.strip("[]")
        self.latest: Status | None = None
        self.evicted = 0
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listening = socket.create_server((host, int(port)), family=family, backlog=BACKLOG)
        except (OSError, OverflowError) as error:
            raise BadInput(f"metrics.listen = '{listen}': {getattr(error, 'strerror', None) or error}") from None
        self.port = int(listening.getsockname()[1])
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}  # the oldest first
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, args=(listening,), name="metrics", daemon=True)
        self._thread.start()

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of the latest status."""
        if (status := self.latest) is not None:
            yield from families(status)

    def close(self) -> None:
        """Stop serving."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self, listening: socket.socket) -> None:
        loop = self._loop
        server = loop.run_until_complete(
            asyncio.start_server(self._serve, sock=listening, limit=MOST_BYTES, backlog=BACKLOG)
        )
        loop.run_forever()
        server.close()
        loop.run_until_complete(self._end())
        loop.close()

    async def _end(self) -> None:
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # asyncio makes one for each connection
        if len(self._open) >= MOST:
            self.evicted += 1
            oldest = next(iter(self._open))
            self._open.pop(oldest).transport.abort()
        self._open[task] = writer
        try:
            async with asyncio.timeout(DEADLINE_S):
                writer.write(self._answer(await reader.readuntil(b"\r\n\r\n")))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # whoever is slow, gone or too long-winded gets nothing
        finally:
            self._open.pop(task, None)
            writer.transport.abort()

    def _answer(self, request: bytes) -> bytes:
        line, _, rest = request.decode("latin-1").partition("\r\n")
        method, _, target = line.partition(" ")
        if method not in {"GET", "HEAD"} or target.partition(" ")[0].partition("?")[0] not in {"/", "/metrics"}:
            return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        headers = (header.partition(":") for header in rest.split("\r\n"))
        accept = next((value.strip() for name, _, value in headers if name.strip().lower() == "accept"), "")
        encode, kind = choose_encoder(accept)
        body = encode(self._registry)
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        return head.encode() + (body if method == "GET" else b"")


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
