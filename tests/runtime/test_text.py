"""Text of a running generation: whole characters, in pieces that add up to the text of all tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the extra [llm] is not installed")

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from cosched.errors import BadInput
from cosched.runtime.text import HELD_TOKENS, TORN, Text, Utf8, Vocabulary, text_of

SAMPLE = "The quick 🦊 jumps over the lazy 🐕, naïvely: 東京 👩‍👩‍👧 Привет. " * 4


def byte_level(folder: Path) -> Vocabulary:
    """As GPT-2, Llama 3, Qwen and SmolLM have it: merges of bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=alphabet, special_tokens=["<end>"], show_progress=False
    )
    tokenizer.train_from_iterator([SAMPLE], trainer)
    path = folder / "byte-level.json"
    tokenizer.save(str(path))
    return Vocabulary(path)


def byte_fallback(folder: Path) -> Vocabulary:
    """As Llama 2 and Mistral have it: pieces of text, and a token for each byte that is in none."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"Thequickjmpsovlazyd", "▁the"]
    vocab = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True, fuse_unk=True))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    path = folder / "byte-fallback.json"
    tokenizer.save(str(path))
    return Vocabulary(path)


@pytest.fixture(scope="module", params=["utf8", "byte-level", "byte-fallback"])
def text(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Text:
    folder = tmp_path_factory.mktemp("text")
    return {"utf8": lambda _: Utf8(), "byte-level": byte_level, "byte-fallback": byte_fallback}[request.param](folder)


def pieces(text: Text, tokens: list[int]) -> list[str]:
    stream = text.stream()
    return [*map(stream.push, tokens), stream.end()]


@given(written=st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.sampled_from(SAMPLE.split(".")))
@settings(max_examples=80, deadline=None)
def test_pieces_add_up_and_no_character_is_torn(text: Text, written: str):
    written = written.replace(TORN, "")
    tokens = text.encode(written)
    got = pieces(text, tokens)
    assert "".join(got) == text.decode(tokens)
    assert TORN not in "".join(got)


def test_a_character_comes_when_it_is_whole(text: Text):
    tokens = text.encode("🦊")
    got = pieces(text, tokens)
    assert [piece for piece in got if piece.strip()] == ["🦊"]


def test_what_is_cut_off_is_shown_at_the_end(text: Text):
    tokens = text.encode("quick 🦊")[:-1]
    got = pieces(text, tokens)
    assert "".join(got).rstrip(TORN).rstrip() == "quick"
    assert got[-1].strip(TORN) == ""


@given(tokens=st.lists(st.integers(0, 255), min_size=1, max_size=60))
@settings(max_examples=80, deadline=None)
def test_whatever_a_model_says_something_is_told(text: Text, tokens: list[int]):
    """A model without training says bytes that are no text: they are shown as replacement characters."""
    assert bool("".join(pieces(text, tokens))) == bool(text.decode(tokens))


def test_garbage_is_not_held_for_ever(text: Text):
    stream = text.stream()
    inside = text.encode("🦊")[-2]
    told = "".join(stream.push(inside) for _ in range(4 * HELD_TOKENS))
    assert told


def test_special_tokens_are_not_told(tmp_path: Path):
    text = byte_level(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "byte-level.json"))
    tokenizer.add_special_tokens([AddedToken("<end>", special=True)])
    assert text.decode([*text.encode("the"), tokenizer.token_to_id("<end>")]) == "the"


def test_a_folder_says_what_encodes(tmp_path: Path):
    assert isinstance(text_of(tmp_path), Utf8)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BadInput, match="no tokenizer"):
        text_of(tmp_path)
