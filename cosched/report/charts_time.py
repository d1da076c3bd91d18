"""Charts over time: shares of cells and nodes, gap to the bound, and where the work was split."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from cosched.report import stats
from cosched.report.chart import Chart, Spec, axis, figure, label, policy_colour
from cosched.report.model import PolicyResult, ReplayResult, TaskFate, Timeline
from cosched.report.palette import JOINT, styles

SAMPLES: Final = 500  # points a strip keeps: about one per two pixels of a wide page
GAP_SAMPLES: Final = 160  # points a gap's line keeps: ten lines of more would hide each other
_ROW_PX: Final = 92  # height of one resource's strip
_CHANNEL_BINS: Final = 5
_SPLIT_BINS: Final = 12
_KINDS: Final = {"llm": "LLM sessions", "video": "Video clips"}
_SPLIT_AXIS: Final = {"llm": "decoder layers on the device", "video": "work on the device, %"}


def _lead_first(result: ReplayResult) -> list[str]:
    lead = stats.lead_policy(result)
    return sorted(result.policies, key=lambda p: p != lead)


def _thin(series: Sequence[float], points: int = SAMPLES, *, peak: bool = False) -> list[float | None]:
    thinned = stats.thin(series, points, peak=peak)
    return [float(f"{v:.4g}") if math.isfinite(v) else None for v in thinned.tolist()]


def _binned(timeline: Timeline, points: int, of: str) -> str:
    per_bin = math.ceil(len(timeline.t_s) / points)
    return f" Each point is {of} of up to {per_bin} samples." if per_bin > 1 else ""


# --- shares --------------------------------------------------------------------------------------------------------


def shares_chart(result: ReplayResult) -> Chart:
    """Per cell and node: what the plan counts and what was really used, one policy at a time."""
    runs = {policy: result.policies[policy] for policy in _lead_first(result)}
    drawn = {policy: _shares_figure(run) for policy, run in runs.items() if run.timeline.t_s and run.timeline.planned}
    binned = _binned(next(iter(runs.values())).timeline, SAMPLES, "the mean") if drawn else ""
    return Chart(
        key="shares",
        title="How full each cell and node was: what the plan counts, and what was used",
        explain="Line: share of the resource that the plan counts (effective bandwidth of what was admitted). Area: "
        "share really used. Area close to the line: little is set aside in vain; above it: tasks take what others "
        f"leave.{binned} Zooming in on one strip zooms all.",
        variants=drawn,
        empty="The replay recorded no timeline of shares.",
        group="shares",
    )


def _shares_figure(run: PolicyResult) -> Spec:
    resources = list(run.timeline.planned)
    strip = 1 / len(resources)
    gap = 24 / (_ROW_PX * len(resources))  # room for the strip's name
    times = _thin(run.timeline.t_s)
    traces, axes, names = [], {}, []
    for i, resource in enumerate(resources):
        suffix = "" if i == 0 else str(i + 1)
        top = 1 - i * strip - gap
        traces += _strip_traces(run, resource, times, suffix)
        axes[f"yaxis{suffix}"] = _strip_axis(run.timeline, resource, (1 - (i + 1) * strip, top))
        name = {"text": label(resource), "x": 0, "y": top, "xref": "paper", "yref": "paper", "showarrow": False}
        names.append({**name, "xanchor": "left", "yanchor": "bottom"})
    bottom = f"y{len(resources)}" if len(resources) > 1 else "y"
    layout = {"height": 110 + _ROW_PX * len(resources), "annotations": names, "legend_top": True}
    return {"data": traces, "layout": {**layout, "xaxis": axis("time, s", anchor=bottom), **axes}}


def _strip_axis(timeline: Timeline, resource: str, domain: tuple[float, float]) -> Spec:
    peak = max([1.0, *(v for v in (*timeline.planned[resource], *timeline.used.get(resource, ())) if math.isfinite(v))])
    ticks = {"tickvals": [0, 0.5, 1], "tickformat": ".0%"}
    return {"domain": [max(0.0, domain[0]), domain[1]], "range": [0, 1.02 * peak], "automargin": True, **ticks}


def _strip_traces(run: PolicyResult, resource: str, times: Sequence[float | None], suffix: str) -> list[Spec]:
    base = {"x": times, "yaxis": f"y{suffix}", "mode": "lines", "showlegend": suffix == ""}
    used = {
        "name": "used",
        "y": _thin(run.timeline.used.get(resource, [])),
        "fill": "tozeroy",
        "fillcolor": f"{policy_colour(run.policy)}/0.35",
        "line": {"width": 0, "color": policy_colour(run.policy)},
        "hovertemplate": "used %{y:.1%} at %{x:.1f} s<extra></extra>",
    }
    planned = {
        "name": "planned",
        "y": _thin(run.timeline.planned[resource]),
        "line": {"width": 1.3, "color": "@ink"},
        "hovertemplate": "planned %{y:.1%} at %{x:.1f} s<extra></extra>",
    }
    return [{**base, **used}, {**base, **planned}]


# --- gap -----------------------------------------------------------------------------------------------------------


def gap_chart(result: ReplayResult) -> Chart:
    """Proven bound less the value of the decision in force, per policy."""
    chosen = styles(result.policies)
    traces = []
    for policy in sorted(result.policies, key=lambda p: p == JOINT):
        timeline, style = result.policies[policy].timeline, chosen[policy]
        if any(math.isfinite(gap) for gap in timeline.gap):
            line = {"color": policy_colour(policy), "dash": style.dash, "width": 2.8 if policy == JOINT else 1.4}
            x, y = _thin(timeline.t_s, GAP_SAMPLES), _thin(timeline.gap, GAP_SAMPLES, peak=True)
            series = {"x": x, "y": y, "mode": "lines", "line": line}
            hover = f"{label(policy)}: %{{y:.2f}} at %{{x:.1f}} s<extra></extra>"
            rank = 1 if policy == JOINT else 2
            traces.append({**series, "name": label(policy), "legendrank": rank, "hovertemplate": hover})
    y_axis = axis("bound - value of the plan", rangemode="tozero")
    longest = max((run.timeline for run in result.policies.values()), key=lambda t: len(t.t_s), default=None)
    binned = _binned(longest, GAP_SAMPLES, "the largest") if longest else ""
    return Chart(
        key="gap",
        title=f"How far from optimal the plan in force can be at most: {_gap_finding(result)}",
        explain="Each decision comes with a proven upper bound on the value of any plan for the tasks present at that "
        f"instant; the gap is bound less value, in units of task weight. 0 is proven optimal.{binned} "
        "The title speaks of all decisions, the lines of one sample a period.",
        variants={"": figure(traces, height=420, x=axis("time, s"), y=y_axis)} if traces else {},
        empty="The replay recorded no gap: no decision was made.",
    )


def _gap_finding(result: ReplayResult) -> str:
    """Of all decisions, as in the table: the timeline's samples may miss the worst one."""
    lead = stats.lead_policy(result)
    if lead is None or not math.isfinite(result.policies[lead].summary.gap_max):
        return "gap over time"
    summary = result.policies[lead].summary
    if summary.gap_max < 0.005:
        return f"{lead} was proven optimal all the time"
    return f"{lead} never more than {summary.gap_max:.3g}, in half of its decisions at most {summary.gap_p50:.3g}"


# --- splits --------------------------------------------------------------------------------------------------------


def split_charts(result: ReplayResult) -> list[Chart]:
    """Split over time and against the channel, a pair of charts per kind of work."""
    kinds = list(dict.fromkeys(f.kind for run in result.policies.values() for f in run.fates if f.split >= 0))
    if not kinds:
        return [_no_split()]
    return [chart for kind in sorted(kinds) for chart in _split_pair(result, kind)]


def _no_split() -> Chart:
    empty = "No task was served under any policy, so nothing was split."
    return Chart(key="split", title="Where the work was split", explain="", variants={}, empty=empty)


def _split_pair(result: ReplayResult, kind: str) -> list[Chart]:
    served = {p: [f for f in result.policies[p].fates if f.kind == kind and f.split >= 0] for p in _lead_first(result)}
    name = _KINDS.get(kind, kind)
    y_title = _SPLIT_AXIS.get(kind, "split")
    nothing = f"No task of this kind was served under any policy: {kind}."
    return [
        Chart(
            key=f"split-time-{kind}",
            title=f"{name}: where the work was split, over time",
            explain="One point per served task, at its arrival; colour is the estimated uplink spectral efficiency at "
            "the decision (the outer 5 % on either side share a colour). Squares are private (raw input stays on the "
            "device), circles are open. Points are spread a little in height so that they do not hide each other.",
            variants={p: _split_over_time(fates, y_title) for p, fates in served.items() if fates},
            empty=nothing,
            group="split",
            half=True,
        ),
        Chart(
            key=f"split-channel-{kind}",
            title=f"{name}: the same splits against the channel",
            explain="Each column is a range of uplink spectral efficiency with about as many tasks as the others; the "
            "darker (in dark mode: the brighter) a cell, the larger the share of its column that was split there.",
            variants={p: _split_by_channel(fates, y_title) for p, fates in served.items() if _has_channel(fates)},
            empty="No channel estimate was recorded for the tasks that were served.",
            group="split",
            half=True,
        ),
    ]


def _known_channel(fates: Sequence[TaskFate]) -> list[TaskFate]:
    return [f for f in fates if math.isfinite(f.ul_efficiency_bps_hz)]


def _has_channel(fates: Sequence[TaskFate]) -> bool:
    return bool(_known_channel(fates))


def _split_over_time(fates: Sequence[TaskFate], y_title: str) -> Spec:
    known = [f.ul_efficiency_bps_hz for f in _known_channel(fates)] or [0.0, 1.0]
    low, high = (float(q) for q in np.quantile(known, [0.05, 0.95]))
    bar = {"title": {"text": "bit/s/Hz", "side": "right"}, "thickness": 12}
    traces: list[Spec] = []
    for private, symbol in ((False, "circle"), (True, "square")):
        group = [f for f in fates if f.private == private]
        if not group:
            continue
        efficiency = [
            round(f.ul_efficiency_bps_hz, 3) if math.isfinite(f.ul_efficiency_bps_hz) else None for f in group
        ]
        scale = {"color": efficiency, "colorscale": "@channel", "cmin": low, "cmax": high, "showscale": not traces}
        marker = {"symbol": symbol, "size": 7, "opacity": 0.85, "line": {"width": 0.5, "color": "@ink/0.4"}}
        traces.append(
            {
                "mode": "markers",
                "name": "private" if private else "open",
                "x": [round(f.arrival_s, 2) for f in group],
                "y": _spread_out([f.split for f in group], max(f.split for f in fates)),
                "customdata": [label(f"{f.task}: {f.point or 'on the device'}") for f in group],
                "marker": {**marker, **scale, "colorbar": bar},
                "hovertemplate": "%{customdata}<br>%{marker.color:.2f} bit/s/Hz at %{x:.1f} s<extra></extra>",
            }
        )
    return figure(traces, height=380, x=axis("arrival, s"), y=axis(y_title, rangemode="tozero"), legend_top=True)


def _spread_out(splits: Sequence[int], top: int) -> list[float]:
    """Move each point by up to 0.3 of a layer (0.6 % of a video's work), by its index: the same at every run."""
    width = 0.6 if top <= 60 else 1.2
    return [round(k + width * ((i * 0.618034) % 1 - 0.5), 2) for i, k in enumerate(splits)]


def _split_by_channel(fates: Sequence[TaskFate], y_title: str) -> Spec:
    known = _known_channel(fates)
    efficiency = np.array([f.ul_efficiency_bps_hz for f in known])
    split = np.array([f.split for f in known])
    columns = _channel_edges(efficiency)
    rows = _split_edges(int(split.max()))
    counts, _, _ = np.histogram2d(split, efficiency, bins=(rows, columns))  # (rows, columns)
    share = counts / np.maximum(1, counts.sum(axis=0))
    names = [f"{a:.1f} to {b:.1f}" for a, b in itertools.pairwise(columns.tolist())]
    heat = {
        "type": "heatmap",
        "x": list(range(columns.size - 1)),
        "text": [names] * (rows.size - 1),
        "y": [(a + b) / 2 for a, b in itertools.pairwise(rows.tolist())],
        "z": np.round(share, 4).tolist(),
        "colorscale": "@share",
        "zmin": 0,
        "xgap": 2,
        "ygap": 1,
        "colorbar": {"title": {"text": "share of column", "side": "right"}, "thickness": 12, "tickformat": ".0%"},
        "hovertemplate": "split about %{y:.0f} at %{text} bit/s/Hz: %{z:.0%} of the column<extra></extra>",
    }
    ticks = {"tickvals": list(range(columns.size - 1)), "ticktext": names}
    x = axis("uplink spectral efficiency, bit/s/Hz", showgrid=False, zeroline=False, **ticks)
    return figure([heat], height=380, x=x, y=axis(y_title, showgrid=False))


def _channel_edges(efficiency: stats.Floats) -> stats.Floats:
    """Edges of columns with about equally many tasks, in whole tenths of bit/s/Hz: what the labels say is true."""
    inner = np.quantile(efficiency, np.linspace(0, 1, _CHANNEL_BINS + 1)[1:-1]).round(1)
    low, high = np.floor(10 * efficiency.min()) / 10, np.ceil(10 * efficiency.max()) / 10
    return np.unique(np.array([low, *inner, max(high, low + 0.1)]).round(1))


def _split_edges(top: int) -> stats.Floats:
    """Edges of the rows: one per split where there are few, else _SPLIT_BINS equal ranges."""
    if top <= 2 * _SPLIT_BINS:
        return np.arange(-0.5, top + 1, 1.0)
    return np.linspace(-0.5, top + 0.5, _SPLIT_BINS + 1)
