"""Documents are true where a program can tell: links lead somewhere, commands and targets exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

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
