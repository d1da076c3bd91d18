"""The models that are served: how their text and conversations are written, and the layers that are held here."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from cosched.errors import BadInput
from cosched.runtime.chat import ChatTemplate, PlainChat, chat_of
from cosched.runtime.engine import most_tokens
from cosched.runtime.model import ModelSource, dtype_of, open_model
from cosched.runtime.parts import Part
from cosched.runtime.text import Text, text_of
from cosched.serve.bodies import Wanted
from cosched.serve.faults import ServeFault, bad
from cosched.serve.settings import ServedRef, ServeLimits, ServeSettings


@dataclass(frozen=True, slots=True)
class ServedText:
    """One model as the front end knows it. `part`: its first layers, for leases that split."""

    ref: ServedRef
    source: ModelSource
    text: Text
    chat: ChatTemplate | PlainChat
    part: Part
    since_unix_s: int = field(default_factory=lambda: int(time.time()))

    @property
    def positions(self) -> int:
        """Tokens that prompt and answer may have together."""
        return most_tokens(self.part)

    @property
    def view(self) -> dict[str, Any]:
        """Return it as /v1/models does."""
        return {
            "id": self.ref.id, "object": "model", "created": self.since_unix_s, "owned_by": "cosched",
            "max_model_len": self.positions,
        }  # fmt: skip

    def stops(self, wanted: Wanted) -> tuple[str, ...]:
        """Return what ends an answer, besides the model's own end tokens."""
        return (*wanted.stops, *(self.chat.stops if wanted.is_chat else ()))

    def encoded(self, wanted: Wanted, limits: ServeLimits) -> list[int]:
        """Return the prompt's tokens. Raises ServeFault 400. It takes a while where the prompt is long."""
        tokens = self._tokens(wanted.prompt, is_chat=wanted.is_chat)
        vocab = self.source.sizes.vocab
        most = min(limits.prompt_tokens, self.positions - 1)
        if not 0 < len(tokens) <= most:
            text = f"the prompt has {len(tokens)} tokens, and may have 1 to {most}"
            raise bad(text, "messages" if wanted.is_chat else "prompt", "context_length_exceeded")
        if not all(0 <= token < vocab for token in tokens):
            raise bad(f"token ids must be 0 to {vocab - 1}", "prompt")
        return tokens

    def _tokens(self, prompt: str | Sequence[int] | Sequence[Mapping[str, str]], *, is_chat: bool) -> list[int]:
        if is_chat:
            turns = cast("Sequence[Mapping[str, str]]", prompt)
            try:
                return self.text.encode(self.chat.text(turns), special=self.chat.special)
            except BadInput as error:
                raise bad(str(error), "messages") from None
        return self.text.encode(prompt) if isinstance(prompt, str) else list(cast("Sequence[int]", prompt))

    def length(self, wanted: Wanted, n_prompt: int) -> int:
        """Return how many tokens the answer may have. Raises ServeFault 400: more than the model has positions."""
        left = self.positions - n_prompt
        if wanted.max_tokens > left and wanted.says_length:
            text = (
                f"{n_prompt} tokens of prompt and {wanted.max_tokens} to come: the model has {self.positions} positions"
            )
            raise bad(text, "max_tokens", "context_length_exceeded")
        return min(left, wanted.max_tokens)


class ServedModels:
    """All models by id."""

    def __init__(self, settings: ServeSettings) -> None:
        """Open them, and load the layers held here. Raises BadInput."""
        self._models = {ref.id: _opened(ref) for ref in settings.models}

    def __iter__(self) -> Any:  # noqa: ANN401
        return iter(self._models.values())

    def the(self, name: str) -> ServedText:
        """Return a model. Raises ServeFault 404."""
        found = self._models.get(name)
        if found is None:
            text = f"model '{name[:128]}' is not served here; there are: {', '.join(self._models)}"
            raise ServeFault(404, "model_not_found", text, param="model")
        return found


def _opened(ref: ServedRef) -> ServedText:
    path = Path(ref.path)
    source = open_model(path, seed=ref.seed, name=ref.id)
    if ref.layers > source.n_layers:
        raise BadInput(f"model '{ref.id}': layers = {ref.layers}: it has {source.n_layers}")
    part = Part(source, dtype=dtype_of(ref.dtype))
    part.load(0, ref.layers)
    return ServedText(ref, source, text_of(path), chat_of(path), part)
