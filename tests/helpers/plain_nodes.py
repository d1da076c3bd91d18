"""What docs/execution.md says of devices, uplinks and nodes that serve in steps, once more and slowly: lists and dicts.

One dict a task. Written from the rules, to hold cosched/fluid against; nothing here is shared with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Final

Row = dict[str, Any]

MOMENT_S: Final = 1e-12  # what is less apart is the same instant
LONE_PIECE_S: Final = 0.005  # of work on a node that plans no steps and where nobody decodes
SOON_STEPS: Final = 2.0  # planned: while other work waits, decoders that are due later start none
MOST_OF_STEP: Final = 0.3  # planned, that pieces are given beside decoders who fill it


@dataclass(frozen=True)
class Job:
    """One task: per phase what its device, the air, the way and its node do for a unit of it."""

    name: str
    is_clip: bool
    ue: int
    cell: int
    node: int
    device_s: tuple[float, float]
    bits: tuple[float, float]
    flight_s: tuple[float, float]
    node_s: float  # of the prefill or a frame
    shared_s: float  # of the step of a token
    own_s: float
    model: int
    deadline_s: float  # of the first token, or a frame
    period_s: float  # TPOT, or of frames
    units: int
    prbs: float
    is_promised: bool


@dataclass
class PlainNode:
    """A node: its planned step, the part of it that is ours, when the present step ends, and what was done so far."""

    planned_s: float
    free: float
    end_s: float = 0.0
    busy_s: float = 0.0
    steps: list[tuple[float, int, float]] = field(default_factory=list)  # with decoders: length, sequences, of pieces


class PlainWorld:
    """Executes jobs from one event to the next."""

    def __init__(
        self, nodes: list[PlainNode], hz: list[float], free_cell: list[float], efficiency: list[float]
    ) -> None:
        self.nodes, self.hz, self.free_cell, self.efficiency = nodes, hz, free_cell, efficiency
        self.now = 0.0
        self.rows: list[Row] = []
        self.ended: dict[str, Row] = {}

    def start(self, job: Job) -> None:
        """Begin a task now."""
        row: Row = {"job": job, "phase": 0, "done": 0, "late": 0, "left": job.units, "first": math.nan, "last": 0.0}
        row |= {"arrival": self.now, "release": self.now, "stage": "", "rest": 0.0, "until": 0.0, "piece": 0.0}
        self.rows.append(row)
        self._begin(row)

    # the way of one unit: device, air, flight, node

    def _begin(self, row: Row) -> None:
        self._enter(row, "device", row["job"].device_s[row["phase"]])

    def _enter(self, row: Row, stage: str, rest: float) -> None:
        row["stage"], row["rest"] = stage, rest
        if rest <= 0 and stage in ("device", "air"):
            self._go_on(row)
        elif stage == "flight":
            row["until"] = self.now + rest
            if rest <= 0 and self._node_work(row) > 0:
                self._go_on(row)

    def _go_on(self, row: Row) -> None:
        job, q = row["job"], row["phase"]
        if row["stage"] == "device":
            self._enter(row, "air", job.bits[q])
        elif row["stage"] == "air":
            self._enter(row, "flight", job.flight_s[q])
        elif row["stage"] == "flight" and self._node_work(row) > 0:
            row["stage"], row["rest"] = "queue", self._node_work(row)
        elif row["stage"] == "step" and not decodes(row) and row["rest"] - row["piece"] > MOMENT_S:
            row["stage"], row["rest"] = "queue", row["rest"] - row["piece"]
        elif row["stage"] == "pause":
            self._begin(row)
        else:
            self._unit_done(row)

    def _node_work(self, row: Row) -> float:
        job = row["job"]
        return float(job.node_s if row["phase"] == 0 else job.own_s)

    def _unit_done(self, row: Row) -> None:
        row["left"] -= 1
        row["done"] += 1
        row["last"] = self.now
        if row["job"].is_clip:
            self._next_frame(row)
            return
        if row["phase"] == 0:
            row["first"], row["phase"] = self.now, 1
        if row["left"] == 0:
            self._end(row)
        else:
            self._begin(row)

    def _next_frame(self, row: Row) -> None:
        job = row["job"]
        while row["left"] > 0:
            row["release"] += job.period_s
            if row["release"] + job.deadline_s > self.now + MOMENT_S:
                if row["release"] > self.now:
                    row["stage"], row["until"] = "pause", row["release"]
                else:
                    self._begin(row)
                return
            row["left"] -= 1
            row["late"] += 1
        self._end(row)

    def _end(self, row: Row) -> None:
        row["stage"] = "out"
        self.ended[row["job"].name] = row

    # time

    def advance(self, until_s: float) -> None:
        """Serve until then."""
        while self.now < until_s:
            self._rates()
            at = self._next(until_s)
            formed = at > self.now + MOMENT_S and [self._form(k) for k in range(len(self.nodes))]
            if formed and any(formed):
                at = self._next(until_s)
            dt, before = at - self.now, self.now
            for row in self.rows:
                if row["stage"] in ("device", "air"):
                    row["rest"] -= row["rate"] * dt
            for node in self.nodes:
                node.busy_s += node.free * dt if node.end_s > before else 0.0
            self.now = at
            for row in self.rows:
                if row["stage"] == "out":
                    continue
                if self._is_over(row):
                    self._go_on(row)
                elif self._drop_s(row) <= self.now + MOMENT_S:
                    row["left"] -= 1
                    row["late"] += 1
                    self._next_frame(row)

    def _rates(self) -> None:
        for row in self.rows:
            row["rate"] = 0.0
        on_device: dict[int, list[Row]] = {}
        on_air: dict[int, list[Row]] = {}
        for row in self.rows:
            if row["stage"] == "device":
                on_device.setdefault(row["job"].ue, []).append(row)
            elif row["stage"] == "air":
                on_air.setdefault(row["job"].cell, []).append(row)
        for group in on_device.values():
            min(group, key=due_s)["rate"] = 1.0  # of equals the first
        for cell, group in on_air.items():
            weights = sum(row["job"].prbs for row in group)
            for row in group:
                part = row["job"].prbs / weights * self.free_cell[cell]
                row["rate"] = part * self.hz[cell] * self.efficiency[row["job"].ue]

    def _next(self, until_s: float) -> float:
        at = [until_s, *(node.end_s for node in self.nodes if node.end_s > self.now)]
        for row in self.rows:
            if row["stage"] in ("device", "air") and row["rate"] > 0:
                at.append(self.now + row["rest"] / row["rate"])
            elif row["stage"] in ("flight", "step", "pause"):
                at.append(row["until"])
            at.append(self._drop_s(row))
        return max(min(at), self.now)

    def _is_over(self, row: Row) -> bool:
        if row["stage"] in ("device", "air"):
            return bool(row["rate"] > 0 and row["rest"] <= row["rate"] * MOMENT_S)
        return bool(row["stage"] in ("flight", "step", "pause") and row["until"] <= self.now + MOMENT_S)

    def _drop_s(self, row: Row) -> float:
        """Instant at which a frame in work is late."""
        if not row["job"].is_clip or row["stage"] in ("pause", "out"):
            return math.inf
        return float(row["release"] + row["job"].deadline_s)

    # steps

    def _form(self, k: int) -> bool:
        """Start a step on node k if it is free and somebody wants one."""
        node = self.nodes[k]
        waiting = [row for row in self.rows if row["stage"] == "queue" and row["job"].node == k]
        pieces = sorted((r for r in waiting if not decodes(r)), key=self._urgency)
        soon_s = SOON_STEPS * node.planned_s / node.free if pieces and node.free > 0 else math.inf
        ready = sorted((r for r in waiting if decodes(r) and self._wants(r, soon_s)), key=self._urgency)
        ahead = sorted((r for r in waiting if decodes(r) and not self._wants(r, soon_s)), key=self._urgency)
        if node.end_s > self.now + MOMENT_S or node.free <= 0 or not (ready or pieces):
            return False
        most_s = node.planned_s
        if math.isinf(most_s) and not ready and not ahead:
            most_s = LONE_PIECE_S
        reserved_s = min(sum(r["rest"] for r in pieces), min(self._hurry(pieces), MOST_OF_STEP) * most_s)
        members: list[Row] = []
        for row in ready:
            if not members or lasts_s([*members, row]) <= most_s:
                members.append(row)
        for row in ahead:
            if members and lasts_s([*members, row]) <= most_s:
                members.append(row)
        taken_s = self._cut(pieces, max(most_s - lasts_s(members), reserved_s), most_s, node.free, bool(members))
        length_s = taken_s + lasts_s(members)
        node.end_s = self.now + length_s / node.free
        for row in [*members, *pieces]:
            if row in members or (row["stage"] == "step" and math.isnan(row["until"])):
                row["stage"], row["until"] = "step", node.end_s
        if members:
            node.steps.append((length_s, len(members), taken_s))
        return True

    def _hurry(self, pieces: list[Row]) -> float:
        """Part of all time with which the promised of these are in time; what is before them counts."""
        rest_s, part = 0.0, 0.0
        for row in pieces:
            rest_s += row["rest"]
            if row["job"].is_promised and due_s(row) > self.now:
                part = max(part, rest_s / (due_s(row) - self.now))
        return part

    def _wants(self, row: Row, soon_s: float) -> bool:
        """Whether a decoder wants a step to start: he is due in soon_s seconds."""
        return due_s(row) - soon_s <= self.now + MOMENT_S

    def _cut(self, pieces: list[Row], room_s: float, most_s: float, free: float, with_decoders: bool) -> float:
        """Give everybody his piece of a step, the most urgent first; return what all take."""
        taken_s = prefill_s = 0.0
        for row in pieces:
            is_clip = row["job"].is_clip
            piece_s = min(row["rest"], room_s - taken_s)
            if with_decoders and not is_clip:
                piece_s = min(piece_s, 0.5 * most_s - prefill_s)
            if piece_s <= 0:
                continue
            taken_s += piece_s
            prefill_s += 0.0 if is_clip else piece_s
            row["stage"], row["piece"] = "step", piece_s
            row["until"] = self.now + taken_s / free if is_clip and piece_s >= row["rest"] else math.nan
        return taken_s

    def _urgency(self, row: Row) -> tuple[bool, bool, float]:
        """Promised first; who is lost already comes after them; then who is due first."""
        slack_s = due_s(row) - self.now
        is_lost = slack_s < (-3 * row["job"].period_s if decodes(row) else 0.0)
        return not row["job"].is_promised, is_lost, slack_s


def decodes(row: Row) -> bool:
    """Whether its next unit is a token that its node makes in a step."""
    job = row["job"]
    return not job.is_clip and row["phase"] == 1 and job.own_s > 0


def due_s(row: Row) -> float:
    """When the present unit should be done."""
    job = row["job"]
    if job.is_clip:
        return float(row["release"] + job.deadline_s)
    if row["phase"] == 0:
        return float(row["arrival"] + job.deadline_s)
    return float(row["first"] + row["done"] * job.period_s)


def lasts_s(members: list[Row]) -> float:
    """Length of a step with these decoders alone: each model's most, once, and everybody's own."""
    reads: dict[int, float] = {}
    for row in members:
        job = row["job"]
        reads[job.model] = max(reads.get(job.model, 0.0), job.shared_s)
    return sum(reads.values()) + sum(row["job"].own_s for row in members)
