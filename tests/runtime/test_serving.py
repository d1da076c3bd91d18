"""A node's actor that serves layers itself: what it reports is what its host has."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the extra [llm] is not installed")
from runtime_cases import LAYERS, checkpoint, seeded

from cosched.cluster import executor
from cosched.cluster.messages import LayersOrder, Session
from cosched.errors import BadInput, CoschedError


def session(task: str, weight: float) -> Session:
    return Session(task, "k=2", 2, 16, weight, weight)


@pytest.fixture
def serving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> executor.Executor:
    checkpoint(seeded(tmp_path), tmp_path / "models" / "llama")
    monkeypatch.setenv("COSCHED_HOST_MODELS", str(tmp_path / "models"))
    return executor.make("host", "edge0")


def test_weights_and_layers_are_in_force_at_the_host(serving: executor.Executor):
    assert serving.endpoint.startswith("tcp://127.0.0.1:")
    assert serving.in_force() == ({}, (), 0.0)
    upper = LayersOrder("llama", 2, LAYERS)
    serving.load(upper)
    serving.hold(whole=True, sessions=[session("a", 0.5), session("b", 0.0)], end=())
    serving.hold(whole=False, sessions=[session("c", 0.25)], end=("a",))
    force = serving.in_force()
    assert force.sessions == {"b": 0.0, "c": 0.25}
    assert force.layers == (upper,)
    assert force.used_bytes > 0
    serving.unload(upper)
    assert serving.in_force().layers == ()
    with pytest.raises(CoschedError):
        serving.load(LayersOrder("llama", 0, LAYERS + 1))
    serving.stop()


def test_paces_and_the_length_of_steps_reach_the_host(serving: executor.Executor):
    paced = Session("a", "k=2", 2, 16, 0.5, 0.5, 0.05, 1)
    serving.hold(whole=True, sessions=[paced, session("b", 0.5)], end=(), step_s=0.02)
    engine = serving._host.engine  # type: ignore[attr-defined]
    assert engine._promises == {"a": (0.05, 1)}
    assert engine.step_s == 0.02
    serving.hold(whole=False, sessions=[], end=("a",), step_s=0.0)
    assert (engine._promises, engine.step_s) == ({}, 0.0)
    serving.stop()


def test_without_models_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("COSCHED_HOST_MODELS", raising=False)
    with pytest.raises(BadInput, match="COSCHED_HOST_MODELS=''"):
        executor.make("host", "edge0")
