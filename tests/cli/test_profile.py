"""`cosched profile`: the layer table, the refit, and bad input as one line with exit code 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cosched.cli import main as cli
from cosched.profiles import latency
from cosched.profiles.device import load_device
from cosched.profiles.model import load_model
from cosched.profiles.table import layer_table


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["profile", *args])
    captured = capsys.readouterr()
    return int(stopped.value.code or 0), captured.out, captured.err


def test_model_needs_no_further_word(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "llama-3-8b", "--device", "a100")
    assert code == 0
    assert "8,030,261,248" in out
    assert "436,224,000" in out
    assert run(capsys, "show", "llama-3-8b", "--device", "a100")[1] == out


def test_guesses_are_marked(capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "llama-3-8b", "--device", "phone", "--weight-bits", "4")[1]
    assert "guess, no measurement behind it: phone: prefill time" in out
    assert "?" not in run(capsys, "llama-3-8b", "--device", "a100")[1]


def test_json_adds_up(capsys: pytest.CaptureFixture[str]) -> None:
    args = ("llama-3-8b", "--tokens", "256", "--context", "512", "--weight-bits", "4", "--host", "vllm", "--json")
    code, out, _ = run(capsys, *args)
    assert code == 0
    table = json.loads(out)
    assert (table["v"], table["layers"], table["weight_bits"]) == (1, 32, 4)
    for field in ("prefill_s", "decode_s", "prefill_flop", "decode_flop", "weight_bytes"):
        total = sum(part["count"] * part[field] for part in table["parts"])
        assert table["total"][field] == pytest.approx(total, rel=1e-3)
    layer = table["parts"][1]
    model, device = load_model("llama-3-8b"), load_device("a100")
    assert layer["prefill_s"] == pytest.approx(latency.prefill_layer_s(model, device, 256.0, 512.0, 4))
    assert layer["decode_s"] == pytest.approx(latency.decode_layer_s(model, device, 768.0, 4))
    assert table["served"]["decode_s"] > table["total"]["decode_s"]
    assert [p["activation_bytes_per_token"] for p in table["precisions"]] == [8192, 4160, 2112]
    assert table["guess"] == ["a100: 4-bit kernels"]


def test_checkpoints_own_bits_are_the_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "vocab_size": 100,
        "quantization_config": {"quant_method": "gptq", "bits": 4},
    }
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert json.loads(run(capsys, str(tmp_path), "--json")[1])["weight_bits"] == 4


def test_tied_weights_are_counted_once() -> None:
    model, device = load_model("llama-3.2-1b"), load_device("a100")
    table = layer_table(model, device, None, tokens=1, context=0, weight_bits=16)
    assert table.total.weight_bytes == 2 * model.parameters
    assert sum(part.count * part.weight_bytes for part in table.parts) == 2 * model.parameters


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("llama-9",), "llama-9.json: no such file"),
        (("llama-3-8b", "--device", "z80"), "z80.toml: no such file"),
        (("llama-3-8b", "--host", "apache"), "apache.toml: no such file"),
        (("llama-3-8b", "--weight-bits", "5"), "weight_bits = 5"),
        (("llama-3-8b", "--tokens", "0"), "--tokens"),
        (("llama-3-8b", "--context", "-1"), "--context"),
        (("nowhere/config.json",), "No such file"),
        (("fit", "nowhere"), "nowhere: no such folder"),
        (("fit", ".", "-o", "x.toml"), "name it with --device"),
        (("--device", "a100"), "MODEL"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(capsys: pytest.CaptureFixture[str], args: tuple[str, ...], says: str) -> None:
    code, out, err = run(capsys, *args)
    assert code == 2
    assert says in err
    assert "Traceback" not in err
    assert not out


def test_fit_without_data_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "fit", str(tmp_path))
    assert code == 2
    assert "nothing to refit" in err


def test_fit_writes_a_profile_that_loads(shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "mine.toml"
    code, out, _ = run(capsys, "fit", str(shared_data), "--device", "agx-orin", "-o", str(output), "--json")
    assert code == 0
    result = json.loads(out)
    assert {row["profile"] for row in result["numbers"]} == {"agx-orin"}
    assert all(claim["rows"] > 0 for claim in result["claims"])
    device = load_device(output)
    assert device.memory_efficiency == pytest.approx(load_device("agx-orin").memory_efficiency, rel=0.01)


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    for args in (("--help",), ("show", "--help"), ("fit", "--help")):
        code, out, _ = run(capsys, *args)
        assert code == 0
        assert "Example: cosched profile" in out
