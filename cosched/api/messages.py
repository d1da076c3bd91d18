"""The control API as typed messages: what travels on the ROUTER and XPUB sockets (docs/daemon.md).

A request is one frame, `Request`; its `args` are of the type that `VERBS` names for the verb. The answer is one
frame, `Response`, in the encoding of the request: MessagePack, or JSON where the request begins with `{`. Decisions
are published as JSON: frame 1 the topic `decision/<task>`, frame 2 a `Lease`. Unknown keys are accepted everywhere.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from cosched.api.access import CLIENT, OPERATOR, VIEWER
from telemetry.messages import DecisionMessage, LlmSession, NodeReport, VideoClip

VERSION: Final = 1
DECISION_TOPIC: Final = "decision/"  # a subscription to `decision/` follows all, to `decision/t1` whatever begins so
STATUS_TOPIC: Final = "status"  # a `Status` once a second


class Args(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of what verbs take."""


class NoArgs(Args, frozen=True, kw_only=True, omit_defaults=True):
    """Nothing: `{}` or left out."""


class SubmitArgs(Args, frozen=True, kw_only=True, omit_defaults=True):
    """A task to be decided. The same task submitted again, word for word, is answered with its present decision."""

    task: str  # an id of the client's choice, unique while the task lives
    ue: str
    work: LlmSession | VideoClip
    weight: float = 1.0
    fallback: str = "local"  # what the consumer does past its lease: local, drop, keep


class TaskArgs(Args, frozen=True, kw_only=True, omit_defaults=True):
    """One task, by its id."""

    task: str


class PolicyArgs(Args, frozen=True, kw_only=True, omit_defaults=True):
    """The policy to change to, one of those available; "" only asks."""

    policy: str = ""


class ListArgs(Args, frozen=True, kw_only=True, omit_defaults=True):
    """Which tasks: those whose id begins with `prefix`, at most `limit`."""

    prefix: str = ""
    limit: int = 1000


class WhatifArgs(Args, frozen=True, kw_only=True, omit_defaults=True):
    """A changed site, planned for the present tasks without touching the live one."""

    nodes_gone: tuple[str, ...] = ()
    cells_gone: tuple[str, ...] = ()
    more_prbs: dict[str, int] = {}  # cell -> PRBs more (negative: fewer)
    more_hz: dict[str, float] = {}  # cell -> bandwidth more, rounded down to whole PRBs
    submit: tuple[SubmitArgs, ...] = ()  # further tasks, decided together
    copies: int = 1  # of each of `submit`


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asks. `id` comes back in the response."""

    verb: str
    v: int = VERSION
    id: str | int = 0
    args: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """Why a request was not carried out; `code` is one of `FAULTS`."""

    code: str
    message: str
    hint: str = ""


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """The answer: `result` (of the verb's result type) when `ok`, else `error`."""

    v: int
    id: str | int
    ok: bool
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: Fault | msgspec.UnsetType = msgspec.UNSET


class Lease(DecisionMessage, frozen=True, kw_only=True, omit_defaults=False):
    """A task's decision as consumers see it. `at_ns` and `valid_until_ns` are of the daemon's monotonic clock.

    A consumer counts `valid_for_ms` from receipt on its own clock; past it, it does what `fallback` says.
    """

    v: int = VERSION
    ue: str = ""
    promised: bool = False  # the plan holds the task's deadlines; False with a point: best effort
    fallback: str = "local"
    valid_for_ms: float = 0.0  # 0: no lease
    at_unix_s: float = 0.0  # wall clock, a label
    text: str = ""  # the reason in a sentence
    node_endpoint: str = ""  # where the node takes activations; "": its serving is not started by the daemon
    node_key: str = ""  # CURVE public key of that endpoint; "": a plain connection, on one machine


class TaskView(msgspec.Struct, frozen=True, kw_only=True):
    """One accepted task."""

    task: str
    ue: str
    kind: str  # llm or video
    weight: float
    age_s: float  # since it was submitted
    phase: int  # 0: prefill, or video; 1: decoding
    done: int  # tokens out, or frames in time
    reported: bool  # progress comes from its runtime; False: taken to be on its deadlines
    lease: Lease
    calibration: dict[str, float] = {}  # measured over profiled time in force for new sessions of this device and model


class TaskList(msgspec.Struct, frozen=True, kw_only=True):
    """Accepted tasks in order of admission; `total` counts those beyond the limit too."""

    total: int
    tasks: tuple[TaskView, ...]


class Released(msgspec.Struct, frozen=True, kw_only=True):
    """A task that was let go by its owner."""

    task: str
    released: bool  # False: there was no such task any more


class PointView(msgspec.Struct, frozen=True, kw_only=True):
    """One operating point of a task, at the prices and the load of the plan in force."""

    point: str
    value: float
    cost: float | None  # at the prices; None: no share holds its deadlines
    least_latency_s: tuple[float, ...]  # per phase, with cell and node to itself
    needs: dict[str, float]  # share of each resource that holds its deadlines; empty: none does


class Counterfactual(msgspec.Struct, frozen=True, kw_only=True):
    """One change under which the task would have been admitted; `text` says it in words. It holds when applied."""

    kind: str  # more_prbs, more_ttft_s, more_tpot_s, more_deadline_s; now: it is admitted as it is
    amount: float
    text: str
    resource: str = ""


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Why a task has what it has, or was refused."""

    task: str
    lease: Lease
    prices: dict[str, float]
    planned: dict[str, float]  # use of each resource as the plan in force counts it
    points: tuple[PointView, ...]  # best first
    counterfactuals: tuple[Counterfactual, ...] = ()


class WhatifResult(msgspec.Struct, frozen=True, kw_only=True):
    """The changed site, planned."""

    kept: int  # present tasks that keep a promise
    unpromised: tuple[str, ...]  # present tasks that lose it
    leases: tuple[Lease, ...]  # of the further tasks
    planned: dict[str, float]
    prices: dict[str, float]


class PolicyView(msgspec.Struct, frozen=True, kw_only=True):
    """The policy in force and those there are."""

    policy: str
    chosen: str  # by configuration or operator: another one than in force while the mode is DEGRADED
    baseline: str
    available: tuple[str, ...]


class ModeView(msgspec.Struct, frozen=True, kw_only=True):
    """The daemon's mode: STARTING, STEADY, DEGRADED, DRAINING, FENCED, STOPPED; and why."""

    mode: str
    since_s: float  # seconds ago
    alarms: tuple[str, ...] = ()


class Reloaded(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration put into force; `changed`: the keys that differ."""

    changed: tuple[str, ...]
    generation: int


class Watching(msgspec.Struct, frozen=True, kw_only=True):
    """Where decisions are published, for a SUB socket."""

    endpoints: tuple[str, ...]
    topic: str = DECISION_TOPIC


class ResourceView(msgspec.Struct, frozen=True, kw_only=True):
    """One shared resource in the plan in force; fractions of it."""

    id: str
    kind: str  # comm, compute, memory
    planned: float
    background: float
    price: float
    tasks: int = 0  # that hold a share of it
    step_ms: float = 0.0  # of a node: planned length of a step, 0 = nobody decodes there
    period_ms: float = 0.0  # ... and how often its weights are read for those who can wait


class CellView(msgspec.Struct, frozen=True, kw_only=True):
    """Who reports from a cell; its load is that of the resource `<id>/ul`."""

    id: str
    ues: int  # whose latest report came from it
    stale_ues: int  # of them, silent for longer than `telemetry.stale_input_s`


class Quantiles(msgspec.Struct, frozen=True, kw_only=True):
    """Of the last `n` measurements, in ms; all 0 where there is none."""

    n: int = 0
    p50: float = 0.0
    p99: float = 0.0
    max: float = 0.0


class Counted(msgspec.Struct, frozen=True, kw_only=True):
    """How often something happened, by source and reason."""

    source: str
    reason: str
    n: int


class IngestView(msgspec.Struct, frozen=True, kw_only=True):
    """What came in on the telemetry bus since the start."""

    messages: int = 0
    reports: int = 0  # rows of batches counted one by one
    refused: tuple[Counted, ...] = ()  # frames dropped and values blanked
    lost: dict[str, int] = {}  # per source, from sequence numbers
    input_age_s: float = 0.0  # since the last valid radio report
    stale_ues: int = 0  # UEs with a task whose last report is older than the limit


class ShadowTally(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the tasks of a window."""

    admitted: int = 0
    met: int = 0
    value_met: float = 0.0


class ShadowView(msgspec.Struct, frozen=True, kw_only=True):
    """The live policy against the decoupled baseline on the same input, both in the execution model of replay.

    Tasks that their device serves alone are not counted. All 0 until the first minute is over.
    """

    baseline: str
    window_s: float = 0.0
    offered: int = 0
    live: ShadowTally = ShadowTally()
    shadow: ShadowTally = ShadowTally()


class LayerRange(msgspec.Struct, frozen=True, kw_only=True):
    """Decoder layers [first, last) of a model."""

    model: str
    first: int
    last: int


class RayNode(msgspec.Struct, frozen=True, kw_only=True):
    """A Ray node that lives, as Ray's state has it."""

    id: str
    address: str  # of its machine
    cpus: float = 0.0
    gpus: float = 0.0
    memory_bytes: float = 0.0  # that Ray gives out: about the machine's, of all its Ray nodes
    accelerator: str = ""  # model of its GPU, where Ray knows it
    labels: dict[str, str] = {}


class ClusterNode(msgspec.Struct, frozen=True, kw_only=True):
    """One node of the site on the cluster: what it was asked and what it reports."""

    node: str
    state: str  # starting, up, absent, lost, drained
    why: str = ""
    asked: int = 0  # plan of the latest order to it,
    acknowledged: int = 0  # the latest that it has taken,
    applied: int = 0  # and the one in force, as it reports
    sessions: int = 0  # in force
    used_bytes: float = 0.0  # by loaded layers
    layers: tuple[LayerRange, ...] = ()  # that it holds, as it reports
    to_hold: tuple[LayerRange, ...] = ()  # that it was asked to hold
    loading: bool = False  # layers are on their way, or wait
    waits: str = ""  # what they wait for
    load_bytes_per_s: float = 0.0  # at which it loads layers: median of its latest loads, 0 = not measured
    retries: int = 0  # since what is in force was last what was asked
    orders: int = 0  # that its present actor has taken
    endpoint: str = ""  # where clients send activations
    public_key: str = ""  # CURVE key of that endpoint, "" = a plain connection
    pid: int = 0  # of its actor
    ray: RayNode | None = None  # that carries its label, as long as it lives
    device: str = ""  # that its executor computes on, "" = it does not say
    memory_bytes: float = 0.0  # of that device, 0 = it does not say
    free_bytes: float = 0.0  # of that memory
    short_bytes: float = 0.0  # of the memory that the site gives it: the plan counts on so much less
    agent: NodeReport | None = None  # the latest of its `cosched agent`


class PlacementView(msgspec.Struct, frozen=True, kw_only=True):
    """Which layers nodes are to hold: all, or those chosen, and what the latest choice is worth over its horizon."""

    state: str = "off"  # off (all layers, without asking), all (there is room for all), chosen
    value: float = 0.0
    bound: float = 0.0  # no choice is worth more
    moved_bytes: float = 0.0  # that it has nodes load


class ClusterView(msgspec.Struct, frozen=True, kw_only=True):
    """Dispatch: where decisions take effect."""

    mode: str = "off"  # as configured: off, local, join
    state: str = "off"  # off, starting, connected, unreachable, fenced
    address: str = ""
    epoch: int = 0  # of this daemon; nodes obey the largest
    why: str = ""  # it is not connected
    nodes: tuple[ClusterNode, ...] = ()
    placement: PlacementView = PlacementView()


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator sees first; metrics are made of it too."""

    v: int = VERSION
    version: str
    pid: int
    site: str
    policy: str
    baseline: str
    mode: str
    mode_since_s: float  # seconds ago
    alarms: tuple[str, ...]
    uptime_s: float
    generation: int
    tasks: int
    promised: int
    value: float
    bound: float
    gap: float
    resources: tuple[ResourceView, ...]
    cells: tuple[CellView, ...] = ()
    counts: dict[str, int]  # offered, admitted, refused, finished, released, lost, restored, solves, solves_failed, ...
    reasons: dict[str, int]  # decisions by reason code since the start
    submit_ms: Quantiles  # request read -> decision sent
    solve_ms: Quantiles  # Solve handed to the worker -> answer back
    telemetry_ms: Quantiles  # plan's instant (tick or arrival) -> decisions published
    ingest: IngestView
    shadow: ShadowView
    cluster: ClusterView = ClusterView()
    capture: str = ""  # file being written, "" none
    capture_bytes: int = 0
    log_dropped: int = 0  # lines that nobody read in time
    config: str = ""  # its path


class Verb(NamedTuple):
    """Types of a verb's arguments and result, and the least role that may call it."""

    args: type[Args]
    result: type
    role: str


VERBS: Final[dict[str, Verb]] = {
    "status": Verb(NoArgs, Status, VIEWER),
    "list": Verb(ListArgs, TaskList, VIEWER),
    "show": Verb(TaskArgs, TaskView, VIEWER),
    "explain": Verb(TaskArgs, Explanation, VIEWER),
    "whatif": Verb(WhatifArgs, WhatifResult, VIEWER),
    "watch": Verb(NoArgs, Watching, VIEWER),
    "submit": Verb(SubmitArgs, Lease, CLIENT),
    "release": Verb(TaskArgs, Released, CLIENT),
    "policy": Verb(PolicyArgs, PolicyView, OPERATOR),
    "drain": Verb(NoArgs, ModeView, OPERATOR),
    "resume": Verb(NoArgs, ModeView, OPERATOR),
    "reload": Verb(NoArgs, Reloaded, OPERATOR),
}

FAULTS: Final[dict[str, str]] = {
    "bad_request": "not a request: neither MessagePack nor JSON, or its keys are wrong",
    "bad_version": "another version of the protocol",
    "unknown_verb": "there is no such verb",
    "bad_args": "the verb's arguments are wrong",
    "not_allowed": "this key's role may not do that",
    "unknown_task": "no such task lives",
    "conflict": "another task of that id lives",
    "draining": "the daemon takes no new task at present",
    "busy": "too many requests wait, or this identity sends too many",
    "refused_configuration": "the new configuration is wrong as a whole; the old one stays",
    "quota": "this identity or UE has as many tasks, or as much of the site, as it may",
    "internal": "a defect of the daemon; it goes on, and its log says more",
    "not_done": "the daemon could not do it now; the message says why",
}
