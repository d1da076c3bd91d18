"""The generated reference is current, whole, and JSON Schema that accepts what the daemon really sends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from control_peer import LEASE, STATUS

from cosched.api import messages as api
from cosched.api import reference
from telemetry.messages import NodeReport, UeReport
from telemetry.wire import BUS

DOCUMENT = reference.asyncapi()


@pytest.mark.parametrize("name", reference.pages())
def test_the_written_reference_is_current(name: str) -> None:
    written = (reference.FOLDER / name).read_text(encoding="utf-8")
    assert written == reference.pages()[name], "run: python -m cosched.api.reference"


def test_it_is_written_where_it_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["reference", str(tmp_path / "out")])
    reference.main()
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(reference.pages())


def test_every_verb_topic_and_error_is_in_it() -> None:
    page = reference.control_page()
    for name in (*api.VERBS, *api.FAULTS):
        assert f"| {name} |" in page
    assert set(DOCUMENT["operations"]) == {*api.VERBS, "decisions", *(f"telemetry.{topic.decode()}" for topic in BUS)}
    for kind in (api.Lease, api.Status):
        for field in kind.__struct_fields__:
            assert f"| {field} |" in page


def refs(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for below in value.values():
            yield from refs(below)
    elif isinstance(value, list):
        for below in value:
            yield from refs(below)


def test_every_reference_leads_somewhere() -> None:
    for ref in refs(DOCUMENT):
        at: Any = DOCUMENT
        for step in ref.removeprefix("#/").split("/"):
            at = at[step]
        assert isinstance(at, dict)


def validate(schema: dict[str, Any], instance: object) -> None:
    whole = {"$schema": "https://json-schema.org/draft/2020-12/schema", "components": DOCUMENT["components"], **schema}
    jsonschema.Draft202012Validator(whole).validate(json.loads(msgspec.json.encode(instance)))


def payload(channel: str, message: str) -> dict[str, Any]:
    found: dict[str, Any] = DOCUMENT["channels"][channel]["messages"][message]["payload"]
    return found


def test_real_messages_fit_the_schemas() -> None:
    validate(payload("decisions", "lease"), LEASE)
    validate(payload("decisions", "status"), STATUS)
    validate(payload("control", "status.response"), {"v": 1, "id": 3, "ok": True, "result": STATUS})
    validate(payload("control", "show.request"), {"v": 1, "id": "a", "verb": "show", "args": {"task": "t1"}})
    validate(payload("telemetry.ran.ue", "ran.ue"), UeReport(at_ns=0, source="s", seq=0, ue="u", cell="c"))
    validate(payload("telemetry.compute.node", "compute.node"), NodeReport(at_ns=0, source="s", seq=0, node="n"))
    for args in ({}, {"task": 3}):
        with pytest.raises(jsonschema.ValidationError):
            validate(payload("control", "show.request"), {"verb": "show", "args": args})
