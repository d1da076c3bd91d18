"""Curves for the README: a small static SVG of tasks met over offered load.

No script, no outside font. It brings its own opaque card, and colours for light and dark chosen by the reader's
`prefers-color-scheme`: so it is legible also where a site's theme differs from the browser's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape

import msgspec

from cosched.core.policy import DECOUPLED
from cosched.errors import BadInput
from cosched.report import stats
from cosched.report.charts_load import BOUND
from cosched.report.model import Sweep, SweepRow
from cosched.report.palette import JOINT, Style, styles

WIDTH: Final = 760
_PANEL: Final = 400  # height of one site's panel
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 168, 66, 52
_LABEL_PX: Final = 17  # least distance between two labels at the right
_DASH: Final = {"solid": "none", "dash": "9 5", "dot": "2 4", "dashdot": "9 4 2 4", "longdash": "14 7"}
_SHADED: Final = (BOUND, JOINT)  # ten bands on top of each other would hide the lines
_CEILING: Final = Style(light="#6e7781", dark="#9aa4af", dash="longdash", symbol="line", width=2.2)

Points = list[tuple[float, float]]


class SweepCurve(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a panel: mean and spread over seeds per load."""

    name: str
    style: Style
    css: str  # class name
    over: dict[float, stats.Spread]


class Scale(msgspec.Struct, frozen=True, kw_only=True):
    """Loads and ratios to pixels of the whole picture; `top` is the panel's upper edge."""

    low: float
    high: float
    ceiling: float
    top: float

    def x(self, load: float) -> float:
        """Pixel of a load."""
        span = (self.high - self.low) or 1.0
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * (load - self.low) / span

    def y(self, ratio: float) -> float:
        """Pixel of a ratio."""
        return self.top + _TOP + (_PANEL - _TOP - _BOTTOM) * (1 - ratio / self.ceiling)


def write_curve_svg(sweep: Sweep, path: Path) -> None:
    """Write the curves of a sweep, a panel per site. Raises BadInput when it holds no run or cannot be written."""
    drawing = curve_svg(sweep)
    try:
        path.write_text(drawing, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{path}: cannot write the curves: {error.strerror}; name another file") from None


def curve_svg(sweep: Sweep) -> str:
    """Return the SVG. Raises BadInput for a sweep without a run."""
    names = stats.sites(sweep)
    if not names:
        raise BadInput(f"sweep '{sweep.name}': no run in it, nothing to draw; run: {sweep.command}")
    chosen = styles(row.policy for row in sweep.rows)
    css = {policy: f"p{i}" for i, policy in enumerate(chosen)}
    panels = [_panel(stats.of_site(sweep, site), site, i * _PANEL, chosen, css) for i, site in enumerate(names)]
    height = _PANEL * len(names)
    title = escape(f"{sweep.name}: share of offered tasks met over offered load, per policy")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="{title.replace(chr(34), "&quot;")}">\n<title>{title}</title>\n'
        f"<style>{_css(chosen, css)}</style>\n"
        f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>\n'
        + "\n".join(panels)
        + "\n</svg>\n"
    )


def _css(chosen: Mapping[str, Style], css: Mapping[str, str]) -> str:
    lines = {css[policy]: style for policy, style in chosen.items()} | {"bound": _CEILING}
    light = "".join(f".{name}{{--c:{style.light}}}" for name, style in lines.items())
    dark = "".join(f".{name}{{--c:{style.dark}}}" for name, style in lines.items())
    return (
        "svg{--page:#ffffff;--ink:#1c2128;--soft:#59636e;--grid:#e3e7ec;"
        'font:12.5px system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}'
        ".card{fill:var(--page);stroke:var(--grid)}text{fill:var(--ink)}.soft{fill:var(--soft)}"
        ".head{font-size:15px;font-weight:600}.grid{stroke:var(--grid)}.axis{stroke:var(--soft)}"
        ".line{fill:none;stroke:var(--c);stroke-linejoin:round}.band{fill:var(--c);opacity:.15}"
        ".mark{fill:var(--c);stroke:var(--page);stroke-width:.8}.name{fill:var(--c)}.lead{font-weight:700}"
        f".lead_line{{stroke:var(--c);stroke-opacity:.5}}{light}"
        "@media(prefers-color-scheme:dark){svg{--page:#0d1117;--ink:#e6edf3;--soft:#9198a1;--grid:#2a313a}"
        f"{dark}}}"
    )


# --- one panel -----------------------------------------------------------------------------------------------------


def _panel(rows: Sequence[SweepRow], site: str, top: float, chosen: Mapping[str, Style], css: Mapping[str, str]) -> str:
    curves = _curves(rows, chosen, css)
    loads = stats.loads(rows)
    highest = max([s.mean + s.sd for curve in curves for s in curve.over.values()], default=1.0)
    scale = Scale(low=loads[0], high=loads[-1], ceiling=max(0.1, math.ceil(10 * min(highest, 1.0)) / 10), top=top)
    parts = [_heading(rows, site, top), *_grid(scale, loads)]
    parts += [_band(curve, scale) for curve in curves if curve.name in _SHADED]
    parts += [_line(curve, scale) for curve in curves]
    return "\n".join([*parts, *_labels(curves, scale)])


def _curves(rows: Sequence[SweepRow], chosen: Mapping[str, Style], css: Mapping[str, str]) -> list[SweepCurve]:
    """Bound first, joint last: later ones lie on top."""
    found = []
    if not stats.is_weighted(rows):
        found.append(SweepCurve(name=BOUND, style=_CEILING, css="bound", over=stats.bound_over_load(rows)))
    for policy in sorted(stats.policies(rows), key=lambda p: p == JOINT):
        over = stats.over_load(rows, policy, stats.met_ratio)
        found.append(SweepCurve(name=policy, style=chosen[policy], css=css[policy], over=over))
    return [curve for curve in found if curve.over]


def _heading(rows: Sequence[SweepRow], site: str, top: float) -> str:
    at = stats.in_range(rows) or stats.loads(rows)
    gain = stats.mean_gain(rows, at, DECOUPLED)
    span = f"{at[0]:g} to {at[-1]:g}" if len(at) > 1 else f"{at[0]:g}"
    found = "share of tasks met over load"
    if gain is not None:
        found = f"joint meets {gain.mean:.2f} x the best decoupled policy (mean over loads {span})"
    seeds = len({row.seed for row in rows})
    spread = f"mean of {seeds} seeds, bands of joint and the bound: one standard deviation" if seeds > 1 else "one seed"
    return (
        f'<text class="head" x="20" y="{top + 27:g}">{escape(site)}: {escape(found)}</text>'
        f'<text class="soft" x="20" y="{top + 45:g}">share of offered tasks met; {spread}</text>'
    )


def _grid(scale: Scale, loads: Sequence[float]) -> list[str]:
    right, base = WIDTH - _RIGHT, scale.y(0)
    steps = round(10 * scale.ceiling)
    parts = []
    for tenth in range(0, steps + 1, 2 if steps > 4 else 1):
        y = scale.y(tenth / 10)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="soft" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{10 * tenth} %</text>')
    for load in _spaced(loads, scale):
        x = scale.x(load)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{base:.1f}" y2="{base + 5:.1f}"/>')
        parts.append(f'<text class="soft" x="{x:.1f}" y="{base + 19:.1f}" text-anchor="middle">{load:g}</text>')
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{base:.1f}" y2="{base:.1f}"/>')
    middle = (_LEFT + right) / 2
    parts.append(f'<text x="{middle:.1f}" y="{base + 39:.1f}" text-anchor="middle">offered load (1 = just fits)</text>')
    return parts


def _spaced(loads: Sequence[float], scale: Scale) -> list[float]:
    """Return the loads whose labels do not touch."""
    kept: list[float] = []
    for load in loads:
        if not kept or scale.x(load) - scale.x(kept[-1]) >= 34:
            kept.append(load)
    return kept


# --- one curve -----------------------------------------------------------------------------------------------------


def _path(points: Points) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _band(curve: SweepCurve, scale: Scale) -> str:
    if not any(s.sd for s in curve.over.values()):
        return ""
    high = [(scale.x(load), scale.y(min(scale.ceiling, s.mean + s.sd))) for load, s in curve.over.items()]
    low = [(scale.x(load), scale.y(max(0.0, s.mean - s.sd))) for load, s in curve.over.items()]
    return f'<path class="band {curve.css}" d="{_path([*high, *reversed(low)])}Z"/>'


def _line(curve: SweepCurve, scale: Scale) -> str:
    points = [(scale.x(load), scale.y(min(scale.ceiling, s.mean))) for load, s in curve.over.items()]
    style = f'stroke-width="{curve.style.width}" stroke-dasharray="{_DASH[curve.style.dash]}"'
    marks = "" if curve.name == BOUND else "".join(_mark(curve, point) for point in points)
    return f'<path class="line {curve.css}" {style} d="{_path(points)}"/>{marks}'


def _mark(curve: SweepCurve, at: tuple[float, float]) -> str:
    """Return the policy's own marker: the same shapes as in the report."""
    x, y = at
    radius = 4.4 if curve.name == JOINT else 3.8
    if curve.style.symbol == "circle":
        return f'<circle class="mark {curve.css}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>'
    corners = [(x + radius * dx, y + radius * dy) for dx, dy in _shape(curve.style.symbol)]
    return f'<path class="mark {curve.css}" d="{_path(corners)}Z"/>'


def _shape(symbol: str) -> Points:
    """Corners in units of the radius."""
    cross = [(-0.4, -1.2), (0.4, -1.2), (0.4, -0.4), (1.2, -0.4), (1.2, 0.4), (0.4, 0.4)]
    cross = [*cross, *((-x, -y) for x, y in cross)]
    shapes: dict[str, Points] = {
        "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
        "diamond": _star(4, 1.25, 1.25),
        "triangle-up": _star(3, 1.25, 1.25),
        "triangle-down": [(x, -y) for x, y in _star(3, 1.25, 1.25)],
        "triangle-left": [(y, x) for x, y in _star(3, 1.25, 1.25)],
        "triangle-right": [(-y, x) for x, y in _star(3, 1.25, 1.25)],
        "diamond-tall": [(0.0, -1.4), (0.7, 0.0), (0.0, 1.4), (-0.7, 0.0)],
        "diamond-wide": [(-1.4, 0.0), (0.0, -0.7), (1.4, 0.0), (0.0, 0.7)],
        "star-square": _star(8, 1.35, 0.8),
        "circle-cross": _star(8, 1.1, 1.1),
        "cross": cross,
        "x": [(0.75 * (x - y), 0.75 * (x + y)) for x, y in cross],
        "star": _star(10, 1.4, 0.6),
        "hexagon": _star(6, 1.1, 1.1),
        "pentagon": _star(5, 1.1, 1.1),
        "bowtie": [(-1.1, -0.9), (1.1, 0.9), (1.1, -0.9), (-1.1, 0.9)],
        "hourglass": [(-0.9, -1.1), (0.9, 1.1), (-0.9, 1.1), (0.9, -1.1)],
    }
    return shapes[symbol]


def _star(corners: int, outer: float, inner: float) -> Points:
    angles = [2 * math.pi * i / corners - math.pi / 2 for i in range(corners)]
    radii = [outer if i % 2 == 0 else inner for i in range(corners)]
    return [(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]


# --- labels --------------------------------------------------------------------------------------------------------


def _labels(curves: Sequence[SweepCurve], scale: Scale) -> list[str]:
    """Names at the right end of their lines, moved apart where they would touch, each tied to its line's end."""
    ends = sorted((scale.y(min(scale.ceiling, list(c.over.values())[-1].mean)), c.name, c) for c in curves)
    lowest = scale.top + _PANEL - 10
    places = spread_out([y for y, _, _ in ends], _LABEL_PX, lowest)
    parts = []
    for (y, name, curve), place in zip(ends, places, strict=True):
        x = scale.x(list(curve.over)[-1])
        lead = " lead" if name == JOINT else ""
        tie = f'x1="{x + 6:.1f}" y1="{y:.1f}" x2="{WIDTH - _RIGHT + 24}" y2="{place:.1f}"'
        parts.append(f'<line class="lead_line {curve.css}" {tie}/>')
        text = f'x="{WIDTH - _RIGHT + 28}" y="{place + 4:.1f}"'
        parts.append(f'<text class="name {curve.css}{lead}" {text}>{escape(_shortened(name))}</text>')
    return parts


def _shortened(name: str) -> str:
    return name if len(name) <= 20 else name[:19] + "…"


def spread_out(wanted: Sequence[float], distance: float, lowest: float) -> list[float]:
    """Move ascending positions as little as possible (least squares), so that neighbours are `distance` apart.

    None comes to lie below `lowest`. Isotonic regression of the positions less i x distance, by pooling adjacent
    violators (Barlow et al., Statistical Inference under Order Restrictions, 1972).
    """
    pools: list[tuple[float, int]] = []  # (sum, count) of positions that share a level
    for i, y in enumerate(wanted):
        total, count = y - i * distance, 1
        while pools and pools[-1][0] / pools[-1][1] > total / count:
            before = pools.pop()
            total, count = total + before[0], count + before[1]
        pools.append((total, count))
    levels = [total / count for total, count in pools for _ in range(count)]
    limit = lowest - (len(wanted) - 1) * distance
    return [min(level, limit) + i * distance for i, level in enumerate(levels)]
