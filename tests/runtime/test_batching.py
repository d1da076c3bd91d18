"""A host that runs steps of several sessions as one: what each gets, and what one does to the others."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

torch = pytest.importorskip("torch", reason="the extra [llm] is not installed")

import runtime_cases as cases

from cosched.runtime import activation, engine
from cosched.runtime.engine import HostLimits, token_frame
from cosched.runtime.errors import HostRefused
from cosched.runtime.host import LayerHost
from cosched.runtime.kv import KvCache
from cosched.runtime.link import Link
from cosched.runtime.model import ModelSource
from cosched.runtime.parts import Part
from cosched.runtime.protocol import Close, Look, Open, Step

L = cases.LAYERS


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return cases.seeded(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def part(source: ModelSource) -> Part:
    found = Part(source)
    found.load(0, L)
    return found


def opened(source: ModelSource, session: str, start: int = 0, task: str = "t") -> Open:
    return Open(
        session=session, task=task, model=source.name, fingerprint=source.fingerprint, start=start, stop=L
    )  # fmt: skip


class Script:
    """A session alone: the frame and the logits of each of its steps, given its greedy past."""

    def __init__(self, part: Part, start: int, prompt: list[int], n_steps: int) -> None:
        self.start, self.sizes, self.frames = start, [len(prompt)] + [1] * (n_steps - 1), list[bytes]()
        self.logits, tokens, below, above = list[torch.Tensor](), prompt, KvCache(), KvCache()
        for _ in range(n_steps):
            hidden = part.run(part.embed(tokens), below, 0, start) if start else part.embed(tokens)
            self.frames.append(activation.encode(hidden, 32) if start else token_frame(tokens))
            self.logits.append(part.logits(part.run(hidden, above, start, L)[:, -1:])[0, -1])
            tokens = [int(self.logits[-1].argmax())]

    def step(self, session: str, at: int) -> tuple[Step, list[bytes]]:
        body = Step(
            session=session, position=sum(self.sizes[:at]), tokens=self.sizes[at], choose=True, logits=True
        )  # fmt: skip
        return body, [self.frames[at]]


def scripts(part: Part, n: int, n_steps: int = 8) -> list[Script]:
    prompts = [[(k + 3) * (17 * i + 5) % cases.VOCAB for i in range(5 + 9 * k % 31)] for k in range(n)]
    return [Script(part, (0, 2, 2, 4, 5)[k % 5], prompt, n_steps) for k, prompt in enumerate(prompts)]


@contextmanager
def together(host: LayerHost, n: int) -> Iterator[list[list[tuple[str, int]]]]:
    """Let steps begin only when `n` requests wait; yield what went into each: session and tokens."""
    ran: list[list[tuple[str, int]]] = []
    wait, advance = host._queue.wait_s, host.engine.advance

    def advanced(pieces):  # noqa: ANN001, ANN202
        ran.append([(run.session.name, tokens) for run, tokens in pieces])
        return advance(pieces)

    host.engine.advance = advanced  # type: ignore[method-assign]
    host._queue.wait_s = lambda _: 0.0 if len(host._queue) >= n else 0.01  # type: ignore[method-assign]
    try:
        yield ran
    finally:
        host._queue.wait_s, host.engine.advance = wait, advance  # type: ignore[method-assign]


def logits_of(frames: list[bytes]) -> torch.Tensor:
    return torch.frombuffer(bytearray(frames[0]), dtype=torch.float32)


def alike(found: torch.Tensor, token: int, alone: torch.Tensor) -> bool:
    """Whether logits are those of alone but for rounding; the token is then the same unless two are as close."""
    torch.testing.assert_close(found, alone, rtol=1e-3, atol=1e-4)
    assert float(alone.max() - alone[token]) <= 2 * float((found - alone).abs().max())
    return token == int(alone.argmax())


def test_sessions_of_mixed_splits_get_what_they_would_alone(source: ModelSource, part: Part) -> None:
    """Nine sessions, splits 0, 2, 2, 4 and 5 in turn: given the true past, the same tokens, and all in one step."""
    with cases.host_threads(source, 1) as (host,):
        link, all_scripts = Link(host.endpoint), scripts(part, 9)
        for k, script in enumerate(all_scripts):
            link.ask(opened(source, f"s{k}", script.start))
        same = 0
        with together(host, 9) as ran:
            for at in range(8):
                posted = [link.post(*script.step(f"s{k}", at)) for k, script in enumerate(all_scripts)]
                if at == 0:
                    host._queue.wait_s = lambda _: 0.0  # type: ignore[method-assign]  # prefills come in pieces
                for number, script in zip(posted, all_scripts, strict=True):
                    answer, frames = link.wait(number)
                    same += alike(logits_of(frames), answer.token, script.logits[at])
                host._queue.wait_s = lambda _: 0.0 if len(host._queue) >= 9 else 0.01  # type: ignore[method-assign]
        link.close()
    assert same >= 0.995 * 72
    assert [len(step) for step in ran[-7:]] == [9] * 7


def test_batch_of_one_is_exact_among_others(source: ModelSource, part: Part) -> None:
    with cases.host_threads(source, 1, HostLimits(batch=1)) as (host,):
        link, all_scripts = Link(host.endpoint), scripts(part, 5)
        for k, script in enumerate(all_scripts):
            link.ask(opened(source, f"s{k}", script.start))
        for at in range(8):
            posted = [link.post(*script.step(f"s{k}", at)) for k, script in enumerate(all_scripts)]
            for number, script in zip(posted, all_scripts, strict=True):
                assert torch.equal(logits_of(link.wait(number)[1]), script.logits[at])
        link.close()


def test_whoever_is_alone_is_exact(source: ModelSource, part: Part) -> None:
    """With batching on: a prefill of several pieces runs as the one step that it is."""
    with cases.host_threads(source, 1) as (host,):
        link, script = Link(host.endpoint), Script(part, 0, [3 * i % cases.VOCAB for i in range(200)], 6)
        link.ask(opened(source, "s"))
        for at in range(6):
            frames = link.ask(*script.step("s", at))[1]
            assert torch.equal(logits_of(frames), script.logits[at])
        link.close()


def test_what_is_wrong_with_one_is_his_alone(source: ModelSource, part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    """What overflows in the layers, a wrong position, KV that does not fit: three refused, two served."""
    run_rows = engine.run_rows

    def overflows(part: Part, batch: list[engine.SessionRows]) -> None:
        run_rows(part, batch)
        for rows in batch:
            if rows.start == 1:
                rows.hidden = rows.hidden * torch.inf

    monkeypatch.setattr(engine, "run_rows", overflows)
    per_token = L * 2 * 2 * 8 * 4
    with cases.host_threads(source, 1, HostLimits(kv_bytes_each=170 * per_token)) as (host,):
        link, good = Link(host.endpoint), [Script(part, start, cases.PROMPT, 4) for start in (0, 4)]
        for k, script in enumerate(good):
            link.ask(opened(source, f"s{k}", script.start))
            link.ask(*script.step(f"s{k}", 0))
        for name, start in (("hot", 1), ("late", 0), ("large", 0)):
            link.ask(opened(source, name, start))
        hot = activation.encode(torch.ones(1, 1, cases.HIDDEN), 32)
        with together(host, 5) as ran:
            bad = {
                link.post(Step(session="hot", position=0, tokens=1), [hot]): "bad_frame",
                link.post(Step(session="late", position=3, tokens=1), [token_frame([1])]): "out_of_step",
                link.post(Step(session="large", position=0, tokens=112), [token_frame([1] * 112)]): "memory",
            }
            posted = [link.post(*script.step(f"s{k}", 1)) for k, script in enumerate(good)]
            for number, script in zip(posted, good, strict=True):
                answer, frames = link.wait(number)
                assert alike(logits_of(frames), answer.token, script.logits[1])
            for number, code in bad.items():
                with pytest.raises(HostRefused) as caught:
                    link.wait(number)
                assert caught.value.code == code
        assert {"hot", "s0", "s1"} <= {name for step in ran for name, _ in step}
        for k, script in enumerate(good):
            answer, frames = link.ask(*script.step(f"s{k}", 2))
            assert alike(logits_of(frames), answer.token, script.logits[2])
        assert link.ask(Look())[0].report.sessions["hot"] == 0  # type: ignore[union-attr]
        link.close()


def test_a_defect_in_a_batch_is_tried_by_each_alone(
    source: ModelSource, part: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cases.host_threads(source, 1) as (host,):
        link, all_scripts = Link(host.endpoint), scripts(part, 3, 3)
        for k, script in enumerate(all_scripts):
            link.ask(opened(source, f"s{k}", script.start))
            link.ask(*script.step(f"s{k}", 0))

        def half(_: Part, batch: list[engine.SessionRows]) -> None:
            batch[0].cache.append(torch.ones(1, 2, 1, 8), torch.ones(1, 2, 1, 8), batch[0].start)
            raise RuntimeError("half done")

        monkeypatch.setattr(engine, "run_rows", half)
        with together(host, 3):
            posted = [link.post(*script.step(f"s{k}", 1)) for k, script in enumerate(all_scripts)]
            for number, script in zip(posted, all_scripts, strict=True):
                answer, frames = link.wait(number)
                assert alike(logits_of(frames), answer.token, script.logits[1])
        assert host.report().failed == 0
        link.close()


def test_a_session_closed_in_the_middle_of_its_prefill_disturbs_nobody(source: ModelSource, part: Part) -> None:
    """One decodes while another's prefill of 480 tokens goes in pieces; its owner closes it half-way."""
    with cases.host_threads(source, 1, HostLimits(chunk_tokens=16)) as (host,):
        link, script = Link(host.endpoint), Script(part, 0, cases.PROMPT, 12)
        link.ask(opened(source, "s"))
        link.ask(*script.step("s", 0))
        link.ask(*script.step("s", 1))
        link.ask(opened(source, "long"))
        begun = threading.Event()
        advance = host.engine.advance

        def advanced(pieces):  # noqa: ANN001, ANN202
            found = advance(pieces)
            if any(run.session.name == "long" for run, _ in pieces):
                begun.set()
            return found

        host.engine.advance = advanced  # type: ignore[method-assign]
        number = link.post(Step(session="long", position=0, tokens=480), [token_frame([1] * 480)])
        assert begun.wait(20)
        closed = link.post(Close(session="long"))
        for at in range(2, 12):
            answer, frames = link.ask(*script.step("s", at))
            assert alike(logits_of(frames), answer.token, script.logits[at])
        link.wait(closed)
        with pytest.raises(HostRefused) as caught:
            link.wait(number)
        assert caught.value.code == "unknown_session"
        report = link.ask(Look())[0].report
        assert report is not None
        assert (report.waiting, report.refused) == (0, 1)  # one answer, however many pieces were left
        assert set(report.sessions) == {"s"}
        link.close()


def test_memory_that_the_machine_lacks_is_refused(
    source: ModelSource, part: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever KV caches may have by their limit; who has room in his last page goes on."""
    with cases.host_threads(source, 1) as (host,):
        link, script = Link(host.endpoint), Script(part, 0, cases.PROMPT[:20], 14)
        link.ask(opened(source, "s"))
        link.ask(*script.step("s", 0))
        monkeypatch.setattr(engine, "spare_bytes", lambda: 1e6)
        for at in range(1, 13):  # 20 + 12 = 32 tokens: two pages
            assert torch.equal(logits_of(link.ask(*script.step("s", at))[1]), script.logits[at])
        with pytest.raises(HostRefused, match="memory to spare") as caught:
            link.ask(*script.step("s", 13))
        assert caught.value.code == "memory"
        monkeypatch.undo()
        assert torch.equal(logits_of(link.ask(*script.step("s", 13))[1]), script.logits[13])
        link.close()
