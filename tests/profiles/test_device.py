"""Device and host profiles: every shipped file, its sources and its guesses, and bad files."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from cosched.errors import BadInput
from cosched.profiles.device import GROUPS, load_device, load_host
from cosched.resources import config_dir

DEVICES = ("phone", "jetson", "laptop", "agx-orin", "a40", "a100", "h100", "h200")
HOSTS = ("vllm", "tensorrt-llm", "splitwise", "llamacpp", "ideal")


def test_all_that_ship_are_tested() -> None:
    for folder, keys in (("devices", DEVICES), ("hosts", HOSTS)):
        assert {path.stem for path in (config_dir() / folder).glob("*.toml")} == set(keys)


@pytest.mark.parametrize("key", DEVICES)
def test_shipped_device(key: str) -> None:
    device = load_device(key)
    assert device.key == key
    assert device == load_device(config_dir() / "devices" / f"{key}.toml")
    assert {"peak", "linear", "attention", "power"} <= set(device.sources)
    assert all(len(source) > 5 for source in device.sources.values())
    assert 0 < device.power_w.idle < device.power_w.busy
    assert device.memory_bytes >= 8e9
    assert 0 < device.memory_efficiency <= 1


def test_guess_words_and_sources_agree() -> None:
    """A group whose source says guess is marked, and the other way round where the group is its own table."""
    for key in DEVICES:
        device = load_device(key)
        assert set(device.guess) <= set(GROUPS)
        for group in ("attention", "link", "power"):
            if device.sources.get(group, "").startswith("guess"):
                assert group in device.guess, (key, group)


@pytest.mark.parametrize("key", ["phone", "jetson", "laptop"])
def test_devices_without_any_measurement_say_so(key: str) -> None:
    device = load_device(key)
    assert device.guesses("prefill") == (f"{key}: prefill time", f"{key}: attention time")
    assert device.guesses("decode") == (f"{key}: decode time", f"{key}: attention time")


def test_what_was_measured_is_no_guess() -> None:
    assert load_device("a100").guesses("prefill") == ()
    assert load_device("a100").guesses("decode", weight_bits=4) == ("a100: 4-bit kernels",)
    assert load_device("agx-orin").guesses("decode") == ("agx-orin: attention time",)
    assert load_host("vllm").guesses("a100") == ()
    assert load_host("vllm").guesses("h100") == ("h100: host terms of vLLM",)
    assert load_host("ideal").guesses("h100") == ()


def test_effective_values_of_the_scenarios() -> None:
    for key, tflops, gb_s in (("phone", 1, 40), ("jetson", 5, 54), ("laptop", 5, 80)):
        device = load_device(key)
        assert device.peak_flop_s * device.compute_efficiency == pytest.approx(tflops * 1e12)
        assert device.mem_bw_bytes_s * device.memory_efficiency == pytest.approx(gb_s * 1e9)


@pytest.mark.parametrize("key", HOSTS)
def test_shipped_host(key: str) -> None:
    host = load_host(key)
    assert host.key == key
    assert len(host.source) > 5
    assert all(math.isfinite(v) and v >= 0 for v in (host.layer_s, host.sequence_s, host.prompt_token_s))


def edited(tmp_path: Path, old: str, new: str) -> Path:
    text = (config_dir() / "devices" / "a100.toml").read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "mine.toml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("tflops = 312.0", "tflops = nan", "finite"),
        ("tflops = 312.0", "tflops = -1.0", "> 0|>= 0"),
        ("tflops = 312.0", "tflops = inf", "finite"),
        ("tflops = 312.0", 'tflops = "many"', "tflops"),
        ("tflops = 312.0", "teraflops = 312.0", "teraflops"),
        ("tflops = 312.0", "tflops 312.0", "line"),
        ("compute_efficiency = 0.708", "compute_efficiency = 1.5", "<= 1"),
        ('kind = "gpu"', 'kind = "abacus"', "abacus|enum"),
        ("[elementwise]", "[elements]", "elements"),
        ('guess = ["quantised"', 'guess = ["weather"', "weather"),
        ("v = 1", "v = 2", "v"),
    ],
)
def test_bad_profiles_give_one_line(tmp_path: Path, old: str, new: str, says: str) -> None:
    path = edited(tmp_path, old, new)
    with pytest.raises(BadInput, match=says) as raised:
        load_device(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_gpu_needs_its_elementwise_numbers(tmp_path: Path) -> None:
    text = (config_dir() / "devices" / "a100.toml").read_text(encoding="utf-8")
    start, end = text.index("[elementwise]"), text.index("[attention]")
    path = tmp_path / "mine.toml"
    path.write_text(text[:start] + text[end:], encoding="utf-8")
    with pytest.raises(BadInput, match=r"\[elementwise\] is missing"):
        load_device(path)


def test_unknown_keys_name_what_there_is() -> None:
    with pytest.raises(BadInput, match=r"a100\.toml"):
        load_device("z80")
    with pytest.raises(BadInput, match=r"vllm\.toml"):
        load_host("apache")
    with pytest.raises(BadInput, match="No such file"):
        load_device("nowhere/z80.toml")
