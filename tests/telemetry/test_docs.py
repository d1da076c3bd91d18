"""The tables of docs/telemetry.md and docs/site.md name every field, in the order of the types, and nothing else."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from cosched import site
from telemetry import messages
from telemetry.importers.registry import RAN, REQUESTS
from telemetry.messages import TOPICS, LlmSession, VideoClip

DOCS = Path(__file__).resolve().parents[2] / "docs"
STAMPS = {"at_ns", "source", "seq"}


def rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def fields_of(kind: type) -> list[str]:
    return [name for name in kind.__struct_fields__ if name not in STAMPS]  # type: ignore[attr-defined]


def test_every_field_of_every_message_is_described() -> None:
    text = (DOCS / "telemetry.md").read_text(encoding="utf-8")
    described: dict[str, list[str]] = {}
    for topic, field, unit, meaning in (row for row in rows(text) if len(row) == 4):
        described.setdefault(topic, []).append(field)
        assert unit
        assert meaning
    kinds = {**TOPICS, "work: llm": LlmSession, "work: video": VideoClip}
    assert {topic: described.get(topic) for topic in kinds} == {topic: fields_of(kind) for topic, kind in kinds.items()}
    assert set(described) <= {*kinds, "topic", "---"}


def test_names_with_a_unit_state_that_unit() -> None:
    units = {
        "_s": "s",
        "_ns": "ns",
        "_ms": "ms",
        "_hz": "Hz",
        "_bps": "bit/s",
        "_db": "dB",
        "_bits": "bit",
        "_flop": "FLOP",
    }
    for row in rows((DOCS / "telemetry.md").read_text(encoding="utf-8")):
        for suffix, unit in units.items():
            if len(row) == 4 and row[1].endswith(suffix) and not row[1].endswith(("_bps_hz", "private_s")):
                assert row[2].startswith(unit), row


@pytest.mark.parametrize("name", sorted({**RAN, **REQUESTS}))
def test_every_importer_is_described(name: str) -> None:
    assert name in (DOCS / "telemetry.md").read_text(encoding="utf-8")


def test_every_key_of_the_site_file_is_described() -> None:
    text = (DOCS / "site.md").read_text(encoding="utf-8")
    sections = {part.splitlines()[0]: part for part in text.split("\n## ")[1:]}
    kinds: dict[str, list[type]] = {
        "Top": [site.Site],
        "`[[cells]]`": [site.Cell],
        "`[[nodes]]`": [site.Node],
        "`[transport]`": [site.Transport],
        "`[[models]]`": [site.ModelRef],
        "`[ues]` and `[[ues.devices]]`": [site.Ues, site.DeviceShare],
        "`[mix]`": [site.Mix],
    }
    assert set(sections) == set(kinds)
    for title, described in kinds.items():
        keys = [row[0].strip("`") for row in rows(sections[title]) if row[0].startswith("`")]
        fields = [name for kind in described for name in kind.__struct_fields__]  # type: ignore[attr-defined]
        assert sorted(keys) == sorted(fields), title


def test_defaults_that_the_site_tables_state() -> None:
    mix = site.Mix()
    for row in rows((DOCS / "site.md").read_text(encoding="utf-8").split("## `[mix]`")[1]):
        key, stated = row[0].strip("`"), row[-1].split(";")[0]
        if key in site.Mix.__struct_fields__ and stated[:1].isdigit():
            value = getattr(mix, key)
            numbers = [float(x) for x in stated.split(",")]
            assert numbers == list(value if isinstance(value, tuple) else [value]), key


def test_the_schema_version_is_said_once() -> None:
    assert messages.SCHEMA_VERSION == 1
    assert msgspec.json.schema(messages.UeReport)["$defs"]["UeReport"]["type"] == "object"
