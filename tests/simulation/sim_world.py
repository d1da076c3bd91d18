"""The world around one daemon: virtual time, a network, solvers, a disk, nodes, and the adversary's script."""

from __future__ import annotations

import hashlib
import heapq
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
from sim_acts import ACTS
from sim_disk import Disk
from sim_life import NS, Crash, Life
from sim_script import Script, Step
from sim_validate import validate_plan, validate_snapshot, validate_stored
from sim_witness import Witness

from cosched.api.messages import Response
from cosched.config.settings import load
from cosched.core.commands import Plan, Solve
from cosched.daemon.capture import captures
from cosched.daemon.verify import verify
from cosched.errors import hold
from telemetry.errors import BadTrace

S_NS = 1_000_000_000
BEGIN_NS = 1_000_000 * S_NS
WALL_NS = 1_750_000_000 * S_NS
SNAPSHOT_EVERY = 37  # events: a successor of the core is made and compared
MOST_UES = 40  # that the core knows at once
AWAKE_S = 0.3  # of a gap between two ticks, that the daemon was awake for at most

DEVICES = """
models = [{ id = "llama-3-8b", config = "llama-3-8b", weight_bits = 4, activation_bits = [16, 8, 4] }]
[ues]
count = 8
devices = [{ device = "phone", share = 0.5, max_layers = 8 }, { device = "jetson", share = 0.5, max_layers = 16 }]
"""
CELLS = 'cells = [{ id = "cell0", ul_prbs = %d, scs_khz = %d }, { id = "cell1", ul_prbs = 51, scs_khz = 30 }]\n'
NODES = 'nodes = [{ id = "edge0", device = "%s", %s }, { id = "edge1", device = "h100", %s }]\n'
SITES = (
    'v = 1\nname = "node-bound"\ncells = [{ id = "cell0", ul_prbs = 48, scs_khz = 15, one_way_s = 0.012 }]\n'
    'nodes = [{ id = "edge0", device = "a100", fraction = 0.25, host = "vllm" }]\n' + DEVICES,
    'v = 1\nname = "two"\n' + CELLS % (48, 15) + NODES % ("a100", "fraction = 0.5", "fraction = 0.5") + DEVICES,
    'v = 1\nname = "little-memory"\n'
    + CELLS % (273, 30)
    + NODES % ("h100", "memory_bytes = 4e8", "memory_bytes = 8e8")
    + DEVICES,
)


class World:
    """Everything that a script acts upon. `events`: things that have happened to the daemon so far."""

    def __init__(self, script: Script, folder: Path) -> None:
        self.script, self.folder = script, folder
        self.now_ns, self.wall_ns, self.boot = BEGIN_NS, WALL_NS, "boot-0"
        self.events = self.lives = self.plans = self.verified = 0
        self.faults: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.digest = hashlib.sha256()
        self.witness = Witness(now_ns=self.now_ns)
        self.disk = Disk(folder)
        self.timers: list[tuple[int, int, str, Callable[[], None]]] = []
        self.n = 0  # of anything that needs a number
        self.fuse = -1  # points until the process ends, -1 = it does not
        self.solver = "right"
        self.solves: dict[int, Solve] = {}
        self.background: np.ndarray | float = 0.0  # of the problem of that answer
        self.reserved = False  # the policy of the answer that is handed over holds its shares for good
        self.disk_refused = False
        self.awake: dict[str, float] = {}  # UE -> s since its latest report that the daemon was awake for
        self.ticked_ns = self.now_ns
        self.settings: dict[str, str] = {"policy": f'"{script.policy}"'}
        self.done: dict[str, int] = {}  # task -> units that its runtime has reported
        self.life: Life | None = None
        (folder / "site.toml").write_text(SITES[script.site])

    # --- lives --------------------------------------------------------------------------------------------------

    def configure(self) -> Path:
        path = self.folder / "cosched.toml"
        text = "".join(f"{key} = {value}\n" for key, value in sorted(self.settings.items()) if "." not in key)
        text += f'site = "{self.folder}/site.toml"\ncapture.keep = 1000\ncore.max_ues = {MOST_UES}\n'
        text += "".join(f"{key} = {value}\n" for key, value in sorted(self.settings.items()) if "." in key)
        path.write_text(text)
        return path

    def rewrite(self) -> None:
        """Write the configuration whatever the disk says: it is the operator's."""
        room = self.disk.room
        self.disk.lift()
        self.configure()
        self.disk.room = room

    def begin(self) -> None:
        """Start the daemon, from what is on disk."""
        self.disk.state.mkdir(exist_ok=True)
        self.fuse, self.disk.room, self.solver = -1, None, "right"
        self.lives += 1
        self.solves.clear()
        life = Life(
            load(self.configure(), {}), self.folder, lambda: self.now_ns, lambda: self.wall_ns,
            lambda: self.boot, self.point, self.publish, self.send,
            self.solve, self.planned,
        )  # fmt: skip
        life.store.stored, life.store.not_stored = self.witness.stored, self.not_stored
        self.life = life
        self.witness.risen(set(life.engine.trackers), life.engine.core.generation)
        self.awake = self.witness.awake = dict.fromkeys((t.offer.ue for t in life.engine.trackers.values()), 0.0)
        self.ticked_ns = self.now_ns
        self.at(15.0 if self.lives % 5 == 4 else 0.05, "ready", self.ready)  # without a cache of compiled code

    def ready(self) -> None:
        self.tick()
        self.life.is_ready = True

    def tick(self) -> None:
        awake_s = min((self.now_ns - self.ticked_ns) * NS, AWAKE_S)
        self.ticked_ns = self.now_ns
        for ue in self.awake:
            self.awake[ue] += awake_s
        self.life.tick()
        self.at(self.life.loaded.settings.core.period_s, "tick", self.tick)

    def die(self, torn: bytes = b"") -> None:
        """As kill -9 leaves it: what was not handed to the system is lost."""
        life, self.life = self.life, None
        self.disk.lift()
        self.disk.kill(torn)
        file = life.engine.capture._file
        size = file.path.stat().st_size if file is not None else 0
        life.store.close()
        if file is not None:
            file.stream.close()
            os.truncate(file.path, max(0, size - len(torn)))
        self.disk.after()
        self.bury(life)

    def stop(self) -> None:
        """SIGTERM."""
        life = self.life
        self.disk.lift()
        life.stop()
        self.life = None
        hold(not self.witness.open, f"never answered: {self.witness.open}")
        self.bury(life)

    def bury(self, life: Life) -> None:
        self.timers.clear()
        self.counts.update(life.engine.counts)
        self.witness.died()
        for path in captures(self.folder / "captures"):
            try:
                verdict = verify(path)
            except BadTrace:
                hold(path.stat().st_size < 1000, f"{path} cannot be read")
            else:
                hold(not verdict.difference, f"verify {path.name}: {verdict.difference}")
                self.plans += verdict.plans
            self.verified += 1
        shutil.rmtree(self.folder / "captures", ignore_errors=True)

    # --- what the daemon does to the world ------------------------------------------------------------------------

    def point(self) -> None:
        """A place where the process may end."""
        if self.fuse == 0:
            self.fuse = -1
            raise Crash
        self.fuse -= self.fuse > 0

    def publish(self, topic: bytes, payload: bytes) -> None:
        self.point()
        self.digest.update(topic + payload)
        self.witness.made = max(self.witness.made, self.life.engine.core.generation)
        self.witness.told(topic, payload)

    def send(self, route: tuple[bytes, ...], payload: bytes) -> None:
        self.point()
        codec = msgspec.json if payload[:1] == b"{" else msgspec.msgpack
        self.witness.answer(
            route[0], codec.decode(payload, type=Response) if codec is msgspec.json else packed(payload)
        )

    def solve(self, command: Solve) -> None:
        self.point()
        self.solves[command.request] = command
        self.at(0.0 if command.policy.solver == "local" else 0.004, "answer", lambda: ACTS["answer"](self, command))

    def planned(self, plan: Plan) -> None:
        self.witness.planned(plan.generation)
        validate_plan(
            self.life.engine, plan, reserved=self.reserved, least_use=self.background, stored=not self.disk_refused
        )

    def not_stored(self, drops: list[str]) -> None:
        self.disk_refused = True
        self.witness.not_stored(drops)

    # --- time ---------------------------------------------------------------------------------------------------

    def number(self) -> int:
        self.n += 1
        return self.n

    def at(self, seconds: float, kind: str, what: Callable[[], None]) -> None:
        heapq.heappush(self.timers, (self.now_ns + round(seconds * S_NS), self.number(), kind, what))

    def run(self) -> World:
        """Play the script to its end."""
        self.begin()
        for step in self.script.steps:
            silence_ms = 12_000 * step.b if step.kind == "silence" else 0.0
            self.advance(self.now_ns + round((step.wait_ms + silence_ms) * 1e6))
            self.happens(step.kind, lambda s=step: ACTS[s.kind](self, s))
        self.advance(self.now_ns + 2 * S_NS)
        self.happens("stop", self.stop)  # another life begins: all that was accepted is there again
        self.stop()
        return self

    def advance(self, until_ns: int) -> None:
        while self.timers and self.timers[0][0] <= until_ns:
            due_ns, _, kind, what = heapq.heappop(self.timers)
            self.pass_to(due_ns)
            self.happens(kind, what)
        self.pass_to(until_ns)

    def pass_to(self, at_ns: int) -> None:
        passed = max(0, at_ns - self.now_ns)
        self.now_ns += passed
        self.wall_ns += passed
        self.witness.now_ns = self.now_ns

    def happens(self, kind: str, what: Callable[[], None]) -> None:
        """One event, and all that must hold after it."""
        self.events += 1
        self.disk_refused = False
        self.digest.update(f"{self.now_ns} {kind}\n".encode())
        try:
            with self.disk.in_force():
                what()
        except Crash:
            self.faults["crash in the midst"] += 1
            self.die()
        if self.life is None:
            self.begin()
        self.check()

    def check(self) -> None:
        life = self.life
        engine = life.engine
        if getattr(life, "is_ready", False) and engine.core.is_quiet and str(life.mode) == "STARTING":
            ACTS["steady"](self, Step(0, "steady", 0, 0, 0))
        for books in (engine, life.modes, life.control.submits):
            books.validate()
        hold(engine.counts["solves_wrong"] <= self.faults["solver wrong"], "a right answer is taken for a wrong one")
        validate_stored(engine, [name for (name,) in life.store._db.execute("SELECT task FROM tasks")])
        for ue in {t.offer.ue for t in engine.trackers.values()} - self.awake.keys():
            self.awake[ue] = 0.0
        self.witness.leases_last(engine.core.settings.lease_s)
        hold(len(self.timers) < 10_000, "timers without end")
        if self.events % SNAPSHOT_EVERY == 0 and engine.core.is_quiet:
            validate_snapshot(engine.core, engine.plant.core(engine.core.policy.name, engine.core.settings))


def packed(payload: bytes) -> Response:
    """An answer in MessagePack, its result in JSON."""
    found = msgspec.msgpack.decode(payload)
    result = found.pop("result", msgspec.UNSET)
    raw = msgspec.UNSET if result is msgspec.UNSET else msgspec.Raw(msgspec.json.encode(result))
    return msgspec.structs.replace(msgspec.convert(found, Response), result=raw)
