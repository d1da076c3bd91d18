"""One generation as its UE runs it: own layers first, the rest along a route of hosts, which may change on the way.

    tokens known, of which `done` have been through all layers -> `advance` runs the others and appends one more

The first `advance` is the prefill, in chunks whose sending overlaps the computing of the next; each later one decodes a
token. A route that is lost costs no token: what was computed there is computed again on the next route, from the
tokens, because `done` falls back to 0.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Final

import torch

from cosched.runtime import activation
from cosched.runtime.chain import Chain, Links, Route
from cosched.runtime.engine import token_frame
from cosched.runtime.errors import BadFrame, BadModel, CannotContinue, HostLost, HostRefused
from cosched.runtime.kv import KvCache
from cosched.runtime.move import MIGRATED, RECOMPUTED, Legs, MoveCosts, Moved, cheaper, migrate, volume
from cosched.runtime.parts import Part
from cosched.runtime.sampling import Sampling, choose
from cosched.runtime.timing import Stopwatch

CHUNK_TOKENS: Final = 64  # of a prefill: sent while the next is computed

LOSSES: Final = (HostLost, HostRefused, BadFrame)  # what ends a route


class Generation:
    """A generation of `task` over `prompt`, beginning on `route`.

    part: the device's layers, loaded as the route needs them; max_layers: how many it can hold (None: all).
    Raises BadModel (a route that is none, a prompt that is empty), Refused and HostLost (opening the route).
    """

    def __init__(
        self,
        part: Part,
        task: str,
        prompt: Sequence[int],
        route: Route,
        links: Links,
        *,
        sampling: Sampling | None = None,
        chunk_tokens: int = CHUNK_TOKENS,
        max_layers: int | None = None,
    ) -> None:
        if not prompt:
            raise BadModel("a generation needs at least one token to begin with")
        self.part, self.task, self.links = part, task, links
        self.tokens = list(prompt)
        self.n_prompt = len(self.tokens)
        self.done = 0
        self.watch = Stopwatch()
        self._sampling, self._chunk_tokens = sampling or Sampling(), chunk_tokens
        self._n_layers = part.source.n_layers
        self._max_layers = self._n_layers if max_layers is None else max_layers
        self._name = f"{task[:64]}#{secrets.token_hex(6)}"  # of its sessions: nobody else's, not its own before a crash
        self._n_routes = 0
        self._is_broken = False
        self._cache = KvCache()
        self.route = route
        self._chain = self._open(route)

    @property
    def output(self) -> list[int]:
        """Tokens generated so far."""
        return self.tokens[self.n_prompt :]

    @property
    def is_local(self) -> bool:
        """Whether the device runs all layers."""
        return self._chain is None

    @property
    def can_be_local(self) -> bool:
        """Whether the device can hold all layers."""
        return self._max_layers >= self._n_layers

    def _open(self, route: Route) -> Chain | None:
        """Load the device's layers of a route and open its sessions; None where it has no hops."""
        route.check(self._n_layers)
        if route.split > self._max_layers:
            raise BadModel(f"{route.split} layers: this device holds {self._max_layers}")
        self.part.load(0, route.split)
        self._n_routes += 1
        if not route.hops:
            return None
        name = f"{self._name}.{self._n_routes}"
        return Chain(self.part.source, route, self.links, task=self.task, name=name, sampling=self._sampling)

    def advance(self) -> int:
        """Return the next token. Raises HostLost, Refused and BadFrame: the route is lost, the tokens are not."""
        self.watch.begin()
        pending = self.tokens[self.done :]
        try:
            token = self._process(pending)
        except LOSSES:
            self._cache.truncate(self.done)
            self._is_broken = True  # hosts may have run the step or not: their caches are of no use any more
            raise
        self.watch.end(is_first=not self.output)
        self.done += len(pending)
        self.tokens.append(token)
        return token

    def _process(self, pending: Sequence[int]) -> int:
        hidden: torch.Tensor | None = None
        for start in range(0, len(pending), self._chunk_tokens):
            chunk = pending[start : start + self._chunk_tokens]
            is_last = start + len(chunk) == len(pending)
            hidden = self._forward(chunk)
            if self._chain is not None:
                frame = self._frame(chunk, hidden)
                self._chain.step(self.done + start, len(chunk), frame, choose=is_last)
        if self._chain is not None:
            answer, _, node_s = self._chain.finish()
            self.watch.node_s += node_s
            if not 0 <= answer.token < self.part.source.sizes.vocab:
                raise BadFrame(f"the route chose token {answer.token}, which the model does not have")
            return answer.token
        assert hidden is not None  # noqa: S101  # something is always pending
        return self._choose(hidden)

    def _forward(self, chunk: Sequence[int]) -> torch.Tensor | None:
        """Run the device's layers; None where it has none."""
        if not self.route.split:
            return None
        began = time.perf_counter()
        hidden = self.part.run(self.part.embed(chunk), self._cache, 0, self.route.split)
        self.watch.device_s += time.perf_counter() - began
        return hidden

    def _frame(self, chunk: Sequence[int], hidden: torch.Tensor | None) -> bytes:
        return token_frame(chunk) if hidden is None else activation.encode(hidden, self.route.precision_bits)

    def _choose(self, hidden: torch.Tensor) -> int:
        began = time.perf_counter()
        token = choose(self.part.logits(hidden[:, -1:])[0, -1], self._sampling, self._cache.length)
        self.watch.device_s += time.perf_counter() - began
        return token

    def resplit(self, route: Route, costs: MoveCosts | None = None) -> Moved:
        """Go on along another route. costs: what decides between migrating and recomputing; None: migrate if possible.

        Raises BadModel, Refused and HostLost where the new route cannot be taken; the old one then still stands.
        """
        how = self._how(route, costs)
        chain = self._open(route)
        old, moved = self._chain, Moved(how)
        if how == MIGRATED:
            moved = volume(self.route, route, self.done, self.part.kv_layout)
            self._cache = self._migrated(old, chain, route)
        else:
            self._cache, self.done = KvCache(), 0
        self.route, self._chain, self._is_broken = route, chain, False
        if old is not None:
            old.close()
        return moved

    def _how(self, route: Route, costs: MoveCosts | None) -> str:
        gone = self._chain is not None and any(leg.link.is_lost for leg in self._chain.legs)
        if gone or self._is_broken or not self.done:
            return RECOMPUTED
        if costs is None:
            return MIGRATED
        return cheaper(self.route, route, self.done, self.part.source, self.part.kv_layout, costs)

    def _migrated(self, old: Chain | None, new: Chain | None, route: Route) -> KvCache:
        before = Legs(self.route.split, old.legs if old else [])
        after = Legs(route.split, new.legs if new else [])
        try:
            return migrate(self._cache, before, after, self.part.kv_layout)
        except LOSSES:
            if new is not None:
                new.close()
            raise

    def finish_locally(self, why: str) -> None:
        """Go on with all layers on the device. Raises CannotContinue: it does not hold them all."""
        if not self.can_be_local:
            raise CannotContinue(f"task '{self.task}' ends after {len(self.output)} tokens: {why}; {self._short()}")
        local = Route(self._n_layers)
        try:
            self.resplit(local)
        except LOSSES:  # on the way from there
            self._is_broken = True
            self.resplit(local)

    def _short(self) -> str:
        return f"this device holds {self._max_layers} of {self._n_layers} layers"

    def stream(self, count: int, stop: Sequence[int] = ()) -> Iterator[int]:
        """Yield up to `count` tokens, ending with one of `stop`; what a route loses is finished here.

        Raises CannotContinue.
        """
        while len(self.output) < count:
            try:
                token = self.advance()
            except LOSSES as loss:
                self.finish_locally(str(loss))
                continue
            yield token
            if token in stop:
                return

    def close(self) -> None:
        """End the sessions at hosts."""
        if self._chain is not None:
            with contextlib.suppress(HostLost):
                self._chain.close()
            self._chain = None
