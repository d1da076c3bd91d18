"""The suite `serving`: what it measures is there, on a small model and few tokens."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="the extra [llm] is not installed")

from cosched.bench import serving


def test_sessions_and_batched_steps_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96}
    monkeypatch.setattr(serving, "CONFIG", serving.CONFIG | small | {"num_hidden_layers": 16, "vocab_size": 128})
    monkeypatch.setattr(serving, "TOKENS", 6)
    monkeypatch.setattr(serving, "SIZES", (1, 8))
    found = serving.run(seeds=2, progress=lambda _: None)
    rows = {(row.case, row.subject, row.figure): row for row in found.rows}
    for case in serving.SPLITS:
        assert rows[case, "8 sessions", "tokens_per_s"].n == 2
        assert rows[case, "8 sessions", "tpot_over_batched"].n == 16
        assert rows[case, "8 sessions over 1", "ratio"].p50 > 0
        assert rows[case, "8 sessions", "greatest_logit_difference"].value < 1e-3
        assert rows[case, "8 sessions", "unlike_beyond_rounding"].value == 0
    assert len(found.claims) == 6
    assert all(claim.holds for claim in found.claims if "chosen" in claim.text)
