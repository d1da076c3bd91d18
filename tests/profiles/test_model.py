"""Models from config.json: a table worked out by hand, published parameter counts, each family's quirk, bad files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosched.errors import BadInput
from cosched.profiles.families import FAMILIES
from cosched.profiles.model import Model, load_model, parse_model
from cosched.resources import config_dir

# docs/profiles.md: key, MFLOP/token, C, weights MB at 16 bit, KV B/token, activation B/token, parameters in all, tied
CHECK_TABLE = [
    ("llama-3-8b", 32, 436.21, 16384, 436.22, 4096, 8192, 8_030_261_248, False),
    ("llama-3.2-3b", 28, 201.33, 12288, 201.34, 4096, 6144, 3_212_749_824, True),
    ("llama-3.2-1b", 16, 121.63, 8192, 121.64, 2048, 4096, 1_235_814_400, True),
    ("qwen2.5-7b", 28, 466.09, 14336, 466.12, 2048, 7168, 7_615_616_512, False),
    ("qwen2.5-0.5b", 24, 29.82, 3584, 29.82, 512, 1792, 494_032_768, True),
    ("phi-3-mini", 32, 226.49, 12288, 226.50, 12288, 6144, 3_821_079_552, False),
    ("llama-2-7b", 32, 404.75, 16384, 404.77, 16384, 8192, 6_738_415_616, False),
]

# Published counts of models outside the check table (their model cards); gemma-3-4b: the text decoder alone.
PUBLISHED = {
    "phi-2": 2_779_683_840,
    "gemma-2-2b": 2_614_341_888,
    "gemma-3-4b": 3_880_263_168,
    "mistral-7b": 7_241_732_096,
    "llama-2-70b": 68_976_648_192,
    "llama-3-70b": 70_553_706_496,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen3-0.6b": 596_049_920,
    "qwen3-8b": 8_190_735_360,
}

SMALL: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 160,
    "vocab_size": 1000,
}


def parse(**changes: object) -> Model:
    """Parse SMALL with keys changed, or taken away where the value is None."""
    config = {key: value for key, value in {**SMALL, **changes}.items() if value is not None}
    return parse_model(json.dumps(config).encode(), "test", "small")


@pytest.mark.parametrize("row", CHECK_TABLE, ids=lambda row: row[0])
def test_check_table(row: tuple[Any, ...]) -> None:
    key, layers, mflop, slope, weights_mb, kv_bytes, activation_bytes, parameters, tied = row
    model = load_model(key)
    assert model.name == key
    assert model.n_layers == layers
    assert round(model.flop_per_token_layer / 1e6, 2) == mflop
    assert model.attention_flop_per_token(1000.0) == 1000.0 * slope
    assert round(model.weight_bytes_layer(16) / 1e6, 2) == weights_mb
    assert model.kv_bytes_per_token_layer() == kv_bytes
    assert model.activation_bytes_per_token(16) == activation_bytes
    assert model.parameters == parameters
    assert model.tied is tied


@pytest.mark.parametrize("key", PUBLISHED)
def test_published_parameter_counts(key: str) -> None:
    assert load_model(key).parameters == PUBLISHED[key]


def test_every_shipped_model_loads_by_key_and_by_path() -> None:
    paths = sorted((config_dir() / "models").glob("*.json"))
    assert len(paths) >= 10
    for path in paths:
        assert load_model(path.stem) == load_model(path) == load_model(str(path))


def test_folder_with_a_config_takes_the_folders_name(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SMALL), encoding="utf-8")
    assert load_model(folder).name == "my-model"
    assert load_model(str(folder / "config.json")) == load_model(folder)


def test_parameters_counted_by_hand() -> None:
    attention = 64 * 64 + 2 * 64 * 16 + 64 * 64  # q, k and v of two heads of 8, o
    layer = attention + 3 * 64 * 160 + 2 * 64
    assert parse().parameters == 3 * layer + 2 * 1000 * 64 + 64
    assert parse(tie_word_embeddings=True).parameters == 3 * layer + 1000 * 64 + 64


def test_biases() -> None:
    plain = parse().parameters_layer
    assert parse(attention_bias=True).parameters_layer == plain + 64 + 2 * 16 + 64
    assert parse(mlp_bias=True).parameters_layer == plain + 2 * 160 + 64
    assert parse(model_type="qwen2").parameters_layer == plain + 64 + 2 * 16


def test_explicit_head_dim_need_not_divide_hidden() -> None:
    model = parse(head_dim=32)
    assert (model.q_width, model.kv_width) == (256, 64)
    assert model.linear_parameters_layer == 64 * (2 * 256 + 2 * 64) + 3 * 64 * 160
    assert parse(model_type="qwen3").head_dim == 128  # the family's default, not hidden / heads


def test_without_kv_heads_every_head_has_its_own() -> None:
    assert parse(num_key_value_heads=None).kv_heads == 8


def test_phi_has_plain_mlp_one_norm_and_biases() -> None:
    model = load_model("phi-2")
    assert not model.gated
    assert model.norms == 1
    assert model.head_bias
    assert model.linear_parameters_layer == 4 * 2560 * 2560 + 2 * 2560 * 10240


def test_gemma3_reads_text_config_with_the_familys_defaults() -> None:
    model = load_model("gemma-3-4b")
    assert (model.family, model.heads, model.kv_heads, model.head_dim) == ("gemma3", 8, 4, 256)
    assert model.tied
    assert (model.window, model.window_layers) == (1024, 29)  # every sixth of 34 layers sees everything


def test_text_config_takes_the_outer_quantisation() -> None:
    outer = {"model_type": "gemma3", "text_config": {**SMALL, "model_type": "gemma3_text"}}
    outer["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    assert parse_model(json.dumps(outer).encode(), "test", "x").stored_weight_bits == 4


@pytest.mark.parametrize(
    ("quantisation", "bits"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, 4),
        ({"quant_method": "awq", "bits": 4}, 4),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}, 4),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 8),
        ({"quant_method": "fp8"}, 8),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 8}}}}, 8),
    ],
)
def test_quantised_checkpoints(quantisation: dict[str, Any], bits: int) -> None:
    assert parse(quantization_config=quantisation).stored_weight_bits == bits


def test_unreadable_quantisation_is_refused() -> None:
    unreadable: list[dict[str, Any]] = [
        {},
        {"quant_method": "x", "bits": 3},
        {"bits": "4"},
        {"config_groups": {"g": []}},
    ]
    for quantisation in unreadable:
        with pytest.raises(BadInput, match="quantization_config"):
            parse(quantization_config=quantisation)


def test_windows() -> None:
    mistral = load_model("mistral-7b")
    assert mistral.attended_tokens(1000.0) == 1000.0
    assert mistral.attended_tokens(10_000.0) == 4096.0
    gemma = load_model("gemma-2-2b")  # every other layer slides
    assert gemma.attended_tokens(8192.0) == (8192 + 4096) / 2
    qwen = load_model("qwen2.5-7b")  # states a window and that it is not used
    assert qwen.attended_tokens(1e6) == 1e6
    listed = parse(sliding_window=10, layer_types=["sliding_attention", "full_attention", "full_attention"])
    assert listed.attended_tokens(40.0) == pytest.approx((10 + 40 + 40) / 3)


def test_weight_bytes_with_scales() -> None:
    model = load_model("llama-3-8b")
    matrices, small = model.linear_parameters_layer, model.small_parameters_layer
    assert model.weight_bytes_layer(4, "gguf") == pytest.approx(matrices * 4.85 / 8 + 2 * small)
    assert model.weight_bytes_layer(8, "gguf") == pytest.approx(matrices * 8.5 / 8 + 2 * small)
    assert model.weight_bytes_layer(4, "group128") == pytest.approx(matrices * (4 + 20 / 128) / 8 + 2 * small)
    assert model.weight_bytes(16) == 2 * model.parameters
    # A Q4_K_M file of Llama-3-8B has 4.92e9 bytes (its model card).
    assert model.weight_bytes(4, "gguf") == pytest.approx(4.92e9, rel=0.02)


def test_activation_bytes_count_one_scale_per_128_values() -> None:
    model = load_model("llama-3-8b")
    assert model.activation_bytes_per_token(8) == 4096 + 2 * 32
    assert model.activation_bytes_per_token(4) == 2048 + 2 * 32
    assert parse(hidden_size=200, head_dim=8).activation_bytes_per_token(4) == 100 + 2 * 2  # the last group is short


def test_other_widths_are_refused() -> None:
    model = load_model("llama-3-8b")
    with pytest.raises(BadInput, match="weight_bits = 5"):
        model.weight_bytes_layer(5)
    with pytest.raises(BadInput, match="16, 8 or 4"):
        model.activation_bytes_per_token(2)
    with pytest.raises(BadInput, match="weight format 'zip'"):
        model.weight_bytes_layer(4, "zip")


def test_unknown_family_names_the_supported_ones() -> None:
    with pytest.raises(BadInput, match="'bert' is not supported") as raised:
        parse(model_type="bert")
    assert all(family in str(raised.value) for family in FAMILIES)


@pytest.mark.parametrize("key", ["num_local_experts", "num_experts", "n_routed_experts"])
def test_mixtures_of_experts_are_refused(key: str) -> None:
    with pytest.raises(BadInput, match="mixtures of experts"):
        parse(model_type="mixtral", **{key: 8})


BAD: dict[str, bytes] = {
    "empty": b"",
    "not JSON": b"{'a': 1}",
    "NaN": json.dumps({**SMALL, "hidden_size": float("nan")}).encode(),
    "not UTF-8": b'{"model_type": "\xff\xfe"}',
    "deep": b'{"a":' * 10_000,
    "a list": b"[1, 2]",
    "no family": json.dumps({k: v for k, v in SMALL.items() if k != "model_type"}).encode(),
    "negative": json.dumps({**SMALL, "num_hidden_layers": -2}).encode(),
    "zero": json.dumps({**SMALL, "num_attention_heads": 0}).encode(),
    "huge": json.dumps({**SMALL, "hidden_size": 10**12}).encode(),
    "a string": json.dumps({**SMALL, "vocab_size": "1000"}).encode(),
    "a fraction": json.dumps({**SMALL, "intermediate_size": 10.5}).encode(),
    "a truth value": json.dumps({**SMALL, "intermediate_size": True}).encode(),
    "heads": json.dumps({**SMALL, "num_key_value_heads": 3}).encode(),
    "width": json.dumps({**SMALL, "hidden_size": 65}).encode(),
    "text_config": json.dumps({"model_type": "gemma3", "text_config": {"model_type": "x"}}).encode(),
    "negative window": json.dumps({**SMALL, "sliding_window": -5}).encode(),
    **{
        f"no {key}": json.dumps({k: v for k, v in SMALL.items() if k != key}).encode()
        for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    },
}


@pytest.mark.parametrize("case", BAD)
def test_malformed_configurations_give_one_line(case: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(BAD[case])
    with pytest.raises(BadInput) as raised:
        load_model(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_missing_files_name_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"llama-3-8b\.json"):
        load_model("llama-9")
    with pytest.raises(BadInput, match="No such file"):
        load_model(tmp_path)  # a folder without a config.json
    with pytest.raises(BadInput, match="No such file"):
        load_model("nowhere/config.json")


def test_a_checkpoint_is_not_read_as_configuration(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.json"
    path.write_bytes(b" " * (1 << 21))
    with pytest.raises(BadInput, match="too many"):
        load_model(path)


@given(data=st.binary(max_size=200))
def test_any_bytes_either_parse_or_are_bad_input(data: bytes) -> None:
    with pytest.raises(BadInput):
        parse_model(data, "fuzz", "fuzz")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


KEYS = [*SMALL, "text_config", "quantization_config", "layer_types", "head_dim", "max_window_layers"]


@given(key=st.sampled_from(KEYS), value=JSON_VALUES)
def test_any_value_of_any_key_either_parses_or_is_bad_input(key: str, value: object) -> None:
    try:
        model = parse_model(json.dumps({**SMALL, key: value}).encode(), "fuzz", "fuzz")
    except BadInput as error:
        assert "\n" not in str(error)  # noqa: PT017  (either outcome is right)
    else:
        assert model.parameters > 0
        assert 0 <= model.window_layers <= model.n_layers


@given(layers=st.integers(1, 100), heads=st.sampled_from([1, 2, 4, 8]), tied=st.booleans())
def test_more_layers_are_never_less(layers: int, heads: int, tied: bool) -> None:
    small = parse(num_hidden_layers=layers, num_key_value_heads=heads, tie_word_embeddings=tied)
    large = parse(num_hidden_layers=layers + 1, num_key_value_heads=heads, tie_word_embeddings=tied)
    assert large.parameters - small.parameters == small.parameters_layer
    for bits in (16, 8, 4):
        assert large.weight_bytes(bits) > small.weight_bytes(bits)
    assert small.weight_bytes(4) < small.weight_bytes(8) < small.weight_bytes(16)
