"""What a replay hands to tables, JSON and the HTML report: plain records, no drawing."""

from __future__ import annotations

import msgspec


class TraceInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The trace that was replayed."""

    path: str
    sha256: str
    duration_s: float
    ues: int
    tasks: int  # all that arrived
    local_feasible: int  # of these, such as their device serves alone in time: not in `offered`
    overlap_share: float  # of the tasks, that overlap another of the same UE (cosched/replay/overlap.py)
    most_at_once: int  # tasks of one UE


class Percentiles(msgspec.Struct, frozen=True, kw_only=True):
    """Of a distribution; NaN-free: 0 where there is no sample."""

    p50: float
    p95: float = 0.0
    p99: float = 0.0
    max: float = 0.0


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """One policy's figures: the keys of `replay --json` (docs/report.md)."""

    offered: int
    admitted: int
    met: int
    met_ratio: float
    value: float
    hindsight_bound: float
    gap_p50: float
    gap_max: float
    latency_ms: Percentiles  # latency of a task's first phase (TTFT, or a frame's mean end-to-end time)
    decide_ms: Percentiles
    fairness_jain: float
    switches: int
    utilisation: dict[str, float]
    energy_j: float
    decisions_sha256: str
    promised: int = 0  # that were promised their deadlines when they were admitted ...
    broken: int = 0  # ... of these, not met
    met_unpromised: int = 0  # met though nothing was promised
    tokens_met: int = 0  # of the sessions that were met
    step_ms: dict[str, float] = {}  # per node: mean length of a step in which somebody decoded
    batch: dict[str, float] = {}  # ... and mean number of sequences in it


class TaskFate(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one offered task under one policy."""

    task: str
    ue: str
    cell: str
    kind: str  # llm, video
    private: bool
    weight: float
    arrival_s: float
    outcome: str  # met, missed, rejected
    reason: str  # reason code (cosched/core/reasons.py)
    point: str  # "" when rejected
    split: int  # -1 when rejected
    precision_bits: int
    node: str
    ul_efficiency_bps_hz: float  # estimate at the decision
    guess: tuple[str, ...]  # what in the plan's numbers has no measurement behind it
    deadline_s: tuple[float, ...]
    latency_s: tuple[float, ...]  # achieved, per phase; empty when rejected
    lateness: float  # max over phases of latency / deadline; inf when not finished


class Timeline(msgspec.Struct, frozen=True, kw_only=True):
    """Once per sampling period: lists of equal length T; per resource lists of length T."""

    t_s: list[float]
    active: list[int]
    gap: list[float]  # bound - value of the decision in force
    planned: dict[str, list[float]]  # per resource: what the plan counts
    used: dict[str, list[float]]  # per resource: what was really used in the period
    price: dict[str, list[float]]


class PolicyResult(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of one policy's run."""

    policy: str
    summary: Summary
    fates: list[TaskFate]
    timeline: Timeline


class ReplayResult(msgspec.Struct, frozen=True, kw_only=True):
    """Several policies on the same trace."""

    v: int
    trace: TraceInfo
    policies: dict[str, PolicyResult]
    failed: dict[str, str] = {}  # policy -> why: a plan of it did not pass verification


class SweepRow(msgspec.Struct, frozen=True, kw_only=True):
    """One policy's summary at one offered load and seed (a sweep's row)."""

    site: str
    load: float
    seed: int
    policy: str
    offered: int
    admitted: int
    met: int
    value: float
    hindsight_bound: float
    promised: int = 0
    broken: int = 0
    tokens_met: int = 0
    offered_value: float = 0.0  # weight of the offered tasks
    feasible_alone: int = 0  # of the offered, that could be met with cell and node to themselves
    duration_s: float = 0.0  # in which tasks arrived


class Sweep(msgspec.Struct, frozen=True, kw_only=True):
    """Met over offered load, several seeds: what the README's curves are drawn from."""

    v: int
    name: str
    command: str  # that reproduces it
    rows: list[SweepRow]
