"""Charts of sweeps: met over offered load with the hindsight bound above."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from cosched.core.policy import DECOUPLED
from cosched.report import stats
from cosched.report.chart import Chart, Spec, axis, drawn, figure, label, policy_colour
from cosched.report.model import Sweep, SweepRow
from cosched.report.palette import JOINT

BOUND: Final = "hindsight bound"


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
        explain=f"Sweep '{sweep.name}'. Load 1 is the load whose cheapest work just fits the site. Lines are means "
        f"over {_seeds(rows)}, bands one standard deviation either way.{above} Reproduce: {sweep.command}",
        variants={"": _load_figure(traces, "tasks met, share of offered", ".0%")},
    )


def _value_chart(key: str, sweep: Sweep, site: str, rows: Sequence[SweepRow]) -> Chart:
    return Chart(
        key=key,
        title=f"Site {site}: the same runs by value, below the hindsight bound",
        explain=f"Sweep '{sweep.name}'. Tasks differ in weight here, so the bound holds for the value (sum of the "
        f"weights met), not for the number of tasks. Means over {_seeds(rows)}, bands one standard deviation. "
        f"Reproduce: {sweep.command}",
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
    for policy, style in drawn(stats.policies(rows)):
        line = {"dash": style.dash, "width": style.width}
        traces += _band_and_line(policy, policy_colour(policy), stats.over_load(rows, policy, of), line, style.symbol)
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
