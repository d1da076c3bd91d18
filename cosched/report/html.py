"""The HTML report: one file that works offline (plotly.js is written into it; the page may load nothing at all)."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any, Final

import msgspec

from cosched.errors import BadInput
from cosched.report import assets, misses, stats
from cosched.report.chart import Chart, policy_colour
from cosched.report.charts import class_charts, latency_chart, reason_chart
from cosched.report.charts_load import sweep_charts
from cosched.report.charts_time import gap_chart, shares_chart, split_charts
from cosched.report.figures import BLANK, comparison_rows
from cosched.report.model import ReplayResult, Sweep
from cosched.report.palette import Style, styles

WORST: Final = 10  # misses that are told one by one

Section = tuple[str, list[Chart]]


def write_report(result: ReplayResult, sweeps: Sequence[Sweep], path: Path) -> None:
    """Write the report of one replay, and of sweeps where there are any, to `path`. Raises BadInput if it cannot."""
    page = render(result, sweeps)
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{path}: cannot write the report: {error.strerror}; name another file") from None


def render(result: ReplayResult, sweeps: Sequence[Sweep]) -> str:
    """Return the whole page. Ids of a trace are escaped wherever they stand; no other script than ours may run."""
    from plotly.offline import get_plotlyjs  # plotly is large: only a report loads it

    sections = _sections(result, sweeps)
    charts = [chart for _, group in sections for chart in group]
    scripts = [get_plotlyjs(), assets.JS]
    named = styles([*result.policies, *(row.policy for sweep in sweeps for row in sweep.rows)])
    body = [_head(result), _comparison(result, named), *(_section(*section) for section in sections), _misses(result)]
    data = f'<script type="application/json" id="charts">{_json(_chart_data(charts, named))}</script>'
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{_policy(scripts)}\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(f'cosched: {_name(result)}')}</title>\n<style>{assets.CSS}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + f"\n{_footer(result)}\n{data}\n"
        + "\n".join(f"<script>{script}</script>" for script in scripts)
        + "\n</body>\n</html>\n"
    )


def _sections(result: ReplayResult, sweeps: Sequence[Sweep]) -> list[Section]:
    load: list[Section] = [("Met over offered load", sweep_charts(sweeps))] if sweeps else []
    return [
        *load,
        ("Latency", [latency_chart(result)]),
        ("Who is served", class_charts(result)),
        ("Cells and nodes", [shares_chart(result)]),
        ("Where the work is split", split_charts(result)),
        ("Distance to the optimum", [gap_chart(result)]),
        ("What was not met", [reason_chart(result)]),
    ]


def _policy(scripts: Sequence[str]) -> str:
    """Content security policy: our two scripts by their hash, nothing else, and no request to anywhere."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    rest = "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    rules = f"default-src 'none'; script-src {hashes}; {rest}"
    return f'<meta http-equiv="Content-Security-Policy" content="{rules}">'


def _chart_data(charts: Sequence[Chart], named: dict[str, Style]) -> dict[str, Any]:
    light = assets.LIGHT | {policy_colour(policy)[1:]: style.light for policy, style in named.items()}
    dark = assets.DARK | {policy_colour(policy)[1:]: style.dark for policy, style in named.items()}
    return {
        "palette": {"light": light, "dark": dark},
        "scales": assets.SCALES,
        "charts": {chart.key: chart.variants for chart in charts},
    }


def _json(value: object) -> str:
    """JSON that can stand inside a script element: no `<` (so no end tag, no comment), no line separators."""
    text = msgspec.json.encode(value).decode()
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _text(text: str) -> str:
    return html.escape(text, quote=True)


# --- head and tables -----------------------------------------------------------------------------------------------


def _head(result: ReplayResult) -> str:
    return (
        f"<header><h1>Replay of {_text(_name(result))}</h1>\n"
        f'<p class="finding">{_text(stats.headline(result))}</p>\n'
        f'<p class="facts">{_text(_facts(result))}</p></header>'
    )


def _name(result: ReplayResult) -> str:
    return PurePath(result.trace.path).name or result.trace.path


def _facts(result: ReplayResult) -> str:
    trace, ran = result.trace, len(result.policies)
    return (
        f"{trace.duration_s:g} s of telemetry, {trace.ues} UEs, {trace.tasks} tasks arrived; {trace.local_feasible} of "
        "them a device serves alone in time: these are counted apart, in no figure below. "
        f"{100 * trace.overlap_share:.0f} % of the tasks overlap another of the same UE, at most {trace.most_at_once} "
        f"at once. {ran} {'policy' if ran == 1 else 'policies'} on the same trace."
    )


def _footer(result: ReplayResult) -> str:
    hashes = "; ".join(f"{policy} {run.summary.decisions_sha256[:16]}" for policy, run in result.policies.items())
    decisions = f" Decisions sha256 (first 16 digits): {hashes}." if hashes else ""
    return f"<footer><p>{_text(f'Trace {result.trace.path}, sha256 {result.trace.sha256}.{decisions}')}</p></footer>"


def _comparison(result: ReplayResult, named: dict[str, Style]) -> str:
    policies = list(result.policies)
    if not policies:
        return '<p class="empty">No policy was run, so there is nothing to compare.</p>'
    heads = "".join(f'<th scope="col">{_key(policy, named[policy])}</th>' for policy in policies)
    lines = []
    for row in comparison_rows(result):
        cells = "".join(_cell(row.cells.get(p, BLANK), best=p in row.best) for p in policies)
        lines.append(f'<tr><th scope="row">{_text(row.label)}</th>{cells}</tr>')
    body = "\n".join(lines)
    return (
        "<h2>Comparison</h2>\n"
        f'<div class="scroll"><table class="compare"><thead><tr><th></th>{heads}</tr></thead>\n<tbody>{body}</tbody>'
        '</table></div>\n<p class="note aside">Scroll the table sideways for more policies.</p>\n'
        '<p class="note">* best of its row; ties are all marked, and no row is marked where all '
        "policies are alike or more is neither better nor worse. Latency is that of a task's first phase (first "
        "token, or a frame). A dash: no sample.</p>"
    )


def _key(policy: str, style: Style) -> str:
    return f'<span class="key"><i style="--light:{style.light};--dark:{style.dark}"></i></span>{_text(policy)}'


def _cell(text: str, *, best: bool) -> str:
    return f'<td class="best">{_text(text)}*</td>' if best else f"<td>{_text(text)}</td>"


def _misses(result: ReplayResult) -> str:
    lead = stats.lead_policy(result)
    worst = stats.worst_misses(result.policies[lead], WORST) if lead else []
    if lead is None or not worst:
        return f'<h2>Worst misses</h2>\n<p class="empty">{_text(_no_misses(result, lead))}</p>'
    missed = sum(fate.outcome == "missed" for fate in result.policies[lead].fates)
    sized = zip(misses.COLUMNS, misses.WIDTHS, strict=True)
    heads = "".join(f'<th scope="col" style="width:{width}%">{name}</th>' for name, width in sized)
    rows = "\n".join(f"<tr>{_miss_cells(misses.cells(fate))}</tr>" for fate in worst)
    return (
        f"<h2>The {len(worst)} worst misses of {_text(lead)}</h2>\n"
        f'<p class="note">Tasks that were let in and failed ({missed} in all), the latest first. {misses.GUESSED}: '
        "what in the plan's numbers has no measurement behind it.</p>\n"
        f'<table class="misses"><thead><tr>{heads}</tr></thead>\n<tbody>{rows}</tbody></table>'
    )


def _miss_cells(texts: Sequence[str]) -> str:
    pairs = zip(misses.COLUMNS, texts, strict=True)
    return "".join(f'<td data-label="{name}">{_miss_cell(name, text)}</td>' for name, text in pairs)


def _miss_cell(name: str, text: str) -> str:
    """A long list of guesses would make its row the longest of the page: it unfolds."""
    if name == misses.GUESSED and text != misses.NO_GUESS:
        return f"<details><summary>{text.count('; ') + 1}, show</summary>{_text(text)}</details>"
    return f"<span>{_text(text)}</span>"


def _no_misses(result: ReplayResult, lead: str | None) -> str:
    if lead is None:
        return "No policy was run."
    if not result.policies[lead].summary.admitted:
        return f"{lead} let no task in, so none could be missed."
    return f"{lead} kept every promise: no task that it let in was missed."


# --- charts --------------------------------------------------------------------------------------------------------


def _section(title: str, charts: Sequence[Chart]) -> str:
    groups = {chart.group: list(chart.variants) for chart in charts if chart.group and chart.variants}
    pickers = "".join(_picker(group, choices) for group, choices in groups.items())
    figures = "\n".join(_figure(chart) for chart in charts)
    return f'<section><h2>{_text(title)}</h2>\n{pickers}<div class="charts">\n{figures}\n</div></section>'


def _picker(group: str, choices: Sequence[str]) -> str:
    options = "".join(f'<option value="{_text(choice)}">{_text(choice)}</option>' for choice in choices)
    hidden = " hidden" if len(choices) == 1 else ""
    select = f'<select id="pick-{group}" autocomplete="off">{options}</select>'
    return f'<p class="pick"{hidden}><label>Policy {select}</label></p>\n'


def _figure(chart: Chart) -> str:
    half = " half" if chart.half else ""
    title = f"<h3>{_text(chart.title)}</h3>"
    if not chart.variants:
        return f'<figure class="chart{half}">{title}<p class="empty">{_text(chart.empty)}</p></figure>'
    return (
        f'<figure class="chart{half}">{title}<div class="plot" data-chart="{_text(chart.key)}" '
        f'data-group="{chart.group}"></div><p class="empty" hidden>Nothing to show here for this policy.</p>'
        f"<figcaption>{_text(chart.explain)}{_terms(chart)}</figcaption></figure>"
    )


def _terms(chart: Chart) -> str:
    items = "".join(f"<dt>{_text(term)}</dt><dd>{_text(meaning)}</dd>" for term, meaning in chart.terms)
    return f"<dl>{items}</dl>" if items else ""
