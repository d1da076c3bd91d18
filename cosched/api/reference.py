"""The reference of bus and control API, made of the types themselves: `python -m cosched.api.reference` writes it.

`docs/reference/asyncapi.json` is AsyncAPI 3.0 (https://www.asyncapi.com) with JSON Schema 2020-12 of every message;
`docs/reference/control.md` is the same for people. What a field means is the comment beside it in the source. A test
holds both files to the types.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, get_type_hints

import msgspec

import cosched
from cosched.api import messages as api
from telemetry.wire import BUS

FOLDER: Final = Path(__file__).resolve().parents[2] / "docs" / "reference"
_REF: Final = "#/components/schemas/{name}"
_FIELD: Final = re.compile(r"    (\w+): (.+?)(?: = (.+?))?(?:  # (.*))?$")
_HEAD: Final = "Written by `python -m cosched.api.reference` from the types; do not edit."


def asyncapi() -> dict[str, Any]:
    """Return the AsyncAPI document, from the daemon's point of view: it receives requests and telemetry."""
    kinds = [api.Request, api.Response, api.Fault, api.Lease, api.Status, *BUS.values()]
    kinds += [kind for verb in api.VERBS.values() for kind in (verb.args, verb.result)]
    refs, components = msgspec.json.schema_components(_unique(kinds), ref_template=_REF)
    ref_of = dict(zip(_unique(kinds), refs, strict=True))
    control, operations = _control(ref_of)
    channels: dict[str, Any] = {"control": control, "decisions": _decisions(ref_of)}
    for topic, kind in BUS.items():
        name = topic.decode()
        channels[f"telemetry.{name}"] = _channel(name, "telemetry socket (SUB): topic, payload", {name: ref_of[kind]})
        operations[f"telemetry.{name}"] = {"action": "receive", "channel": _channel_ref(f"telemetry.{name}")}
    operations["decisions"] = {"action": "send", "channel": _channel_ref("decisions")}
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "cosched",
            "version": cosched.__version__,
            "description": f"ZeroMQ sockets of the daemon (docs/control-api.md, docs/telemetry.md). {_HEAD}",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"schemas": components},
    }


def _unique(kinds: Iterable[type]) -> list[type]:
    return list(dict.fromkeys(kinds))


def _channel_ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/channels/{name}"}


def _channel(address: str, description: str, messages: dict[str, Any]) -> dict[str, Any]:
    return {
        "address": address,
        "description": description,
        "messages": {name: {"name": name, "payload": payload} for name, payload in messages.items()},
    }


def _control(ref_of: dict[type, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the control channel, and one request-reply operation for each verb."""
    messages: dict[str, Any] = {"refusal": ref_of[api.Response]}
    operations: dict[str, Any] = {}
    at = "#/channels/control/messages/"
    for name, verb in api.VERBS.items():
        messages[f"{name}.request"] = {
            "type": "object",
            "required": ["verb"],
            "properties": {
                "v": {"const": api.VERSION},
                "id": {"type": ["string", "integer"]},
                "verb": {"const": name},
                "args": ref_of[verb.args],
            },
        }
        messages[f"{name}.response"] = {
            "type": "object",
            "required": ["v", "id", "ok", "result"],
            "properties": {
                "v": {"const": api.VERSION},
                "id": {"type": ["string", "integer"]},
                "ok": {"const": True},
                "result": ref_of[verb.result],
            },
        }
        operations[name] = {
            "action": "receive",
            "channel": _channel_ref("control"),
            "summary": f"Needs the role {verb.role}.",
            "messages": [{"$ref": f"{at}{name}.request"}],
            "reply": {
                "channel": _channel_ref("control"),
                "messages": [{"$ref": f"{at}{name}.response"}, {"$ref": f"{at}refusal"}],
            },
        }
    return _channel("control.sock", "control socket (ROUTER): one frame, JSON or MessagePack", messages), operations


def _decisions(ref_of: dict[type, Any]) -> dict[str, Any]:
    messages = {"lease": ref_of[api.Lease], "status": ref_of[api.Status]}
    about = f"decisions socket (XPUB): topic `{api.DECISION_TOPIC}<task>` or `{api.STATUS_TOPIC}`, JSON payload"
    return _channel("decisions.sock", about, messages)


def control_page() -> str:
    """Return the reference of the control API for people, as Markdown."""
    lines = [
        "# Control API: reference",
        "",
        _HEAD,
        "",
        "| verb | needs | arguments | result |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {name} | {verb.role} | {_link(verb.args)} | {_link(verb.result)} |" for name, verb in api.VERBS.items()
    ]
    lines += ["", "## Errors", "", "| code | meaning |", "| --- | --- |"]
    lines += [f"| {code} | {meaning} |" for code, meaning in api.FAULTS.items()]
    for kind in _documented():
        lines += ["", f"## {kind.__name__}", "", inspect.getdoc(kind) or "", *_field_table(kind)]
    return "\n".join(lines) + "\n"


def _link(kind: type) -> str:
    return "none" if kind is api.NoArgs else f"[{kind.__name__}](#{kind.__name__.lower()})"


def _documented() -> list[type]:
    """Structs of the API that a client meets, in the order of their definition."""
    kinds = [k for k in vars(api).values() if inspect.isclass(k) and issubclass(k, msgspec.Struct)]
    return [kind for kind in kinds if kind.__module__ == api.__name__ and kind not in {api.Args, api.NoArgs}]


def _field_table(kind: type) -> list[str]:
    rows = []
    for owner in reversed(kind.__mro__):
        if issubclass(owner, msgspec.Struct) and owner is not msgspec.Struct:
            rows += _rows(owner, kind)
    return ["", "| field | type | default | meaning |", "| --- | --- | --- | --- |", *rows] if rows else []


def _rows(owner: type, kind: type) -> list[str]:
    """Rows of the fields that `owner` declares: names, types and comments as they stand in its source."""
    hints = get_type_hints(kind)
    found = []
    for line in inspect.getsource(owner).splitlines():
        match = _FIELD.match(line)
        if match and match[1] in hints:
            name, annotation, default, meaning = match.groups()
            cells = (name, f"`{annotation}`".replace("|", "\\|"), f"`{default}`" if default else "", meaning or "")
            found.append(f"| {' | '.join(cells)} |")
    return found


def pages() -> dict[str, str]:
    """File name -> its text."""
    document = msgspec.json.format(msgspec.json.encode(asyncapi()), indent=1).decode()
    return {"asyncapi.json": document + "\n", "control.md": control_page()}


def main() -> None:
    """Write the files into docs/reference/, or into the folder that is named."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
