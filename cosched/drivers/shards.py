"""Shards of the price solver as Ray actors: prices are broadcast, usages come back (solvers/sharded.py)."""

from __future__ import annotations

import logging
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # its stub leaves it out
from ray.exceptions import RayActorError

from cosched.errors import CoschedError
from solvers.problem import Problem
from solvers.sharded import Shard

Maker = Callable[[], Sequence[Problem]]  # runs where the shard lives: tables that are built there need no transport


class ShardLost(CoschedError):
    """A worker that held tables of tasks is gone; the pool has to be made anew."""


class RayShards:
    """A pool of actors, one per maker; `sizes` are the numbers of tasks that they make."""

    def __init__(self, makers: Sequence[Maker], sizes: Sequence[int]) -> None:
        actor: Any = ray.remote(num_cpus=1)(_Worker)
        starts = [sum(sizes[:k]) for k in range(len(sizes))]
        self._actors: list[Any] = [actor.remote(start, maker) for start, maker in zip(starts, makers, strict=True)]

    def ask(self, method: str, *arguments: object) -> list[Any]:
        """Call a method of every Shard with the same arguments. Raises ShardLost where an actor has died."""
        sent = [ray.put(argument) for argument in arguments]
        try:
            return list(ray.get([actor.ask.remote(method, *sent) for actor in self._actors]))
        except RayActorError as error:
            raise ShardLost(f"a shard of the solver has died: {error}; make the pool anew") from None

    def processes(self) -> list[int]:
        """Ids of the processes that the shards live in."""
        return list(ray.get([actor.process.remote() for actor in self._actors]))

    def close(self) -> None:
        """Let the actors go."""
        for actor in self._actors:
            ray.kill(actor)


class _Worker:
    """What an actor runs."""

    def __init__(self, start: int, maker: Maker) -> None:
        self._shard = Shard(start, maker())

    def ask(self, method: str, *arguments: object) -> object:
        return getattr(self._shard, method)(*arguments)

    def process(self) -> int:
        return os.getpid()


@contextmanager
def local_ray(cpus: int) -> Iterator[None]:
    """A Ray of this machine alone while the context lasts: with a token of its own, no dashboard, no usage reports."""
    wanted = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "PYTHONPATH": os.pathsep.join(sys.path),  # of the workers
    }
    before = {name: os.environ.get(name) for name in wanted}
    _set_environment(wanted)
    try:
        ray.init(
            address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
        )
        yield
    finally:
        ray.shutdown()
        _set_environment(before)


def _set_environment(values: Mapping[str, str | None]) -> None:
    """Set or clear variables, and have Ray, which reads them when it is imported, read them again."""
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
