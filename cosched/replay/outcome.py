"""From what a run left behind to the figures that people read: fates of tasks, summary, timeline."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cosched.core.commands import Decision
from cosched.core.planner import resource_ids
from cosched.fluid import rows as fl
from cosched.fluid.nodes import LENGTH_S, SEQUENCES, STEPS
from cosched.fluid.world import Served
from cosched.replay.replayer import Run, Sample, Workbook
from cosched.report.model import Percentiles, PolicyResult, Summary, TaskFate, Timeline
from cosched.workloads.base import Floats
from telemetry.messages import LlmSession, TaskOffer, VideoClip

TIMELINE_SAMPLES = 600
PROMISE_EPS = 1e-9


def policy_result(book: Workbook, run: Run, hindsight_bound: float) -> PolicyResult:
    """All that the tables and the report show of one run. hindsight_bound: greatest value any policy can reach."""
    fates = [_fate(book, run, at_s, offer) for at_s, offer in book.offers]
    return PolicyResult(
        policy=run.policy.name,
        summary=_summary(book, run, fates, hindsight_bound),
        fates=fates,
        timeline=_timeline(book, run.samples),
    )


def latencies(served: Served, offer: TaskOffer) -> tuple[float, ...]:
    """Achieved latency per phase: (TTFT, mean TPOT) of a session, (mean frame latency,) of a clip."""
    if isinstance(offer.work, LlmSession):
        if not served.done:
            return (np.inf, np.inf)
        tokens = max(served.done - 1, 1)
        return (served.first_s - served.arrival_s, (served.last_s - served.first_s) / tokens)
    return (served.latency_sum_s / served.done if served.done else np.inf,)


def deadlines(offer: TaskOffer) -> tuple[float, ...]:
    """Deadline of each phase."""
    if isinstance(offer.work, LlmSession):
        return (offer.work.ttft_s, offer.work.tpot_s)
    return (offer.work.deadline_s,)


def outcome(served: Served, offer: TaskOffer) -> str:
    """Reason code of how an admitted task ended: "met", or which promise was broken."""
    if not served.finished:
        return "not_finished"
    if isinstance(offer.work, VideoClip):
        good = served.done >= offer.work.target_ratio * offer.work.frames - PROMISE_EPS
        return "met" if good else "frames_missed"
    first, token = latencies(served, offer)
    if first > offer.work.ttft_s + PROMISE_EPS:
        return "ttft_missed"
    return "met" if token <= offer.work.tpot_s + PROMISE_EPS else "tpot_missed"


def _lateness(served: Served, offer: TaskOffer) -> float:
    if not served.finished:
        return np.inf
    if isinstance(offer.work, VideoClip):
        # a late frame is dropped and has no latency: what the clip may miss over what it missed
        allowed = max((1 - offer.work.target_ratio) * offer.work.frames, 1e-9)
        return served.late / allowed
    return max(a / d for a, d in zip(latencies(served, offer), deadlines(offer), strict=True))


def _fate(book: Workbook, run: Run, at_s: float, offer: TaskOffer) -> TaskFate:
    decision = run.held.get(offer.task) or run.refused.get(offer.task)
    served = run.served.get(offer.task)
    admitted = offer.task in run.admitted and served is not None
    reason = decision.reason if decision is not None else "not_finished"
    result = "rejected"
    if admitted and served is not None:
        reason = run.dropped[offer.task].reason if offer.task in run.dropped else outcome(served, offer)
        result = "met" if reason == "met" else "missed"
    point = decision if admitted else None
    return TaskFate(
        task=offer.task,
        ue=offer.ue,
        cell=_cell(book, offer.ue),
        kind="llm" if isinstance(offer.work, LlmSession) else "video",
        private=offer.work.private,
        weight=offer.weight,
        arrival_s=at_s,
        outcome=result,
        reason=reason,
        point=point.table.point_ids[point.point] if point else "",
        split=int(point.table.split[point.point]) if point else -1,
        precision_bits=int(point.table.precision_bits[point.point]) if point else 0,
        node=_node(book, point),
        ul_efficiency_bps_hz=decision.efficiency_bps_hz if decision is not None else 0.0,
        guess=point.table.guess if point else (),
        deadline_s=deadlines(offer),
        latency_s=latencies(served, offer) if admitted and served is not None else (),
        lateness=_lateness(served, offer) if admitted and served is not None else np.inf,
    )


def _cell(book: Workbook, ue: str) -> str:
    return book.cell_of_ue.get(ue, "")


def _node(book: Workbook, decision: Decision | None) -> str:
    if decision is None:
        return ""
    node = int(decision.table.node[decision.point])
    return book.site.nodes[node].id if node >= 0 else "device"


def _percentiles(values: Sequence[float]) -> Percentiles:
    finite = np.array([v for v in values if np.isfinite(v)])
    if not len(finite):
        return Percentiles(p50=0.0)
    p50, p95, p99 = np.percentile(finite, (50, 95, 99))
    return Percentiles(p50=float(p50), p95=float(p95), p99=float(p99), max=float(finite.max()))


def _summary(book: Workbook, run: Run, fates: list[TaskFate], hindsight_bound: float) -> Summary:
    met = [f for f in fates if f.outcome == "met"]
    promised, names_met = {t for t, d in run.admitted.items() if d.promised}, {f.task for f in met}
    gaps = np.array(run.gaps) if run.gaps else np.zeros(1)
    names = resource_ids(book.site)
    return Summary(
        offered=len(fates),
        admitted=len(run.admitted),
        met=len(met),
        met_ratio=len(met) / len(fates) if fates else 0.0,
        value=sum(f.weight for f in met),
        hindsight_bound=hindsight_bound,
        gap_p50=float(np.percentile(gaps, 50)),
        gap_max=float(gaps.max()),
        latency_ms=_percentiles([1e3 * f.latency_s[0] for f in fates if f.latency_s]),
        decide_ms=_percentiles([1e3 * s for s in run.decide_s]),
        fairness_jain=_jain(fates),
        switches=run.switches,
        utilisation={n: float(u / max(run.end_s, 1e-9)) for n, u in zip(names, run.used, strict=False)},
        energy_j=_energy(book, run),
        decisions_sha256=run.decisions_sha256,
        promised=len(promised),
        broken=len(promised - names_met),
        met_unpromised=len(names_met - promised),
        tokens_met=sum(book.units[f.task] for f in met if f.kind == "llm"),
        step_ms=_of_nodes(book, 1e3 * run.figures[:, LENGTH_S], run.figures[:, STEPS]),
        batch=_of_nodes(book, run.figures[:, SEQUENCES], run.figures[:, STEPS]),
    )


def _of_nodes(book: Workbook, total: Floats, count: Floats) -> dict[str, float]:
    """Mean of a figure on each node that decoded."""
    pairs = zip(book.site.nodes, total.tolist(), count.tolist(), strict=True)
    return {node.id: whole / n for node, whole, n in pairs if n > 0}


def _jain(fates: list[TaskFate]) -> float:
    """Jain's index over the UEs' met ratios (Jain, Chiu & Hawe 1984): 1 = all alike."""
    asked: dict[str, int] = {}
    got: dict[str, int] = {}
    for fate in fates:
        asked[fate.ue] = asked.get(fate.ue, 0) + 1
        got[fate.ue] = got.get(fate.ue, 0) + (fate.outcome == "met")
    ratio = np.array([got[u] / asked[u] for u in asked])
    total = float(np.square(ratio).sum())
    return float(ratio.sum() ** 2 / (len(ratio) * total)) if total > 0 else 0.0


def _energy(book: Workbook, run: Run) -> float:
    """Joules of devices (compute and transmit) and nodes (busy time), for all that was served."""
    energy = 0.0
    for task, served in run.served.items():
        decision = run.held[task]
        per_unit = decision.table.device_energy_j[decision.point]
        if served.kind == fl.LLM:
            energy += float(per_unit[0] + per_unit[1] * max(served.done - 1, 0))
        else:
            energy += float(per_unit[0] * (served.done + served.late))
        energy += served.air_busy_s * book.tx_power_w.get(task, 0.0)
        node = int(decision.table.node[decision.point])
        if node >= 0:
            energy += served.node_busy_s * float(book.node_power_w[node])
    return energy


def _timeline(book: Workbook, samples: list[Sample]) -> Timeline:
    """Means over stretches of periods, at most TIMELINE_SAMPLES of them."""
    names = resource_ids(book.site)
    stretch = max(1, -(-len(samples) // TIMELINE_SAMPLES))
    groups = [samples[i : i + stretch] for i in range(0, len(samples), stretch)]

    def mean(columns: list[Floats]) -> Floats:
        return np.mean(np.stack(columns), axis=0) if columns else np.zeros(0)

    planned = [mean([s.planned for s in g]) for g in groups]
    used = [mean([s.used for s in g]) for g in groups]
    prices = [mean([s.prices for s in g]) for g in groups]
    return Timeline(
        t_s=[g[0].at_s for g in groups],
        active=[round(sum(s.active for s in g) / len(g)) for g in groups],
        gap=[max(s.gap for s in g) for g in groups],
        planned={n: [float(p[i]) for p in planned] for i, n in enumerate(names)},
        used={n: [float(u[i]) for u in used] for i, n in enumerate(names) if i < len(run_resources(book))},
        price={n: [float(p[i]) for p in prices] for i, n in enumerate(names)},
    )


def run_resources(book: Workbook) -> tuple[str, ...]:
    """Resources whose real use the execution model measures: uplinks and nodes."""
    return resource_ids(book.site)[: len(book.site.cells) + len(book.site.nodes)]
