"""Recomputes what a daemon decided, from its capture: the same core, the same solver, the events as recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from cosched.children.packing import pack, solve_packed
from cosched.children.pool import ask_of
from cosched.config import wiring as build
from cosched.core import events
from cosched.core.commands import Command, Dispatch, Plan, Solve
from cosched.core.core import Core, StaleEvent
from cosched.core.decisions import decision_message
from cosched.core.settings import Settings
from cosched.daemon import journal
from cosched.errors import BadInput, CoschedError
from cosched.site import Site
from telemetry.messages import DecisionMessage
from telemetry.trace import read_records


@dataclass(slots=True)
class Verdict:
    """What a verification found; `difference` is the first one, "" where all is equal."""

    path: str
    plans: int = 0
    decisions: int = 0
    solves: int = 0
    failed_solves: int = 0
    events: int = 0
    duration_s: float = 0.0
    difference: str = ""
    remarks: list[str] = field(default_factory=list)


OUTCOMES: Final = ("plan", "decision")  # compared as they are written, key by key


class Differs(CoschedError):
    """Recorded and recomputed are not the same."""


def verify(path: Path, progress: Callable[[float], None] | None = None) -> Verdict:
    """Recompute a capture. Raises BadInput when it is no capture, BadTrace when it is no MCAP file."""
    read = read_records(path)
    verdict = Verdict(str(path))
    if not read.is_whole:
        verdict.remarks.append("the file was not closed by its writer: verified up to its last whole chunk")
    if read.damage:
        verdict.difference = f"the file is not as it was written: {read.damage[0]}"
        return verdict
    check = _Check(verdict, path)
    try:
        for i, (topic, at_ns, payload) in enumerate(read.records):
            check.take(topic, at_ns, payload)
            if progress is not None and i % 1000 == 0:
                progress(i / len(read.records))
        check.finish(whole=read.is_whole)
    except Differs as found:
        verdict.difference = str(found)
    return verdict


class _Check:
    """Feeds a core from records and holds what it decides against what is recorded."""

    def __init__(self, verdict: Verdict, path: Path) -> None:
        self._verdict = verdict
        self._path = path
        self._core: Core | None = None
        self._site: Site | None = None
        self._open: Solve | None = None
        self._plans: list[Plan] = []  # made, and their record still to come
        self._decisions: list[DecisionMessage] = []  # of the plan checked last
        self._first_ns = 0
        self._decoders: dict[str, msgspec.json.Decoder[Any]] = {
            topic: msgspec.json.Decoder(dict if topic in OUTCOMES else kind) for topic, kind in journal.TOPICS.items()
        }
        self._takers: dict[str, Callable[..., None]] = {
            "config": self._config,
            "plan": self._plan,
            "decision": self._decision,
            "solved": self._solved,
        }

    def take(self, topic: str, at_ns: int, payload: bytes) -> None:
        """Take the next record. Raises Differs, BadInput."""
        if topic not in self._decoders:
            return
        try:
            record = self._decoders[topic].decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Differs(f"record {self._verdict.events} ({topic}) is not what a daemon writes: {error}") from None
        if self._core is None and topic != "config":
            raise BadInput(f"{self._path}: begins with '{topic}', not with a configuration: not a daemon's capture")
        self._verdict.events += 1
        self._first_ns = self._first_ns or at_ns
        self._verdict.duration_s = (at_ns - self._first_ns) * journal.NS
        if topic in self._takers:
            self._takers[topic](record, at_ns)
        else:
            self._feed(record, at_ns)

    def _config(self, record: journal.Config, _: int) -> None:
        if record.v != journal.VERSION:
            raise BadInput(f"{self._path}: a capture of version {record.v}; this program reads {journal.VERSION}")
        if record.profiles_sha256 != build.profiles_sha256():
            self._verdict.remarks.append("device, host or model profiles have changed since: decisions may differ")
        plant = build.plant(record.site_toml, str(self._path), record.ue_devices)
        self._core = plant.core(record.policy, msgspec.convert(record.core, Settings))
        self._site = plant.site
        if lost := self._core.restore(record.snapshot):
            raise Differs(f"tasks of the first record have no place on its own site: {', '.join(lost)}")

    def _feed(self, event: events.Event, at_ns: int) -> None:
        assert self._core is not None  # noqa: S101  # take() saw to it
        try:
            commands: list[Command] = self._core.handle(event, at_ns * journal.NS)
        except StaleEvent as error:
            raise Differs(f"the order of events: {error}") from None
        for command in commands:
            if isinstance(command, Solve):
                self._open = command
            elif isinstance(command, Dispatch):
                self._plans.append(command.plan)

    def _solved(self, record: events.Answered, at_ns: int) -> None:
        if self._open is None or self._open.request != record.request:
            raise Differs(f"solve {record.request} was answered, which was not asked for at {at_ns * journal.NS:.3f} s")
        self._verdict.solves += 1
        if record.failed:
            self._verdict.failed_solves += 1
            self._feed(events.Solved(record.request, record.failed), at_ns)
            return
        answer = solve_packed(pack(ask_of(self._open)))
        if answer.solution is None:
            raise Differs(f"solve {record.request} had an answer; recomputed it fails: {answer.error}")
        self._feed(events.Solved(record.request, solution=answer.solution), at_ns)

    def _plan(self, record: dict[str, object], at_ns: int) -> None:
        self._missing_decisions()
        where = f"plan {record.get('generation')} at {at_ns * journal.NS:.3f} s"
        if not self._plans:
            raise Differs(f"{where}: recomputed there is no plan")
        plan = self._plans.pop(0)
        assert self._site is not None  # noqa: S101  # take() saw to it
        rows = {name: i for i, name in enumerate(plan.tasks)}
        self._decisions = [decision_message(self._site, plan, d, rows.get(d.task)) for d in plan.decisions]
        _compare(where, record, journal.plan_made(plan))
        self._verdict.plans += 1

    def _decision(self, record: dict[str, object], _: int) -> None:
        where = f"plan {record.get('plan')}, task {record.get('task')}"
        if not self._decisions:
            raise Differs(f"{where}: recomputed there is no such decision")
        _compare(where, record, self._decisions.pop(0))
        self._verdict.decisions += 1

    def _missing_decisions(self) -> None:
        if self._decisions:
            raise Differs(f"plan {self._decisions[0].plan}: recomputed it also decides on {self._decisions[0].task}")

    def finish(self, *, whole: bool) -> None:
        """After the last record: nothing may be left over in a file that was closed. Raises Differs, BadInput."""
        if self._core is None and whole:
            raise BadInput(f"{self._path}: no configuration in it: not a daemon's capture")
        if self._core is None:
            self._verdict.remarks.append("it was cut off before its first whole chunk: there is nothing to verify")
        if whole:
            self._missing_decisions()
            if self._plans:
                raise Differs(f"plan {self._plans[0].generation} was recomputed, but not recorded")


def _compare(where: str, recorded: dict[str, object], made: msgspec.Struct) -> None:
    """Raise Differs at the first key whose value is not the same, to the last bit of a number."""
    recomputed: dict[str, object] = msgspec.json.decode(msgspec.json.encode(made))
    if "prbs" in recorded or "node_share" in recorded:  # before 2026-12: a decision's weights had names of grants
        recorded = {_OLD_NAMES.get(name, name): value for name, value in recorded.items() if name != "node_share"}
        for name in ("weight_node", "reserved"):
            recomputed.pop(name, None)
    for name in sorted({*recorded, *recomputed}, key=lambda n: (n == "sha256", n)):
        was, now = recorded.get(name), recomputed.get(name)
        if was != now:
            raise Differs(f"{where}: {name} was {was!r}, recomputed {now!r}")


_OLD_NAMES: Final = {"prbs": "weight_prb"}
