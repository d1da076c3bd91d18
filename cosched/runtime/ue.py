"""A UE that follows its lease: generates on the route that the scheduler wants, and tells how it went.

    a lease at another operating point   the generation is re-split there; where that cannot be done, it stays
    the route is lost                    the next lease's route, if one comes soon; else as past the lease
    the lease is over                    what the task asked for: local, keep (go on as it is) or drop

When a move is worth its cost is the scheduler's to say (its stickiness and switching costs): here is no second
hysteresis, so that both sides always mean the same route.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from cosched.runtime.chain import Hop
from cosched.runtime.errors import BadModel, CannotContinue
from cosched.runtime.follow import Following, Point, costs_of, hops_of, point_of, route_of
from cosched.runtime.generation import LOSSES, Generation
from cosched.runtime.move import Moved
from telemetry.messages import Message, TaskProgress, TaskTiming

REPORT_S: Final = 0.2  # between reports of progress
DOWN_BPS: Final = 100e6  # of KV on its way to the device, where nobody says better
PEER_BPS: Final = 1e9  # ... and between nodes

Send = Callable[[Message], None]


class Change(NamedTuple):
    """A move that was made or not (`how` then says why not), after so many tokens."""

    tokens: int
    point: str
    how: str


class UeSession:
    """One generation under a lease. `send` takes telemetry; patience_s: for another lease when a route is lost."""

    def __init__(
        self, generation: Generation, following: Following, nodes: Mapping[str, Hop], send: Send, *, patience_s: float
    ) -> None:
        self.generation, self._following, self._nodes, self._send = generation, following, nodes, send
        self._patience_s = patience_s
        self._point = point_of(following.lease)  # in force
        self._point_id = following.lease.point
        self._refused: Point | None = None  # a point that could not be taken, not tried again
        self._sent_s, self._seq, self._timed = 0.0, 0, 0
        self._gave_up = False  # past its lease, and gone on locally or kept as it was
        self.changes: list[Change] = []

    def tokens(self, count: int, stop: Sequence[int] = ()) -> Iterator[int]:
        """Yield up to `count` tokens, ending with one of `stop`. Raises CannotContinue."""
        run = self.generation
        self._report()
        while len(run.output) < count:
            self._follow()
            try:
                token = run.advance()
            except LOSSES as loss:
                self._survive(loss)
                continue
            self._report()
            yield token
            if token in stop:
                return

    def begun_alone(self, why: str) -> None:
        """Take note that the generation began on the device alone, not as its lease says."""
        self._refused = self._point
        self._gone_local(why)

    def finish(self) -> None:
        """Tell the scheduler that it is over, and how long it took."""
        self._time()
        self._report(finished=True)

    def _follow(self) -> None:
        lease = self._following.look()
        point = point_of(lease)
        if self._following.is_over:
            self._past_lease(f"its lease is over ({lease.reason})")
            return
        self._gave_up = False
        if point not in (self._point, self._refused):
            self._move(point, lease.point)

    def _move(self, point: Point, name: str) -> None:
        """Take another operating point, or note why it cannot be taken."""
        run = self.generation
        hops = hops_of(self._following.lease, self._nodes)
        route = route_of(point, hops, run.part.source.n_layers)
        device_s, node_s = run.watch.layer_s(run.route.split, run.part.source.n_layers, run.n_prompt)
        costs = costs_of(self._following.lease, device_s, node_s, DOWN_BPS, PEER_BPS)
        self._time()
        try:
            moved: Moved = run.resplit(route, costs)
        except (*LOSSES, BadModel) as error:
            self._refused = point
            self.changes.append(Change(len(run.output), name, f"not taken: {error}"))
            return
        self._point, self._point_id, self._refused = point, name, None
        self.changes.append(Change(len(run.output), name, moved.how))

    def _survive(self, loss: Exception) -> None:
        """Go on where the route was lost. Raises CannotContinue."""
        lost = self._point
        if not self._gave_up and self._following.wait_for_other(lost, self._patience_s):
            self._move(point_of(self._following.lease), self._following.lease.point)
            if self._point != lost:
                return
        self.generation.finish_locally(str(loss))
        self._refused = lost
        self._gone_local(f"recomputed: {loss}")

    def _past_lease(self, why: str) -> None:
        """Do what the task asked for past its lease. Raises CannotContinue."""
        run, fallback = self.generation, self._following.lease.fallback
        if self._gave_up or run.is_local:
            return
        if fallback == "drop":
            raise CannotContinue(
                f"task '{run.task}' ends after {len(run.output)} tokens: {why}, and it asked to be dropped"
            )
        self._gave_up = True
        if fallback == "local":
            self._time()
            run.finish_locally(why)
            self._gone_local(why)

    def _gone_local(self, why: str) -> None:
        self._gave_up = True
        self._point, self._point_id = (self.generation.part.source.n_layers, 0, ""), "local"
        self.changes.append(Change(len(self.generation.output), "local", why))

    def _report(self, *, finished: bool = False) -> None:
        """Publish progress: the first, every REPORT_S, the last."""
        run, now_s = self.generation, time.monotonic()
        if not finished and self._seq and len(run.output) > 1 and now_s - self._sent_s < REPORT_S:
            return
        self._send(
            TaskProgress(
                at_ns=time.time_ns(), source=f"ue/{run.task}", seq=self._seq, task=run.task, done=len(run.output),
                decoding_s=run.watch.decoding_s, finished=finished,
            )
        )  # fmt: skip
        self._sent_s, self._seq = now_s, self._seq + 1

    def _time(self) -> None:
        """Publish what was measured at the operating point in force, since the last time."""
        run = self.generation
        taken = run.watch.take()
        if taken is None or not self._point_id:
            return
        self._send(
            TaskTiming(
                at_ns=time.time_ns(), source=f"ue/{run.task}", seq=self._timed, task=run.task, point=self._point_id,
                tokens=taken.tokens, ttft_s=taken.ttft_s, tpot_s=taken.tpot_s, device_prefill_s=taken.device_prefill_s,
                device_token_s=taken.device_token_s, node_prefill_s=taken.node_prefill_s,
                node_token_s=taken.node_token_s,
            )
        )  # fmt: skip
        self._timed += 1
