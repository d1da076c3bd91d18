"""What comments, docstrings and pages point to - files, modules, sections, decisions - and which of it is not there."""

from __future__ import annotations

import ast
import io
import re
import tokenize
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

TOPS: Final = "cosched|solvers|telemetry|docs|tests|tools|config|systemd"
CODE: Final = ("cosched", "solvers", "telemetry", "tests", "tools")
ENDINGS: Final = {"py", "md", "toml", "json", "service", "key", "sock"}
FILE: Final = re.compile(r"(?<![\w/.*@:<>{}-])(\.{0,2}/?(?:[\w*.-]+/)*[\w*-]+\.(?:py|md))(?![\w/])")
PLACE: Final = re.compile(rf"(?<![\w/.-])((?:{TOPS})/[\w./*-]*\w/?)(?![\w<>{{*])")
MODULE: Final = re.compile(r"(?<![\w./@-])((?:cosched|solvers|telemetry)(?:\.[A-Za-z_]\w*)+)(?![\w/]|\.\w|://)")
DECISION: Final = re.compile(r"(?:docs/decisions/|\bdecisions? (?:\[)?)(\d{4})\b(?![\w-])")
NUMBERED: Final = re.compile(
    r"(?:\b([\w-]+\.md)\)?|\b(?:the )?(model))(?:,? sections? |,? (?=\d+[a-z]?(?:[\s,.;:)]|$)))"
    r"(\d+[a-z]?(?:(?:, | and )\d+[a-z]?)*)\b(?!\.\d| ms| s\b| %)"
)
INSTALLED: Final = re.compile(r"cosched/_(?:config|systemd)\b")  # folders that only the wheel has
BACKWARDS: Final = re.compile(r"\bsections? (\d+[a-z]?) of (?:the )?\[?(model|[\w-]+\.md)\b")
QUOTED: Final = re.compile(r"\b(?:([\w-]+\.md)\)?|(README)), \"([^\"]+)\"")
ANCHOR: Final = re.compile(r"\]\(([\w./-]*)#([\w-]+)\)")


@dataclass(frozen=True)
class Tree:
    """A tree of sources and pages."""

    root: Path

    @cached_property
    def files(self) -> set[str]:
        """All that is there, as paths from the root."""
        paths = [path for top in TOPS.split("|") for path in (self.root / top).rglob("*") if path.is_file()]
        paths += [path for path in self.root.iterdir() if path.is_file()]
        return {path.relative_to(self.root).as_posix() for path in paths if "__pycache__" not in path.parts}

    @cached_property
    def keys(self) -> set[str]:
        """Keys of the configuration, which look like modules: `telemetry.bind`."""
        file = self.root / "config" / "cosched.toml"
        tables = tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return {f"{table}.{key}" for table, keys in tables.items() if isinstance(keys, dict) for key in keys}

    @cached_property
    def folders(self) -> set[str]:
        """Folders of files."""
        return {parent.as_posix() for file in self.files for parent in Path(file).parents}

    @cached_property
    def names(self) -> dict[str, list[str]]:
        """Paths by their last part."""
        found: dict[str, list[str]] = {}
        for file in sorted(self.files):
            found.setdefault(file.rpartition("/")[2], []).append(file)
        return found

    def headings(self, page: str) -> list[str]:
        """Headings, and what begins a paragraph in bold, of a page."""
        text = (self.root / page).read_text(encoding="utf-8")
        return re.findall(r"(?m)^#+ (.*)$", text) + re.findall(r"(?m)^\*\*([^*]+?)\.?\*\*", text)

    def page(self, name: str) -> str:
        """Return where a page of this name is, "" nowhere."""
        return next((path for path in (f"docs/{name}", name, *self.names.get(name, ())) if path in self.files), "")


def said(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text: of a page its paragraphs, of a program its docstrings and runs of comments."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        for part in re.finditer(r"(?s)\S.*?(?=\n\n|\Z)", text):
            yield 1 + text.count("\n", 0, part.start()), part[0]
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value
    run: list[str] = []
    first = last = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT:
            continue
        if run and token.start[0] != last + 1:
            yield first, "\n".join(run)
            run = []
        first = first if run else token.start[0]
        last = token.start[0]
        run.append(token.string.lstrip("# "))
    if run:
        yield first, "\n".join(run)


def is_there(tree: Tree, where: str, name: str, near: set[str]) -> bool:
    """Whether a file that `where` names exists: by its path or the end of it, a bare one in a folder of `near`."""
    while name.startswith(("./", "../")):
        name = name.partition("/")[2]
    folder, _, last = name.rpartition("/")
    if "*" in name:
        return any(tree.root.glob(name))
    if folder:
        return any(one == name or one.endswith(f"/{name}") for one in tree.names.get(last, ()))
    if last.endswith(".md"):
        return last in tree.names
    here = {where.rpartition("/")[0]} | near
    return any(f"{one}/{last}".removeprefix("/") in tree.files for one in here)


def folders_named(page: str) -> set[str]:
    """Folders that a page speaks of."""
    places = [place.rstrip("/") for place in PLACE.findall(page)]
    near = {place.rpartition("/")[0] if "." in place else place for place in places}
    return near | {match.replace(".", "/") for match in MODULE.findall(page)}


def dead_files(tree: Tree, where: str, text: str, near: set[str]) -> Iterator[str]:
    """Files and folders. A bare name is of the same folder; in a page, also of a folder that the page names."""
    yield from (name for name in FILE.findall(text) if not is_there(tree, where, name, near))
    for match in PLACE.findall(text):
        if INSTALLED.match(match) or FILE.fullmatch(match) or DECISION.fullmatch(match) or "*" in match:
            continue
        if match.rstrip("/") not in tree.files | tree.folders:
            yield match


def dead_modules(tree: Tree, text: str) -> Iterator[str]:
    """Dotted names: a module, or what is defined in one."""
    for match in MODULE.findall(text):
        parts = match.split(".")
        if match in tree.keys or parts[-1] in ENDINGS:
            continue
        while parts and not {f"{'/'.join(parts)}.py", f"{'/'.join(parts)}/__init__.py"} & tree.files:
            parts.pop()
        rest = match.split(".")[len(parts) :]
        file = "/".join(parts)
        source = next(one for one in (f"{file}.py", f"{file}/__init__.py") if one in tree.files)
        if rest and not re.search(rf"\b{rest[0]}\b", (tree.root / source).read_text(encoding="utf-8")):
            yield match


def dead_sections(tree: Tree, where: str, text: str) -> Iterator[str]:
    """Numbered sections, quoted headings, anchors, and decisions by their number."""
    plain = re.sub(r"\s+", " ", text)
    numbered = [(found[1] or f"{found[2]}.md", found[3], found[0].strip()) for found in NUMBERED.finditer(plain)]
    numbered += [(name if name.endswith(".md") else f"{name}.md", n, f"section {n} of {name}")
                 for n, name in BACKWARDS.findall(plain)]  # fmt: skip
    for name, numbers, words in numbered:
        page = tree.page(name)
        has = {heading.partition(".")[0] for heading in tree.headings(page)} if page else set()
        if not set(re.findall(r"\d+[a-z]?", numbers)) <= has:
            yield words
    for name, readme, heading in QUOTED.findall(plain):
        page = tree.page(name or f"{readme}.md")
        if not page or not any(one.startswith(heading) for one in tree.headings(page)):
            yield f'{name or readme}, "{heading}"'
    for name, anchor in ANCHOR.findall(text):
        page = (Path(where).parent / name).as_posix() if name else where
        target = (tree.root / page).resolve()
        if not target.is_file():
            continue  # a link that leads nowhere has a test of its own
        slugs = {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in tree.headings(str(target))}
        if anchor not in slugs:
            yield f"{name}#{anchor}"
    for number in DECISION.findall(plain):
        if not any(one.startswith(f"docs/decisions/{number}-") for one in tree.files):
            yield f"decision {number}"


def dead(tree: Tree, where: str) -> list[str]:
    """Return what a file points to that is not there, each with its line."""
    path = tree.root / where
    near = folders_named(path.read_text(encoding="utf-8")) if where.endswith(".md") else set()
    past = where.startswith("docs/decisions/")  # may speak of what was
    return [
        f"{where}:{line}: {found}"
        for line, text in said(path)
        if not (past and re.search(r"\b(?:was|were)\b", text))
        for found in (
            *dead_files(tree, where, text, near), *dead_modules(tree, text), *dead_sections(tree, where, text),
        )
    ]  # fmt: skip
