"""The glossary's words are words that we use, each once, and what it points to is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GLOSSARY = ROOT / "docs" / "glossary.md"
HEAD = ["our word", "the field's word", "symbol, unit", "source", "here"]


def rows() -> list[list[str]]:
    lines = re.findall(r"(?m)^\| (.*) \|$", GLOSSARY.read_text(encoding="utf-8"))
    return [line.split(" | ") for line in lines if not line.startswith("---")]


def words() -> list[str]:
    return [row[0] for row in rows() if row != HEAD]


def used() -> str:
    """All other pages, and the code."""
    pages = [path for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")] if path != GLOSSARY]
    code = [path for name in ("cosched", "solvers", "telemetry") for path in (ROOT / name).rglob("*.py")]
    return "\n".join(path.read_text(encoding="utf-8") for path in [*pages, *code])


def test_rows_are_whole() -> None:
    assert [row for row in rows() if len(row) != len(HEAD) or not all(cell.strip() for cell in row)] == []
    assert len(words()) > 50


def test_no_word_stands_twice() -> None:
    assert [word for word in words() if words().count(word) > 1] == []


def test_every_word_is_used_elsewhere() -> None:
    text = re.sub(r"\s+", " ", used()).lower()
    assert [word for word in words() if not re.search(rf"\b{re.escape(word.lower())}", text)] == []


def test_what_it_points_to_exists() -> None:
    text = GLOSSARY.read_text(encoding="utf-8")
    files = re.findall(r"`((?:cosched|solvers|telemetry|config|docs)/[\w./-]+)`", text)
    files += [f"docs/{page}" for page in re.findall(r"\]\(([\w./-]+)\)", text)]
    assert len(files) > 60
    assert [file for file in files if not (ROOT / file).exists()] == []
    assert [row[0] for row in rows() if row != HEAD and not re.search(r"[`(]", row[4])] == []
