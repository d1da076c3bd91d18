"""The picture and page of the architecture say what the sources say: packages, layers, and who talks to whom."""

from __future__ import annotations

import ast
import importlib.util
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "architecture.md"
SVG = "{http://www.w3.org/2000/svg}"
Graph = Mapping[str, AbstractSet[str]]  # module -> modules that it imports

_spec = importlib.util.spec_from_file_location("draw_architecture", ROOT / "tools" / "draw_architecture.py")
assert _spec is not None
assert _spec.loader is not None
tool = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tool)


def sources() -> dict[str, Path]:
    """Modules by name."""
    files = [path for name in ("cosched", "solvers", "telemetry") for path in (ROOT / name).rglob("*.py")]
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in sorted(files)
    }


def _imported(text: str, known: AbstractSet[str]) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in known else node.module for name in names)
    yield from re.findall(r'"([a-z_.]+):[A-Za-z_]+"', text)  # what a registry imports by its name


def import_graph(files: Mapping[str, Path]) -> dict[str, set[str]]:
    """What each module imports of ours, inside functions and by registries too."""
    return {
        name: {other for other in _imported(path.read_text(encoding="utf-8"), files.keys()) if other in files}
        for name, path in files.items()
    }


def unit(module: str, units: AbstractSet[str]) -> str:
    """Return the layered package that a module is of; "" for the root package alone."""
    return max((one for one in units if module == one or module.startswith(f"{one}.")), key=len, default="")


def against(layers: list[list[str]], graph: Graph) -> list[str]:
    """Imports that go up or sideways, and modules that are in no layer."""
    rank = {name: n for n, row in enumerate(layers) for name in row}
    wrong = [f"{name} is in no layer" for name in graph if not unit(name, rank.keys()) and name != "cosched"]
    for name, imported in graph.items():
        ours = unit(name, rank.keys())
        theirs = {(other, unit(other, rank.keys())) for other in imported}
        wrong += [f"{name} imports {other}" for other, one in theirs if ours and one != ours and one in rank
                  and rank[one] <= rank[ours]]  # fmt: skip
    return sorted(wrong)


def reached(start: str, graph: Graph) -> set[str]:
    """All that a module imports, and what that imports."""
    seen, todo = {start}, [start]
    while todo:
        new = set(graph.get(todo.pop(), ())) - seen
        seen |= new
        todo += new
    return seen


def unproven(arrow: tuple[str, str, str], graph: Graph, texts: Mapping[str, str]) -> list[str]:
    """Ends of an arrow (from, to, via) that neither import what carries it nor are named by it."""
    start, end, via = arrow
    if via not in graph:
        return [f"{via} is no module"]
    return [one for one in (start, end) if via not in reached(one, graph) and one not in texts[via]]


@pytest.fixture(scope="module")
def drawing() -> ET.Element:
    return ET.fromstring((ROOT / "docs/figures/architecture.svg").read_text(encoding="utf-8"))  # noqa: S314 - ours


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    return import_graph(sources())


def drawn_layers(drawing: ET.Element) -> list[list[str]]:
    """Packages by height: what the eye sees."""
    rows: dict[float, list[str]] = {}
    for group in drawing.iter(f"{SVG}g"):
        if name := group.get("data-package"):
            frame = group.find(f"{SVG}rect")
            assert frame is not None
            rows.setdefault(float(frame.get("y", "")), []).append(name)
    return [rows[y] for y in sorted(rows)]


def test_picture_is_what_the_script_draws() -> None:
    assert (ROOT / "docs/figures/architecture.svg").read_text(encoding="utf-8") == tool.draw(), (
        "run python tools/draw_architecture.py"
    )


def test_every_package_is_in_picture_and_page(drawing: ET.Element) -> None:
    packages = {name for name, path in sources().items() if path.name == "__init__.py"} - {"cosched"}
    modules = {name for row in tool.layers(ROOT / "pyproject.toml") for name in row}
    groups = [group.get("data-package") or group.get("data-inside") for group in drawing.iter(f"{SVG}g")]
    assert packages | modules == {one for one in groups if one}
    assert packages | modules <= set(re.findall(r"`([a-z_.]+)`", PAGE.read_text()))


def test_what_is_drawn_higher_imports_what_is_drawn_lower(drawing: ET.Element, graph: Graph) -> None:
    assert drawn_layers(drawing) == tool.layers(ROOT / "pyproject.toml")
    assert against(drawn_layers(drawing), graph) == []


def test_page_has_the_packages_in_the_order_of_the_layers() -> None:
    rank = {name: n for n, row in enumerate(tool.layers(ROOT / "pyproject.toml")) for name in row}
    table = PAGE.read_text().partition("## Which package does what")[2]
    named = [re.findall(r"`([a-z_.]+)`", row.split("|")[2]) for row in re.findall(r"(?m)^\|.*`.*$", table)]
    ranks = [rank[name] for row in named for name in row if name in rank]
    assert ranks == sorted(ranks)


def test_processes_and_arrows_are_those_of_the_sources(drawing: ET.Element, graph: Graph) -> None:
    texts = {name: path.read_text(encoding="utf-8") for name, path in sources().items()}
    groups = list(drawing.iter(f"{SVG}g"))
    named = {one for group in groups for key in ("data-process", "data-step") if (one := group.get(key))}
    assert named <= graph.keys()
    arrows = [
        (a.get("data-from", ""), a.get("data-to", ""), a.get("data-via", "")) for a in groups if a.get("data-via")
    ]
    assert len(arrows) >= 10
    assert {arrow: missing for arrow in arrows if (missing := unproven(arrow, graph, texts))} == {}


def test_processes_that_the_daemon_starts_are_drawn(drawing: ET.Element) -> None:
    """Every `python -m` of the daemon and its children is a box."""
    started = {
        name
        for path in [*(ROOT / "cosched/daemon").rglob("*.py"), *(ROOT / "cosched/children").rglob("*.py")]
        for name in re.findall(r'"(cosched(?:\.[a-z_]+)+)"', path.read_text(encoding="utf-8"))
        if name in sources()
    }
    assert len(started) >= 6
    assert started <= {group.get("data-process") for group in drawing.iter(f"{SVG}g")}


def test_walks_of_the_page_are_those_of_the_tool() -> None:
    walks = (ROOT / "tools" / "walks.py").read_text()
    named = re.findall(r"\(`([a-z_]+)`\)\. ", PAGE.read_text())
    table = walks.partition("WALKS: Final")[2].partition("main()")[0]
    assert named == re.findall(r"\b[a-z]+_to_[a-z]+\b", table)


FAKE: Graph = {
    "a": set(),
    "a.top": {"a.left.x", "a.base"},
    "a.left": set(),
    "a.left.x": {"a.base"},
    "a.right": {"a.base"},
    "a.base": set(),
}
ROWS = [["a.top"], ["a.left", "a.right"], ["a.base"]]


def test_checker_finds_a_wrong_layer() -> None:
    right = {name: found for name, found in FAKE.items() if name != "a"}
    assert against(ROWS, right) == []
    assert against(ROWS, right | {"a.base": {"a.left.x"}}) == ["a.base imports a.left.x"]
    assert against(ROWS, right | {"a.right": {"a.left"}}) == ["a.right imports a.left"]
    assert against([["a.base"], *ROWS[:2]], right) != []
    assert against(ROWS[:2], right) == ["a.base is in no layer"]


def test_checker_finds_an_arrow_that_is_not_there() -> None:
    texts = dict.fromkeys(FAKE, "") | {"a.left": "starts a.right"}
    assert unproven(("a.top", "a.right", "a.base"), FAKE, texts) == []
    assert unproven(("a.top", "a.right", "a.left.x"), FAKE, texts) == ["a.right"]
    assert unproven(("a.right", "a.right", "a.left"), FAKE, texts) == []
    assert unproven(("a.top", "a.right", "a.gone"), FAKE, texts) == ["a.gone is no module"]
