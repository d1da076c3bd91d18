"""What a host holds, without its sockets: parts of models, sessions with their KV caches, limits.

Loading, weights and reports may come from any thread; requests and steps come from the one that serves.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import torch

from cosched.runtime import activation
from cosched.runtime.errors import BadFrame, BadModel, Refused
from cosched.runtime.kv import KvCache, raw_bytes
from cosched.runtime.model import ModelSource
from cosched.runtime.parts import Loaded, Part
from cosched.runtime.protocol import Export, HostReport, Import, ModelHeld, Onward, Open, Step
from cosched.runtime.sampling import Sampling, choose


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a host lends out; whoever asks for more is refused."""

    sessions: int = 256
    kv_bytes: int = 8 << 30  # of all sessions
    frame_bytes: int = 256 << 20  # of one message's frame; longer ones close their sender's connection
    waiting: int = 256  # steps of one session that wait for their turn
    idle_s: float = 600.0  # a session without a step for so long is taken to be left behind


@dataclass(slots=True)
class Session:
    """One generation's part at this host."""

    task: str
    part: Part
    start: int
    stop: int
    onward: Onward | None
    sampling: Sampling
    cache: KvCache = field(default_factory=KvCache)
    length: int = 0  # tokens in the cache
    used_s: float = 0.0  # when it was last used

    @property
    def kv_bytes(self) -> int:
        """Bytes of its cache."""
        return self.length * self.bytes_per_token

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one more token adds."""
        return (self.stop - self.start) * self.part.kv_layout.bytes_per_token


@dataclass(frozen=True, slots=True)
class Stepped:
    """What a step gave: a frame for the next host, or the token chosen and the frames that were asked for."""

    onward: Onward | None
    frames: tuple[bytes, ...]
    token: int
    seconds: float


class Engine:
    """Parts and sessions of one host. All that is refused leaves everything as it was."""

    def __init__(
        self, models: Sequence[ModelSource], limits: Limits, *, dtype: torch.dtype = torch.float32, device: str = "cpu"
    ) -> None:
        self.limits = limits
        self._parts = {model.name: Part(model, dtype=dtype, device=device) for model in models}
        self._sessions: dict[str, Session] = {}
        self._weights: dict[str, float] = {}
        self._lock, self._loading = threading.Lock(), threading.Lock()
        self._steps = self._tokens = self._refused = 0
        self._busy_s = 0.0
        self._loaded_layers, self._loaded_s = 0, 0.0

    def load(self, model: str, start: int, stop: int) -> Loaded:
        """Load layers [start, stop); those that are here already cost nothing. Raises BadModel."""
        with self._loading:
            loaded = self._part(model).load(start, stop)
            self._loaded_layers += loaded.layers
            self._loaded_s += loaded.seconds if loaded.layers else 0.0
        return loaded

    def unload(self, model: str, start: int, stop: int) -> None:
        """Forget layers. Raises Refused("in_use"): sessions run on them; BadModel."""
        part = self._part(model)
        part.check(start, stop)
        with self._loading, self._lock:
            users = [name for name, s in self._sessions.items() if s.part is part and s.start < stop and start < s.stop]
            if users:
                text = f"layers [{start}, {stop}) of {model}: {len(users)} sessions run on them, such as '{users[0]}'"
                raise Refused("in_use", f"{text}; move those first")
            part.unload(start, stop)

    def apply_weights(self, weights: Mapping[str, float]) -> None:
        """Share the node by these weights of tasks from now on; a task that is not named has 1."""
        wrong = [task for task, weight in weights.items() if not 0 < weight < float("inf")]
        if wrong:
            raise BadModel(f"weight of '{wrong[0]}' must be greater than 0, not {weights[wrong[0]]}")
        with self._lock:
            self._weights = dict(weights)

    def weight(self, session: str) -> float:
        """Weight of a session in the sharing of the node."""
        found = self._sessions.get(session)
        return 1.0 if found is None else self._weights.get(found.task, 1.0)

    def cost(self, step: Step) -> float:
        """Work of a step: its tokens times its layers."""
        found = self._sessions.get(step.session)
        return float(step.tokens * (found.stop - found.start)) if found else 1.0

    def open(self, asked: Open, now_s: float) -> None:
        """Begin a session. Raises Refused: unknown model, other weights, layers not here, too many sessions."""
        with self._lock:
            part = self._parts.get(asked.model)
            if part is None:
                raise Refused("unknown_model", f"model '{asked.model}' is not here; here: {', '.join(self._parts)}")
            if asked.fingerprint != part.source.fingerprint:
                raise Refused("other_weights", f"model '{asked.model}' has other weights or sizes here")
            if not (asked.start < asked.stop <= part.source.n_layers and part.holds(asked.start, asked.stop)):
                held = ", ".join(map(str, part.layers)) or "none"
                raise Refused("not_loaded", f"layers [{asked.start}, {asked.stop}) are not all loaded; loaded: {held}")
            if (asked.onward is None) != (asked.stop == part.source.n_layers):
                raise Refused("bad_route", f"a route must go on after layer {asked.stop - 1} and end with the last")
            if asked.session in self._sessions:
                raise Refused("conflict", f"session '{asked.session}' is open already")
            if len(self._sessions) >= self.limits.sessions:
                raise Refused("full", f"{self.limits.sessions} sessions are open: no more are taken")
            self._sessions[asked.session] = Session(
                asked.task, part, asked.start, asked.stop, asked.onward, asked.sampling, used_s=now_s
            )

    def close(self, session: str) -> None:
        """End a session; one that is not there is no error."""
        with self._lock:
            self._sessions.pop(session, None)

    def expire(self, now_s: float) -> list[str]:
        """End the sessions that were left behind; return their names."""
        left = [name for name, s in self._sessions.items() if now_s - s.used_s > self.limits.idle_s]
        for name in left:
            self.close(name)
        return left

    def step(self, asked: Step, frames: Sequence[bytes], now_s: float) -> Stepped:
        """Run a step. Raises Refused and BadFrame; the cache is then as it was before."""
        session = self._session(asked.session)
        if asked.position != session.length:
            at = f"its cache has {session.length} tokens, the step begins at {asked.position}"
            raise Refused("out_of_step", f"session '{asked.session}': {at}")
        self._afford(asked.tokens * session.bytes_per_token)
        if len(frames) != 1:
            raise BadFrame(f"a step has one frame of input, not {len(frames)}")
        began = time.perf_counter()
        try:
            stepped = self._run(session, asked, frames[0], began)
        except BaseException:
            session.cache.truncate(session.length)
            raise
        session.length += asked.tokens
        session.used_s = now_s
        self._steps += 1
        self._tokens += asked.tokens
        self._busy_s += stepped.seconds
        return stepped

    def _run(self, session: Session, asked: Step, frame: bytes, began: float) -> Stepped:
        hidden = self._input(session, frame, asked.tokens)
        try:
            hidden = session.part.run(hidden, session.cache, session.start, session.stop)
        except torch.OutOfMemoryError:
            raise Refused("memory", f"session '{asked.session}': the device's memory is full") from None
        if session.onward is not None:
            out: tuple[bytes, ...] = (activation.encode(hidden, session.onward.precision_bits),)
            return Stepped(session.onward, out, -1, time.perf_counter() - began)
        token, out = -1, ()
        if asked.choose or asked.logits:
            logits = session.part.logits(hidden[:, -1:])[0, -1]
            token = choose(logits, session.sampling, session.length + asked.tokens) if asked.choose else -1
            out = (raw_bytes(logits.float()),) if asked.logits else ()
        return Stepped(None, out, token, time.perf_counter() - began)

    def _input(self, session: Session, frame: bytes, tokens: int) -> torch.Tensor:
        part = session.part
        if session.start == 0:
            if len(frame) != 4 * tokens:
                raise BadFrame(f"{tokens} token ids are {4 * tokens} bytes, not {len(frame)}")
            return part.embed(token_ids(frame))
        hidden = activation.decode(frame, part.source.sizes.hidden, part.dtype, part.device)
        if hidden.shape[1] != tokens:
            raise BadFrame(f"the activation has {hidden.shape[1]} tokens, its step {tokens}")
        return hidden

    def export(self, asked: Export) -> list[bytes]:
        """KV of layers [start, stop), a frame each. Raises Refused and BadFrame."""
        session = self._session(asked.session)
        self._within(session, asked.start, asked.stop)
        return [session.cache.export(layer) for layer in range(asked.start, asked.stop)]

    def take(self, asked: Import, frames: Sequence[bytes]) -> None:
        """Put KV of layers [start, stop) in. Raises Refused and BadFrame; the cache is then as it was before."""
        session = self._session(asked.session)
        self._within(session, asked.start, asked.stop)
        if len(frames) != asked.stop - asked.start:
            raise BadFrame(f"KV of layers [{asked.start}, {asked.stop}) in {len(frames)} frames")
        self._afford(sum(map(len, frames)))
        taken = KvCache()
        for layer, frame in enumerate(frames, asked.start):
            taken.take(frame, layer, session.part.kv_layout)
        self._put(session, taken, range(asked.start, asked.stop))

    def adopt(self, session_name: str, source_name: str, start: int, stop: int) -> None:
        """Take KV of layers [start, stop) over from another session here. Raises Refused and BadFrame."""
        session, source = self._session(session_name), self._session(source_name)
        self._within(session, start, stop)
        self._within(source, start, stop)
        if session.part is not source.part:
            raise Refused("unknown_model", f"session '{source_name}' is of another model")
        self._put(session, source.cache, range(start, stop))

    def _put(self, session: Session, other: KvCache, layers: range) -> None:
        if session.cache.layers and other.length != session.length:
            raise BadFrame(f"KV of {other.length} tokens beside layers that have {session.length}")
        session.cache.adopt(other, layers)
        session.length = session.cache.length

    def _within(self, session: Session, start: int, stop: int) -> None:
        if not session.start <= start < stop <= session.stop:
            raise Refused("bad_route", f"layers [{start}, {stop}) are not within [{session.start}, {session.stop})")

    def _afford(self, more_bytes: int) -> None:
        used = sum(s.kv_bytes for s in self._sessions.values())
        if used + more_bytes > self.limits.kv_bytes:
            raise Refused("memory", f"KV caches hold {used} of {self.limits.kv_bytes} bytes; {more_bytes} more are not")

    def _session(self, name: str) -> Session:
        found = self._sessions.get(name)
        if found is None:
            raise Refused("unknown_session", f"session '{name}' is not open here")
        return found

    def _part(self, model: str) -> Part:
        if model not in self._parts:
            raise BadModel(f"model '{model}' is not known here; known: {', '.join(self._parts)}")
        return self._parts[model]

    def count_refused(self) -> None:
        """Count a request that was refused."""
        self._refused += 1

    def report(self, name: str) -> HostReport:
        """Say what is held and what was done."""
        with self._lock:
            models = {
                key: ModelHeld(
                    fingerprint=p.source.fingerprint, layers=tuple(p.layers), weight_bytes=p.weight_bytes
                )
                for key, p in self._parts.items()
            }  # fmt: skip
            return HostReport(
                name=name,
                models=models,
                sessions={key: s.length for key, s in self._sessions.items()},
                kv_bytes=sum(s.kv_bytes for s in self._sessions.values()),
                steps=self._steps,
                tokens=self._tokens,
                busy_s=self._busy_s,
                refused=self._refused,
                load_s_per_layer=self._loaded_s / self._loaded_layers if self._loaded_layers else 0.0,
            )


def token_ids(frame: bytes) -> list[int]:
    """Decode token ids."""
    found: list[int] = torch.frombuffer(bytearray(frame), dtype=torch.int32).tolist()
    return found


def token_frame(tokens: Sequence[int]) -> bytes:
    """Encode token ids: int32, little endian on the machines that torch runs on."""
    return raw_bytes(torch.tensor(list(tokens), dtype=torch.int32))
