"""Seeded, realistic replay results and sweeps for the tests of tables, report and curves."""

from __future__ import annotations

import math

import numpy as np

from cosched.report.model import (
    Percentiles,
    PolicyResult,
    ReplayResult,
    Summary,
    Sweep,
    SweepRow,
    TaskFate,
    Timeline,
    TraceInfo,
)

POLICIES = (
    "joint",
    "greedy",
    "greedy-residual",
    "pf",
    "pf-admit",
    "pf-util",
    "equal-rate-admit",
    "compute-only",
    "edge",
    "engine",
    "predicted",
    "deadline-split",
    "weight-floor",
    "local",
)
# met at load 1 and how well private users fare: about what a prototype found
SKILL = dict(
    zip(
        POLICIES,
        (0.76, 0.72, 0.73, 0.31, 0.58, 0.55, 0.52, 0.44, 0.35, 0.48, 0.5, 0.56, 0.7, 0.12),
        strict=True,
    )
)
RESOURCES = ("cell0/ul", "cell1/ul", "cell2/ul", "edge0/gpu", "edge1/gpu", "cloud/gpu")


def make_result(
    *, policies: tuple[str, ...] = POLICIES, tasks: int = 2000, samples: int = 600, seed: int = 1
) -> ReplayResult:
    trace = TraceInfo(
        path="urban-llm.mcap",
        sha256="9f" * 32,
        duration_s=samples * 0.1,
        ues=24,
        tasks=int(tasks * 1.4),
        local_feasible=int(tasks * 0.4),
        overlap_share=0.25,
        most_at_once=3,
    )
    runs = {p: make_run(p, tasks, samples, trace.duration_s, seed) for p in policies}
    return ReplayResult(v=1, trace=trace, policies=runs)


def make_run(policy: str, tasks: int, samples: int, duration_s: float, seed: int) -> PolicyResult:
    offers = np.random.default_rng(seed)  # the same tasks for every policy
    luck = np.random.default_rng([seed, sum(policy.encode())])
    skill = SKILL.get(policy.partition(":")[0], 0.5)
    arrivals = np.sort(offers.uniform(0, duration_s, tasks))
    fates = [
        make_fate(i, float(arrivals[i]), policy=policy, skill=skill, offers=offers, luck=luck) for i in range(tasks)
    ]
    return PolicyResult(
        policy=policy, summary=summarise(policy, fates, luck), fates=fates, timeline=make_timeline(skill, samples, luck)
    )


def make_fate(
    i: int, arrival_s: float, *, policy: str, skill: float, offers: np.random.Generator, luck: np.random.Generator
) -> TaskFate:
    kind = "llm" if offers.random() < 0.6 else "video"
    private = bool(offers.random() < 0.5)
    efficiency = float(np.clip(offers.lognormal(0.6, 0.5), 0.15, 5.5))
    deadline = (
        (float(offers.choice([0.5, 1.0, 2.0])), float(offers.choice([0.05, 0.1, 0.2]))) if kind == "llm" else (0.2,)
    )
    weight = float(offers.choice([1.0, 5.0]))
    draw = offers.random() * 0.7 + luck.random() * 0.3
    hard = 0.2 * private * (0.3 if policy == "joint" else 1) + 0.25 * (efficiency < 1.3) - 0.1
    outcome = "met" if draw < skill - hard else "missed" if draw < skill - hard + 0.06 else "rejected"
    if outcome == "rejected":
        split, precision, node, point, latency, lateness = -1, 0, "", "", (), math.inf
    else:
        top = 16 if kind == "llm" else 100
        split = int(np.clip(round(top * (0.25 + 0.4 / efficiency * luck.random())), 1 if private else 0, top))
        precision = int(luck.choice([4, 8, 16]))
        node = str(luck.choice(["edge0", "edge1", "cloud"]))
        point = f"k={split}/{precision}bit/{node}"
        late = luck.uniform(0.35, 0.99) if outcome == "met" else 1 + luck.exponential(0.4)
        unfinished = outcome == "missed" and luck.random() < 0.1
        lateness = math.inf if unfinished else float(late)
        latency = tuple(d * late for d in deadline)
    return TaskFate(
        task=f"t{i:05d}",
        ue=f"ue{i % 24}",
        cell=f"cell{i % 3}",
        kind=kind,
        private=private,
        weight=weight,
        arrival_s=arrival_s,
        outcome=outcome,
        reason=reason_of(outcome, kind, lateness, luck),
        point=point,
        split=split,
        precision_bits=precision,
        node=node,
        ul_efficiency_bps_hz=efficiency,
        guess=("phone: prefill time",) if i % 3 == 0 else (),
        deadline_s=deadline,
        latency_s=latency,
        lateness=lateness,
    )


def reason_of(outcome: str, kind: str, lateness: float, luck: np.random.Generator) -> str:
    if outcome == "met":
        return "admitted"
    if outcome == "missed":
        late = ["ttft_missed", "tpot_missed"] if kind == "llm" else ["frames_missed"]
        return "not_finished" if math.isinf(lateness) else str(luck.choice(late))
    codes = ["rejected_no_capacity", "rejected_no_point", "rejected_bid_price"]
    return str(luck.choice(codes, p=[0.6, 0.25, 0.15]))


def summarise(policy: str, fates: list[TaskFate], luck: np.random.Generator) -> Summary:
    met = [f for f in fates if f.outcome == "met"]
    first = [1e3 * f.latency_s[0] for f in fates if f.latency_s] or [0.0]
    p50, p95, p99 = (float(q) for q in np.percentile(first, [50, 95, 99]))
    value = sum(f.weight for f in met)
    return Summary(
        offered=len(fates),
        admitted=sum(f.outcome != "rejected" for f in fates),
        met=len(met),
        met_ratio=len(met) / len(fates) if fates else 0.0,
        value=value,
        hindsight_bound=(0.93 if len(fates) > 100 else 1.0) * sum(f.weight for f in fates),
        gap_p50=0.4 if policy == "joint" else 6.0,
        gap_max=1.9 if policy == "joint" else 14.0,
        latency_ms=Percentiles(p50=p50, p95=p95, p99=p99),
        decide_ms=Percentiles(p50=float(luck.uniform(0.2, 3)), p99=float(luck.uniform(3, 9)), max=12.0),
        fairness_jain=float(luck.uniform(0.5, 0.95)),
        switches=int(luck.integers(0, 90)),
        utilisation={r: float(luck.uniform(0.3, 0.97)) for r in RESOURCES},
        energy_j=8.2 * len(fates) * luck.uniform(0.8, 1.2),
        decisions_sha256="ab" * 32,
    )


def make_timeline(skill: float, samples: int, luck: np.random.Generator) -> Timeline:
    t = np.arange(samples) * 0.1
    swing = np.sin(2 * np.pi * t / max(20.0, samples * 0.03))
    planned = {r: np.clip(0.6 + 0.3 * skill + 0.2 * swing + luck.normal(0, 0.04, samples), 0, 1) for r in RESOURCES}
    used = {r: p * luck.uniform(0.6, 1.0, samples) for r, p in planned.items()}
    gap = np.abs(luck.normal(12 * (1 - skill), 1.5 * (1 - skill) + 0.1, samples))
    return Timeline(
        t_s=t.tolist(),
        active=(20 + 8 * swing).astype(int).tolist(),
        gap=gap.tolist(),
        planned={r: p.tolist() for r, p in planned.items()},
        used={r: u.tolist() for r, u in used.items()},
        price={r: (0.3 * p).tolist() for r, p in planned.items()},
    )


def make_sweep(
    *,
    policies: tuple[str, ...] = POLICIES,
    sites: tuple[str, ...] = ("node-bound",),
    seeds: int = 5,
    weight: float = 1.0,
) -> Sweep:
    rng = np.random.default_rng(7)
    rows = []
    for site in sites:
        for load in (0.3, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0):
            for seed in range(seeds):
                offered = int(200 * load)
                scarce = 1 / (1 + max(0.0, load - 0.3) ** 1.3)
                bound = min(1.0, 1.1 * scarce + 0.05) * offered * weight
                for policy in policies:
                    met = round(offered * float(np.clip(1.25 * SKILL[policy] * scarce + rng.normal(0, 0.015), 0, 1)))
                    met = min(met, int(bound / weight))
                    rows.append(
                        SweepRow(
                            site=site,
                            load=load,
                            seed=seed,
                            policy=policy,
                            offered=offered,
                            admitted=min(offered, met + 5),
                            met=met,
                            value=met * weight,
                            hindsight_bound=bound,
                        )
                    )
    return Sweep(v=1, name="met over offered load", command="cosched bench load --site node-bound", rows=rows)
