"""Text to tokens and back: by a checkpoint's tokenizer.json, else bytes (models without training).

Text of a running generation is decoded piece by piece (`TextStream`): what is handed out is whole characters, and what
was handed out is never taken back.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

from tokenizers import Tokenizer

from cosched.errors import BadInput

BYTES: Final = 256
TORN: Final = "\ufffd"  # what decoders write for bytes that are no character, or not yet one
HELD_TOKENS: Final = 16  # of a text that ends with TORN: beyond, it is what it is


class TextStream(Protocol):
    """Decodes one generation's tokens as they come."""

    def push(self, token: int) -> str:
        """Take a token; return the characters that are whole now."""
        ...

    def end(self) -> str:
        """Return what is left; bytes that never became a character are shown as replacement characters."""
        ...


class Text(Protocol):
    """Encodes and decodes."""

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Return token ids. special: with what the tokenizer puts around every text (a chat template has its own)."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, as far as it can be shown."""
        ...

    def stream(self) -> TextStream:
        """Begin to decode a generation."""
        ...


class Utf8:
    """One token a byte; ids of 256 and more are shown as the replacement character."""

    def encode(self, text: str, *, special: bool = True) -> list[int]:  # noqa: ARG002  # there are none
        """UTF-8."""
        return list(text.encode())

    def decode(self, tokens: Sequence[int]) -> str:
        """UTF-8, with replacement characters for what is none."""
        return b"".join(map(_byte, tokens)).decode("utf-8", "replace")

    def stream(self) -> TextStream:
        """Begin to decode a generation."""
        return ByteStream()


class ByteStream:
    """UTF-8, byte by byte."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """Take a byte."""
        return self._decoder.decode(_byte(token))

    def end(self) -> str:
        """Return what is left."""
        return self._decoder.decode(b"", final=True)


def _byte(token: int) -> bytes:
    return bytes([token]) if token < BYTES else b"\xff"


class Vocabulary:
    """A checkpoint's own tokenizer. Raises BadInput: the file is none."""

    def __init__(self, path: Path) -> None:
        try:
            self._tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except Exception as error:  # noqa: BLE001  # tokenizers raises Exception itself
            raise BadInput(f"{path}: no tokenizer: {error}") from None

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids; special: with those that the tokenizer puts around every text."""
        found: list[int] = self._tokenizer.encode(text, add_special_tokens=special).ids
        return found

    def decode(self, tokens: Sequence[int]) -> str:
        """Text without special tokens."""
        found: str = self._tokenizer.decode(list(tokens))
        return found

    def stream(self) -> TextStream:
        """Begin to decode a generation."""
        return WordStream(self)


class WordStream:
    """Tokens to text by a window over the latest, since some decoders look at the token before (a word's blank).

    What a window's text ends with TORN may be a character that is not whole yet: it is kept until it is, or until
    HELD_TOKENS have not made it so. A run of it is kept as a whole: tokenizers that fall back to bytes write one each.
    """

    def __init__(self, text: Text) -> None:
        self._text = text
        self._window: list[int] = []
        self._known = 0  # tokens of the window whose text is out
        self._out = ""  # of the others' text, what is out

    def push(self, token: int) -> str:
        """Take a token."""
        self._window.append(token)
        return self._more(is_last=len(self._window) - self._known >= HELD_TOKENS)

    def end(self) -> str:
        """Return what is left."""
        return self._more(is_last=True)

    def _more(self, *, is_last: bool) -> str:
        before = self._text.decode(self._window[: self._known])
        fresh = self._text.decode(self._window)[len(before) :]
        whole = fresh if is_last else fresh.rstrip(TORN)
        more = whole[len(self._out) :]
        if len(whole) == len(fresh) and fresh:  # nothing torn: what comes is looked at beside these alone
            self._window, self._out = self._window[self._known :], ""
            self._known = len(self._window)
        else:
            self._out = max(self._out, whole, key=len)
        return more


def text_of(model: Path | str) -> Text:
    """Return what encodes text for a model's folder or configuration."""
    path = Path(model)
    path = (path if path.is_dir() else path.parent) / "tokenizer.json"
    return Vocabulary(path) if path.is_file() else Utf8()
