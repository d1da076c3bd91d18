"""A host under attack: nothing that a peer sends ends it, or keeps others from being served."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import msgspec
import psutil
import pytest
from checkout import HELPERS

torch = pytest.importorskip("torch", reason="the extra [llm] is not installed")

import runtime_cases as cases
from hostile_frames import Attacker, asked, decoded, forged, generates, opened, refusal

from cosched.errors import BadInput
from cosched.runtime import activation
from cosched.runtime.chain import Hop, Links, Route
from cosched.runtime.engine import HostLimits, token_frame
from cosched.runtime.errors import BadFrame
from cosched.runtime.generation import Generation
from cosched.runtime.host import LayerHost
from cosched.runtime.kv import KvCache
from cosched.runtime.limits import limits_of
from cosched.runtime.link import Link
from cosched.runtime.model import ModelSource
from cosched.runtime.parts import Part
from cosched.runtime.protocol import HostAnswer, Import, Look, Step
from cosched.runtime.sampling import Sampling
from telemetry.calls import Caller
from telemetry.errors import BadEndpoint

L = cases.LAYERS
FRAMES = int(os.environ.get("COSCHED_HOSTILE_FRAMES", "100000"))  # of the flood
GRANT = "0123456789abcdef"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return cases.seeded(tmp_path_factory.mktemp("model"))


@pytest.fixture
def host(source: ModelSource) -> Iterator[LayerHost]:
    with cases.host_threads(source, 1) as (one,):
        yield one


@pytest.fixture
def link(host: LayerHost) -> Iterator[Link]:
    found = Link(host.endpoint)
    yield found
    found.close()


@pytest.fixture
def other(host: LayerHost) -> Iterator[Link]:
    """A second connection: somebody else."""
    found = Link(host.endpoint)
    yield found
    found.close()


def raw(endpoint: str, *messages: list[bytes], patience_s: float = 20.0) -> list[HostAnswer]:
    """Send messages as they are on one connection; return an answer to each."""
    caller = Caller(endpoint)
    try:
        return [one for message in messages for one in asked(caller, message, patience_s)]
    finally:
        caller.close()


# --- what a message may be -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", [b"\x91", b"\x81\xa1x", b"\xc1"], ids=["arrays", "maps", "reserved"])
def test_nesting_is_answered_however_deep(inner: bytes, host: LayerHost, source: ModelSource) -> None:
    for depth in (10, 1_000, 20_000, 40_000):
        (answer,) = raw(host.endpoint, [b"\x82\xa1x" + inner * depth])
        assert answer.error == "bad_request"
    assert host.report().refused_by == {f"connection {n}": {"bad_request": 1} for n in range(1, 5)}
    generates(host, source, cases.reference_tokens_of(source, 3))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 3e38])
def test_values_that_are_not_finite_or_become_so_are_refused(value: float, source: ModelSource, link: Link) -> None:
    link.ask(opened(source, start=1))
    good = forged(torch.ones(1, 1, cases.HIDDEN))
    link.ask(Step(session="s", position=0, tokens=1), (good,))
    second = Step(session="s", position=1, tokens=1, choose=True)
    frames = [forged(torch.full((1, 1, cases.HIDDEN), value))]
    if value != 3e38:
        frames += [forged(torch.full((1, 1, cases.HIDDEN), value), bits) for bits in (16, 8, 4)]
        for frame in frames:
            with pytest.raises(BadFrame, match="an activation that is not finite"):
                activation.decode(frame, cases.HIDDEN, torch.float32, torch.device("cpu"))
    else:  # squared in the norms, it overflows in the layers; in a smaller dtype, at once
        frames[0] = forged(torch.linspace(-value, value, cases.HIDDEN).view(1, 1, -1))
        with pytest.raises(BadFrame, match="an activation that is not finite"):
            activation.decode(frames[0], cases.HIDDEN, torch.float16, torch.device("cpu"))
    silent = msgspec.structs.replace(second, choose=False)  # nobody looks at what comes out, but it stays in the cache
    codes = {refusal(link, step, (frame,)) for frame in frames for step in (second, silent)}
    assert codes == {"bad_frame"}
    cache, pair = KvCache(), torch.full((1, 2, 1, 8), value if value != 3e38 else torch.nan)
    cache.update(pair, pair, 1)
    assert refusal(link, Import(session="s", start=1, stop=2), (cache.export(1),)) == "bad_frame"
    assert 0 <= link.ask(second, (good,))[0].token < cases.VOCAB


@pytest.mark.parametrize("temperature", [1e-320, 5e-324, 1e-30, 1e-3, 100.0])
def test_any_temperature_chooses_a_token(temperature: float, host: LayerHost, source: ModelSource, link: Link) -> None:
    link.ask(opened(source, sampling=Sampling(temperature=temperature, seed=3, top_k=9)))
    step = Step(session="s", position=0, tokens=2, choose=True, logits=True)
    answer, frames = link.ask(step, (token_frame([1, 2]),))
    logits = torch.frombuffer(bytearray(frames[0]), dtype=torch.float32)
    assert answer.token in logits.topk(9).indices
    assert temperature > 1e-3 or answer.token == int(logits.argmax())
    assert host.report().failed == 0


def test_kv_of_some_layers_alone_or_of_no_token_is_not_computed_with(source: ModelSource, link: Link) -> None:
    link.ask(opened(source))
    cache, pair = KvCache(), torch.ones(1, 2, 5, 8)
    for layer in range(L):
        cache.update(pair, pair, layer)
    link.ask(Import(session="s", start=0, stop=1), (cache.export(0),))
    step = Step(session="s", position=5, tokens=1, choose=True)
    assert refusal(link, step, (token_frame([1]),)) == "out_of_step"
    empty = cache.export(1)[:12] + bytes(8)
    assert refusal(link, Import(session="s", start=1, stop=2), (empty,)) == "bad_frame"
    link.ask(opened(source, session="fresh"))
    assert refusal(link, Import(session="fresh", start=1, stop=2), (empty,)) == "bad_frame"
    shorter = KvCache()
    shorter.update(pair[:, :, :4], pair[:, :, :4], 1)
    assert refusal(link, Import(session="s", start=1, stop=2), (shorter.export(1),)) == "bad_frame"
    mixed = (cache.export(1), *(cache.export(layer) for layer in range(2, L - 1)), shorter.export(1))
    assert refusal(link, Import(session="s", start=1, stop=L), mixed) == "bad_frame"
    link.ask(Import(session="s", start=1, stop=L), [cache.export(layer) for layer in range(1, L)])
    assert 0 <= link.ask(step, (token_frame([1]),))[0].token < cases.VOCAB


def test_steps_have_a_length_and_models_their_positions(source: ModelSource) -> None:
    with cases.host_threads(source, 1, HostLimits(step_tokens=300)) as (host,):
        link = Link(host.endpoint)
        link.ask(opened(source))
        assert refusal(link, Step(session="s", position=0, tokens=301), (token_frame([1] * 301),)) == "too_long"
        for at in range(0, 900, 300):
            link.ask(Step(session="s", position=at, tokens=300), (token_frame([1] * 300),))
        assert refusal(link, Step(session="s", position=900, tokens=125), (token_frame([1] * 125),)) == "too_long"
        link.ask(Step(session="s", position=900, tokens=124), (token_frame([1] * 124),))
        link.close()


def test_a_fuzzers_way_in_says_what_became_of_bytes(source: ModelSource) -> None:
    attacker = Attacker(source, ["a"], 5)
    seen = set()
    for _ in range(3_000):
        message = attacker.message()
        head = message[0][: (1 << 16) - 1]
        seen.add(decoded(len(head).to_bytes(2) + head + (message[1] if len(message) > 1 else b"")))
    assert {"BadFrame", "HostRefused", "Open", "Step", "Import", "Close"} <= seen


# --- what nobody foresaw ---------------------------------------------------------------------------------------------


def test_a_defect_is_answered_logged_and_counted_and_ends_nothing(
    host: LayerHost, source: ModelSource, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    link.ask(opened(source))
    step = Step(session="s", position=0, tokens=1, choose=True)
    with monkeypatch.context() as patch:
        patch.setattr(host.engine, "step", lambda *_: 1 // 0)
        assert refusal(link, step, (token_frame([1]),)) == "internal"
    with monkeypatch.context() as patch:  # in the layers: the cache is as it was
        patch.setattr(Part, "logits", lambda *_: 1 // 0)
        assert refusal(link, step, (token_frame([1]),)) == "internal"
    with monkeypatch.context() as patch:  # outside of any request
        patch.setattr(host._peers, "turn", lambda _: 1 // 0)
        until_s = time.monotonic() + 20
        while host.report().failed < 300 and time.monotonic() < until_s:
            link.ask(Look())  # served meanwhile
    assert 0 <= link.ask(step, (token_frame([1]),))[0].token < cases.VOCAB
    report = host.report()
    assert report.failed >= 300
    assert report.refused_by == {"connection 1": {"internal": 2}}
    assert any("ZeroDivisionError" in line and "a defect" in line for line in host.news.take())


def test_limits_are_read_or_refused_with_the_nearest() -> None:
    assert limits_of(["sessions_each=3", "idle_s=2.5"]) == HostLimits(sessions_each=3, idle_s=2.5)
    with pytest.raises(BadInput, match=r"limit 'session_each=3': .*nearest is sessions_each"):
        limits_of(["session_each=3"])
    for bad in ("idle_s=nan", "idle_s=inf", "sessions=-1", "sessions=many"):
        with pytest.raises(BadInput, match=r"^limits: "):
            limits_of([bad])


def test_more_connections_than_descriptors_end_nothing(tmp_path: Path) -> None:
    """Strangers take all descriptors: who is connected is served meanwhile, and newcomers once they are gone."""
    source, host = cases.seeded(tmp_path), cases.HostProcess(tmp_path, "edge0")
    crowd: list[socket.socket] = []
    try:
        endpoint = host.endpoint()
        resource.prlimit(host.process.pid, resource.RLIMIT_NOFILE, (128, 128))
        early = Link(endpoint)
        early.ask(opened(source))
        address, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        with contextlib.suppress(OSError):
            for _ in range(300):
                crowd.append(socket.create_connection((address, int(port)), timeout=1.0))  # noqa: PERF401  # until it fails
        assert len(crowd) > 128
        early.ask(Step(session="s", position=0, tokens=1), (token_frame([1]),))
        for one in crowd:
            one.close()
        late = Link(endpoint)
        late.ask(opened(source))
        for link in (early, late):
            link.close()
    finally:
        for one in crowd:
            one.close()
        host.kill()


def test_a_host_serves_over_tcp_alone(source: ModelSource, tmp_path: Path) -> None:
    host = LayerHost("edge0", [source], bind=[f"ipc://{tmp_path}/host.sock"])
    with pytest.raises(BadEndpoint, match="a host serves over tcp"):
        host.start()


# --- all of it at once -----------------------------------------------------------------------------------------------


class Bystander:
    """Generates on the host under attack, again and again, and times each token. names: file of its sessions."""

    def __init__(self, source: ModelSource, endpoint: str, expected: list[int], names: Path) -> None:
        self._source, self._endpoint, self._expected, self._names = source, endpoint, expected, names
        self.seconds: list[float] = []
        self.runs = 0
        self.wrong = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True)

    def __enter__(self) -> Self:
        self._names.write_text("nobody\n")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(60)

    def wait_for(self, runs: int) -> None:
        """Wait for so many more runs that gave the right tokens."""
        until, until_s = self.runs + runs, time.monotonic() + 120
        while self.runs < until:
            assert not self.wrong
            assert time.monotonic() < until_s, "it is not served"
            time.sleep(0.02)

    def _live(self) -> None:
        try:
            links = Links()
            while not self._ended.is_set():
                self._run(links)
            links.close()
        except Exception as error:  # noqa: BLE001
            self.wrong = repr(error)

    def _run(self, links: Links) -> None:
        route = Route(2 * (self.runs % 2), (Hop(self._endpoint, L),), 32)
        run = Generation(Part(self._source), "by", cases.PROMPT, route, links, chunk_tokens=cases.CHUNK)
        with self._names.open("a") as file:
            file.write(f"{run._name}.1.0\n")
        while len(run.output) < len(self._expected):
            began_s = time.perf_counter()
            run.advance()
            self.seconds.append(time.perf_counter() - began_s)
        if run.output != self._expected or run.is_local:
            raise AssertionError(f"run {self.runs}: {run.output}")
        run.close()
        self.runs += 1


@contextlib.contextmanager
def attackers(endpoint: str, config: Path, names: Path) -> Iterator[Callable[[int], int]]:
    """Connections of a process of its own; call with how many messages to send: returns how many had no answer."""
    command = [sys.executable, str(HELPERS / "hostile_frames.py"), endpoint, str(config), str(names)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        into, out = process.stdin, process.stdout

        def send(count: int) -> int:
            into.write(f"{count}\n")
            into.flush()
            return int(out.readline())

        yield send
        into.close()


@pytest.mark.slow
def test_a_flood_of_hostile_frames_leaves_memory_flat_and_a_bystander_served(tmp_path: Path) -> None:
    source = cases.seeded(tmp_path)
    expected = cases.reference_tokens(tmp_path, "llama", 24)
    host, names = cases.HostProcess(tmp_path, "edge0", "requests_per_s=1e9", "sessions_each=16"), tmp_path / "names"
    try:
        endpoint = host.endpoint()
        process = psutil.Process(host.process.pid)
        with Bystander(source, endpoint, expected, names) as calm:
            with attackers(endpoint, tmp_path / "llama.json", names) as send:
                send(0)
                calm.wait_for(4)
                quiet = list(calm.seconds)
                lost = send(FRAMES // 5)
                rss, began, began_s = [process.memory_info().rss], len(calm.seconds), time.perf_counter()
                for _ in range(4):
                    lost += send(FRAMES // 5)
                    rss.append(process.memory_info().rss)
                took_s, busy = time.perf_counter() - began_s, calm.seconds[began:]
            calm.wait_for(2)
        links = Links()
        report = links.to(Hop(endpoint, L)).ask(Look())[0].report
        links.close()
        assert report is not None
    finally:
        host.kill()
    p99 = {name: 1e3 * sorted(s)[int(0.99 * len(s))] for name, s in (("quiet", quiet), ("flood", busy))}
    reasons = sum((Counter(counts) for counts in report.refused_by.values()), Counter[str]())
    said = f"{FRAMES} frames, {0.8 * FRAMES / took_s:.0f} a second; RSS {[r >> 20 for r in rss]} MiB; p99 {p99} ms; "
    said += f"{calm.runs} runs, {lost} lost, {report.refused} refused, {report.failed} failed: {dict(reasons)}"
    sys.stderr.write(f"\n{said}\n")
    assert report.failed == 0
    assert lost == 0, "messages without an answer"
    assert rss[-1] - rss[0] < 24 << 20
