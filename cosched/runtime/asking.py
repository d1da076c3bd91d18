"""Asking the daemon for an LLM session, and beginning it as its lease says."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from cosched.api.client import Client
from cosched.api.messages import NoArgs, SubmitArgs
from cosched.errors import CoschedError
from cosched.runtime.chain import Hop, Route
from cosched.runtime.errors import BadModel, CannotContinue
from cosched.runtime.follow import Following, hops_of, point_of, route_of
from cosched.runtime.generation import LOSSES, Generation
from cosched.runtime.ue import UeSession
from telemetry.bus import Curve, Publisher
from telemetry.messages import Message
from telemetry.wire import encode

CLOSING_MS = 1_000  # for the last report to go out

Make = Callable[[Route], Generation]


class Asking:
    """A submitted task with its lease, from `with` to its end; released where it ends early.

    control: the daemon's control socket, "" this user's or the service's; telemetry: where reports go. Raises Refused
    and NoAnswer of cosched.api.client.
    """

    def __init__(self, asked: SubmitArgs, *, control: str, telemetry: str, keys: Curve | None) -> None:
        self.asked = asked
        self._client = Client(control, keys)
        lease = self._client.submit(asked.task, asked.ue, asked.work, weight=asked.weight, fallback=asked.fallback)
        watching = self._client.call("watch", NoArgs())
        self._follower = self._client.follower(watching, [asked.task])
        self._publisher = Publisher(telemetry, keys if telemetry.startswith("tcp://") else None)
        self.following = Following(lease, self._follower)
        self._session: UeSession | None = None

    def begin(self, make: Make, nodes: Mapping[str, Hop], n_layers: int, patience_s: float) -> UeSession:
        """Begin on the lease's route, or on the device alone where there is no lease or its node cannot be used.

        Raises CannotContinue: the device cannot serve it alone, or the task asked to be dropped then.
        """
        lease = self.following.lease
        if lease.point:
            try:
                run, why = make(route_of(point_of(lease), hops_of(lease, nodes), n_layers)), ""
            except LOSSES as error:
                run, why = self._alone(make, n_layers, str(error)), str(error)
        else:
            why = f"there is no lease: {lease.text or lease.reason}"
            run = self._alone(make, n_layers, why)
        self._session = UeSession(run, self.following, nodes, self._send, patience_s=patience_s)
        if why:
            self._session.begun_alone(why)
        return self._session

    def _alone(self, make: Make, n_layers: int, why: str) -> Generation:
        if self.asked.fallback == "drop":
            raise CannotContinue(f"task '{self.asked.task}' was not begun: {why}, and it asked to be dropped then")
        try:
            return make(Route(n_layers))
        except BadModel as error:
            raise CannotContinue(f"task '{self.asked.task}' was not begun: {why}; {error}") from None

    def _send(self, message: Message) -> None:
        self._publisher.send(*encode(message))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._session is not None:
            self._session.finish()
        if kind is not None:  # a report may be lost, the capacity must not be
            with contextlib.suppress(CoschedError):
                self._client.release(self.asked.task)
        self._follower.close()
        self._publisher.close(CLOSING_MS)
        self._client.close()
