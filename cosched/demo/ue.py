"""The UEs of the demo: real sessions, each in a process of its own, at a phone's pace and behind a recorded uplink.

`python -m cosched.demo.ue SETUP` writes the model's checkpoint from its seed and waits for a line on stdin: the instant
of the monotonic clock at which the recording began. Then it forks a process for each UE, so that torch is imported
once. What they say goes to stdout (messages.py).
"""

from __future__ import annotations

import bisect
import functools
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from cosched.api.messages import SubmitArgs
from cosched.demo import reference
from cosched.demo.messages import Checked, Ready, Said, Setup, Token, UeEnded, UeMoved
from cosched.demo.reference import UNROUNDED, ReferenceStep
from cosched.demo.stage import MODEL, PROMPT, SEED, UeChannel, work
from cosched.profiles.device import load_device
from cosched.runtime.asking import Asking
from cosched.runtime.chain import Links, Route
from cosched.runtime.emulated import SlowLink, SlowPart
from cosched.runtime.errors import CannotContinue
from cosched.runtime.extra import prepare
from cosched.runtime.generation import Generation
from cosched.runtime.model import open_model
from cosched.runtime.move import RECOMPUTED
from cosched.runtime.parts import Part
from cosched.runtime.ue import UeSession
from cosched.runtime.weights import write_checkpoint
from cosched.site import Site, load_site

APART_S: Final = 0.2  # between two UEs' beginnings
PATIENCE_S: Final = 5.0  # for another lease when a node is lost
LEAST_HZ: Final = 180e3  # what a UE without a promise gets: a resource block


def say(said: Said) -> None:
    """Write a line at once; lines of several processes do not mix (pipe(7), PIPE_BUF)."""
    os.write(1, msgspec.json.encode(said) + b"\n")


class Whole(NamedTuple):
    """The model in one piece, and its tokens where nothing is rounded."""

    part: Part
    tokens: list[int]


class DemoUe:
    """One UE: its channel, its device, the session that it asks for."""

    def __init__(self, setup: Setup, ue: str, site: Site, whole: Whole, began_s: float) -> None:
        self.ue, self._setup, self._channel, self._began_s = ue, setup, setup.channels[ue], began_s
        self._whole = whole
        (device,) = site.ues.devices
        source = open_model(setup.checkpoint, name=MODEL)
        self._most = device.max_layers or source.n_layers
        self._part = SlowPart(source, load_device(device.device), site.models[0].weight_bits)
        self._part.load(0, self._most)
        self._frame_bytes = site.transport.message_bytes
        self._steps: list[ReferenceStep] = []

    def run(self) -> None:
        """Ask, generate, and check what came."""
        asked = SubmitArgs(task=self.ue, ue=self.ue, work=work(self._setup.tokens), fallback="keep")
        with Asking(asked, control=self._setup.control, telemetry=self._setup.telemetry, keys=None) as asking:
            connect = functools.partial(SlowLink, lambda: self._rate_bps(asking), self._frame_bytes)
            links = Links(connect=connect)

            def make(route: Route) -> Generation:
                return Generation(self._part, self.ue, PROMPT, route, links, max_layers=self._most)

            try:
                session = asking.begin(make, {}, self._part.source.n_layers, PATIENCE_S)
            except CannotContinue as error:
                say(UeEnded(ue=self.ue, tokens=0, why=str(error)))
                return
            self._generate(session)
            session.generation.close()
            links.close()
        self._check(session.generation)

    def _rate_bps(self, asking: Asking) -> float:
        """Bits a second of the granted bandwidth on the channel as it is now."""
        efficiency = at(self._channel, time.monotonic() - self._began_s)
        return max(LEAST_HZ, asking.following.lease.bandwidth_hz) * efficiency

    def _generate(self, session: UeSession) -> None:
        run, why = session.generation, ""
        try:
            for token in session.tokens(self._setup.tokens):
                new = list(self._told(session))
                self._steps.append(ReferenceStep(run.route.split, run.route.precision_bits, RECOMPUTED in new))
                say(Token(ue=self.ue, token=token, ttft_s=run.watch.ttft_s or 0.0, tpot_s=run.watch.tpot_s))
        except CannotContinue as error:
            why = str(error)
        list(self._told(session))
        say(UeEnded(ue=self.ue, tokens=len(run.output), why=why))

    def _told(self, session: UeSession) -> Iterator[str]:
        """Tell of moves since the last call; yield how each was done."""
        while session.changes:
            change = session.changes.pop(0)
            say(UeMoved(ue=self.ue, tokens=change.tokens, point=change.point, how=change.how))
            yield change.how

    def _check(self, run: Generation) -> None:
        """Generate the same with the whole model."""
        expected = reference.tokens(self._whole.part, PROMPT, self._steps)
        later = zip(run.watch.tokens_s, self._steps[1:], strict=True)
        undisturbed_s = [token_s for (token_s, _, _), step in later if not step.anew]
        say(
            Checked(
                ue=self.ue, equal=reference.equal_from_start(run.output, expected),
                unrounded=reference.equal_from_start(run.output, self._whole.tokens),
                tpot_s=sum(undisturbed_s) / max(1, len(undisturbed_s)),
            )
        )  # fmt: skip


def at(channel: UeChannel, now_s: float) -> float:
    """Efficiency of a channel at an instant; past its end, the last."""
    row = bisect.bisect_right(channel.at_s, now_s) - 1
    return channel.efficiency_bps_hz[max(0, row)]


def prepare_model(setup: Setup) -> Whole:
    """Draw the weights, write the checkpoint, generate once in one piece."""
    config = Path(setup.folder) / "config.json"
    whole = Part(open_model(config, seed=SEED, name=MODEL))
    whole.load(0, whole.source.n_layers)
    write_checkpoint(Path(setup.checkpoint), whole.tensors())
    (Path(setup.checkpoint) / config.name).write_bytes(config.read_bytes())
    say(Ready(whole.weight_bytes))
    steps = [ReferenceStep(whole.source.n_layers, UNROUNDED, anew=False)] * setup.tokens
    return Whole(whole, reference.tokens(whole, PROMPT, steps))


def main() -> None:
    """Make the model, wait, run the UEs."""
    setup = msgspec.json.decode(sys.argv[1], type=Setup)
    prepare(threads=1)
    site = load_site(Path(setup.folder) / "site.toml")
    whole = prepare_model(setup)
    if not (line := sys.stdin.readline()):
        return
    began_s = float(line)
    fork = multiprocessing.get_context("fork")
    running = []
    for ue in setup.channels:
        process = fork.Process(target=lambda ue=ue: DemoUe(setup, ue, site, whole, began_s).run())
        process.start()
        running.append(process)
        time.sleep(APART_S)
    for process in running:
        process.join()


if __name__ == "__main__":
    main()
