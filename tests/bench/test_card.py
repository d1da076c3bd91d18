"""The suite `gpu` on this machine's CPU with tiny models: real kernels and layers are timed, fitted and predicted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cosched.bench.card import CardLayers, CardPlan, measured
from cosched.profiles import latency
from cosched.profiles.device import load_device, load_host
from cosched.profiles.measured import GEMM_OPS
from cosched.profiles.model import load_model

torch = pytest.importorskip("torch", reason="the [llm] extra is not installed")


def tiny(folder: Path, name: str, hidden: int) -> str:
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": hidden, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 3 * hidden, "vocab_size": 64,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True, "max_position_embeddings": 512,
    }  # fmt: skip
    path = folder / f"{name}.json"
    path.write_text(json.dumps(config))
    return str(path)


def test_everything_is_timed_fitted_and_predicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cosched.runtime.measure.LEAST_S", 0.002)  # no figure is claimed here
    plan = CardPlan(
        dtype="float32", seen=(tiny(tmp_path, "a", 64), tiny(tmp_path, "b", 128)), unseen=(tiny(tmp_path, "c", 96),),
        tokens=(1, 4, 16), fitted=((1, 16), (1, 64), (8, 0), (16, 16)), tested=((1, 32), (12, 0)),
    )  # fmt: skip
    told: list[float] = []
    result = measured(plan, torch.device("cpu"), told.append)
    assert told == sorted(told)
    assert told[-1] == 1.0
    errors = {(row.case, row.subject): row for row in result.rows if row.figure == "error_percent"}
    assert len(errors) == 10
    assert all(0 <= row.value < np.inf and row.n > 0 for row in errors.values())
    fitted = {row.case.rpartition("=")[2]: row.value for row in result.rows if row.figure == "fitted"}
    assert fitted["peak_tflops"] > 0
    assert fitted["layer_launch_us"] > 0
    assert result.claims == [], "a CPU claims nothing"


def test_operators_of_more_tokens_take_longer() -> None:
    measure = pytest.importorskip("cosched.runtime.measure")
    run = measure.operators(load_model("qwen2.5-0.5b"), (1, 256), torch.device("cpu"), torch.float32)
    for op in GEMM_OPS:
        assert run.seconds[op][1] > 3 * run.seconds[op][0] > 0, op
    assert (run.total_s > 0).all()


def test_layers_are_predicted_by_the_equations_of_their_phase() -> None:
    model, card, host = load_model("llama-3-8b"), load_device("a100"), load_host("ideal")
    layers = CardLayers(model, np.array([1.0, 64.0]), np.array([100.0, 10.0]), np.zeros(2))
    decode, prefill = layers.predicted_s(card, host)
    assert decode == pytest.approx(latency.decode_layer_s(model, card, 100.0, 16))
    assert prefill == pytest.approx(latency.prefill_layer_s(model, card, 64.0, 10.0, 16))
