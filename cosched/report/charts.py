"""Charts of one replay and of sweeps, as plotly figure specifications (plain dictionaries; nothing is drawn here).

Colours are written as names ("@joint", "@grid", "@joint/0.15"): the page's script puts in the value for a light or
dark background. Every chart says in its title what there is to see, and is replaced by a sentence where it is empty.
Every text that comes from a trace goes through `label`: plotly reads markup in its texts.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec
import numpy as np

from cosched.core.reasons import describe
from cosched.report import stats
from cosched.report.model import ReplayResult, Sweep, SweepRow
from cosched.report.palette import DECOUPLED, JOINT, Style, styles

Spec = dict[str, Any]

BOUND: Final = "hindsight bound"
SHOWN_TO: Final = 2.0  # latency / deadline: beyond twice the deadline nobody asks by how much
CLASS_COLOURS: Final = {"private": "@a", "open": "@b", "bad": "@a", "middle": "@c", "good": "@b"}


class Chart(msgspec.Struct, frozen=True, kw_only=True):
    """One chart of the page. `variants`: what is drawn per choice of the reader ("" where there is nothing to choose).

    `group`: charts of one group follow one selector. `empty`: the sentence that stands where no data is.
    """

    key: str
    title: str
    explain: str
    variants: dict[str, Spec]
    empty: str = ""
    group: str = ""
    terms: tuple[tuple[str, str], ...] = ()  # words of the legend and what they mean
    half: bool = False  # two of them stand side by side where there is room


def label(text: str) -> str:
    """Escape an id for plotly, which reads a few HTML tags and entities in its texts."""
    return html.escape(text, quote=False)


def figure(traces: Sequence[Spec], *, height: int, x: Spec, y: Spec, **layout: Any) -> Spec:  # noqa: ANN401 - plotly's keys
    """Lay out one pair of axes; x and y are plotly axis objects."""
    return {"data": list(traces), "layout": {"height": height, "xaxis": x, "yaxis": y, **layout}}


def axis(title: str, **more: Any) -> Spec:  # noqa: ANN401 - plotly's keys
    """Return an axis with its title, units in it."""
    return {"title": {"text": title}, "automargin": True, **more}


# --- met over offered load -----------------------------------------------------------------------------------------


def sweep_charts(sweeps: Sequence[Sweep]) -> list[Chart]:
    """Met over offered load, a chart per sweep and site; one more of the value where tasks differ in weight."""
    charts = []
    for i, sweep in enumerate(sweeps):
        if not sweep.rows:
            charts.append(_no_runs(f"sweep-{i}", sweep))
        for j, site in enumerate(stats.sites(sweep)):
            rows = stats.of_site(sweep, site)
            weighted = stats.is_weighted(rows)
            charts.append(_met_chart(f"sweep-{i}-{j}", sweep, site, rows, bound=not weighted))
            if weighted:
                charts.append(_value_chart(f"value-{i}-{j}", sweep, site, rows))
    return charts


def _no_runs(key: str, sweep: Sweep) -> Chart:
    return Chart(key=key, title=sweep.name, explain="", variants={}, empty=f"No run in this sweep: {sweep.command}")


def _met_chart(key: str, sweep: Sweep, site: str, rows: Sequence[SweepRow], *, bound: bool) -> Chart:
    traces = _load_traces(rows, stats.met_ratio, bound=bound)
    above = " The grey line above is the hindsight bound: no policy can be over it." if bound else ""
    return Chart(
        key=key,
        title=f"Site {site}: {_sweep_finding(rows)}",
        explain=f"Sweep '{sweep.name}'. Load 1 is the load whose cheapest work just fits the site. Lines are means over {_seeds(rows)}, "
        f"bands one standard deviation either way.{above} Reproduce: {sweep.command}",
        variants={"": _load_figure(traces, "tasks met, share of offered", ".0%")},
    )


def _value_chart(key: str, sweep: Sweep, site: str, rows: Sequence[SweepRow]) -> Chart:
    return Chart(
        key=key,
        title=f"Site {site}: the same runs by value, below the hindsight bound",
        explain=f"Sweep '{sweep.name}'. Tasks differ in weight here, so the bound holds for the value (sum of the weights met), "
        f"not for the number of tasks. Means over {_seeds(rows)}, bands one standard deviation. Reproduce: {sweep.command}",
        variants={"": _load_figure(_load_traces(rows, stats.value_ratio, bound=True), "value per offered task", ".2f")},
    )


def _seeds(rows: Sequence[SweepRow]) -> str:
    count = len({row.seed for row in rows})
    return f"{count} seeds" if count > 1 else "one seed"


def _sweep_finding(rows: Sequence[SweepRow]) -> str:
    at = stats.in_range(rows) or stats.loads(rows)
    gain = stats.mean_gain(rows, at, DECOUPLED)
    if gain is None:
        return "share of tasks met as load grows"
    span = f"{at[0]:g} to {at[-1]:g}" if len(at) > 1 else f"{at[0]:g}"
    return f"joint meets {gain.mean:.2f} x the best decoupled policy at load {span}"


def _load_figure(traces: Sequence[Spec], y_title: str, form: str) -> Spec:
    return figure(
        traces,
        height=460,
        x=axis("offered load (1 = just fits)", zeroline=False),
        y=axis(y_title, tickformat=form, rangemode="tozero"),
        hovermode="x unified",
    )


def _load_traces(rows: Sequence[SweepRow], of: Callable[[SweepRow], float], *, bound: bool) -> list[Spec]:
    traces: list[Spec] = []
    if bound:
        ceiling = stats.bound_over_load(rows)
        traces += _band_and_line(BOUND, "@bound", ceiling, {"dash": "longdash", "width": 2.2}, "line-ns-open")
    for policy, style in _drawn(stats.policies(rows)):
        line = {"dash": style.dash, "width": style.width}
        traces += _band_and_line(policy, f"@{policy}", stats.over_load(rows, policy, of), line, style.symbol)
    return traces


def _band_and_line(name: str, colour: str, over: dict[float, stats.Spread], line: Spec, symbol: str) -> list[Spec]:
    x = list(over)
    low = [s.mean - s.sd for s in over.values()]
    high = [s.mean + s.sd for s in over.values()]
    band = {
        "x": [*x, *reversed(x)],
        "y": [*high, *reversed(low)],
        "fill": "toself",
        "fillcolor": f"{colour}/0.16",
        "line": {"width": 0},
        "mode": "lines",
        "hoverinfo": "skip",
        "showlegend": False,
        "legendgroup": label(name),
    }
    mean = {
        "x": x,
        "y": [s.mean for s in over.values()],
        "customdata": [s.sd for s in over.values()],
        "mode": "lines+markers",
        "name": label(name),
        "legendgroup": label(name),
        "legendrank": 1 if name in {BOUND, JOINT} else 2,
        "line": {"color": colour, **line},
        "marker": {"symbol": symbol, "size": 8, "color": colour},
        "hovertemplate": "%{y:.3f} ± %{customdata:.3f}",
    }
    return [band, mean] if any(s.n > 1 for s in over.values()) else [mean]


def _drawn(policies: Iterable[str]) -> list[tuple[str, Style]]:
    """Policies with their styles, joint last so that it lies on top."""
    named = list(policies)
    chosen = styles(named)
    return [(p, chosen[p]) for p in sorted(named, key=lambda p: p == JOINT)]


# --- latency -------------------------------------------------------------------------------------------------------


def latency_chart(result: ReplayResult) -> Chart:
    """Distribution of latency over deadline per policy, as a share of all offered tasks."""
    traces = []
    for policy, style in _drawn(result.policies):
        x, y = stats.lateness_ecdf(result.policies[policy].fates)
        if x.size:
            traces.append(
                {
                    "x": [0.0, *np.round(x, 4).tolist()],
                    "y": [0.0, *np.round(y, 4).tolist()],
                    "mode": "lines",
                    "name": label(policy),
                    "legendrank": 1 if policy == JOINT else 2,
                    "line": {"color": f"@{policy}", "dash": style.dash, "width": style.width, "shape": "hv"},
                    "hovertemplate": f"{label(policy)}: %{{y:.1%}} within %{{x:.2f}} x deadline<extra></extra>",
                }
            )
    return Chart(
        key="latency",
        title=f"Who is in time: {_leaders(result)}",
        explain="Share of all offered tasks whose latency was at most so many times their deadline; for several phases "
        "the worst one counts. Rejected and unfinished tasks never arrive, so a curve ends below 100 %. At 1, the "
        "deadline, higher is better.",
        variants={"": _latency_figure(traces)} if traces else {},
        empty="No task was served under any policy, so there is no latency to show.",
    )


def _leaders(result: ReplayResult) -> str:
    met = {p: run.summary.met_ratio for p, run in result.policies.items() if run.summary.offered}
    order = sorted(met, key=lambda p: -met[p])[:2]
    shares = [f"{policy} with {100 * met[policy]:.0f} %" for policy in order]
    return ", then ".join(shares) if shares else "latency against the deadline"


def _latency_figure(traces: Sequence[Spec]) -> Spec:
    deadline = {"type": "line", "x0": 1, "x1": 1, "y0": 0, "y1": 1, "yref": "paper", "line": {"color": "@ink", "width": 1.5}}
    mark = {"x": 1, "y": 1, "yref": "paper", "text": "deadline", "showarrow": False, "xanchor": "left", "yanchor": "top"}
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
    rival = stats.best_of(result, [p for p in DECOUPLED if p != lead])
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
    layout = {"height": 170 + 30 * len(counts), "barmode": "stack", "bargap": 0.3, "legend_below": True}
    return Chart(
        key="reasons",
        title=f"Why tasks were not met: {_main_reason(result)}",
        explain="Hatched: never let in. Solid: let in, and missed.",
        terms=tuple((_words(code), describe(code)) for code in codes),
        variants={"": figure(traces, x=x, y=y, **layout)} if traces else {},
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
    return {code: f"@r{i % 4}" for i, code in enumerate(rejected)} | {
        code: f"@r{4 + i % 6}" for i, code in enumerate(missed)
    }


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
