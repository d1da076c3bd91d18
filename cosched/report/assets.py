"""Style sheet and script of the report: kept here as text, because the report is one file."""

from __future__ import annotations

from typing import Final

LIGHT: Final = {
    "page": "#ffffff",
    "ink": "#1c2128",
    "soft": "#59636e",
    "grid": "#e3e7ec",
    "bound": "#6e7781",
    "a": "#c24e00",
    "b": "#0060c0",
    "c": "#a9b4c0",
    "r0": "#0060c0",
    "r1": "#c24e00",
    "r2": "#00795a",
    "r3": "#a07400",
    "r4": "#6a43b5",
    "r5": "#2f95c8",
    "r6": "#b0468a",
    "r7": "#80868d",
    "r8": "#a11d33",
    "r9": "#5d7a00",
}
DARK: Final = {
    "page": "#14181d",
    "ink": "#e6eaef",
    "soft": "#a3adb8",
    "grid": "#2c333b",
    "bound": "#9aa4af",
    "a": "#ff8a3d",
    "b": "#4da3ff",
    "c": "#66717d",
    "r0": "#4da3ff",
    "r1": "#ff8a3d",
    "r2": "#20c997",
    "r3": "#e6b422",
    "r4": "#b39bf0",
    "r5": "#7cc9f0",
    "r6": "#e58cc4",
    "r7": "#949ba3",
    "r8": "#ff7a8a",
    "r9": "#b2d235",
}
SCALES: Final = {  # "@share": none to all; "@channel": bad to good, the colours of the bars of channel classes
    "light": {
        "@share": [[0, "#f1f4f8"], [0.5, "#6ba5e0"], [1, "#00458c"]],
        "@channel": [[0, "#c24e00"], [0.5, "#b3bcc6"], [1, "#0060c0"]],
    },
    "dark": {
        "@share": [[0, "#1d232a"], [0.5, "#2f6db0"], [1, "#9cccff"]],
        "@channel": [[0, "#ff8a3d"], [0.5, "#66717d"], [1, "#4da3ff"]],
    },
}

CSS: Final = """
:root {
  color-scheme: light dark;
  --page: #fff; --ink: #1c2128; --soft: #59636e; --line: #d8dee4; --best: #0a6b3d; --best-back: #dcf3e4;
}
@media (prefers-color-scheme: dark) {
  :root { --page: #14181d; --ink: #e6eaef; --soft: #a3adb8; --line: #343c45; --best: #6fdc9c; --best-back: #173726; }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 1180px; padding: 1.5rem 1.25rem 4rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 3rem 0 .6rem; padding-top: .8rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.02rem; line-height: 1.35; margin: 0 0 .3rem; overflow-wrap: anywhere; }
.finding { font-size: 1.2rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
.facts { color: var(--soft); margin: 0 0 1rem; }
.note, figcaption { color: var(--soft); font-size: .9rem; margin: .2rem 0 0; overflow-wrap: anywhere; }
.empty { border: 1px dashed var(--line); border-radius: 6px; padding: 1.2rem; color: var(--soft); margin: .5rem 0; }
footer { margin-top: 3rem; color: var(--soft); font-size: .85rem; overflow-wrap: anywhere; }

table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; font-size: .88rem; }
th, td { padding: .28rem .55rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: bottom; }
th[scope=row] { text-align: left; font-weight: 500; }
td { white-space: nowrap; }
.scroll { overflow-x: auto; }
.aside { display: none; }
.compare { width: auto; min-width: min(100%, 40rem); }
.compare th:first-child { position: sticky; left: 0; background: var(--page); white-space: nowrap; }
.compare .best { color: var(--best); background: var(--best-back); font-weight: 700; }
.key i {
  display: block; width: .75em; height: .75em; border-radius: 50%; margin: 0 0 .15em auto; background: var(--light);
}
@media (prefers-color-scheme: dark) { .key i { background: var(--dark); } }
.misses { table-layout: fixed; }
.misses th { text-align: left; font-weight: 600; }
.misses td { text-align: left; vertical-align: top; white-space: normal; overflow-wrap: break-word; }

.charts { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: 2rem; }
.chart { margin: 0; grid-column: 1 / -1; min-width: 0; }
.chart.half { grid-column: auto; }
@media (min-width: 821px) {  /* title, plot and explanation of two neighbours start at the same height */
  .chart.half { display: grid; grid-template-rows: subgrid; grid-row: span 3; row-gap: .2rem; }
}
.plot { width: 100%; min-height: 120px; }
.pick { margin: 0 0 1rem; font-size: .95rem; }
select {
  font: inherit; padding: .15rem .4rem; max-width: 100%; color: var(--ink); background: var(--page);
  border: 1px solid var(--line); border-radius: 4px;
}
dl { margin: .4rem 0 0; display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; }
dt { color: var(--ink); }
dd { margin: 0; }

@media screen and (max-width: 820px) {
  .charts { grid-template-columns: minmax(0, 1fr); }
  .aside { display: block; }
  .misses thead { display: none; }
  .misses tr { display: block; border: 1px solid var(--line); border-radius: 6px; margin: .8rem 0; padding: .3rem; }
  .misses td { display: grid; grid-template-columns: 7.5rem minmax(0, 1fr); gap: .5rem; border: 0; padding: .15rem 0; }
  .misses td::before { content: attr(data-label); color: var(--soft); }
}
@media screen and (max-width: 480px) {
  body { padding: 1rem .8rem 3rem; }
  h1 { font-size: 1.35rem; }
  .finding { font-size: 1.05rem; }
  dl { grid-template-columns: 1fr; }
  dd { margin: 0 0 .4rem; }
}
@page { margin: 14mm; }
@media print {
  :root {
    color-scheme: light;
    --page: #fff; --ink: #000; --soft: #444; --line: #bbb; --best: #000; --best-back: #e8e8e8;
  }
  body { max-width: none; padding: 0; font-size: 11pt; }
  .scroll { overflow: visible; }
  .compare { font-size: 6.5pt; }
  .compare th, .compare td { padding: .15rem .2rem; }
  .misses { font-size: 7.5pt; }
  .misses th, .misses td { padding: .2rem; }
  .charts { display: block; }
  .chart { margin-bottom: 1.5rem; }
  .chart, tr { break-inside: avoid; }
  h2, h3, .pick { break-after: avoid; }
  .pick select { border: 0; appearance: none; }
}
"""

JS: Final = """
"use strict";
(function () {
  const page = JSON.parse(document.getElementById("charts").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const NARROW = 560, PRINT_WIDTH = 680, PRINT_HEIGHT = 0.78;
  let printing = false;

  function colour(name, theme) {
    const found = /^@(.*?)(?:\\/([0-9.]+))?$/.exec(name);
    const hex = found && page.palette[theme][found[1]];
    if (!hex) { return name; }
    if (!found[2]) { return hex; }
    const part = (i) => parseInt(hex.slice(i, i + 2), 16);
    return `rgba(${part(1)},${part(3)},${part(5)},${found[2]})`;
  }

  function themed(node, theme) {
    if (Array.isArray(node)) {
      return node.length && typeof node[0] === "object" && node[0] ? node.map((n) => themed(n, theme)) : node;
    }
    if (node === null || typeof node !== "object") { return node; }
    const out = {};
    for (const [key, value] of Object.entries(node)) {
      if (key === "colorscale") { out[key] = page.scales[theme][value]; }
      else if (/color$/.test(key) && typeof value === "string") { out[key] = colour(value, theme); }
      else { out[key] = themed(value, theme); }
    }
    return out;
  }

  function dress(spec, width, theme) {
    const c = page.palette[theme], narrow = width < NARROW, small = narrow ? 11 : 12.5;
    const names = spec.data.filter((t) => t.showlegend !== false && t.name).length;
    const layout = spec.layout, below = (narrow || layout.legend_below) && !layout.legend_top;
    layout.width = width;
    if (printing) { layout.height *= PRINT_HEIGHT; }
    layout.font = { family: getComputedStyle(document.body).fontFamily, size: small, color: c.ink };
    layout.paper_bgcolor = layout.plot_bgcolor = "rgba(0,0,0,0)";
    layout.margin = { l: narrow ? 44 : 56, r: narrow ? 8 : 16, t: narrow ? 12 : 34, b: 48 };
    layout.modebar = { bgcolor: "rgba(0,0,0,0)", color: c.soft, activecolor: c.ink };
    layout.showlegend = names > 1;
    layout.hoverlabel = { bgcolor: c.page, bordercolor: c.soft, font: { color: c.ink } };
    layout.dragmode = narrow ? false : "zoom";
    if (layout.legend_top) {
      layout.legend = { orientation: "h", x: 0, y: 1, yanchor: "bottom" };
      layout.margin.t = 44;
    } else if (below) {
      const at = { x: 0, xref: "container", y: 0, yref: "container", yanchor: "bottom" };
      layout.legend = { orientation: "h", traceorder: "normal", ...at };
      layout.height += 21 * Math.ceil(names / Math.max(1, Math.floor(width / 150)));
    } else {
      layout.legend = { x: 1.01, y: 1, tracegroupgap: 0 };
    }
    for (const key of Object.keys(layout)) {
      if (/^[xy]axis/.test(key)) {
        Object.assign(layout[key], { gridcolor: c.grid, zerolinecolor: c.grid, linecolor: c.soft, fixedrange: narrow });
        if (layout[key].title) { layout[key].title.standoff = 8; }
      }
    }
    delete layout.legend_below; delete layout.legend_top;
    return spec;
  }

  function draw(box) {
    const variants = page.charts[box.dataset.chart];
    const picker = box.dataset.group && document.getElementById("pick-" + box.dataset.group);
    const chosen = picker ? picker.value : "";
    const note = box.nextElementSibling;
    const spec = variants[chosen];
    note.hidden = Boolean(spec);
    box.hidden = !spec;
    if (!spec) { return; }
    const theme = dark.matches && !printing ? "dark" : "light";
    const width = printing ? PRINT_WIDTH : box.parentElement.clientWidth;
    const { data, layout } = dress(themed(spec, theme), width, theme);
    Plotly.react(box, data, layout, { displaylogo: false, displayModeBar: width < NARROW || printing ? false : "hover",
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] });
  }

  const boxes = Array.from(document.querySelectorAll(".plot"));
  const all = () => boxes.forEach(draw);
  for (const picker of document.querySelectorAll(".pick select")) {
    picker.addEventListener("change", () => boxes.filter((b) => "pick-" + b.dataset.group === picker.id).forEach(draw));
  }
  let last = innerWidth, waiting = 0;
  addEventListener("resize", () => {
    if (innerWidth === last || printing) { return; }  // a phone's address bar changes the height only
    last = innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(all, 120);
  });
  addEventListener("beforeprint", () => { printing = true; all(); });
  addEventListener("afterprint", () => { printing = false; all(); });
  dark.addEventListener("change", all);
  all();
})();
"""
