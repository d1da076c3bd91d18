"""A daemon without sockets, processes and timers, by its own configuration file: asked, told and ticked by hand.

Each request, report, tick and answer of a solver is followed by a look at its books (`Engine.validate`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import msgspec
from sim_life import Life

from cosched.api import messages as api
from cosched.api.messages import Lease
from cosched.children.packing import pack, solve_packed
from cosched.children.pool import ask_of
from cosched.config.settings import load
from cosched.core.commands import Plan, Solve
from cosched.daemon.mode import Mode
from telemetry.bus import BusRequest
from telemetry.messages import LlmSession, UeReport, VideoClip

S_NS = 1_000_000_000
BEGIN_NS = 1000 * S_NS
SITE = """
v = 1
name = "two cells"
cells = [{ id = "cell0", ul_prbs = 273, scs_khz = 30 }, { id = "cell1", ul_prbs = 51, scs_khz = 15 }]
nodes = [{ id = "edge0", device = "a100", fraction = 0.5 }, { id = "edge1", device = "h100", fraction = 0.25 }]
models = [{ id = "llama-3-8b", config = "llama-3-8b" }]
ues = { count = 4, devices = [{ device = "phone", share = 1.0 }] }
"""
SESSION = LlmSession(
    model="llama-3-8b", context_tokens=2000, new_tokens=256, max_output_tokens=2000, ttft_s=2.0, tpot_s=0.1
)
CLIP = VideoClip(frame_flop=1e9, frame_bits=1e5, fps=2.0, deadline_s=0.5, frames=60)

T = TypeVar("T")


@dataclass
class Home:
    """A configuration on disk, and the daemon that lives by it. `settings`: key of the file -> its value there."""

    folder: Path
    settings: dict[str, str] = field(default_factory=dict)
    site: str = SITE
    now_ns: int = BEGIN_NS
    asked: list[Solve] = field(default_factory=list)
    plans: list[Plan] = field(default_factory=list)
    published: list[Lease] = field(default_factory=list)
    answers: dict[bytes, list[api.Response]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.write()
        (self.folder / "state").mkdir(exist_ok=True)
        self.life = Life(
            load(self.folder / "cosched.toml", {}), self.folder, lambda: self.now_ns, lambda: self.now_ns,
            lambda: "boot", lambda: None, self._published, self._answered, self.asked.append, self.plans.append,
        )  # fmt: skip
        self.engine, self.control = self.life.engine, self.life.control
        self.life.modes.mode = Mode.STEADY
        self._requests = 0

    def write(self, **settings: str) -> None:
        """Write the configuration, changed by what is given (`core__lease_s` is `core.lease_s`)."""
        self.settings |= {key.replace("__", "."): value for key, value in settings.items()}
        lines = [f"{key} = {value}" for key, value in sorted(self.settings.items(), key=lambda kv: "." in kv[0])]
        site = self.folder / "site.toml"
        site.write_text(self.site)
        (self.folder / "cosched.toml").write_text(f'site = "{site}"\n' + "\n".join(lines) + "\n")

    def _published(self, _: bytes, payload: bytes) -> None:
        self.published.append(msgspec.json.decode(payload, type=Lease))

    def _answered(self, route: tuple[bytes, ...], payload: bytes) -> None:
        codec = msgspec.json if payload[:1] == b"{" else msgspec.msgpack
        self.answers.setdefault(route[0], []).append(codec.decode(payload, type=api.Response))

    # --- what happens -------------------------------------------------------------------------------------------

    def send(
        self, verb: str, args: object = None, *, codec: ModuleType = msgspec.json, v: int = 1, user: str = ""
    ) -> bytes:
        """Send a request; return what its answers are kept under."""
        self._requests += 1
        route = str(self._requests).encode()
        request = {"v": v, "id": self._requests, "verb": verb} | ({} if args is None else {"args": args})
        self.control.handle(BusRequest((route,), codec.encode(request), user))
        return route

    def ask(
        self, verb: str, args: object = None, *, codec: ModuleType = msgspec.json, v: int = 1, user: str = ""
    ) -> api.Response:
        """Send a request and have all decided that waits; return the answer."""
        route = self.send(verb, args, codec=codec, v=v, user=user)
        self.settle()
        (answer,) = self.answers[route]
        return answer

    def result(
        self, kind: type[T], verb: str, args: object = None, *, codec: ModuleType = msgspec.json, user: str = ""
    ) -> T:
        """What a request that is carried out is answered."""
        answer = self.ask(verb, args, codec=codec, user=user)
        assert answer.ok, answer.error
        return codec.decode(answer.result, type=kind)

    def fault(self, verb: str, args: object = None, *, v: int = 1, user: str = "") -> api.Fault:
        """Why a request is not carried out."""
        answer = self.ask(verb, args, v=v, user=user)
        assert not answer.ok
        assert isinstance(answer.error, api.Fault)
        return answer.error

    def submit(self, *tasks: str, ue: str = "ue0", work: object = SESSION, **more: object) -> list[Lease]:
        """Submit tasks that are decided together; return their leases."""
        args = [{"task": task, "ue": ue, "work": msgspec.to_builtins(work), **more} for task in tasks]
        routes = [self.send("submit", one) for one in args]
        self.settle()
        return [msgspec.json.decode(self.answers[r][0].result, type=Lease) for r in routes]

    def report(self, ue: str = "ue0", cell: str = "cell0", efficiency: float | None = 4.0) -> None:
        message = UeReport(at_ns=0, source="ran", seq=0, ue=ue, cell=cell, ul_efficiency_bps_hz=efficiency)
        self.engine.reports([message], self.now_ns)
        self.engine.validate()

    def wait(self, seconds: float, *, cells: Sequence[str] = ("cell0",)) -> None:
        """Let time pass in ticks of 0.1 s, with reports of as many UEs as there are `cells`; plan at each."""
        for _ in range(round(seconds / 0.1)):
            self.now_ns += S_NS // 10
            for i, cell in enumerate(cells):
                self.report(f"ue{i}", cell)
            self.life.tick()
            self.settle()

    def settle(self) -> None:
        """Have all decided that waits."""
        self.control.flush()
        self.engine.validate()
        while self.asked:
            command = self.asked.pop(0)
            answer = solve_packed(pack(ask_of(command)))
            self.engine.solved(command.request, answer.solution, answer.error)
            self.engine.validate()

    def close(self) -> None:
        self.life.stop()
        self.engine.validate()
