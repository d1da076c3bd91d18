"""Generating: a thread for each request that was admitted, which plays the UE that follows its lease.

The event loop hands over a job and gets pieces of text; nothing of torch or of a host's socket is touched there. A job
that nobody wants any more ends within link.LOOK_S, in the middle of a step too: its session is closed at the host, with
its KV cache.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, NamedTuple

import structlog

from cosched.errors import BadInput, CoschedError
from cosched.runtime.chain import Hop, Links, Route
from cosched.runtime.errors import BadModel, CannotContinue, HostLost, HostRefused, Interrupted
from cosched.runtime.follow import Following, hops_of, point_of, route_of
from cosched.runtime.generation import LOSSES, Generation
from cosched.runtime.link import PATIENCE_S, Link
from cosched.runtime.sampling import Sampling
from cosched.runtime.ue import UeSession
from cosched.serve.desk import Admitted
from cosched.serve.faults import ServeFault, unavailable
from cosched.serve.models import ServedText
from cosched.serve.settings import ServeSettings
from cosched.serve.stops import StopScan
from telemetry.bus import Curve
from telemetry.errors import TelemetryError
from telemetry.messages import Message

log = structlog.get_logger()
STOP: Final = "stop"
LENGTH: Final = "length"


class TextPiece(NamedTuple):
    """What one token brought: text that can be told, and how many tokens there are by now."""

    text: str
    tokens: int


class Over(NamedTuple):
    """The end: why, or the fault that ended it early."""

    reason: str
    tokens: int
    fault: ServeFault | None = None


class Begun(NamedTuple):
    """The session is open at its node."""

    node: str
    split: int


News = Begun | TextPiece | Over


@dataclass(slots=True)
class GenerateJob:
    """One generation. `tell` is called in its thread; cancelled: nobody wants it any more."""

    model: ServedText
    admitted: Admitted
    prompt: list[int]
    max_tokens: int
    sampling: Sampling
    stops: tuple[str, ...]
    ends: tuple[int, ...]
    tell: Callable[[News], None]
    send: Callable[[Message], None]
    cancelled: threading.Event


class _Seat(threading.local):
    """A thread's connections to hosts, and the job that it is at."""

    links: Links | None = None
    job: GenerateJob | None = None


class Runners:
    """The threads. Used from one event loop."""

    def __init__(self, settings: ServeSettings, keys: Curve | None, publish: Callable[[Message], None]) -> None:
        self._settings, self._keys, self._publish = settings, keys, publish
        self._pool = ThreadPoolExecutor(settings.limits.running, "generate")
        self._seat = _Seat()
        self._jobs: set[asyncio.Future[None]] = set()
        self._flags: set[threading.Event] = set()
        self._nodes = {name: Hop(ref.endpoint, 0, ref.key) for name, ref in settings.nodes.items()}

    def start(
        self, model: ServedText, admitted: Admitted, prompt: list[int], max_tokens: int, *, sampling: Sampling,
        stops: tuple[str, ...], ends: tuple[int, ...],
    ) -> RunningJob:  # fmt: skip
        """Begin to generate."""
        loop, news, flag = asyncio.get_running_loop(), asyncio.Queue[News](), threading.Event()
        job = GenerateJob(
            model, admitted, prompt, max_tokens, sampling, stops, ends,
            tell=lambda one: _call(loop, news.put_nowait, one),
            send=lambda message: _call(loop, self._publish, message),
            cancelled=flag,
        )  # fmt: skip
        done = loop.run_in_executor(self._pool, self._run, job)
        self._jobs.add(done)
        self._flags.add(flag)
        done.add_done_callback(self._jobs.discard)
        done.add_done_callback(lambda _: self._flags.discard(flag))
        return RunningJob(news, flag)

    async def stop(self) -> None:
        """End all, and wait for the threads."""
        for flag in list(self._flags):
            flag.set()
        await asyncio.gather(*self._jobs, return_exceptions=True)
        await asyncio.get_running_loop().run_in_executor(None, self._pool.shutdown)

    def _run(self, job: GenerateJob) -> None:
        """Do a job, in its thread; whatever happens, it ends with word of its end."""
        if job.cancelled.is_set():
            return
        seat = self._seat
        seat.job = job
        if seat.links is None:
            seat.links = Links(self._keys, PATIENCE_S, self._connect)
        try:
            over = Generating(job, seat.links, self._nodes, self._settings.limits.patience_s).run()
        except Exception as error:
            log.exception("a generation failed", task=job.admitted.asked.task)
            over = Over("", 0, ServeFault(500, "internal", f"{type(error).__name__} here", kind="server_error"))
        if job.cancelled.is_set() or over.fault is not None:
            seat.links.close()  # answers may still be on their way by them
        job.tell(over)

    def _connect(self, endpoint: str, keys: Curve | None, patience_s: float) -> Link:
        seat = self._seat
        return Link(endpoint, keys, patience_s, lambda: seat.job is not None and seat.job.cancelled.is_set())


class RunningJob(NamedTuple):
    """A generation under way, as the event loop sees it."""

    news: asyncio.Queue[News]
    flag: threading.Event

    def cancel(self) -> None:
        """Nobody wants it any more."""
        self.flag.set()


class Generating:
    """One job, in its thread."""

    def __init__(self, job: GenerateJob, links: Links, nodes: Mapping[str, Hop], patience_s: float) -> None:
        self._job, self._links, self._nodes, self._patience_s = job, links, nodes, patience_s
        self._text, self._scan = job.model.text.stream(), StopScan(job.stops)

    def run(self) -> Over:
        """Generate to the end."""
        try:
            run, following = self._begin()
        except ServeFault as fault:
            return Over("", 0, fault)
        except Interrupted:
            return Over("", 0)
        session = UeSession(run, following, self._nodes, self._job.send, patience_s=self._patience_s)
        self._job.tell(Begun(self._job.admitted.lease.node, run.route.split))
        try:
            over = self._generate(run, session)
        finally:
            run.close()
        if not self._job.cancelled.is_set():
            session.finish()
            self._job.admitted.finished = True
        return over

    def _begin(self) -> tuple[Generation, Following]:
        """Open the session where the lease says. Raises ServeFault, Interrupted."""
        job, lease = self._job, self._job.admitted.lease
        held, n_layers = job.model.ref.layers, job.model.source.n_layers
        if lease.split_layer > held:
            text = (
                f"UE '{lease.ue}' is planned with {lease.split_layer} of {n_layers} layers on its device, and {held} "
                f"are loaded here: give the model `layers`, or the UE a device with max_layers = {held} in the site"
            )
            raise unavailable("split_not_held", text)
        try:
            route = route_of(point_of(lease), hops_of(lease, self._nodes), n_layers)
            return self._opened(route), Following(lease, job.admitted.feed)
        except (*LOSSES, TelemetryError, BadModel) as error:
            raise unavailable(_code(error), f"{error}") from None
        except BadInput as error:  # the node's endpoint is not known
            raise unavailable("node_unknown", f"{error}; here: [nodes.{lease.node}] endpoint") from None

    def _opened(self, route: Route) -> Generation:
        job = self._job
        return Generation(
            job.model.part, job.admitted.asked.task, job.prompt, route, self._links, sampling=job.sampling,
            max_layers=job.model.ref.layers,
        )  # fmt: skip

    def _generate(self, run: Generation, session: UeSession) -> Over:
        job = self._job
        try:
            for token in session.tokens(job.max_tokens, job.ends):
                if job.cancelled.is_set():
                    break
                is_end = token in job.ends
                text = "" if is_end else self._scan.push(self._text.push(token))
                job.tell(TextPiece(text, len(run.output)))
                if is_end or self._scan.stopped:
                    return self._over(run, STOP)
        except Interrupted:
            pass
        except CannotContinue as error:
            return Over("", len(run.output), unavailable("node_lost", str(error)))
        except (CoschedError, TelemetryError) as error:
            return Over("", len(run.output), unavailable(_code(error), str(error)))
        return self._over(run, LENGTH)

    def _over(self, run: Generation, reason: str) -> Over:
        """Tell what was held back, and why it ends."""
        rest = self._scan.push(self._text.end()) + self._scan.end()
        if rest:
            self._job.tell(TextPiece(rest, len(run.output)))
        return Over(STOP if self._scan.stopped else reason, len(run.output))


def _code(error: Exception) -> str:
    return (
        f"node_{error.code}"
        if isinstance(error, HostRefused)
        else "node_lost"
        if isinstance(error, HostLost)
        else "node_error"
    )


def _call(
    loop: asyncio.AbstractEventLoop, what: Callable[[News], None] | Callable[[Message], None], one: object
) -> None:
    """Have the loop do it; a loop that has ended does nothing any more."""
    try:
        loop.call_soon_threadsafe(what, one)  # type: ignore[arg-type]  # each is called with its own kind
    except RuntimeError:
        return
