"""Extreme values that are valid: whatever peers send, answers can be encoded, and no table of names grows for ever."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import inspect

from cosched.api import messages as api
from cosched.daemon.sound import MOST, sound
from telemetry import quality, wire
from telemetry.messages import UeReport

ENCODINGS = (msgspec.msgpack, msgspec.json)
BEYOND = [2**63 - 1, 2**63, 2**64, -(2**64), 10**40, math.inf, -math.inf, math.nan, 0, -1, 1.5, 5e-324, 1.8e308]
TYPES = [verb.result for verb in api.VERBS.values()] + [api.Fault, api.Lease]


def report(seq: int, source: str = "s") -> bytes:
    return msgspec.msgpack.encode(UeReport(at_ns=0, source=source, seq=seq, ue="u", cell="c"))


def test_a_sequence_number_that_leaps_is_a_restart_and_not_a_loss() -> None:
    """Four pairs of 0 and 2^63 - 1 made 2^65 messages lost, and the next status could not be encoded."""
    intake = wire.Intake()
    for _ in range(4):
        for seq in (0, 2**63 - 1):
            assert intake.decode(b"ran.ue", report(seq)) is not None
    assert dict(intake.gaps.lost) == {}
    assert intake.gaps.restarts["s"] == 7
    for seq in (10, 10 + quality.LOSS_WINDOW, 0, 5):
        intake.decode(b"ran.ue", report(seq))
    assert intake.gaps.lost["s"] == quality.LOSS_WINDOW - 1 + 4


def test_counts_saturate() -> None:
    tally = quality.by_source()
    for _ in range(3):
        tally.count("s", quality.MOST - 5)
    assert tally["s"] == quality.MOST


def test_whoever_invents_sources_fills_a_table_once() -> None:
    """Counts of those beyond are kept as one's; their sequence numbers are not mixed up with each other."""
    intake = wire.Intake()
    for n in range(3 * quality.KEYS):
        for seq in (0, 2**40):
            intake.decode(b"ran.ue", report(seq, f"s{n}"))
            intake.refuse(f"s{n}", f"reason {n % 7}")
    assert len(intake.gaps._last) <= quality.KEYS
    assert len(intake.quarantine.counts) <= quality.KEYS + 7
    assert intake.quarantine.counts.total() == 6 * quality.KEYS
    assert intake.gaps.unfollowed == 2 * (3 * quality.KEYS - wire.MAX_SOURCES)
    assert wire.OTHERS not in intake.gaps.restarts


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__name__)
def test_an_answer_of_any_content_is_encoded_and_its_reader_understands_it(kind: type) -> None:
    @given(_structs(kind))
    def holds(answer: msgspec.Struct) -> None:
        for codec in ENCODINGS:
            data = codec.encode(sound(answer))
            codec.decode(data, type=kind)
            assert _numbers_hold(codec.decode(data))

    holds()


def _structs(kind: type) -> st.SearchStrategy[Any]:
    fields = {f.name: _of(f.type) for f in msgspec.structs.fields(kind)}
    return st.builds(kind, **fields)


def _of(hint: object) -> st.SearchStrategy[Any]:
    """A strategy for a type: beyond what it says where it is a number."""
    return _of_info(inspect.type_info(hint))


def _of_info(info: inspect.Type) -> st.SearchStrategy[Any]:
    simple = {
        inspect.IntType: st.integers() | st.sampled_from([v for v in BEYOND if isinstance(v, int)]),
        inspect.FloatType: st.floats() | st.sampled_from([float(v) for v in BEYOND]),
        inspect.StrType: st.text(max_size=5),
        inspect.BoolType: st.booleans(),
        inspect.NoneType: st.none(),
        inspect.AnyType: st.none(),
    }
    if type(info) in simple:
        return simple[type(info)]
    if isinstance(info, inspect.StructType):
        return _structs(info.cls)
    if isinstance(info, inspect.VarTupleType):
        return st.lists(_of_info(info.item_type), max_size=2).map(tuple)
    if isinstance(info, inspect.DictType):
        return st.dictionaries(_of_info(info.key_type), _of_info(info.value_type), max_size=2)
    if isinstance(info, inspect.UnionType):
        return st.one_of([_of_info(t) for t in info.types])
    raise NotImplementedError(info)  # a kind of type that no message has yet: extend this


def _numbers_hold(value: object) -> bool:
    if isinstance(value, dict):
        return all(_numbers_hold(v) for v in value.values())
    if isinstance(value, list):
        return all(_numbers_hold(v) for v in value)
    return not isinstance(value, int | float) or (
        abs(value) <= MOST if isinstance(value, int) else math.isfinite(value)
    )
