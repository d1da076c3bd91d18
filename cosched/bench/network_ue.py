"""The UE of suite `network`, a process in its own namespace: does what it is told on stdin, one JSON object a line.

A `Job` is a generation at a given operating point. `Asked` is one that the daemon is asked for: the lease is printed,
and it begins when another line comes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import msgspec

from cosched.api.keys import read_pair
from cosched.api.messages import SubmitArgs
from cosched.bench.network_jobs import MODEL, SEED, Job, JobAsked, Leased, Measured, UeSetup, prompt
from cosched.runtime.asking import Asking
from cosched.runtime.chain import Hop, Links, Route
from cosched.runtime.follow import route_of
from cosched.runtime.generation import Generation
from cosched.runtime.model import open_model
from cosched.runtime.parts import Part
from telemetry.bus import Curve
from telemetry.messages import LlmSession

SENT: Final = Path("/sys/class/net/up0/statistics/tx_bytes")
NODE: Final = "edge0"
PATIENCE_S: Final = 2.0


class Ue:
    """A device that holds all layers, with its connection to the host."""

    def __init__(self, setup: UeSetup) -> None:
        source = open_model(setup.config, seed=SEED, name=MODEL)
        pair = read_pair(Path(setup.key))
        self._setup, self._n_layers = setup, source.n_layers
        self._part = Part(source)
        self._part.load(0, source.n_layers)
        self._links = Links(Curve(pair.public, pair.secret))
        self._nodes = {NODE: Hop(setup.endpoint, source.n_layers, setup.server_key)}

    def _begin(self, task: str, tokens: int, route: Route) -> Generation:
        return Generation(self._part, task, prompt(tokens), route, self._links)

    def run(self, job: Job) -> Measured:
        """Generate at the operating point that the job names."""
        run = self._begin(
            job.task, job.prompt_tokens, route_of((job.split, job.bits, NODE), self._nodes, self._n_layers)
        )
        before = int(SENT.read_text())
        for _ in range(job.tokens):
            run.advance()
        sent = int(SENT.read_text()) - before
        run.close()
        return _measured(run, sent)

    def ask(self, job: JobAsked) -> Measured:
        """Generate as the daemon decides."""
        work = LlmSession(
            model=MODEL, context_tokens=0, new_tokens=job.prompt_tokens, max_output_tokens=job.tokens,
            ttft_s=job.ttft_s, tpot_s=job.tpot_s, private=True,
        )  # fmt: skip
        asked = SubmitArgs(task=job.task, ue=job.ue, work=work, fallback="keep")
        with Asking(asked, control=self._setup.control, telemetry=self._setup.telemetry, keys=None) as asking:
            lease = asking.following.lease
            _say(Leased(lease.reason, lease.point, lease.bandwidth_hz, lease.predicted_s))
            sys.stdin.readline()
            if not lease.point:
                return Measured(0.0, 0.0, 0)

            def make(route: Route) -> Generation:
                return self._begin(job.task, job.prompt_tokens, route)

            session = asking.begin(make, self._nodes, self._n_layers, PATIENCE_S)
            for _ in session.tokens(job.tokens):
                pass
            session.generation.close()
            return _measured(session.generation, 0)


def _measured(run: Generation, sent: int) -> Measured:
    ttft_s, tpot_s, taken = run.watch.ttft_s, run.watch.tpot_s, run.watch.take()
    parts = (None,) * 4 if taken is None else taken[3:]
    return Measured(ttft_s or 0.0, tpot_s or 0.0, sent, *parts)


def _say(answer: msgspec.Struct) -> None:
    sys.stdout.write(msgspec.json.encode(answer).decode() + "\n")
    sys.stdout.flush()


def main() -> None:
    """Serve stdin to its end."""
    ue = Ue(msgspec.json.decode(sys.argv[1], type=UeSetup))
    _say(Measured(0.0, 0.0, 0))
    for line in iter(sys.stdin.readline, ""):
        job = msgspec.json.decode(line, type=Job | JobAsked)
        _say(ue.run(job) if isinstance(job, Job) else ue.ask(job))


if __name__ == "__main__":
    main()
