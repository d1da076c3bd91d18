"""A live engine without sockets: real core, state file and capture, a clock that the test moves, solves by hand.

After every step its books are held against each other (`Engine.validate`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from cosched.api.messages import Lease
from cosched.children.packing import pack, solve_packed
from cosched.children.pool import ask_of
from cosched.config.settings import CaptureSettings
from cosched.config.wiring import Plant
from cosched.core.commands import Plan, Solve
from cosched.core.settings import Settings
from cosched.daemon.board import Board
from cosched.daemon.capture import Capture, captures
from cosched.daemon.engine import Engine, Reply, Waiting
from cosched.daemon.store import Store
from cosched.daemon.verify import verify
from telemetry.messages import TaskOffer, UeReport

S_NS = 1_000_000_000
STALE_UE_S = 10.0


@dataclass
class Bench:
    """One life of an engine."""

    folder: Path
    plant: Plant
    now_ns: int = 1000 * S_NS
    policy: str = "joint"
    asked: list[Solve] = field(default_factory=list)
    published: list[Lease] = field(default_factory=list)
    plans: list[Plan] = field(default_factory=list)
    alarms: dict[str, str] = field(default_factory=dict)
    answers: dict[str, Lease | str] = field(default_factory=dict)  # task -> its lease, or why there is none

    def __post_init__(self) -> None:
        self.store = Store(self.folder / "state.sqlite")
        wanted = CaptureSettings(enabled=True, dir="", max_bytes=1 << 26, max_age_s=3600.0, keep=100)
        self.engine = Engine(
            plant=self.plant,
            core=self.plant.core(self.policy, Settings()),
            store=self.store,
            capture=Capture(wanted, self.folder / "captures"),
            board=Board(self.plant.site, lambda _, payload: self.published.append(decoded(payload))),
            clock=lambda: self.now_ns,
            solve=self.asked.append,
            alarm=self.alarms.__setitem__,
            on_plan=self._planned,
        )
        self.engine.restore(self.store.load(self.now_ns).snapshot(self.now_ns))
        self.engine.begin_capture()
        self.engine.validate()

    def _planned(self, plan: Plan) -> None:
        plan.validate()
        self.plans.append(plan)

    def wait(self, seconds: float) -> None:
        self.now_ns += round(seconds * S_NS)

    def report(self, ue: str = "ue0", efficiency: float = 4.0, cell: str = "") -> None:
        where = cell or self.plant.site.cells[0].id
        self.engine.reports(
            [UeReport(at_ns=0, source="ran", seq=0, ue=ue, cell=where, ul_efficiency_bps_hz=efficiency)], self.now_ns
        )
        self.engine.validate()

    def submit(self, *offers: TaskOffer) -> None:
        self.engine.offer([Waiting(offer, [self._reply(offer.task)]) for offer in offers])
        self.engine.validate()

    def _reply(self, task: str) -> Reply:
        def reply(lease: Lease | None, why: str) -> None:
            assert task not in self.answers, "answered twice"
            self.answers[task] = lease if lease is not None else why

        return reply

    def tick(self) -> None:
        self.engine.tick(STALE_UE_S)
        self.engine.validate()

    def solve(self) -> None:
        """Answer all Solves."""
        while self.asked:
            command = self.asked.pop(0)
            answer = solve_packed(pack(ask_of(command)))
            self.engine.solved(command.request, answer.solution, answer.error)
            self.engine.validate()

    def told(self, task: str) -> list[str]:
        """Reasons published about a task."""
        return [str(lease.reason) for lease in self.published if lease.task == task]

    def close(self) -> None:
        """End this life in order, and hold its captures against what they say."""
        self.engine.capture.close(self.now_ns)
        self.engine.flush()
        self.engine.validate()
        self.store.close()
        for path in captures(self.folder / "captures"):
            assert verify(path).difference == ""


def decoded(payload: bytes) -> Lease:
    return msgspec.json.decode(payload, type=Lease)
