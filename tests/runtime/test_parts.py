"""Parts of a model against transformers' whole one, to the last bit; what is read, what is held, what is refused."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the extra [llm] is not installed")

import runtime_cases as cases

from cosched.errors import BadInput
from cosched.runtime.errors import BadModel
from cosched.runtime.kv import KvCache
from cosched.runtime.model import open_model
from cosched.runtime.parts import Part
from cosched.runtime.sampling import Sampling, choose

L = cases.LAYERS
CUTS = [*[(k,) for k in range(1, L)], *[(j, k) for j in range(1, L) for k in range(j + 1, L)]]


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_every_split_in_two_and_three_parts_gives_the_last_bit(family: str, tmp_path: Path) -> None:
    source = cases.seeded(tmp_path, family)
    expected = cases.reference_steps(source, 5)
    for cut in [(), *CUTS]:
        found = cases.split_steps(source, cut, 5)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), cut


def test_weights_can_be_counted_while_others_are_loaded(tmp_path: Path) -> None:
    part, done = Part(cases.seeded(tmp_path, "llama")), threading.Event()
    part.load(0, L)
    whole = part.weight_bytes

    def load() -> None:
        for _ in range(50):
            part.unload(1, L)
            part.load(0, L)
        done.set()

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        thread = threading.Thread(target=load)
        thread.start()
        while not done.is_set():
            assert 0 < part.weight_bytes <= whole
        thread.join()
    finally:
        sys.setswitchinterval(before)
    assert part.weight_bytes == whole


def test_the_model_is_alive(tmp_path: Path) -> None:
    """A seeded model whose answer did not depend on its input would prove nothing."""
    tokens = cases.reference_tokens(tmp_path, "llama", 50)
    assert len(set(tokens)) > 25


@pytest.mark.parametrize("family", cases.FAMILIES)
@pytest.mark.parametrize("shard", ["10GB", "60KB"])
def test_a_checkpoint_gives_the_same_bits_as_the_seed_that_made_it(family: str, shard: str, tmp_path: Path) -> None:
    source = cases.seeded(tmp_path, family)
    folder = cases.checkpoint(source, tmp_path / "saved", shard)
    assert len(list(folder.glob("*.safetensors"))) > 1 or shard == "10GB"
    found = cases.split_steps(open_model(folder), (2,), 3)
    expected = cases.reference_steps(source, 3)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_only_the_files_with_the_layers_asked_for_need_be_there(tmp_path: Path) -> None:
    folder = cases.checkpoint(cases.seeded(tmp_path), tmp_path / "saved", "60KB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    mine = {file for name, file in index.items() if name.startswith(("model.layers.2.", "model.layers.3."))}
    for file in set(index.values()) - mine:
        (folder / file).unlink()
    part = Part(open_model(folder))
    loaded = part.load(2, 4)
    assert loaded.layers == 2
    assert loaded.seconds > 0
    with pytest.raises(BadModel, match="no such file, and layers that are asked for lie in it"):
        part.load(0, 2)
    assert part.layers == [2, 3]


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_bytes_are_those_of_the_layers_held(family: str, tmp_path: Path) -> None:
    source = cases.seeded(tmp_path, family)
    sizes, whole = source.sizes, Part(source)
    assert whole.load(0, L).weight_bytes == whole.weight_bytes == 4 * sizes.parameters
    part = Part(source, dtype=torch.bfloat16)
    assert part.load(2, 4).weight_bytes == 2 * 2 * sizes.parameters_layer
    assert part.load(2, 4).layers == 0
    part.load(4, L)
    assert part.weight_bytes == 2 * (4 * sizes.parameters_layer + sizes.vocab * sizes.hidden + sizes.hidden)
    part.unload(3, L)
    assert part.layers == [2]
    assert part.weight_bytes == 2 * sizes.parameters_layer
    assert part.kv_layout.bytes_per_token == sizes.kv_bytes_per_token_layer()


def test_what_is_not_here_cannot_be_run(tmp_path: Path) -> None:
    part = Part(cases.seeded(tmp_path))
    part.load(2, 4)
    hidden = torch.zeros(1, 1, cases.HIDDEN)
    with pytest.raises(BadModel, match="layer 4 is not loaded"):
        part.run(hidden, KvCache(), 3, 5)
    with pytest.raises(BadModel, match="layer 0"):
        part.embed([1])
    with pytest.raises(BadModel, match="last layer"):
        part.logits(hidden)
    with pytest.raises(BadModel, match="has layers 0 to 5"):
        part.load(4, 7)
    part.load(0, 1)
    with pytest.raises(BadModel, match="0 to 255"):
        part.embed([256])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"model_type": "gemma2"}, "does not run split"),
        ({"model_type": "mistral", "sliding_window": 64}, "sliding windows"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised weights"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"model_type": "opt"}, "not supported"),
    ],
)
def test_models_that_do_not_run_split_say_why(other: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=message):
        cases.seeded(tmp_path, "llama", **other)


def test_broken_checkpoints_say_what_is_wrong(tmp_path: Path) -> None:
    source = cases.seeded(tmp_path)
    with pytest.raises(BadModel, match="give a seed"):
        open_model(tmp_path / "llama.json")
    folder = cases.checkpoint(source, tmp_path / "saved")
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    config = json.loads((other / "config.json").read_text()) | {"intermediate_size": 96}
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadModel, match="asks for"):
        Part(open_model(other)).load(0, 1)
    (folder / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(BadModel, match="not a whole safetensors file"):
        open_model(folder)
    for index in ("{", '{"weight_map": 3}', '{"weight_map": {"a": "../b"}}'):
        (folder / "model.safetensors.index.json").write_text(index)
        with pytest.raises(BadModel, match=r"index|beside it"):
            open_model(folder)


def test_fingerprints_tell_models_apart(tmp_path: Path) -> None:
    config = cases.write_config(tmp_path, "llama")
    first = open_model(config, seed=1).fingerprint
    assert first == open_model(config, seed=1, name="other").fingerprint
    assert first != open_model(config, seed=2).fingerprint
    assert first != open_model(cases.write_config(tmp_path, "qwen3"), seed=1).fingerprint


def test_a_checkpoint_says_which_tokens_end_an_answer(tmp_path: Path) -> None:
    folder = cases.checkpoint(cases.seeded(tmp_path, "llama", eos_token_id=[5, 9]), tmp_path / "saved")
    assert open_model(folder).end_tokens == (5, 9)
    assert open_model(folder, seed=1).end_tokens == ()


def test_a_draw_depends_on_its_seed_and_position_alone() -> None:
    logits = torch.randn(256, generator=torch.Generator().manual_seed(1))
    hot = Sampling(temperature=1.0, top_k=20, seed=5)
    draws = [choose(logits, hot, position) for position in range(50)]
    assert draws == [choose(logits, hot, position) for position in range(50)]
    assert 5 < len(set(draws)) <= 20
    assert set(draws) <= set(logits.topk(20).indices.tolist())
    assert choose(logits, Sampling(), 3) == int(logits.argmax())
