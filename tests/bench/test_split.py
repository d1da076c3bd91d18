"""The suite `split`: what it measures is there, on small models and few tokens."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the extra [llm] is not installed")

from cosched.bench import split


def test_both_halves_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split, "LARGE", split.SMALL)
    monkeypatch.setattr(split, "TOKENS", 3)
    monkeypatch.setattr(split, "ANSWER", 5)
    told: list[float] = []
    found = split.run(seeds=2, progress=told.append)
    assert told == [0.5, 0.75, 1.0]
    overhead = {row.subject: row for row in found.rows if row.figure == "token_ms"}
    assert set(overhead) == {"unsplit", "split", "round trip"}
    assert all(row.n == 6 and 0 < row.p50 <= row.p99 for row in overhead.values())
    judged = {(row.case, row.subject): row for row in found.rows if row.figure == "logit_error_percent"}
    assert {case for case, _ in judged} == {f"k={k}" for k in range(1, 6)}
    for case in {case for case, _ in judged}:
        errors = [judged[case, f"{bits} bit"].value for bits in split.BITS]
        assert errors == sorted(errors)  # fewer bits, more error
        assert all(judged[case, f"{bits} bit"].n == 10 for bits in split.BITS)
    assert len(found.claims) == 1
