#!/usr/bin/env python3
"""Draw docs/figures/architecture.svg: the way from telemetry to leases with its processes, and the packages by layer.

    python tools/draw_architecture.py [FILE]

The layers are those of pyproject.toml, a package's purpose is the first line of its docstring; a test
(tests/project/test_architecture.py) holds both, and the arrows between processes, against the sources.
"""

from __future__ import annotations

import ast
import html
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parent.parent
PICTURE: Final = ROOT / "docs" / "figures" / "architecture.svg"

WIDTH: Final = 1180
EDGE: Final = 20  # left and right of the picture
LINE: Final = 15  # from one line of text to the next
GAP: Final = 8  # between two boxes
WIDE: Final = 700  # a box wider than this has its purpose beside its name
ASIDE: Final = 150
CHARACTER: Final = 5.9  # width of one at 11 px, on the safe side

STYLE: Final = """
  svg { color-scheme: light dark }
  text { font: 11px system-ui, 'Segoe UI', Helvetica, Arial, sans-serif; fill: #1f2328 }
  .head { font-size: 16px; font-weight: 600 }
  .name { font-size: 12px; font-weight: 600 }
  .soft { fill: #59636e }
  .page { fill: #ffffff }
  .box { fill: #f6f8fa; stroke: #8c959f }
  .process { fill: #ddf4ff; stroke: #0969da }
  .step { fill: #ffffff; stroke: #0969da }
  .pure { fill: #dafbe1; stroke: #1a7f37 }
  .arrow { fill: none; stroke: #424a53; stroke-width: 1.5 }
  .tip { fill: #424a53 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 }
    .soft { fill: #9da7b1 }
    .page { fill: #0d1117 }
    .box { fill: #161b22; stroke: #6e7681 }
    .process { fill: #0c2d4d; stroke: #58a6ff }
    .step { fill: #0d1117; stroke: #58a6ff }
    .pure { fill: #12361f; stroke: #3fb950 }
    .arrow { stroke: #b1bac4 }
    .tip { fill: #b1bac4 }
  }
"""


class Process(NamedTuple):
    """A box of the upper half: a process, with the module that it runs."""

    module: str
    title: str
    says: str
    box: tuple[int, int, int, int]  # x, y, width, height
    down: int = 0  # its words are so much lower


class Arrow(NamedTuple):
    """What travels between two processes; `via` is the module that both know, or by which one starts the other."""

    start: str
    end: str
    via: str
    says: str
    path: tuple[tuple[int, int], ...]
    both: bool = False
    at: tuple[int, int] | None = None  # the middle of its words; by default above the middle of the line


ADAPTER: Final = "cosched.cli.adapter"
CLIENT: Final = "cosched.cli.ctl"
UE: Final = "cosched.cli.ue"
DOOR: Final = "cosched.daemon.children.door"
DAEMON: Final = "cosched.daemon.daemon"
SOLVE: Final = "cosched.children.solve"
QUESTION: Final = "cosched.daemon.children.question"
PLACEMENT: Final = "cosched.daemon.children.placement"
SHADOW: Final = "cosched.daemon.children.shadow"
CLUSTER: Final = "cosched.cluster.process"
ACTOR: Final = "cosched.cluster.node_actor"
HOST: Final = "cosched.runtime.host"

PROCESSES: Final = (
    Process(DOOR, "door", "accepts all connections, counts and caps them, carries bytes", (320, 50, 90, 370), 66),
    Process(ADAPTER, "cosched adapter, agent", "radio and node load, from foreign sources", (20, 70, 190, 62)),
    Process(CLIENT, "programs, ctl, top", "submit, release, ask: clients of the control API", (20, 190, 190, 62)),
    Process(
        UE, "cosched ue, cosched serve", "a UE, or one a request: submits, first layers, tells", (20, 330, 190, 62)
    ),
    Process(DAEMON, "cosched run: the daemon", "one engine in one event loop", (500, 50, 300, 370)),
    Process(SOLVE, "solve workers: two", "one at work, one warm; who is over the budget is killed", (920, 50, 240, 62)),
    Process(QUESTION, "question worker", "answers whatif and explain", (920, 126, 240, 48)),
    Process(PLACEMENT, "placement", "which layers nodes are to hold", (920, 188, 240, 48)),
    Process(SHADOW, "shadow", "each minute again, with a baseline too", (920, 250, 240, 48)),
    Process(CLUSTER, "cluster process", "the dispatcher: has Ray, which the daemon has not", (920, 358, 240, 62)),
    Process(ACTOR, "Ray actor: one on each node", "takes orders, reports what is in force", (920, 470, 240, 48)),
    Process(HOST, "host", "runs the other layers: a thread of the actor, or `cosched host`", (500, 470, 300, 62)),
)
STEPS: Final = (  # inside the daemon, from above: module, what it does
    ("cosched.daemon.ingest", "bytes to messages: checked, permitted"),
    ("cosched.daemon.engine", "messages to events, recorded first"),
    ("cosched.core.core", "events to state: channel, load, tasks"),
    ("cosched.core.planner", "state to problem, for a solve worker"),
    ("solvers.check", "solution back: is it what it says it is?"),
    ("cosched.core.decide", "solution to plan: PRBs, leases, reasons"),
    ("cosched.daemon.store", "plan on disk, before anybody hears of it"),
    ("cosched.daemon.board", "leases, to those for whom they are news"),
)
PURE: Final = ("cosched.core", "cosched.fluid", "cosched.workloads", "solvers")
ARROWS: Final = (
    Arrow(ADAPTER, DAEMON, "telemetry.bus", "telemetry", ((210, 100), (500, 100)), at=(265, 94)),
    Arrow(CLIENT, DAEMON, "cosched.api.messages", "requests, answers", ((210, 225), (500, 225)), True, (265, 219)),
    Arrow(UE, DAEMON, "telemetry.messages", "submit, progress", ((210, 350), (500, 350)), at=(265, 344)),
    Arrow(DAEMON, UE, "cosched.api.messages", "leases", ((500, 380), (210, 380)), at=(265, 374)),
    Arrow(DAEMON, SOLVE, "cosched.children.pool", "problem, solution", ((800, 82), (920, 82)), True),
    Arrow(DAEMON, QUESTION, "cosched.daemon.inquiry", "question, answer", ((800, 150), (920, 150)), True),
    Arrow(DAEMON, PLACEMENT, "cosched.daemon.placing", "state, layers", ((800, 212), (920, 212)), True),
    Arrow(DAEMON, SHADOW, "cosched.daemon.shadow_feed", "telemetry, gain", ((800, 274), (920, 274)), True),
    Arrow(DAEMON, CLUSTER, "cosched.daemon.cluster_link", "plans, reports", ((800, 390), (920, 390)), True),
    Arrow(CLUSTER, ACTOR, "cosched.cluster.messages", "orders, reports", ((1040, 420), (1040, 470)), True, (1088, 449)),
    Arrow(ACTOR, HOST, "cosched.cluster.serving", "layers, weights", ((920, 494), (800, 494))),
    Arrow(
        UE,
        HOST,
        "cosched.runtime.protocol",
        "activations, tokens",
        ((105, 392), (105, 500), (500, 500)),
        True,
        (300, 494),
    ),
)
LAYERS_AT: Final = 575  # where the lower half begins


def layers(pyproject: Path) -> list[list[str]]:
    """Packages by layer, the highest first, as the contracts of pyproject.toml have them."""
    contracts = tomllib.loads(pyproject.read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    rows = {tuple(one.get("containers", ())): one["layers"] for one in contracts if one["type"] == "layers"}
    found = [[f"cosched.{name.strip()}" for name in row.split("|")] for row in rows["cosched",]]
    return [*found, *([name.strip() for name in row.split("|")] for row in rows[()][1:])]


def purpose(root: Path, module: str) -> str:
    """Return the first line of a package's or module's docstring."""
    path = root / module.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def inside(root: Path, package: str) -> list[str]:
    """Return the sub-packages of one, by name."""
    return sorted(f"{package}.{one.parent.name}" for one in (root / package.replace(".", "/")).glob("*/__init__.py"))


def escaped(text: str) -> str:
    """Make a text fit for XML."""
    return html.escape(text, quote=False)


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    """One line of text."""
    named = f' class="{kind}"' if kind else ""
    placed = f' text-anchor="{anchor}"' if anchor != "start" else ""
    return f'<text x="{x:g}" y="{y:g}"{named}{placed}>{escaped(words)}</text>'


def box(x: float, y: float, width: float, height: float, kind: str) -> str:
    """Return a frame with round corners."""
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5" class="{kind}"/>'


def wrapped(words: str, width: float) -> list[str]:
    """Lines that fit in so many pixels."""
    return textwrap.wrap(words, int(width / CHARACTER), break_long_words=False)


def drawn_process(one: Process) -> list[str]:
    """Return a process's box with its words."""
    x, y, width, height = one.box
    out = [f'<g data-process="{one.module}">', box(x, y, width, height, "process")]
    y += 18 + one.down
    out.append(text(x + 8, y, one.title, "name"))
    out += [text(x + 8, y + LINE * n, line, "soft") for n, line in enumerate(wrapped(one.says, width - 12), 1)]
    return [*out, "</g>"]


def drawn_arrow(one: Arrow) -> list[str]:
    """Return a line with a tip at its end, or at both, and what it says."""
    points = " ".join(f"{x},{y}" for x, y in one.path)
    start = ' marker-start="url(#tip)"' if one.both else ""
    x, y = one.at or ((one.path[0][0] + one.path[1][0]) // 2, one.path[0][1] - 6)
    return [
        f'<g data-from="{one.start}" data-to="{one.end}" data-via="{one.via}">',
        f'<polyline points="{points}" class="arrow"{start} marker-end="url(#tip)"/>',
        text(x, y, one.says, "soft", "middle"),
        "</g>",
    ]


def drawn_steps() -> list[str]:
    """What happens inside the daemon, from above."""
    x, top, width, _ = next(one.box for one in PROCESSES if one.module == DAEMON)
    out = []
    for n, (module, says) in enumerate(STEPS):
        y = top + 46 + 40 * n
        kind = "pure" if module.startswith(PURE) else "step"
        out += [f'<g data-step="{module}">', box(x + 12, y, width - 24, 34, kind)]
        out += [text(x + 20, y + 14, f"{n + 1}  {module}", "name"), text(x + 33, y + 28, says), "</g>"]
    return out


def drawn_package(root: Path, module: str, x: float, y: float, width: float) -> tuple[list[str], float]:
    """Return a package's box, its purpose and its sub-packages, and how high it is."""
    out = [f'<g data-package="{module}">', ""]  # the box: when its height is known
    out.append(text(x + 8, y + 17, module, "name"))
    if width > WIDE:
        out.append(text(x + ASIDE, y + 17, purpose(root, module)))
        lines = []
    else:
        lines = [(line, "") for line in wrapped(purpose(root, module), width - 16)]
    for sub in inside(root, module):
        out.append(f'<g data-inside="{sub}"/>')
        lines += [(line, "soft") for line in wrapped(f"{sub}: {purpose(root, sub)}", width - 16)]
    height = 10 + LINE * (1 + len(lines))
    out[1] = box(x, y, width, height, "pure" if module in PURE else "box")
    out += [text(x + 8, y + 17 + LINE * n, words, style) for n, (words, style) in enumerate(lines, 1)]
    return [*out, "</g>"], height


def drawn_layers(root: Path, rows: list[list[str]], y: float) -> tuple[list[str], float]:
    """Return all packages, a row for each layer, and where they end."""
    out: list[str] = []
    left = EDGE + 34
    for row in rows:
        width = (WIDTH - EDGE - left - GAP * (len(row) - 1)) / len(row)
        tall = 0.0
        for n, module in enumerate(row):
            drawn, height = drawn_package(root, module, left + n * (width + GAP), y, width)
            out, tall = out + drawn, max(tall, height)
        y += tall + GAP
    return out, y


def draw(root: Path = ROOT) -> str:
    """Return the whole picture as SVG; the same tree gives the same bytes."""
    packages, bottom = drawn_layers(root, layers(root / "pyproject.toml"), LAYERS_AT + 44)
    height = f"{bottom + 8:g}"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">',
        "<title>cosched: processes and packages</title>",
        f"<style>{STYLE}</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"',
        ' orient="auto-start-reverse"><path d="M0,0 L8,4 L0,8 z" class="tip"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{height}" class="page"/>',
        text(EDGE, 30, "What happens: telemetry and requests in, leases and orders out", "head"),
        text(WIDTH - EDGE, 30, "blue: a process. green: pure, without clock, socket, file or chance", "soft", "end"),
        *[line for one in PROCESSES for line in drawn_process(one)],
        *drawn_steps(),
        *[line for one in ARROWS for line in drawn_arrow(one)],
        text(EDGE, LAYERS_AT + 10, "The packages, layer by layer", "head"),
        text(EDGE, LAYERS_AT + 30, "Imports go down; packages side by side do not know each other.", "soft"),
        f'<line x1="34" y1="{LAYERS_AT + 50}" x2="34" y2="{bottom - 14:g}" class="arrow" marker-end="url(#tip)"/>',
        *packages,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the picture."""
    Path(sys.argv[1] if len(sys.argv) > 1 else PICTURE).write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
