"""What a host holds, without its sockets: parts of models, sessions with their KV caches, limits.

Loading, weights and reports may come from any thread; requests and steps come from the one that serves. Whatever comes
from outside is held against what is here before it costs anything: whose session, how many tokens, at which position,
finite or not. All that is refused leaves everything as it was.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from cosched.api.keys import check_public
from cosched.errors import BadInput
from cosched.runtime import activation
from cosched.runtime.accounts import Who
from cosched.runtime.errors import BadFrame, BadModel, HostRefused
from cosched.runtime.kv import HEAD as KV_HEAD
from cosched.runtime.kv import KvCache, claimed, paged, raw_bytes
from cosched.runtime.limits import HostLimits, spare_bytes
from cosched.runtime.model import ModelSource
from cosched.runtime.parts import LoadedLayers, Part
from cosched.runtime.promises import Promise
from cosched.runtime.protocol import (
    HEAD_BYTES,
    LEAST_GRANT,
    Body,
    Export,
    HostReport,
    Import,
    ModelHeld,
    Onward,
    Open,
    Pull,
    Step,
)
from cosched.runtime.rows import SessionRows, run_rows
from cosched.runtime.sampling import choose
from cosched.runtime.sessions import HostSession, Sessions, StepUnderWay

__all__ = ["HostLimits", "ModelEngine", "StepUnderWay", "Stepped", "token_frame", "token_ids"]

NO_MEMORY = "can't allocate memory"  # how torch's CPU allocator says it
COPIED = 4.0  # operations that a byte of KV which is copied and summed up stands for, in the sharing of the node


@dataclass(frozen=True, slots=True)
class Stepped:
    """What a step gave: a frame for the next host, or the token chosen and the frames that were asked for."""

    onward: Onward | None
    frames: tuple[bytes, ...]
    token: int
    seconds: float


class ModelEngine:
    """Parts and sessions of one host."""

    def __init__(
        self,
        models: Sequence[ModelSource],
        limits: HostLimits,
        *,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> None:
        self.limits = limits
        self._parts = {model.name: Part(model, dtype=dtype, device=device) for model in models}
        self.sessions = Sessions()
        self._weights: dict[str, float] = {}
        self._promises: dict[str, Promise] = {}
        self.step_s = 0.0  # planned length of a step; 0: none is
        self._loading = threading.Lock()
        self._steps = self._tokens = self._expired = self._evicted = 0
        self._busy_s = 0.0
        self._loaded_layers, self._loaded_s = 0, 0.0

    def load(self, model: str, start: int, stop: int) -> LoadedLayers:
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
        with self._loading, self.sessions.lock:
            users = [s.name for s in self.sessions if s.part is part and s.start < stop and start < s.stop]
            if users:
                text = f"layers [{start}, {stop}) of {model}: {len(users)} sessions run on them, such as '{users[0]}'"
                raise HostRefused("in_use", f"{text}; move those first")
            part.unload(start, stop)

    def apply_weights(self, weights: Mapping[str, float]) -> None:
        """Share the node by these weights of tasks from now on; a task that is not named has 1."""
        wrong = [task for task, weight in weights.items() if not 0 < weight < float("inf")]
        if wrong:
            raise BadModel(f"weight of '{wrong[0]}' must be greater than 0, not {weights[wrong[0]]}")
        self._weights = dict(weights)

    def weight(self, session: HostSession) -> float | None:
        """Weight of a session's task in the sharing of the node; None: nobody gave it one, or another has it."""
        return self._weights.get(session.task) if session.has_weight else None

    def apply_promises(self, promises: Mapping[str, Promise], step_s: float) -> None:
        """Keep these tasks' paces from now on, in steps of this length; 0: of any. Raises BadModel."""
        wrong = [task for task, promise in promises.items() if not 0 < promise.pace_s < float("inf")]
        if wrong or not 0 <= step_s < float("inf"):
            raise BadModel(f"pace of '{wrong[0]}' must be greater than 0" if wrong else f"step of {step_s} s")
        self._promises, self.step_s = dict(promises), step_s

    def promise(self, session: HostSession) -> Promise | None:
        """What a session's task is promised; None: nothing, or another has it."""
        return self._promises.get(session.task) if session.has_weight else None

    def cost(self, session: HostSession, body: Body, size: int) -> float:
        """Work of a request, in millions of operations. size: bytes of its frames."""
        part = session.part
        sizes = part.source.sizes
        if isinstance(body, Step):
            attention = 2.0 * sizes.hidden * (session.length + body.tokens)
            return 2e-6 * body.tokens * (session.stop - session.start) * (sizes.parameters_layer + attention)
        if isinstance(body, Export):
            size = session.length * max(0, body.stop - body.start) * part.kv_layout.bytes_per_token
        return 1e-6 * (COPIED * size + sizes.parameters_layer)

    @property
    def frame_bytes(self) -> int:
        """The longest frame that any model here has a use for, within the limit."""
        longest = HEAD_BYTES
        for part in self._parts.values():
            sizes, positions = part.source.sizes, most_tokens(part)
            step = activation.HEAD.size + 4 * sizes.hidden * self.limits.step_tokens
            longest = max(longest, step, KV_HEAD.size + positions * part.kv_layout.bytes_per_token)
        return min(longest, self.limits.frame_bytes)

    def open(self, who: Who, asked: Open, now_s: float) -> None:
        """Begin a session. Raises Refused: unknown model, other weights, layers not here, too many sessions."""
        limits = self.limits
        with self.sessions.lock:  # against `unload`
            part, count = self._openable(asked), self.sessions.count(who)
            if self.sessions.find(who, asked.session) is None:
                if count >= limits.sessions_each:
                    raise HostRefused("full", f"{count} sessions of yours are open: no more are taken")
                if len(self.sessions) >= limits.sessions and not self._evict(self.sessions.places(who)):
                    raise HostRefused("full", f"{limits.sessions} sessions are open: no more are taken")
            self.sessions.add(
                HostSession(
                    who, asked.session, asked.task, asked.grant, part, asked.start, asked.stop, asked.onward,
                    asked.sampling, used_s=now_s,
                )
            )  # fmt: skip

    def _openable(self, asked: Open) -> Part:
        """Return the part that a session may run on."""
        part = self._parts.get(asked.model)
        if part is None:
            raise HostRefused("unknown_model", f"model '{asked.model}' is not here; here: {', '.join(self._parts)}")
        if asked.fingerprint != part.source.fingerprint:
            raise HostRefused("other_weights", f"model '{asked.model}' has other weights or sizes here")
        if not (asked.start < asked.stop <= part.source.n_layers and part.holds(asked.start, asked.stop)):
            held = ", ".join(map(str, part.layers)) or "none"
            raise HostRefused("not_loaded", f"layers [{asked.start}, {asked.stop}) are not all loaded; loaded: {held}")
        if (asked.onward is None) != (asked.stop == part.source.n_layers):
            raise HostRefused("bad_route", f"a route must go on after layer {asked.stop - 1} and end with the last")
        if asked.grant and len(asked.grant) < LEAST_GRANT:
            raise HostRefused("bad_request", f"a grant has at least {LEAST_GRANT} characters")
        if asked.onward is not None:
            activation.payload_bytes(1, 1, asked.onward.precision_bits)
            check_key(asked.onward.server_key)
        return part

    def close(self, who: Who, session: str) -> None:
        """End a session; one that is not there is no error."""
        found = self.sessions.find(who, session)
        if found is not None:
            self.sessions.remove(found)

    def expire(self, now_s: float) -> list[HostSession]:
        """End the sessions that were left behind; return them."""
        left = [s for s in self.sessions if now_s - s.used_s > self.limits.idle_s]
        for session in left:
            self.sessions.remove(session)
        self._expired += len(left)
        return left

    def _evict(self, sessions: list[HostSession]) -> bool:
        """Close sessions of identities that have more, for one that has less; False: there are none."""
        for session in sessions:
            self.sessions.remove(session)
        self._evicted += len(sessions)
        return bool(sessions)

    def step(self, who: Who, asked: Step, frames: Sequence[bytes], now_s: float) -> Stepped:
        """Run a step by itself. Raises Refused and BadFrame; the cache is then as it was before."""
        run = self.begin(who, asked, frames, now_s)
        (error,) = self.advance([(run, asked.tokens)])
        (stepped,) = self.finish([run]) if error is None else (error,)
        if isinstance(stepped, Exception):
            raise stepped
        return stepped

    def begin(self, who: Who, asked: Step, frames: Sequence[bytes], now_s: float) -> StepUnderWay:
        """Take in a step that is then run by `advance`, in pieces. Raises Refused and BadFrame; nothing has changed."""
        session = self.sessions.the(who, asked.session, asked.grant)
        session.used_s = now_s
        self._check_step(session, asked)
        if len(frames) != 1:
            raise BadFrame(f"a step has one frame of input, not {len(frames)}")
        began = time.perf_counter()
        hidden = self._input(session, frames[0], asked.tokens)
        session.coming = asked.tokens
        return StepUnderWay(session, asked, hidden, seconds=time.perf_counter() - began)

    def advance(self, pieces: Sequence[tuple[StepUnderWay, int]]) -> list[Exception | None]:
        """Run so many further tokens of each, all in one forward; return what went wrong with each.

        Who is by himself runs as `Part.run` has it, to the last bit. All are of one model.
        """
        began = time.perf_counter()
        live = [piece for piece in pieces if piece[0].session.is_open]
        try:
            found = self._forward(live) if live else {}
        except Exception as error:  # noqa: BLE001  # of one of them, or of all: each by itself tells
            found = {id(live[0][0]): error} if len(live) == 1 else {}
            for run, tokens in live if len(live) > 1 else ():
                run.back()
                found |= self._attempt(run, tokens)
        seconds = time.perf_counter() - began
        self._busy_s += seconds
        for run, tokens in live:
            run.seconds += seconds
            if found.get(id(run)) is None:
                run.done += tokens
            else:
                run.give_up()
        return [found.get(id(run)) if run.session.is_open else run.closed() for run, _ in pieces]

    def _attempt(self, run: StepUnderWay, tokens: int) -> dict[int, Exception | None]:
        try:
            return self._forward([(run, tokens)])
        except Exception as error:  # noqa: BLE001  # handed to whoever asked
            return {id(run): error}

    def _forward(self, pieces: Sequence[tuple[StepUnderWay, int]]) -> dict[int, Exception | None]:
        """Run them and keep what came out of the last layers; id of each -> what is wrong with its rows."""
        part = pieces[0][0].session.part
        batch = [
            SessionRows(run.hidden[0, run.done : run.done + n], run.session.cache, run.session.start, run.session.stop)
            for run, n in pieces
        ]
        try:
            if len(batch) > 1:
                run_rows(part, batch)
            else:
                (rows,) = batch
                rows.hidden = part.run(rows.hidden.unsqueeze(0), rows.cache, rows.start, rows.stop)[0]
        except (torch.OutOfMemoryError, MemoryError):
            raise HostRefused("memory", "the device's memory is full") from None
        except RuntimeError as error:
            if NO_MEMORY in str(error):
                raise HostRefused("memory", "the device's memory is full") from None
            raise
        found: dict[int, Exception | None] = {}
        for (run, _), rows in zip(pieces, batch, strict=True):
            if bool(torch.isfinite(rows.hidden).all()):
                run.out.append(rows.hidden if run.session.onward is not None else rows.hidden[-1:])
            else:
                found[id(run)] = BadFrame("what the layers make of this input is not finite")
        return found

    def finish(self, runs: Sequence[StepUnderWay]) -> list[Stepped | Exception]:
        """Return what each gave, where all its tokens are through. The head sees all that choose a token at once."""
        began = time.perf_counter()
        heads = [run for run in runs if run.session.onward is None and (run.asked.choose or run.asked.logits)]
        logits, answers = self._logits(heads), list[Stepped | Exception]()
        for run in runs:
            try:
                answers.append(self._answer(run, logits.get(id(run)), began))
            except Exception as error:  # noqa: BLE001  # handed to whoever asked
                run.give_up()
                answers.append(error)
        self._busy_s += time.perf_counter() - began
        return answers

    def _logits(self, runs: Sequence[StepUnderWay]) -> dict[int, torch.Tensor | Exception]:
        """(vocab,) of each one's last token, by its id; or what went wrong with it."""
        if not runs:
            return {}
        rows = [run.out[-1][-1:] for run in runs]
        last = torch.cat(rows) if len(rows) > 1 else rows[0]  # who is alone keeps his place in memory
        try:
            found = runs[0].session.part.logits(last.unsqueeze(0))[0]
        except Exception as error:  # noqa: BLE001  # of one of them, or of all: each by itself tells
            if len(runs) == 1:
                return {id(runs[0]): error}
            return {key: one for run in runs for key, one in self._logits([run]).items()}
        return {id(run): row for run, row in zip(runs, found, strict=True)}

    def _answer(self, run: StepUnderWay, logits: torch.Tensor | Exception | None, began: float) -> Stepped:
        if isinstance(logits, Exception):
            raise logits
        session, asked, token, out = run.session, run.asked, -1, tuple[bytes, ...]()
        if session.onward is not None:
            hidden = run.out[0] if len(run.out) == 1 else torch.cat(run.out)
            out = (activation.encode(hidden.unsqueeze(0), session.onward.precision_bits),)
        elif logits is not None:
            token = choose(logits, session.sampling, session.length + asked.tokens) if asked.choose else -1
            out = (raw_bytes(logits.float()),) if asked.logits else ()
        session.length += asked.tokens
        session.coming = 0
        self._steps += 1
        self._tokens += asked.tokens
        return Stepped(session.onward, out, token, run.seconds + time.perf_counter() - began)

    def _check_step(self, session: HostSession, asked: Step) -> None:
        self.check_tokens(asked)
        name, length = session.name, session.length
        if asked.position != length:
            at = f"its cache has {length} tokens, the step begins at {asked.position}"
            raise HostRefused("out_of_step", f"session '{name}': {at}")
        if any(session.cache.tokens(layer) != length for layer in range(session.start, session.stop)):
            raise HostRefused(
                "out_of_step", f"session '{name}': not all of its layers have the KV cache of {length} tokens"
            )
        if length + asked.tokens > most_tokens(session.part):
            raise HostRefused("too_long", f"session '{name}': the model has {most_tokens(session.part)} positions")
        self._afford(session, length + asked.tokens)

    def check_tokens(self, asked: Step) -> None:
        """Raise Refused where a step is too long for one turn."""
        if asked.tokens > self.limits.step_tokens:
            text = f"{asked.tokens} tokens in one step; at most {self.limits.step_tokens}: send them in chunks"
            raise HostRefused("too_long", text)

    def _input(self, session: HostSession, frame: bytes, tokens: int) -> torch.Tensor:
        part = session.part
        if session.start == 0:
            if len(frame) != 4 * tokens:
                raise BadFrame(f"{tokens} token ids are {4 * tokens} bytes, not {len(frame)}")
            return part.embed(token_ids(frame))
        return activation.decode(frame, part.source.sizes.hidden, part.dtype, part.device, tokens)

    def export_bytes(self, who: Who, asked: Export) -> int:
        """Bytes that an export brings. Raises as `export`."""
        session = self.sessions.the(who, asked.session, asked.grant)
        self._within(session, asked.start, asked.stop)
        return session.length * (asked.stop - asked.start) * session.part.kv_layout.bytes_per_token

    def export(self, who: Who, asked: Export, now_s: float) -> list[bytes]:
        """KV of layers [start, stop), a frame each. Raises Refused and BadFrame."""
        session = self.sessions.the(who, asked.session, asked.grant)
        self._within(session, asked.start, asked.stop)
        session.used_s = now_s
        return [session.cache.export(layer) for layer in range(asked.start, asked.stop)]

    def check_import(self, who: Who, asked: Import, frames: Sequence[bytes]) -> int:
        """Tokens that an import brings, after what can be said without a look at its values. Raises as `take`."""
        session = self.sessions.the(who, asked.session)
        self._within(session, asked.start, asked.stop)
        if len(frames) != asked.stop - asked.start:
            raise BadFrame(f"KV of layers [{asked.start}, {asked.stop}) in {len(frames)} frames")
        tokens = {claimed(frame) for frame in frames}
        if len(tokens) != 1 or any(len(frame) != len(frames[0]) for frame in frames):
            raise BadFrame("KV of layers that have seen different numbers of tokens")
        self._may_have(session, *tokens)
        return tokens.pop()

    def take(self, who: Who, asked: Import, frames: Sequence[bytes], now_s: float) -> None:
        """Put KV in. Raises Refused and BadFrame."""
        tokens = self.check_import(who, asked, frames)
        session = self.sessions.the(who, asked.session)
        session.used_s = now_s
        taken = KvCache()
        for layer, frame in enumerate(frames, asked.start):
            taken.take(frame, layer, session.part.kv_layout)
        session.cache.adopt(taken, range(asked.start, asked.stop))
        session.length = tokens

    def adopt(self, who: Who, asked: Pull, now_s: float) -> None:
        """Take KV of layers [start, stop) over from another session here. Raises Refused and BadFrame."""
        session, source = self.sessions.the(who, asked.session), self.sessions.the(who, asked.source, asked.grant)
        self._within(session, asked.start, asked.stop)
        self._within(source, asked.start, asked.stop)
        if session.part is not source.part:
            raise HostRefused("unknown_model", f"session '{asked.source}' is of another model")
        # of a step of it that is half done nothing is taken over
        tokens = {min(source.length, source.cache.tokens(layer)) for layer in range(asked.start, asked.stop)}
        if len(tokens) != 1:
            raise BadFrame("KV of layers that have seen different numbers of tokens")
        self._may_have(session, *tokens)
        session.used_s = source.used_s = now_s
        session.cache.adopt(source.cache, range(asked.start, asked.stop), source.length)
        session.length = session.cache.length

    def _may_have(self, session: HostSession, tokens: int) -> None:
        """Raise where a session cannot have the KV of so many tokens."""
        if session.cache.layers and tokens != session.length:
            raise BadFrame(f"KV of {tokens} tokens beside layers that have {session.length}")
        if tokens > most_tokens(session.part):
            raise HostRefused("too_long", f"KV of {tokens} tokens: the model has {most_tokens(session.part)} positions")
        self._afford(session, tokens)

    def _within(self, session: HostSession, start: int, stop: int) -> None:
        if not session.start <= start < stop <= session.stop:
            raise HostRefused("bad_route", f"layers [{start}, {stop}) are not within [{session.start}, {session.stop})")

    def _afford(self, session: HostSession, tokens: int) -> None:
        """Raise Refused where a session cannot have the KV cache of so many tokens, in whole pages."""
        used, own = self.sessions.kv_bytes(session.owner)
        limits, more_bytes = self.limits, paged(tokens) * session.bytes_per_token - session.kv_bytes
        if more_bytes <= 0:
            return
        if own + more_bytes > limits.kv_bytes_each:
            each = limits.kv_bytes_each
            raise HostRefused("memory", f"KV caches hold {own} of {each} bytes of yours; {more_bytes} more are not")
        lacking = used + more_bytes - limits.kv_bytes
        if lacking > 0 and not self._evict(self.sessions.rooms(session.owner, more_bytes, lacking)):
            text = f"KV caches hold {used} of {limits.kv_bytes} bytes; {more_bytes} more are not"
            raise HostRefused("memory", text)
        if session.part.device.type == "cpu" and spare_bytes() < limits.spare_bytes + more_bytes:
            raise HostRefused("memory", f"this machine has less than {limits.spare_bytes} bytes of memory to spare")

    def _part(self, model: str) -> Part:
        if model not in self._parts:
            raise BadModel(f"model '{model}' is not known here; known: {', '.join(self._parts)}")
        return self._parts[model]

    def report(self, name: str, who: Who | None = None) -> HostReport:
        """Say what is held and what was done. who: whose sessions to name, None: all."""
        models = {
            key: ModelHeld(
                fingerprint=p.source.fingerprint, layers=tuple(p.layers), weight_bytes=p.weight_bytes
            )
            for key, p in self._parts.items()
        }  # fmt: skip
        with self.sessions.lock:
            return HostReport(
                name=name,
                models=models,
                sessions=self.sessions.lengths(who),
                kv_bytes=sum(s.kv_bytes for s in self.sessions),
                steps=self._steps,
                tokens=self._tokens,
                busy_s=self._busy_s,
                refused=0,
                load_s_per_layer=self._loaded_s / self._loaded_layers if self._loaded_layers else 0.0,
                expired=self._expired,
                evicted=self._evicted,
            )


def most_tokens(part: Part) -> int:
    """Positions that a model has."""
    return int(part.source.config.max_position_embeddings)


def check_key(public: str) -> None:
    """Raise Refused for a CURVE key that is none; "" is a plain connection."""
    try:
        if public:
            check_public(public)
    except BadInput as error:
        raise HostRefused("bad_route", str(error)) from None


def token_ids(frame: bytes) -> list[int]:
    """Decode token ids."""
    found: list[int] = torch.frombuffer(bytearray(frame), dtype=torch.int32).tolist()
    return found


def token_frame(tokens: Sequence[int]) -> bytes:
    """Encode token ids: int32, little endian on the machines that torch runs on."""
    return raw_bytes(torch.tensor(list(tokens), dtype=torch.int32))
