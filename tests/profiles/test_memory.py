"""Batches that do not fit a server's KV memory are served in goes."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosched.profiles.device import Device, KvMemory, load_device, load_host
from cosched.profiles.memory import Lengths, goes, kv_room_bytes, workspace_bytes
from cosched.profiles.model import load_model

MODEL = load_model("llama-2-7b")
TOKEN = 32 * 2 * 4096 * 2  # bytes of KV cache: 32 layers, keys and values of 4096 elements in 16 bit
PAGED = KvMemory(fraction=0.9, of_rest=False, reserved=False)
RESERVED = KvMemory(fraction=0.9, of_rest=True, reserved=True)


def card(room_tokens: float, memory: KvMemory, prefill_tokens: float = 0.0) -> Device:
    """Return a card on which `memory` leaves room for that many tokens."""
    weights, room = MODEL.weight_bytes(16), room_tokens * TOKEN / memory.fraction
    total = room + (weights + workspace_bytes(MODEL, prefill_tokens) if memory.of_rest else weights / memory.fraction)
    return msgspec.structs.replace(load_device("a100"), memory_bytes=total)


def test_room_by_hand() -> None:
    device = load_device("a100")
    weights, widest = 2 * 6_738_415_616, 2 * 11008 + 2 * 4096
    assert kv_room_bytes(MODEL, device, PAGED, 1e4, 16, tp=2) == pytest.approx(0.9 * 160e9 - weights)
    rest = 160e9 - weights - 2 * 1e4 * widest
    assert kv_room_bytes(MODEL, device, RESERVED, 1e4, 16, tp=2) == pytest.approx(0.9 * rest)
    phi = load_model("phi-2")
    assert workspace_bytes(phi, 3.0) == 2 * 3 * (phi.ffn + phi.hidden), "its MLP has no gate"


@pytest.mark.parametrize("memory", [PAGED, RESERVED])
def test_what_fits_runs_at_once(memory: KvMemory) -> None:
    assert goes(MODEL, card(801.0, memory, 400), memory, Lengths(100, 100), 4, 16) == ((1.0, 4.0),)
    found = goes(MODEL, card(799.0, memory, 400), memory, Lengths(100, 100), 4, 16)
    assert (found == ((1.0, 4.0),)) is not memory.reserved, "pages of four fit at a mean"


def test_nothing_waits_where_nothing_is_known() -> None:
    assert goes(MODEL, card(1.0, PAGED), None, Lengths(1000, 1000), 64, 16) == ((1.0, 64.0),)


def test_reserved_sequences_run_to_their_end() -> None:
    """Room for three and a half of 200 tokens: three at a time, then what is left."""
    for batch, expected in ((3, ((1.0, 3.0),)), (7, ((2.0, 3.0), (1.0, 1.0))), (9, ((3.0, 3.0),))):
        device = card(700.0, RESERVED, 100.0 * batch)
        assert goes(MODEL, device, RESERVED, Lengths(100, 100), batch, 16) == expected


def test_pages_hold_as_many_as_fill_the_room_at_a_mean() -> None:
    """900 tokens, of 150 at a mean: six at a time; all four fit at a mean, not at their end."""
    ((times, sequences),) = goes(MODEL, card(900.0, PAGED), PAGED, Lengths(100, 100), 9, 16)
    assert (times, sequences) == (pytest.approx(1.5), pytest.approx(6.0))
    assert goes(MODEL, card(700.0, PAGED), PAGED, Lengths(100, 100), 4, 16) == ((1.0, 4.0),)


@given(
    memory=st.sampled_from([PAGED, RESERVED]),
    room=st.floats(1.0, 1e5),
    lengths=st.builds(Lengths, st.integers(1, 4096), st.integers(1, 4096)),
    batch=st.integers(1, 128),
)
def test_every_sequence_is_served(memory: KvMemory, room: float, lengths: Lengths, batch: int) -> None:
    """Once, at least one at a time and never more than there are, also where there is no room for one."""
    found = goes(MODEL, card(room, memory, 50.0), memory, lengths, batch, 16)
    assert sum(go.times * go.sequences for go in found) == pytest.approx(batch)
    assert all(1 <= go.sequences <= batch and go.times > 0 for go in found)


def test_shipped_hosts() -> None:
    """What the two engines' documentation says; the others are not known."""
    assert load_host("vllm").memory == PAGED
    assert load_host("tensorrt-llm").memory == RESERVED
    assert load_host("splitwise").memory is None
    assert load_host("ideal").memory is None
