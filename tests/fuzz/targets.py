"""Every way in: what is done with one input, and what must hold. An input is bytes, the first of which is a choice."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import msgspec
import numpy as np
import structlog
from desk import SITE, Desk

from cosched.config import settings
from cosched.config import wiring as build
from cosched.daemon.store import Store, StoreFailed
from cosched.daemon.verify import verify
from cosched.errors import BadInput, CoschedError
from cosched.resources import config_file
from cosched.runtime import protocol
from cosched.runtime.errors import BadFrame
from solvers import check, codec, registry
from solvers.errors import SolverError
from telemetry import wire
from telemetry.errors import TelemetryError
from telemetry.messages import (
    CellReport,
    LinkReport,
    LlmSession,
    NodeReport,
    TaskOffer,
    TaskProgress,
    TaskTiming,
    UeReport,
    UeReportBatch,
    VideoClip,
)
from telemetry.trace import MAGIC, Recorder, read_records

SLOW_S: Final = 5.0  # for one input, on a machine with other work
RENEWED: Final = 400  # inputs after which a desk is closed, its captures verified, and another begins
CELLS: Final = 20_000  # points x resources of a problem that is solved: larger ones take their time by right
TOPICS: Final = (*wire.BUS, b"nothing")
SESSION: Final = LlmSession(
    model="llama-3-8b", context_tokens=200, new_tokens=32, max_output_tokens=200, ttft_s=2.0, tpot_s=0.2
)
CLIP: Final = VideoClip(frame_flop=60e9, frame_bits=5e5, fps=2.0, deadline_s=0.5, frames=100)


class Defect(AssertionError):
    """What no input may bring about."""


@dataclass
class Target:
    """One way in. `seeds`: inputs to begin with; `run` raises for a defect; `close` at the end, which may find one."""

    seeds: Callable[[], list[bytes]]
    run: Callable[[bytes], None]
    close: Callable[[], None] = lambda: None


def one_line(error: Exception) -> None:
    """What a user sees of bad input."""
    if not str(error) or "\n" in str(error):
        raise Defect(f"not one line: {error!r}")


# --- bus --------------------------------------------------------------------------------------------------------------


class _WithDesk:
    """Renews the desk now and then; every accepted input is looked at."""

    def __init__(self) -> None:
        self.desk: Desk | None = None
        self.n = 0

    def ready(self) -> Desk:
        if self.desk is not None and self.n >= RENEWED:
            self.close()
        if self.desk is None:
            self.desk = Desk()
            self.n = 0
            self.prepare(self.desk)
        self.n += 1
        return self.desk

    def prepare(self, desk: Desk) -> None:
        desk.radio()
        for i, work in enumerate((SESSION, CLIP)):
            args = {"task": f"t{i}", "ue": f"ue{i}", "work": work}
            desk.request(msgspec.msgpack.encode({"v": 1, "verb": "submit", "args": args}))

    def close(self) -> None:
        if self.desk is not None:
            self.desk.close()
        self.desk = None


class Bus(_WithDesk):
    def run(self, data: bytes) -> None:
        desk = self.ready()
        topic = TOPICS[data[0] % len(TOPICS)] if data else b""
        if desk.bus(topic, data[1:]):
            desk.look()


def bus_seeds() -> list[bytes]:
    stamp = {"at_ns": 1, "source": "s", "seq": 1}
    messages: list[Any] = [
        UeReport(
            **stamp, ue="ue0", cell="cell0", ul_efficiency_bps_hz=2.0, ul_mcs=5.0, prb_used_ul=1.0, thp_ul_bps=1.0
        ),
        UeReport(**stamp, ue="ue9", cell="nowhere"),
        UeReportBatch(**stamp, ue=("ue0", "x"), cell=("cell0", "cell1"), ul_efficiency_bps_hz=(1.0, None)),
        CellReport(**stamp, cell="cell0", background_ul_fraction=0.5),
        NodeReport(**stamp, node="edge0", background_fraction=0.5, gpu_memory_bytes=8e10, rtt_s=0.1),
        NodeReport(**stamp, node="edge1", up=False),
        LinkReport(**stamp, link="l", one_way_s=0.1),
        TaskProgress(**stamp, task="t0", done=3, decoding_s=1.0, ul_bits_left=5.0, node_s_left=0.1),
        TaskProgress(**stamp, task="t1", done=2, late=3),
        TaskTiming(**stamp, task="t0", point="k=0/edge0", tokens=9, ttft_s=1.0, device_token_s=0.1, node_token_s=0.1),
    ]
    found = []
    for message in messages:
        for as_json in (False, True):
            topic, payload = wire.encode(message, as_json=as_json)
            found.append(bytes([TOPICS.index(topic)]) + payload)
    return found


# --- control, decisions -----------------------------------------------------------------------------------------------


class Control(_WithDesk):
    def run(self, data: bytes) -> None:
        desk = self.ready()
        if self.n % 10 == 0:
            desk.tick()
        if desk.request(data[1:]):
            desk.look()
        if len(desk.engine.trackers) > 40:
            for task in list(desk.engine.trackers)[2:]:
                desk.engine.end(task, "released")


def control_seeds() -> list[bytes]:
    submit = {"task": "t9", "ue": "ue2", "work": msgspec.to_builtins(SESSION), "weight": 2.0, "fallback": "drop"}
    clip = {**submit, "task": "t8", "work": msgspec.to_builtins(CLIP)}
    asked: list[tuple[str, dict[str, Any]]] = [
        ("status", {}), ("watch", {}), ("list", {"prefix": "t", "limit": 5}), ("show", {"task": "t0"}),
        ("explain", {"task": "t1"}), ("submit", submit), ("submit", clip), ("release", {"task": "t9"}),
        ("policy", {}), ("drain", {}), ("resume", {}),
        ("whatif", {"nodes_gone": ["edge0"], "cells_gone": ["cell1"], "submit": [submit], "copies": 2}),
        ("whatif", {"more_prbs": {"cell0": 5}, "more_hz": {"cell0": 1e6}}),
    ]  # fmt: skip
    requests = [{"v": 1, "id": i, "verb": verb, "args": args} for i, (verb, args) in enumerate(asked)]
    return [b"\0" + codec.encode(r) for r in requests for codec in (msgspec.msgpack, msgspec.json)]


class Decisions(_WithDesk):
    def run(self, data: bytes) -> None:
        desk = self.ready()
        board = desk.engine.board
        for task in board.asked_for(data.split(b"\0")):
            board.tell(task, desk.now_ns)


def decisions_seeds() -> list[bytes]:
    return [b"decision/", b"decision/t0\0decision/t1\0status", b"", b"\0\0decision/t", "decision/é".encode() + b"\xff"]


# --- host -------------------------------------------------------------------------------------------------------------


def host(data: bytes) -> None:
    decode = protocol.request_of if data[:1] == b"\0" else protocol.answer_of
    try:
        head = decode([data[1:]])
    except BadFrame as error:
        if len(str(error)) > protocol.TEXT + 50:
            raise Defect("a long error") from None
        return
    decode(protocol.frames_of(head))


def host_seeds() -> list[bytes]:
    bodies: list[Any] = [
        protocol.Open(session="s", task="t", model="m", fingerprint="f", start=0, stop=8, grant="g" * 20),
        protocol.Step(session="s", position=0, tokens=4, choose=True),
        protocol.Export(session="s", start=0, stop=2), protocol.Look(), protocol.Close(session="s"),
        protocol.Pull(session="s", start=0, stop=1, source="o", endpoint="tcp://127.0.0.1:1"),
    ]  # fmt: skip
    asked = [b"\0" + msgspec.msgpack.encode(protocol.HostRequest(id=i, body=body)) for i, body in enumerate(bodies)]
    report = protocol.HostReport(
        name="h",
        models={},
        sessions={"s": 1},
        kv_bytes=1,
        steps=1,
        tokens=1,
        busy_s=0.1,
        refused=0,
        load_s_per_layer=0.0,
    )
    answer = protocol.HostAnswer(id=1, token=5, node_s=0.1, report=report)
    return [*asked, b"\1" + msgspec.msgpack.encode(answer)]


# --- captures ---------------------------------------------------------------------------------------------------------


class Captures:
    """Inputs that begin with MCAP's magic are files; others are records, from which a file is made."""

    def __init__(self) -> None:
        self.folder = _folder()

    def run(self, data: bytes) -> None:
        path = self.folder / "x.mcap"
        if data.startswith(MAGIC):
            path.write_bytes(data)
        else:
            with path.open("wb") as stream:
                recorder = _Raw(stream, checksums=True)
                for line in data[1:].split(b"\n"):
                    topic, _, rest = line.partition(b" ")
                    stamp, _, payload = rest.partition(b" ")
                    at_ns = int(stamp) % 2**63 if stamp.isdigit() and len(stamp) < 25 else 0
                    recorder.raw(topic.decode("utf-8", "replace"), payload, at_ns)
                recorder.finish()
        try:
            verdict = verify(path)
        except (CoschedError, TelemetryError, SolverError) as error:
            one_line(error)
            return
        if "\n" in verdict.difference:
            raise Defect("not one line")

    def close(self) -> None:
        shutil.rmtree(self.folder)


class _Raw(Recorder):
    def __init__(self, stream: IO[bytes], *, checksums: bool) -> None:
        super().__init__(stream, chunk_bytes=1 << 16, checksums=checksums)

    def raw(self, topic: str, payload: bytes, at_ns: int) -> None:
        channel = self._channels.get(topic)
        if channel is None:
            schema = self._writer.register_schema(topic, "jsonschema", b"{}")
            channel = self._channels[topic] = self._writer.register_channel(topic, "json", schema)
        self._writer.add_message(
            channel_id=channel, log_time=at_ns, publish_time=at_ns, sequence=0, data=payload
        )  # fmt: skip


def captures_seeds() -> list[bytes]:
    """A short life's capture, as a file and as records."""
    desk = Desk()
    users = _WithDesk()
    users.prepare(desk)
    for _ in range(3):
        desk.radio()
        desk.tick()
    desk.request(msgspec.msgpack.encode({"v": 1, "verb": "release", "args": {"task": "t0"}}))
    desk.tick()
    desk.engine.capture.close(desk.now_ns)
    (path,) = Path(desk.folder.name, "captures").glob("*.mcap")
    data, records = path.read_bytes(), read_records(path).records
    desk.close()
    return [data, b"r" + b"\n".join(b"%s %d %s" % (t.encode(), at_ns, payload) for t, at_ns, payload in records)]


# --- state ------------------------------------------------------------------------------------------------------------


class State:
    """The first byte says which of a killed life's files the rest is instead of."""

    def __init__(self) -> None:
        self.folder = _folder()

    def run(self, data: bytes) -> None:
        place = self.folder / "x"
        shutil.copytree(self._life(), place)
        try:
            (place / STATE_FILES[data[0] % len(STATE_FILES)] if data else place / "state.sqlite").write_bytes(data[1:])
            store = Store(place / "state.sqlite")
            try:
                store.load(10**12)
                if "\n" in store.notice:
                    raise Defect("not one line")
            finally:
                store.close()
        except (BadInput, StoreFailed) as error:
            one_line(error)
        finally:
            shutil.rmtree(place)

    def _life(self) -> Path:
        from state_cases import a_life

        if not (self.folder / "killed").exists():
            a_life(self.folder, 12)
        return self.folder / "killed"

    def close(self) -> None:
        shutil.rmtree(self.folder)


STATE_FILES: Final = ("state.sqlite", "state.sqlite-wal", "state.sqlite.note", "state.sqlite-shm")


def state_seeds() -> list[bytes]:
    state = State()
    life = state._life()
    found = [bytes([i]) + (life / name).read_bytes() for i, name in enumerate(STATE_FILES) if (life / name).exists()]
    state.close()
    return found


# --- configuration, site, problems ------------------------------------------------------------------------------------


class Config:
    """First byte: 0 a configuration, else a site; then TOML."""

    def __init__(self) -> None:
        self.folder = _folder()

    def run(self, data: bytes) -> None:
        try:
            if data[:1] == b"\0":
                path = self.folder / "c.toml"
                path.write_bytes(data[1:])
                settings.load(path, {})
            else:
                self._site(data[1:].decode("utf-8", "replace"))
        except (CoschedError, SolverError) as error:
            one_line(error)

    def _site(self, text: str) -> None:
        plant = build.plant(text, "site.toml", {})
        core = plant.core("joint", settings.load(environ={}).settings.core)
        offer = TaskOffer(at_ns=0, source="", seq=0, task="t", ue="ue0", work=SESSION)
        plant.points(offer, 0)
        core.snapshot()

    def close(self) -> None:
        shutil.rmtree(self.folder)


def config_seeds() -> list[bytes]:
    sites = [config_file("sites", name).read_bytes() for name in ("node-bound.toml", "balanced.toml")]
    text = settings.default_file().read_bytes()
    lines = b"\n".join(line.partition(b"#")[0].rstrip() for line in text.splitlines())
    return [b"\0" + lines, b"\0[core]\nz = 0.4\nperiod_s = 0.1\n", b"\1" + SITE.encode(), *(b"\1" + s for s in sites)]


SOLVERS: Final = ("joint", "greedy", "pf", "pf-admit", "compute-only", "local", "edge")


def problems(data: bytes) -> None:
    try:
        parsed, snr = codec.read(data[1:], "problem.json", lambda tasks: tasks)
    except SolverError as error:
        one_line(error)
        return
    if snr is not None or parsed.n_points * max(1, parsed.n_resources) > CELLS:
        return
    name = SOLVERS[data[0] % len(SOLVERS)]
    try:
        solution = registry.get(name)(parsed)
    except SolverError as error:
        one_line(error)
        return
    codec.solution_to_json(parsed, solution, 1.0, snr)
    if found := check.verify(parsed, solution, tolerance=1e-6, dual=False):
        raise Defect(f"{name}: {found[0]}")


def problems_seeds() -> list[bytes]:
    from solver_cases import EXAMPLE, random_problem

    rng = np.random.default_rng(1)
    made = [codec.problem_to_json(random_problem(rng, n, 3, 4)) for n in (1, 2, 3, 5)]
    texts = [m if isinstance(m, bytes) else m.encode() for m in made] + [msgspec.json.encode(EXAMPLE)]
    return [bytes([i]) + text for i, text in enumerate(texts * 2)]


def _folder() -> Path:
    shm = Path("/dev/shm")  # noqa: S108
    return Path(tempfile.mkdtemp(dir=shm if os.access(shm, os.W_OK) else None))


def target(name: str) -> Target:
    """Return a way in by its name."""
    made: dict[str, Callable[[], Target]] = {
        "bus": lambda: _of(Bus(), bus_seeds),
        "control": lambda: _of(Control(), control_seeds),
        "decisions": lambda: _of(Decisions(), decisions_seeds),
        "host": lambda: Target(host_seeds, host),
        "captures": lambda: _of(Captures(), captures_seeds),
        "state": lambda: _of(State(), state_seeds),
        "config": lambda: _of(Config(), config_seeds),
        "problems": lambda: Target(problems_seeds, problems),
    }
    quiet()
    return made[name]()


NAMES: Final = ("bus", "control", "decisions", "host", "captures", "state", "config", "problems")


def _of(way: Any, seeds: Callable[[], list[bytes]]) -> Target:  # noqa: ANN401
    return Target(seeds, way.run, way.close)


def quiet() -> None:
    """Damage is said in the log, thousands of times here."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def tried(way: Target, data: bytes) -> None:
    """Run one input; a slow one is a defect, too, and so is a warning."""
    began = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            way.run(data)
        except MemoryError as error:
            raise Defect("out of memory") from error
    took_s = time.process_time() - began
    if took_s > SLOW_S:
        raise Defect(f"took {took_s:.1f} s of processor time")


def corpus(name: str) -> list[bytes]:
    """Inputs that were found and are kept."""
    return [p.read_bytes() for p in sorted((Path(__file__).parent / "corpus" / name).glob("*"))]
