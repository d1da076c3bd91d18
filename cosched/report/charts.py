"""Charts of one replay: latency, who is served, and why tasks were not met."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from cosched.core.policy import DECOUPLED
from cosched.core.reasons import describe
from cosched.report import stats
from cosched.report.chart import Chart, Spec, axis, drawn, figure, label, policy_colour
from cosched.report.model import ReplayResult
from cosched.report.palette import JOINT

SHOWN_TO: Final = 2.0  # latency / deadline: beyond twice the deadline nobody asks by how much
_REJECTED_COLOURS: Final = ("@r0", "@r1", "@r2", "@r3", "@r9")
_MISSED_COLOURS: Final = ("@r4", "@r5", "@r6", "@r7", "@r8", "@r0")
CLASS_COLOURS: Final = {"private": "@a", "open": "@b", "bad": "@a", "middle": "@c", "good": "@b"}


def latency_chart(result: ReplayResult) -> Chart:
    """Distribution of latency over deadline per policy, as a share of all offered tasks."""
    traces = []
    for policy, style in drawn(result.policies):
        x, y = stats.lateness_ecdf(result.policies[policy].fates)
        if x.size:
            traces.append(
                {
                    "x": [0.0, *np.round(x, 4).tolist()],
                    "y": [0.0, *np.round(y, 4).tolist()],
                    "mode": "lines",
                    "name": label(policy),
                    "legendrank": 1 if policy == JOINT else 2,
                    "line": {"color": policy_colour(policy), "dash": style.dash, "width": style.width, "shape": "hv"},
                    "hovertemplate": f"{label(policy)}: %{{y:.1%}} within %{{x:.2f}} x deadline<extra></extra>",
                }
            )
    return Chart(
        key="latency",
        title=f"Who is in time: {_leaders(result)}",
        explain="Share of all offered tasks whose latency was at most so many times their deadline; for several phases "
        "the worst one counts, and for a clip the frames that it missed over those that it may miss. Rejected and "
        "unfinished tasks never arrive, so a curve ends below 100 %. At 1, the deadline, higher is better.",
        variants={"": _latency_figure(traces)} if traces else {},
        empty="No task was served under any policy, so there is no latency to show.",
    )


def _leaders(result: ReplayResult) -> str:
    met = {p: run.summary.met_ratio for p, run in result.policies.items() if run.summary.offered}
    order = sorted(met, key=lambda p: -met[p])[:2]
    shares = [f"{100 * met[policy]:.0f} %" for policy in order]
    if len(set(shares)) < len(shares):
        return f"{' and '.join(order)} with {shares[0]}"
    named = [f"{policy} with {share}" for policy, share in zip(order, shares, strict=True)]
    return ", then ".join(named) if named else "latency against the deadline"


def _latency_figure(traces: Sequence[Spec]) -> Spec:
    deadline = {
        "type": "line",
        "x0": 1,
        "x1": 1,
        "y0": 0,
        "y1": 1,
        "yref": "paper",
        "line": {"color": "@ink", "width": 1.5},
    }
    mark = {
        "x": 1,
        "y": 1,
        "yref": "paper",
        "text": "deadline",
        "showarrow": False,
        "xanchor": "left",
        "yanchor": "top",
    }
    return figure(
        traces,
        height=440,
        x=axis("latency / deadline", range=[0, SHOWN_TO]),
        y=axis("share of offered tasks", tickformat=".0%", rangemode="tozero"),
        shapes=[deadline],
        annotations=[{**mark, "xshift": 4}],
    )


# --- who is served -------------------------------------------------------------------------------------------------


def class_charts(result: ReplayResult) -> list[Chart]:
    """Tasks met by class of user: private against open, bad against good channel."""
    lead = stats.lead_policy(result)
    reference = result.policies[lead].fates if lead else []
    channel = stats.channel_classes(reference)
    privacy = {fate.task: "private" if fate.private else "open" for fate in reference}
    few = "There are no two classes of users to compare in this trace."
    return [
        Chart(
            key="privacy",
            title=_class_title(result, privacy, "private", "Private users"),
            explain="Share of each class met. Private: the raw input must stay on the device, so that its first layers "
            "run there and activations, not tokens, cross the air.",
            variants=_class_figure(result, privacy, ("private", "open")),
            empty=few,
            half=True,
        ),
        Chart(
            key="channel",
            title=_class_title(result, channel, "bad", "Users on a bad channel"),
            explain="Share of each class met. Classes are thirds of the tasks by estimated uplink spectral efficiency "
            f"when {lead or 'the policy'} decided; every policy is judged on the same three sets of tasks.",
            variants=_class_figure(result, channel, stats.CHANNEL_CLASSES),
            empty=few,
            half=True,
        ),
    ]


def _class_met(result: ReplayResult, classes: dict[str, str], which: str, policy: str) -> tuple[int, int]:
    fates = result.policies[policy].fates
    return stats.met_share(fate for fate in fates if classes.get(fate.task) == which)


def _class_title(result: ReplayResult, classes: dict[str, str], which: str, who: str) -> str:
    lead = stats.lead_policy(result)
    rival = stats.best_of(result, DECOUPLED, besides=lead)
    if lead is None or which not in classes.values():
        return f"{who} against the others"
    shares = []
    for policy in (lead, *([rival] if rival else [])):
        met, offered = _class_met(result, classes, which, policy)
        shares.append(f"{policy} meets {100 * met / offered:.0f} %" if offered else f"{policy} has none")
    return f"{who}: {', '.join(shares)}"


def _class_figure(result: ReplayResult, classes: dict[str, str], order: Sequence[str]) -> dict[str, Spec]:
    present = [c for c in order if c in classes.values()]
    if len(present) < 2:
        return {}
    policies = list(result.policies)
    traces = [_class_bars(result, classes, which, policies) for which in present]
    layout = {"barmode": "group", "bargap": 0.28, "bargroupgap": 0.05}
    height = 130 + len(policies) * 46
    y = axis("", autorange="reversed", type="category", ticks="")
    x = axis("met, share of the class", tickformat=".0%", range=[0, 1.02])
    return {"": figure(traces, height=height, x=x, y=y, legend_below=True, **layout)}


def _class_bars(result: ReplayResult, classes: dict[str, str], which: str, policies: Sequence[str]) -> Spec:
    counts = [_class_met(result, classes, which, policy) for policy in policies]
    return {
        "type": "bar",
        "orientation": "h",
        "name": which,
        "y": [label(policy) for policy in policies],
        "x": [met / offered if offered else 0.0 for met, offered in counts],
        "customdata": [f"{met} of {offered}" for met, offered in counts],
        "marker": {"color": CLASS_COLOURS[which]},
        "hovertemplate": f"{which}: %{{x:.1%}} (%{{customdata}})<extra>%{{y}}</extra>",
    }


# --- why not -------------------------------------------------------------------------------------------------------


def reason_chart(result: ReplayResult) -> Chart:
    """Offered tasks that were not met, by reason, stacked per policy."""
    counts = {policy: stats.count_reasons(run) for policy, run in result.policies.items()}
    codes = sorted({code for count in counts.values() for code in count})
    codes.sort(key=lambda code: (not _is_rejection(code), -sum(count.get(code, 0) for count in counts.values())))
    traces = [_reason_bars(code, colour, counts) for code, colour in _reason_colours(codes).items()]
    x = axis("offered tasks that were not met", rangemode="tozero")
    y = axis("", autorange="reversed", type="category", ticks="")
    layout: dict[str, Any] = {"barmode": "stack", "bargap": 0.3, "legend_below": True}
    height = 170 + 30 * len(counts)
    return Chart(
        key="reasons",
        title=f"Why tasks were not met: {_main_reason(result)}",
        explain="Hatched: never let in. Solid: let in, and missed.",
        terms=tuple((_words(code), describe(code)) for code in codes),
        variants={"": figure(traces, height=height, x=x, y=y, **layout)} if traces else {},
        empty=_nothing_unmet(result),
    )


def _nothing_unmet(result: ReplayResult) -> str:
    if not result.policies:
        return "No policy was run."
    offered = any(run.fates for run in result.policies.values())
    return "Every offered task was met under every policy." if offered else "No task needed the network."


def _is_rejection(code: str) -> bool:
    return code.startswith("rejected")


def _reason_colours(codes: Sequence[str]) -> dict[str, str]:
    """Rejections take the first colours, misses the rest: no two reasons of ours look alike."""
    rejected = [code for code in codes if _is_rejection(code)]
    missed = [code for code in codes if not _is_rejection(code)]
    hatched = zip(rejected, itertools.cycle(_REJECTED_COLOURS), strict=False)
    return dict(hatched) | dict(zip(missed, itertools.cycle(_MISSED_COLOURS), strict=False))


def _words(code: str) -> str:
    return code.replace("_", " ")


def _main_reason(result: ReplayResult) -> str:
    lead = stats.lead_policy(result)
    counts = stats.count_reasons(result.policies[lead]) if lead else {}
    if not counts:
        return "reasons per policy"
    code = next(iter(counts))
    return f"under {lead} mostly '{_words(code)}' ({counts[code]} of {sum(counts.values())})"


def _reason_bars(code: str, colour: str, counts: dict[str, dict[str, int]]) -> Spec:
    hatch = {"shape": "/", "fillmode": "replace", "size": 6, "solidity": 0.5} if _is_rejection(code) else {"shape": ""}
    return {
        "type": "bar",
        "orientation": "h",
        "name": label(_words(code)),
        "y": [label(policy) for policy in counts],
        "x": [count.get(code, 0) for count in counts.values()],
        "marker": {"color": colour, "line": {"color": "@page", "width": 1}, "pattern": hatch},
        "hovertemplate": f"{label(_words(code))}: %{{x}}<extra>%{{y}}</extra>",
    }
