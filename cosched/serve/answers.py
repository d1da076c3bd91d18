"""OpenAI's answers, whole or as the events of a stream."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from cosched.serve.bodies import Wanted
from cosched.serve.faults import ServeFault

DONE: Final = b"data: [DONE]\n\n"


def event(value: object) -> bytes:
    """Return a server-sent event (HTML standard, 9.2): JSON has no line ends in it."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def fault_event(fault: ServeFault) -> bytes:
    """Return what a stream ends with that cannot go on."""
    return event(fault.body)


@dataclass(slots=True)
class AnswerForm:
    """How one request is answered. task: names the answer; n_prompt: its prompt's tokens."""

    wanted: Wanted
    task: str
    n_prompt: int
    created: int = field(default_factory=lambda: int(time.time()))
    _has_begun: bool = False

    @property
    def _head(self) -> dict[str, Any]:
        kind = "chat.completion" if self.wanted.is_chat else "text_completion"
        if self.wanted.stream and self.wanted.is_chat:
            kind += ".chunk"
        name = f"{'chatcmpl' if self.wanted.is_chat else 'cmpl'}-{self.task}"
        return {"id": name, "object": kind, "created": self.created, "model": self.wanted.model}

    def usage(self, tokens: int) -> dict[str, int]:
        """Return how much was read and generated."""
        return {
            "prompt_tokens": self.n_prompt, "completion_tokens": tokens, "total_tokens": self.n_prompt + tokens,
        }  # fmt: skip

    def whole(self, text: str, reason: str, tokens: int) -> dict[str, Any]:
        """Return the answer in one piece."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": reason, "logprobs": None}
        if self.wanted.is_chat:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice["text"] = text
        return {**self._head, "choices": [choice], "usage": self.usage(tokens)}

    def piece(self, text: str, tokens: int, reason: str | None = None) -> bytes:
        """Return a stream's next event; the first names the role."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": reason, "logprobs": None}
        if self.wanted.is_chat:
            role = {} if self._has_begun else {"role": "assistant"}
            choice["delta"] = role | ({"content": text} if text or role else {})
        else:
            choice["text"] = text
        self._has_begun = True
        more = {"usage": self.usage(tokens)} if self.wanted.usage.continuous_usage_stats else {}
        return event({**self._head, "choices": [choice], **more})

    def last(self, tokens: int) -> bytes:
        """Return the end of a stream, after its last piece."""
        told = (
            event({**self._head, "choices": [], "usage": self.usage(tokens)})
            if self.wanted.usage.include_usage
            else b""
        )
        return told + DONE
