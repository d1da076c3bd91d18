"""Every way in, fuzzed: the corpus again, then some hundred seeded mutations each.

For longer: `make fuzz`, or FUZZ_TIMES=20 and another FUZZ_SEED.
"""

from __future__ import annotations

import os
import tempfile
import zlib
from pathlib import Path
from typing import Final

import pytest
from mutation import mutated
from targets import NAMES, corpus, target, tried

TIMES: Final = int(os.environ.get("FUZZ_TIMES", "1"))
FIRST: Final = int(os.environ.get("FUZZ_SEED", "0"))
MUTATIONS: Final = {
    "bus": 400, "control": 600, "decisions": 300, "host": 1500,
    "captures": 60, "state": 100, "config": 300, "problems": 500,
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_whatever_comes_in_is_taken_or_refused(name: str) -> None:
    way = target(name)
    seeds, kept = way.seeds(), corpus(name)
    for n, data in enumerate([*seeds, *kept]):
        _held(name, f"input {n} of {len(seeds)} seeds and {len(kept)} of the corpus", data, way)
    inputs = [*seeds, *kept]
    for seed in range(FIRST, FIRST + TIMES * MUTATIONS[name]):
        _held(name, f"seed {seed}", mutated(inputs[seed % len(inputs)], seed, inputs), way)
    way.close()


def _held(name: str, which: str, data: bytes, way: object) -> None:
    try:
        tried(way, data)  # type: ignore[arg-type]
    except Exception as error:
        kept = Path(tempfile.gettempdir()) / f"fuzz-{name}-{zlib.crc32(data):08x}"
        kept.write_bytes(data)
        raise AssertionError(f"{name}, {which}, which is now in {kept}: {data[:200]!r}") from error


def test_the_corpus_is_small() -> None:
    assert sum(len(data) for name in NAMES for data in corpus(name)) < 300_000
