"""Typed telemetry messages; units are part of every name.

Topics of the bus and of a trace (docs/reference): `site`, `ran.ue`, `ran.cell`, `compute.node`, `link`, `task`,
`task.progress`, `task.timing`, `task.truth`, `decision`. `at_ns` is the instant of measurement on the trace's own clock
(0 = start of the trace).
"""

from __future__ import annotations

from typing import Final

import msgspec

SCHEMA_VERSION: Final = 1


class UeReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One UE's radio report. None means "no sample" (the UE was idle), never "bad channel"."""

    at_ns: int
    source: str
    seq: int
    ue: str
    cell: str
    ul_efficiency_bps_hz: float | None = None  # net of HARQ errors; goodput per Hz of PUSCH granted
    dl_efficiency_bps_hz: float | None = None
    ul_mcs: float | None = None  # TS 38.214 I_MCS, mean over the window
    dl_cqi: float | None = None  # TS 28.552 CARR.WBCQIDist
    ul_sinr_db: float | None = None  # PUSCH SINR, TS 28.552 MR.NRScSSSINR for DL; xApp-specific for UL
    ul_error_fraction: float | None = None
    power_headroom_db: float | None = None  # TS 38.321 6.1.3.8
    prb_used_ul: float | None = None  # RRU.PrbUsedUl
    prb_used_dl: float | None = None  # RRU.PrbUsedDl
    thp_ul_bps: float | None = None  # DRB.UEThpUl (kbit/s there)
    thp_dl_bps: float | None = None  # DRB.UEThpDl (kbit/s there)


class UeReportBatch(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Columnar: reports of many UEs at one instant; lists of equal length, None entries = no sample."""

    at_ns: int
    source: str
    seq: int
    ue: tuple[str, ...]
    cell: tuple[str, ...]
    ul_efficiency_bps_hz: tuple[float | None, ...]
    dl_efficiency_bps_hz: tuple[float | None, ...] = ()
    ul_sinr_db: tuple[float | None, ...] = ()
    prb_used_ul: tuple[float | None, ...] = ()


class CellReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One cell's load from traffic that is not ours."""

    at_ns: int
    source: str
    seq: int
    cell: str
    background_ul_fraction: float = 0.0  # of PRBs, RRU.PrbTotUl of other traffic / 100


class NodeReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One compute node's load from work that is not ours; a GPU's memory bounds what is planned there.

    The other fields are for people, no decision uses them.
    """

    at_ns: int
    source: str
    seq: int
    node: str
    background_fraction: float = 0.0
    up: bool = True
    cpu_fraction: float | None = None  # of all cores, everybody's
    memory_fraction: float | None = None
    gpu_fraction: float | None = None
    gpu_memory_fraction: float | None = None
    rtt_s: float | None = None  # to the daemon
    gpu_memory_bytes: float | None = None  # of its GPU, all of it


class LinkReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A backhaul link between a cell and a node."""

    at_ns: int
    source: str
    seq: int
    link: str
    one_way_s: float
    background_fraction: float = 0.0


class LlmSession(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="llm", tag_field="kind"):
    """One turn of an LLM session: what is asked for."""

    model: str
    context_tokens: int  # already in the KV cache
    new_tokens: int  # to be prefilled
    max_output_tokens: int
    ttft_s: float  # deadline of the first token
    tpot_s: float  # deadline of the mean time per output token after the first
    private: bool = False  # raw tokens stay on the device: split layer k >= 1


class VideoClip(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="video", tag_field="kind"):
    """Video analytics: frames at a fixed rate, each with its deadline; C1 + C2 = C, data falls from R0 to 0."""

    frame_flop: float  # C
    frame_bits: float  # R0
    fps: float
    deadline_s: float
    frames: int
    target_ratio: float = 0.95  # share of the frames that must be in time for the clip to count as met
    private: bool = False


class TaskOffer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A task arrives: who asks for what, at what weight."""

    at_ns: int
    source: str
    seq: int
    task: str
    ue: str
    work: LlmSession | VideoClip
    weight: float = 1.0
    fallback: str = "local"  # what the consumer does past its lease: local, drop, keep


class TaskProgress(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far a running task is, as its runtime reports it; `finished` ends it."""

    at_ns: int
    source: str
    seq: int
    task: str
    done: int = 0  # tokens out, or frames in time
    late: int = 0  # frames that missed their deadline
    decoding_s: float = 0.0  # from the first token to the latest
    ul_bits_left: float | None = None  # of a prefill under way; None: all of it
    node_s_left: float | None = None  # of it, at the node's full speed
    finished: bool = False


class TaskTiming(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How long one LLM session's phases really took at one operating point, as its runtime measured it.

    Prefill figures are of the whole prefill, token figures the mean over the `tokens` decoded after the first. Node
    figures are time in execution: waiting for other sessions' turns is left out. None: not measured, or no such part.
    """

    at_ns: int
    source: str
    seq: int
    task: str
    point: str  # operating point that it ran at, as the lease names it
    tokens: int = 0
    ttft_s: float | None = None
    tpot_s: float | None = None
    device_prefill_s: float | None = None
    device_token_s: float | None = None
    node_prefill_s: float | None = None
    node_token_s: float | None = None


class TaskTruth(msgspec.Struct, frozen=True, kw_only=True):
    """What only the end of a session tells; fed to the execution model, never to a decision."""

    at_ns: int
    task: str
    output_tokens: int


class SiteMessage(msgspec.Struct, frozen=True, kw_only=True):
    """The site description (TOML text) that a trace was made for; first message of a trace."""

    at_ns: int
    toml: str


class Reserved(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a plan counts for a task, as parts of its cell, node and node's memory: over all tasks at most the whole."""

    cell: float = 0.0
    node: float = 0.0
    memory: float = 0.0


class DecisionMessage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One task's decision when it changes: a lease, or why there is none (docs/reference)."""

    at_ns: int
    source: str
    seq: int  # the plan's generation
    task: str
    plan: int  # a generation that only grows
    reason: str  # reason code
    point: str = ""  # "" = none
    split_layer: int = -1
    precision_bits: int = 0
    cell: str = ""
    node: str = ""
    bandwidth_hz: float = 0.0  # that weight_prb PRBs are: planned with while it sends, not held for it
    weight_prb: float = 0.0  # weight in the work-conserving sharing of the cell, in PRBs: weights may add up to more
    weight_node: float = 0.0  # likewise of the node
    pace_s: float = 0.0  # seconds a token on its node that are counted on, 0 = it decodes none there
    step_s: float = 0.0  # longest step that is planned for its node, 0 = nobody decodes there
    priority: int = 0  # in steps of the node: 0, who is promised something, comes before 1
    reserved: Reserved = Reserved()
    predicted_s: tuple[float | None, ...] = ()  # latency per phase at these shares; None: never, a share is 0
    slack_s: tuple[float | None, ...] = ()  # deadline less that
    binding_resource: str = ""
    input_age_ms: float = 0.0  # of the UE's last valid radio sample
    efficiency_bps_hz: float = 0.0  # that it was planned with
    valid_until_ns: int = 0
    guess: tuple[str, ...] = ()  # what in the numbers has no measurement behind it


Message = (
    SiteMessage
    | UeReport
    | UeReportBatch
    | CellReport
    | NodeReport
    | LinkReport
    | TaskOffer
    | TaskProgress
    | TaskTiming
    | TaskTruth
    | DecisionMessage
)

TOPICS: Final[dict[str, type]] = {
    "site": SiteMessage,
    "ran.ue": UeReport,
    "ran.ue.batch": UeReportBatch,
    "ran.cell": CellReport,
    "compute.node": NodeReport,
    "link": LinkReport,
    "task": TaskOffer,
    "task.progress": TaskProgress,
    "task.timing": TaskTiming,
    "task.truth": TaskTruth,
    "decision": DecisionMessage,
}
