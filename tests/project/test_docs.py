"""Documents are true where a program can tell: links lead somewhere, commands and targets exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pointers import Tree, dead

from cosched.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "systemd").glob("*.md")])
TARGETS = set(re.findall(r"(?m)^([a-z]+):", (ROOT / "Makefile").read_text()))


def code_of(page: Path) -> list[str]:
    """Inline code and the lines of code blocks."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"(?ms)^\s*```[a-z]*\n(.*?)^\s*```", text)
    indented = re.findall(r"(?m)^    (\S.*)$", text)
    return re.findall(r"`([^`\n]+)`", text) + [line for block in blocks for line in block.splitlines()] + indented


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_relative_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    broken = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_and_targets_in_documents_exist(page: Path) -> None:
    code = code_of(page)
    commands = {match[1] for line in code if (match := re.match(r"(?:\$ )?cosched ([a-z]+)", line))}
    targets = {
        word for line in code if (match := re.match(r"(?:\$ )?make ([a-z ]+)", line)) for word in match[1].split()
    }
    assert commands - set(COMMANDS) == set()
    assert targets - TARGETS == set()


def test_index_lists_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index, f"docs/README.md does not list {page.name}"


def test_pages_that_the_code_points_to_exist() -> None:
    sources = [path for name in ("cosched", "solvers", "telemetry", "config") for path in (ROOT / name).rglob("*.*")]
    texts = {path: path.read_text(encoding="utf-8") for path in sources if path.suffix in {".py", ".toml"}}
    missing = {
        f"{path.relative_to(ROOT)}: {page}"
        for path, text in texts.items()
        for page in re.findall(r"docs/[a-z0-9_/-]+\.md", text)
        if not (ROOT / page).is_file()
    }
    assert missing == set()


TREE = Tree(ROOT)
POINTING = sorted(
    file
    for file in TREE.files - {"CHANGELOG.md"}
    if file.endswith((".py", ".md"))
    or (file.startswith(("config/", "systemd/")) and file.endswith((".toml", ".service", ".conf")))
)


@pytest.mark.parametrize("top", ["cosched", "solvers", "telemetry", "tests", "tools", "docs", "config", "systemd", ""])
def test_comments_docstrings_and_pages_point_to_what_is_there(top: str) -> None:
    """Files by path or bare name, modules, sections, headings, anchors, decisions. The changelog speaks of the past."""
    files = [file for file in POINTING if (file.partition("/")[0] if "/" in file else "") == top]
    assert files
    assert [found for file in files for found in dead(TREE, file)] == []


PAGE = """# Model\n\n## 1. Prices\n\n**What it is.** More.\n"""
PLANTED = {
    "docs/model.md, section 2": ["model.md, section 2"],
    "see model.md 2a, and (docs/model.md, 1)": ["model.md 2a"],
    "docs/model.md, sections 1 and 3": ["model.md, sections 1 and 3"],
    "section 4 of the model": ["section 4 of model"],
    "nodes.md has it, docs/model.md too": ["nodes.md"],
    "other.py beside live.py and core/other.py": ["live.py"],
    "cosched/core/gone.py": ["cosched/core/gone.py"],
    "cosched.core.other.there, cosched.core.other.away, cosched.old.one": [
        "cosched.core.other.away",
        "cosched.old.one",
    ],
    'model.md, "What it is", model.md, "What it was"': ['model.md, "What it was"'],
    "[this](../../docs/model.md#1-prices) and [that](../../docs/model.md#2-gaps)": ["../../docs/model.md#2-gaps"],
    "docs/decisions/0001 and decision 0002": ["decision 0002"],
    "config.json, https://example.org/x.md, ray.py3, 0.5 s": [],
}


@pytest.mark.parametrize("text", PLANTED)
def test_planted_dead_pointers_are_found(tmp_path: Path, text: str) -> None:
    """In a docstring and in a comment of a small tree."""
    for file, content in {
        "docs/model.md": PAGE,
        "docs/decisions/0001-one.md": "# 0001 One\n",
        "cosched/__init__.py": "",
        "cosched/core/__init__.py": "",
        "cosched/core/other.py": "there = 1\n",
        "cosched/core/one.py": f"'''{text}'''\nx = 1\n\n# {text}\n",
    }.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(content, encoding="utf-8")
    found = dead(Tree(tmp_path), "cosched/core/one.py")
    expected = sorted(PLANTED[text])
    assert sorted(one.split(":", 2)[2].strip() for one in found if one.startswith("cosched/core/one.py:1:")) == expected
    assert sorted(one.split(":", 2)[2].strip() for one in found if one.startswith("cosched/core/one.py:4:")) == expected


def test_decisions_are_numbered_and_short() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [int(page.name[:4]) for page in pages] == list(range(1, len(pages) + 1))
    for page in pages:
        text = page.read_text()
        assert text.startswith(f"# {page.name[:4]} ")
        assert re.findall(r"(?m)^\*\*(\w+)\.\*\*", text) == ["Context", "Decision", "Consequences"]
        assert text.count("\n") <= 15


def test_changelog_has_the_version() -> None:
    from cosched import __version__

    assert f"\n## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()
