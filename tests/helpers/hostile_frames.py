"""Seeded hostile messages for a host: random, mutated, nested, overstated, not finite, and about others' sessions.

`decoded(data)` is the pure way in for a fuzzer: bytes to what a host makes of them, without socket or session.
"""

from __future__ import annotations

import contextlib
import struct
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from runtime_cases import HIDDEN, LAYERS, PROMPT, SEED, VOCAB

from cosched.runtime import activation, kv
from cosched.runtime.chain import Hop, Links, Route
from cosched.runtime.engine import token_frame, token_ids
from cosched.runtime.errors import BadFrame, HostRefused
from cosched.runtime.generation import Generation
from cosched.runtime.host import LayerHost
from cosched.runtime.kv import KvCache, KvLayout
from cosched.runtime.link import Link
from cosched.runtime.model import ModelSource, open_model
from cosched.runtime.parts import Part
from cosched.runtime.peers import check_endpoint
from cosched.runtime.protocol import (
    Body,
    Close,
    Export,
    HostAnswer,
    HostRequest,
    Import,
    Look,
    Onward,
    Open,
    Pull,
    Step,
    answer_of,
    frames_of,
    request_of,
)
from cosched.runtime.sampling import Sampling, choose
from telemetry.calls import Caller, wait_for

CPU, F32 = torch.device("cpu"), torch.float32
LAYOUT = KvLayout(2, HIDDEN // 8, F32, CPU)
Message = list[bytes]


def decoded(data: bytes) -> str:
    """What a host makes of bytes: two that say how many go into the first frame (big endian), the rest is the second.

    Returns what became of them; raises nothing but defects. Pure: a request or an answer is decoded and validated, its
    tensor as activation, KV cache or token ids, and a token is drawn with its sampling.
    """
    cut = 2 + int.from_bytes(data[:2])
    frames = [data[2:cut], data[cut:]]
    with contextlib.suppress(BadFrame):
        answer_of(frames)
    try:
        body = request_of(frames).body
        match body:
            case Open():
                if body.onward is not None:
                    check_endpoint(body.onward.endpoint, "tcp://*")
                logits = torch.frombuffer(bytearray(frames[1][:1024]), dtype=F32) if len(frames[1]) >= 1024 else None
                if logits is not None:
                    assert 0 <= choose(logits, body.sampling, 3) < 256
            case Step() if len(frames[1]) == 4 * body.tokens:
                token_ids(frames[1])
            case Step():
                found = activation.decode(frames[1], HIDDEN, F32, CPU, min(body.tokens, 512))
                assert bool(torch.isfinite(found).all())
            case Import():
                cache = KvCache()
                cache.take(frames[1], body.start, LAYOUT)
                assert cache.length == kv.claimed(frames[1])
            case Pull():
                check_endpoint(body.endpoint, "tcp://*")
    except (BadFrame, HostRefused) as error:
        return type(error).__name__
    return type(body).__name__


@dataclass
class Attacker:
    """Makes hostile messages. victim: names of sessions that belong to somebody else. Same seed, same messages."""

    source: ModelSource
    victim: list[str]
    seed: int
    made: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self._number = 0
        self._kinds: list[Callable[[], Message]] = [
            self.random, self.random, self.mutated, self.mutated, self.mutated, self.mutated, self.nested, self.claims,
            self.not_finite, self.shapes, self.negative, self.foreign, self.foreign, self.opening, self.opening,
            self.far, self.odd_steps, self.partial_kv,
        ]  # fmt: skip

    def message(self) -> Message:
        """Return the next one."""
        make = self._kinds[int(self.rng.integers(len(self._kinds)))]
        self.made[make.__name__] = self.made.get(make.__name__, 0) + 1
        return make()

    def _bytes(self, most: int) -> bytes:
        return self.rng.bytes(int(self.rng.integers(most)))

    def _int(self, least: int, above: int) -> int:
        return int(self.rng.integers(least, above))

    def _own(self) -> str:
        return f"own{self._int(0, 8)}"

    def ask(self, body: Body, *tensors: bytes) -> Message:
        self._number += 1
        return frames_of(HostRequest(id=self._number, body=body), list(tensors))

    def raw(self, body: dict[str, object], *tensors: bytes) -> Message:
        """A request whose fields no type has held."""
        self._number += 1
        return [msgspec.msgpack.encode({"id": self._number, "v": 1, "body": body}), *tensors]

    def random(self) -> Message:
        return [self._bytes(200) for _ in range(self._int(1, 5))]

    def valid(self) -> Message:
        """Return a message that may well be taken."""
        own, start = self._own(), self._int(0, LAYERS)
        tokens = self._int(1, 4)
        pair = torch.ones(1, 2, tokens, HIDDEN // 8)
        cache = KvCache()
        cache.update(pair, pair, start)
        bodies: list[Message] = [
            self.ask(Look()),
            self.ask(Close(session=own)),
            self.open(own, start, Sampling(temperature=0.7, top_k=5)),
            self.ask(Step(session=own, position=0, tokens=tokens, choose=True), token_frame(range(tokens))),
            self.ask(
                Step(session=own, position=0, tokens=tokens, choose=True, logits=True),
                activation.encode(torch.ones(1, tokens, HIDDEN), (32, 16, 8, 4)[self._int(0, 4)]),
            ),
            self.ask(Import(session=own, start=start, stop=start + 1), cache.export(start)),
            self.ask(Export(session=own, start=start, stop=LAYERS)),
            self.ask(Pull(session=own, start=start, stop=LAYERS, source=self._own())),
        ]
        return bodies[self._int(0, len(bodies))]

    def open(
        self, name: str, start: int, sampling: Sampling, onward: Onward | None = None, stop: int = LAYERS
    ) -> Message:
        return self.ask(
            Open(
                session=name, task="t", model=self.source.name, fingerprint=self.source.fingerprint, start=start,
                stop=stop, sampling=sampling, onward=onward,
            )
        )  # fmt: skip

    def mutated(self) -> Message:
        frames = [bytearray(frame) for frame in self.valid()]
        for _ in range(self._int(1, 4)):
            frame = frames[self._int(0, len(frames))]
            at = self._int(0, len(frame) + 1)
            match self._int(0, 4):
                case 0:
                    del frame[at : at + self._int(0, 9)]
                case 1:
                    frame[at:at] = self._bytes(9)
                case _ if at < len(frame):
                    frame[at] ^= 1 << self._int(0, 8)
        return [bytes(frame) for frame in frames]

    def nested(self) -> Message:
        depth, kind = 10 ** self._int(2, 5), self._int(0, 3)
        inner = [b"\x91", b"\x81\xa1x", b"\x81\xa4body"][kind] * depth
        return [[b"", b"\x83\xa2id\x01\xa1y", b"\x82\xa4body"][kind] + inner]

    def claims(self) -> Message:
        """Lengths and shapes far beyond what is there."""
        own = self._own()
        head = activation.HEAD.pack(b"cAc1", 32, 0, self._int(1, 1 << 20), (HIDDEN, 1 << 31)[self._int(0, 2)], 0)
        kv_head = kv.HEAD.pack(b"cKV1", 0, 0, 2, 8, (1 << 32) - 1, 0)
        return [
            [b"\xdf\xff\xff\xff\xff"],
            [b"\x82\xa1x\xdd\xff\xff\xff\xff"],
            [b"\x82\xa2id\xc6\xff\xff\xff\xff"],
            self.ask(Step(session=own, position=0, tokens=1 << 20), head),
            self.ask(Step(session=own, position=0, tokens=1), head + self._bytes(64)),
            self.ask(Import(session=own, start=0, stop=1), kv_head + self._bytes(64)),
            self.ask(Import(session=own, start=0, stop=LAYERS), *[kv_head] * 900),
            self.ask(Look(), *[b""] * 2_000),
        ][self._int(0, 8)]

    def not_finite(self) -> Message:
        own, bad = self._own(), (torch.nan, torch.inf, -torch.inf, 3e38)[self._int(0, 4)]
        kind = self._int(0, 3)
        if kind == 0:
            values = torch.ones(1, 1, HIDDEN)
            values[0, 0, self._int(0, HIDDEN)] = bad
            return self.ask(Step(session=own, position=0, tokens=1, choose=True), forged(values))
        if kind == 1:
            cache, pair = KvCache(), torch.full((1, 2, 1, HIDDEN // 8), float(bad))
            cache.update(pair, pair, 0)
            return self.ask(Import(session=own, start=0, stop=1), cache.export(0))
        temperature = (float("nan"), float("inf"), 1e-320, -1.0, 5e-324)[self._int(0, 5)]
        opened = msgspec.to_builtins(Sampling(seed=1)) | {"temperature": temperature}
        return self.raw(
            {"type": "Open", "session": own, "task": "t", "model": self.source.name, "start": 0, "stop": LAYERS,
             "fingerprint": self.source.fingerprint, "sampling": opened}
        )  # fmt: skip

    def shapes(self) -> Message:
        """Wrong dtypes, widths and layers."""
        own, payload = self._own(), bytes(self._int(0, 600))
        bits, half = self._int(0, 40), self._int(0, 4)
        frame = activation.HEAD.pack(b"cAc1", bits, half, self._int(0, 4), self._int(0, 130), 0) + payload
        pair = kv.HEAD.pack(b"cKV1", self._int(0, 5), self._int(0, 9), 2, 8, self._int(0, 4), 0) + payload
        if self._int(0, 2):
            return self.ask(Step(session=own, position=0, tokens=1), frame)
        return self.ask(Import(session=own, start=0, stop=1), pair)

    def negative(self) -> Message:
        own, n = self._own(), (-1, -(2**63), 2**63, 2**64 - 1, 2**24, 1.5)[self._int(0, 6)]
        step = {"type": "Step", "session": own, "position": n, "tokens": 1}
        more = {"type": "Step", "session": own, "position": 0, "tokens": n}
        layers = {"type": "Export", "session": own, "start": n, "stop": LAYERS}
        ids = self.ask(
            Step(session=own, position=0, tokens=1), struct.pack("<i", (-1, VOCAB, 2**31 - 1)[self._int(0, 3)])
        )
        return [self.raw(step, b"\0" * 4), self.raw(more, b"\0" * 4), self.raw(layers), ids][self._int(0, 4)]

    def foreign(self) -> Message:
        """About a session of somebody else, by its true name, with grants that are guessed."""
        name, grant = self.victim[self._int(0, len(self.victim))], self.rng.bytes(16).hex()
        return [
            self.ask(Close(session=name)),
            self.ask(Export(session=name, start=0, stop=LAYERS, grant=grant)),
            self.ask(Step(session=name, position=self._int(0, 90), tokens=1, grant=grant), token_frame([1])),
            self.ask(Import(session=name, start=0, stop=1), b""),
            self.ask(Pull(session=self._own(), start=0, stop=LAYERS, source=name, grant=grant)),
            self.ask(Pull(session=name, start=0, stop=LAYERS, source=self._own())),
            self.open(name, 0, Sampling()),
        ][self._int(0, 7)]

    def opening(self) -> Message:
        """Many names, and a few that are used."""
        name = self._own() if self._int(0, 2) else self.rng.bytes(8).hex()
        return self.open(name, self._int(0, 2) * 2, Sampling(temperature=1e-320, seed=3))

    def far(self) -> Message:
        """Routes over hosts that are none of a client's business, or none at all."""
        endpoint = [
            "inproc://zeromq.zap.01", "ipc:///run/cosched/control.sock", "tcp://127.0.0.1:1", "tcp://*:5", "x" * 120,
            "tcp://a.name:5", "tcp://127.0.0.1:99999", "tcp://127.0.0.1:1;127.0.0.1:2", "tcp://[::1]:1\0",
        ][self._int(0, 9)]  # fmt: skip
        key = ["", "#" * 40, "k" * 39, "a" * 40][self._int(0, 4)]
        if self._int(0, 2):
            return self.ask(Pull(session=self._own(), start=0, stop=1, source="s", endpoint=endpoint, server_key=key))
        bits = self._int(1, 33)
        onward = Onward(endpoint=endpoint, session="s", precision_bits=bits, server_key=key)
        return self.open(f"far{self._int(0, 4)}", 0, Sampling(), onward, 3)

    def odd_steps(self) -> Message:
        """Steps along those routes, long ones, and ones that do not fit."""
        name = [f"far{self._int(0, 4)}", self._own()][self._int(0, 2)]
        tokens = (1, 2, 16, 100)[self._int(0, 4)]
        frame = token_frame([self._int(0, VOCAB)] * tokens)
        return self.ask(Step(session=name, position=self._int(0, 3), tokens=tokens, choose=True, logits=True), frame)

    def partial_kv(self) -> Message:
        """KV of some layers alone, then a step on all."""
        own = self._own()
        if self._int(0, 2):
            return self.ask(Step(session=own, position=5, tokens=1, choose=True), token_frame([1]))
        cache, pair = KvCache(), torch.ones(1, 2, 5, HIDDEN // 8)
        cache.update(pair, pair, 0)
        return self.ask(Import(session=own, start=0, stop=1), cache.export(0))


def opened(source: ModelSource, **other: object) -> Open:
    asked = Open(session="s", task="t", model=source.name, fingerprint=source.fingerprint, start=0, stop=LAYERS)
    return msgspec.structs.replace(asked, **other)


def refusal(link: Link, body: object, tensors: tuple[bytes, ...] = ()) -> str:
    with pytest.raises(HostRefused) as caught:
        link.ask(body, tensors)  # type: ignore[arg-type]
    return caught.value.code


def asked(caller: Caller, message: list[bytes], patience_s: float) -> list[HostAnswer]:
    caller.send(message)
    wait_for([caller], patience_s)
    return [answer_of(frames) for frames in caller.drain()]


def generates(host: LayerHost, source: ModelSource, expected: list[int], split: int = 2) -> None:
    """Whoever comes now is served, with the right tokens."""
    links = Links()
    run = Generation(Part(source), "after", PROMPT, Route(split, (Hop(host.endpoint, LAYERS),), 32), links)
    assert list(run.stream(len(expected))) == expected
    run.close()
    links.close()
    assert host.is_serving
    assert host.report().failed == 0


def forged(values: torch.Tensor, bits: int = 32) -> bytes:
    """An activation's frame with values that `encode` would not take; 8 and 4 bits: with a scale that is infinite."""
    _, tokens, width = values.shape
    if bits == 32:
        payload = kv.raw_bytes(values)
    elif bits == 16:
        payload = kv.raw_bytes(values.half())
    else:
        scale = struct.pack("<e", float("inf"))
        payload = scale * tokens + b"\x11" * (tokens * width * bits // 8)
    return activation.HEAD.pack(b"cAc1", bits, 0, tokens, width, zlib.crc32(payload)) + payload


def flood(endpoint: str, attackers: list[Attacker], count: int, patience_s: float = 60.0) -> int:
    """Send `count` messages, some under way at a time; return how many were never answered."""
    callers = [Caller(endpoint) for _ in attackers]
    under_way, lost, sent = [0] * len(callers), 0, 0
    heard_s = time.monotonic()
    while sent < count or any(under_way):
        for i, caller in enumerate(callers):
            while sent < count and under_way[i] < 50:
                caller.send(attackers[i].message())
                under_way[i] += 1
                sent += 1
        wait_for(callers, 1.0)
        for i, caller in enumerate(callers):
            got = len(caller.drain())
            under_way[i] -= got
            heard_s = time.monotonic() if got else heard_s
            if caller.lost() or time.monotonic() - heard_s > patience_s:
                lost, under_way[i] = lost + under_way[i], 0
                caller.close()
                callers[i] = Caller(endpoint)
    for caller in callers:
        caller.close()
    return lost


def main() -> None:
    """ENDPOINT CONFIG NAMES: send as many messages as each line of stdin says; print how many had no answer."""
    endpoint, config, names = sys.argv[1:]
    made = [Attacker(open_model(config, seed=SEED, name="llama"), [], seed) for seed in range(3)]
    for line in sys.stdin:
        lost, count = 0, int(line)
        while count:
            for attacker in made:
                attacker.victim = Path(names).read_text().split()[-4:]
            lost += flood(endpoint, made, min(count, 5_000))
            count -= min(count, 5_000)
        sys.stdout.write(f"{lost}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
