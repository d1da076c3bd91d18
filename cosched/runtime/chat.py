"""A conversation to the text that a model was trained on: by the checkpoint's own chat template, else plain lines.

A template is Jinja2, kept in tokenizer_config.json or chat_template.jinja as transformers writes them, and is run in
Jinja2's sandbox, which lets it reach no attribute that leads out of the values it is given. A checkpoint without one
gets `User: ...` and `Assistant: ...`, and its answer ends where it would begin the user's next line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cosched.errors import BadInput

NAMES: Final = {"system": "System", "developer": "System", "user": "User", "assistant": "Assistant"}
PLAIN_STOPS: Final = ("\nUser:", "\nSystem:")  # where a plain answer ends
SPECIAL: Final = ("bos_token", "eos_token", "unk_token", "pad_token")

Turn = Mapping[str, str]  # role, content


class ChatTemplate:
    """How a model's conversations are written. `special` is False: a template writes all special tokens itself."""

    def __init__(self, source: str, tokens: Mapping[str, str], where: str) -> None:
        """Compile. Raises BadInput: it is no template; `where`: the file, for the message."""
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
        self._tokens = tokens
        self.stops: tuple[str, ...] = ()
        self.special = False
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise BadInput(f"{where}: no chat template: {error}") from None

    def text(self, turns: Sequence[Turn]) -> str:
        """Return what the model is to go on from. Raises BadInput: the template does not take such a conversation."""
        try:
            return self._template.render(messages=list(turns), add_generation_prompt=True, **self._tokens)
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise BadInput(f"the model's chat template does not take these messages: {error}") from None


class PlainChat:
    """Lines that begin with who speaks."""

    stops = PLAIN_STOPS
    special = True

    def text(self, turns: Sequence[Turn]) -> str:
        """Return what the model is to go on from."""
        lines = [f"{NAMES.get(turn['role'], turn['role'])}: {turn['content']}\n" for turn in turns]
        return "".join([*lines, "Assistant:"])


def chat_of(model: Path | str) -> ChatTemplate | PlainChat:
    """Return how conversations with the model of a folder or configuration are written. Raises BadInput."""
    path = Path(model)
    folder = path if path.is_dir() else path.parent
    config, alone = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    told = _read(config) if config.is_file() else {}
    tokens = {name: _token(told[name]) for name in SPECIAL if told.get(name)}
    if alone.is_file():
        return ChatTemplate(alone.read_text(encoding="utf-8"), tokens, str(alone))
    found = told.get("chat_template")
    if isinstance(found, list):  # several by name
        found = next((one["template"] for one in found if one.get("name") == "default"), None)
    return ChatTemplate(found, tokens, str(config)) if isinstance(found, str) else PlainChat()


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: no JSON: {error}") from None
    if not isinstance(found, dict):
        raise BadInput(f"{path}: not an object")
    return found


def _token(found: object) -> str:
    """Return a special token, which is text or an object with it."""
    return str(found.get("content", "")) if isinstance(found, dict) else str(found)


def _to_json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)  # Jinja2's own escapes HTML


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now(UTC).strftime(form)
