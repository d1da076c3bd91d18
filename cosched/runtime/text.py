"""Text to tokens and back: by a checkpoint's tokenizer.json, else bytes (models without training)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer

from cosched.errors import BadInput

BYTES: int = 256


class Text(Protocol):
    """Encodes and decodes."""

    def encode(self, text: str) -> list[int]:
        """Return token ids."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, as far as it can be shown."""
        ...


class Utf8:
    """One token a byte; ids of 256 and more are shown as the replacement character."""

    def encode(self, text: str) -> list[int]:
        """UTF-8."""
        return list(text.encode())

    def decode(self, tokens: Sequence[int]) -> str:
        """UTF-8, with replacement characters for what is none."""
        return b"".join(bytes([t]) if t < BYTES else b"\xff" for t in tokens).decode("utf-8", "replace")


class Vocabulary:
    """A checkpoint's own tokenizer. Raises BadInput: the file is none."""

    def __init__(self, path: Path) -> None:
        try:
            self._tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BadInput(f"{path}: no tokenizer: {error}") from None

    def encode(self, text: str) -> list[int]:
        """Token ids, special tokens as the tokenizer adds them."""
        found: list[int] = self._tokenizer.encode(text).ids
        return found

    def decode(self, tokens: Sequence[int]) -> str:
        """Text without special tokens."""
        found: str = self._tokenizer.decode(list(tokens))
        return found


def text_of(model: Path | str) -> Text:
    """Return what encodes text for a model's folder or configuration."""
    path = Path(model)
    path = (path if path.is_dir() else path.parent) / "tokenizer.json"
    return Vocabulary(path) if path.is_file() else Utf8()
