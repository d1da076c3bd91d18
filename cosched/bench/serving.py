"""Suite `serving`: what a host's batching gives, against one session and against transformers' batched step.

A host process (one thread) holds a seeded model of the shape of SmolLM2-135M; a client here keeps 1 to 16 sessions
going, each sending its next step when it has the answer to the one before. What they send is the true past, computed
beforehand by the model unsplit and one at a time: token ids where the host has all layers, else activations in 32 bits.
Sessions split at k = 4, 8 and 15 in turn in the other case. Between them, in the same minute, transformers' own model
decodes as many sequences as one batch, in this process and with one thread: all layers, whatever the split.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cosched.bench.model import RATIO, BenchRow, ModelClaim, Result, spread
from cosched.bench.split import host_process, write_config
from cosched.errors import BadInput
from cosched.runtime.extra import prepare

if TYPE_CHECKING:
    from cosched.runtime.model import ModelSource
    from cosched.runtime.protocol import Body, HostAnswer
    from cosched.runtime.reference import Agreement, SessionScript

SUITE: Final = "serving"
SEED: Final = 1
SIZES: Final = (1, 2, 4, 8, 16)
AT: Final = 8  # sessions that the claims are about
PROMPT: Final = 48
TOKENS: Final = 32  # of each session, in a round
SPLITS: Final = {"k = 0": (0,), "k = 4, 8, 15": (4, 8, 15)}
FASTER, SLOWER, SAME = 3.0, 1.5, 0.995  # what is asked: of tokens/s, of a token's time, of tokens chosen alike
PATIENCE_S: Final = 120.0
CONFIG: Final[dict[str, object]] = {
    "model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 49_152, "max_position_embeddings": 2_048,
    "tie_word_embeddings": True,
}  # fmt: skip


def run(*, seeds: int, progress: Callable[[float], None]) -> Result:
    """Tokens/s and time per token by number of sessions; tokens that are chosen as alone. seeds: rounds of each."""
    prepare(threads=1)
    from cosched.runtime.model import open_model
    from cosched.runtime.reference import BatchedSteps, scripts_of

    with tempfile.TemporaryDirectory() as folder:
        config = write_config(Path(folder), "serving", CONFIG)
        source = open_model(config, seed=SEED)
        scripts = {case: scripts_of(source, each, max(SIZES), PROMPT, TOKENS) for case, each in SPLITS.items()}
        progress(0.3)
        batched = BatchedSteps(source)
        found: dict[tuple[str, int, str], list[float]] = {}
        with host_process(config, SEED) as endpoint:
            work = [(case, n) for _ in range(seeds) for n in SIZES for case in SPLITS]
            for done, (case, n) in enumerate(work):
                # what is compared is measured within seconds: other work on a machine comes and goes
                one = DrivenSessions(endpoint, source, scripts[case][:1], logits=False).run().rate()[0]
                reference_s = batched.step_s(n, PROMPT + TOKENS // 2)
                rate, tpot_s = DrivenSessions(endpoint, source, scripts[case][:n], logits=False).run().rate()
                for figure, values in (
                    ("tokens_per_s", [rate]),
                    ("tokens_per_s_batched", [n / reference_s]),
                    ("tpot_ms", [1e3 * t for t in tpot_s]),
                    ("tpot_over_batched", [t / reference_s for t in tpot_s]),
                    (RATIO, [rate / one]),
                ):
                    found.setdefault((case, n, figure), []).extend(values)
                progress(0.3 + 0.6 * (done + 1) / len(work))
            agreed = {case: _agreement(endpoint, source, scripts[case][:AT]) for case in SPLITS}
    return _result(found, agreed)


def _result(found: dict[tuple[str, int, str], list[float]], agreed: dict[str, Agreement]) -> Result:
    rows = [
        _row(case, f"{n} sessions" + " over 1" * (figure == RATIO), figure, values)
        for (case, n, figure), values in found.items()
    ]
    claims: list[ModelClaim] = []
    for case, same in agreed.items():
        gain = statistics.median(found[case, AT, RATIO])
        slower = statistics.median(found[case, AT, "tpot_over_batched"])
        claims.append(ModelClaim(text=f"{case}: tokens/s of {AT} sessions over one", reached=gain, asked=FASTER))
        text = f"{case}: time per token at {AT} sessions over a batched step of transformers"
        claims.append(ModelClaim(text=text, reached=slower, asked=SLOWER, at_most=True))
        rows.append(_row(case, f"{AT} sessions", "chosen_as_alone", [same.share]))
        rows.append(_row(case, f"{AT} sessions", "greatest_logit_difference", [same.difference]))
        rows.append(_row(case, f"{AT} sessions", "unlike_beyond_rounding", [float(same.beyond)]))
        claims.append(ModelClaim(text=f"{case}: tokens chosen as alone, of all", reached=same.share, asked=SAME))
    return Result(rows=rows, claims=claims, sweeps=[])


class DrivenSessions:
    """Sessions that one connection drives: instants of their answers, tokens chosen, logits where asked for."""

    def __init__(self, endpoint: str, source: ModelSource, scripts: Sequence[SessionScript], *, logits: bool) -> None:
        from telemetry.calls import Caller

        self._caller = Caller(endpoint, None, 1 << 28)
        self._source, self._scripts, self._wants = source, scripts, logits
        self.at_s: list[list[float]] = [[] for _ in scripts]
        self.tokens: list[list[int]] = [[] for _ in scripts]
        self.logits: list[list[bytes]] = [[] for _ in scripts]

    def run(self) -> DrivenSessions:
        """Prefill all, then let each send its next token's step as soon as the one before is answered."""
        from cosched.runtime.protocol import Close, Open, Step

        source, everybody = self._source, range(len(self._scripts))
        for i, script in enumerate(self._scripts):
            opening = Open(
                session=f"s{i}", task=f"s{i}", model=source.name, fingerprint=source.fingerprint, start=script.start,
                stop=source.n_layers,
            )  # fmt: skip
            self._send(i, opening)
            self._send(i, Step(session=f"s{i}", position=0, tokens=PROMPT), script.prompt)
        self._wait(2 * len(self._scripts))
        for i in everybody:
            self._decode(i)
        left = len(self._scripts) * TOKENS
        while left:
            for answer, frames in self._answers():
                left -= 1
                self._take(answer, frames)
        for i in everybody:
            self._send(i, Close(session=f"s{i}"))
        self._wait(len(self._scripts))
        self._caller.close()
        return self

    def _take(self, answer: HostAnswer, frames: list[bytes]) -> None:
        self.at_s[answer.id].append(time.perf_counter())
        self.tokens[answer.id].append(answer.token)
        self.logits[answer.id] += frames
        if len(self.tokens[answer.id]) < TOKENS:
            self._decode(answer.id)

    def _decode(self, i: int) -> None:
        from cosched.runtime.protocol import Step

        done = len(self.tokens[i])
        step = Step(session=f"s{i}", position=PROMPT + done, tokens=1, choose=True, logits=self._wants)
        self._send(i, step, self._scripts[i].frames[done])

    def _send(self, number: int, body: Body, *frames: bytes) -> None:
        from cosched.runtime.protocol import HostRequest, frames_of

        self._caller.send(frames_of(HostRequest(id=number, body=body), list(frames)))

    def _wait(self, left: int) -> None:
        while left > 0:
            left -= len(self._answers())

    def _answers(self) -> list[tuple[HostAnswer, list[bytes]]]:
        from cosched.runtime.protocol import answer_of
        from telemetry.calls import wait_for

        wait_for([self._caller], PATIENCE_S)
        arrived = [(answer_of(frames), frames[1:]) for frames in self._caller.drain()]
        if not arrived:
            raise BadInput(f"the host has not answered for {PATIENCE_S:g} s")
        for answer, _ in arrived:
            if answer.error:
                raise BadInput(f"the host refused: {answer.message}")
        return arrived

    def rate(self) -> tuple[float, list[float]]:
        """Tokens/s of all together while all run, and each one's mean seconds a token."""
        began_s, ended_s = max(times[0] for times in self.at_s), min(times[-1] for times in self.at_s)
        out = sum(began_s < t <= ended_s for times in self.at_s for t in times)
        return out / (ended_s - began_s), [(times[-1] - times[0]) / (len(times) - 1) for times in self.at_s]


def _agreement(endpoint: str, source: ModelSource, scripts: Sequence[SessionScript]) -> Agreement:
    from cosched.runtime.reference import agreement

    driven = DrivenSessions(endpoint, source, scripts, logits=True).run()
    return agreement(scripts, driven.tokens, driven.logits)


def _row(case: str, subject: str, figure: str, values: list[float]) -> BenchRow:
    p50, p99, mean = spread(values)
    return BenchRow(suite=SUITE, case=case, subject=subject, figure=figure, p50=p50, p99=p99, n=len(values), value=mean)
