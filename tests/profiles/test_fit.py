"""The refit: recovers numbers that made the data, reads the public files, and holds what docs/profiles.md states."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import msgspec
import numpy as np
import pytest

from cosched.errors import BadInput
from cosched.profiles import batch, fit, heldout, latency, measured
from cosched.profiles.device import Device, Host, load_device, load_host
from cosched.profiles.heldout import PublishedClaim, Refit
from cosched.profiles.measured import AttentionRun, EdgeRun, OperatorRun, ServedRuns
from cosched.profiles.model import load_model
from cosched.profiles.rewrite import FITTED_FIELDS, fitted_values, rewrite
from cosched.resources import config_file


def true_device() -> Device:
    """Return a device whose numbers no start of a fit has."""
    fields = {
        "compute_efficiency": 0.61,
        "memory_efficiency": 0.83,
        "gemm_overhead_s": 9e-6,
        "elementwise_efficiency": 0.44,
        "elementwise_overhead_s": 1.5e-6,
        "attention_efficiency": 0.29,
        "attention_prefill_overhead_s": 4e-5,
        "kv_efficiency": 0.66,
        "attention_decode_overhead_s": 8e-6,
        "link_bytes_s": 1.7e11,
        "link_latency_s": 6e-6,
    }
    return msgspec.structs.replace(load_device("a100"), **fields)


def assert_recovers(found: Device, fields: tuple[str, ...]) -> None:
    for field in fields:
        assert getattr(found, field) == pytest.approx(getattr(true_device(), field), rel=1e-3), field


def operator_run() -> OperatorRun:
    """Noiseless kernel times of `true_device`, at all powers of two and four rank counts."""
    model = load_model("llama-3-8b")
    tokens, tp = (a.ravel().astype(float) for a in np.meshgrid(2 ** np.arange(13), [1, 2, 4, 8]))
    seconds = {op: np.zeros_like(tokens) for op in (*measured.GEMM_OPS, *measured.SMALL_OPS)}
    for i in range(len(tokens)):
        for op, (k, n) in zip(measured.GEMM_OPS, latency.gemm_shapes(model, int(tp[i])), strict=True):
            seconds[op][i] = latency.gemm_s(true_device(), float(tokens[i]), k, n, 2 * k * n)
        for op, elements in zip(measured.SMALL_OPS, latency.elementwise_elements(model, int(tp[i])), strict=True):
            seconds[op][i] = latency.streamed_s(true_device(), elements * float(tokens[i]))
    return OperatorRun("a100", model, tokens, tp, seconds)


def test_recovers_the_numbers_of_operators() -> None:
    run = operator_run()
    found = fit.fit_linear([run], load_device("a100"))
    assert_recovers(found, (*fit.LINEAR_FIELDS, *fit.SMALL_FIELDS))
    assert fit.linear_s(run, found) == pytest.approx(run.total_s, rel=1e-3)


def test_recovers_the_numbers_of_attention() -> None:
    model, device = load_model("llama-3-8b"), true_device()
    size, context = (a.ravel().astype(float) for a in np.meshgrid([1, 16, 64, 512, 2048], [0, 100, 1000, 4000]))
    empty = np.zeros_like(size)
    prefill = AttentionRun(model, 1, size, context, empty)
    decode = AttentionRun(model, 1, size, context, empty)
    prefill = AttentionRun(model, 1, size, context, fit.prefill_attention_s(prefill, device))
    decode = AttentionRun(model, 1, size, context, fit.decode_attention_s(decode, device))
    found = fit.fit_attention(prefill, decode, load_device("a100"))
    assert_recovers(found, (*fit.PREFILL_FIELDS, *fit.DECODE_FIELDS))


def test_recovers_the_numbers_of_a_link() -> None:
    sizes = np.array([2.0**i for i in range(10, 28)])
    found = fit.fit_link(sizes, 6e-6 + sizes / 1.7e11, load_device("a100"))
    assert_recovers(found, fit.LINK_FIELDS)


def test_recovers_the_numbers_of_an_edge_device() -> None:
    models = tuple(load_model(key) for key in ("qwen3-0.6b", "llama-3.2-3b", "llama-3-8b"))
    true = msgspec.structs.replace(load_device("agx-orin"), memory_efficiency=0.5, layer_overhead_s=1e-4)
    run = EdgeRun(models, (4, 8, 4), np.ones(3), np.ones(3))
    run = EdgeRun(models, (4, 8, 4), fit.edge_s(run, true), np.ones(3))
    found = fit.fit_edge(run, load_device("agx-orin"))
    assert found.memory_efficiency == pytest.approx(0.5, rel=1e-3)
    assert found.layer_overhead_s == pytest.approx(1e-4, rel=1e-3)


def served(steps: float, *, prefill: bool) -> ServedRuns:
    batch, prompt = (a.ravel().astype(float) for a in np.meshgrid([1, 4, 16, 64], [128, 512, 2048]))
    n = len(batch)
    return ServedRuns(
        models=(load_model("llama-2-7b"),) * n,
        tp=np.ones(n),
        batch=batch,
        prompt=prompt,
        context=prompt,
        steps=np.full(n, steps),
        prefill=np.full(n, fill_value=prefill),
        seconds=np.ones(n),
    )


def stacked(first: ServedRuns, second: ServedRuns) -> ServedRuns:
    fields = ("tp", "batch", "prompt", "context", "steps", "prefill", "seconds")
    columns = {f: np.concatenate([getattr(first, f), getattr(second, f)]) for f in fields}
    return ServedRuns(models=(*first.models, *second.models), **columns)


def test_recovers_the_terms_of_a_host() -> None:
    both = stacked(served(0.0, prefill=True), served(1.0, prefill=False))
    true = msgspec.structs.replace(load_host("splitwise"), layer_s=7e-4, sequence_s=3e-4, prompt_token_s=2e-5)
    steps = fit.device_steps(both, load_device("a100"))
    run = with_seconds(both, fit.served_s(both, steps, true))
    found = fit.fit_host(run, steps, load_host("splitwise"), np.ones(len(run.seconds), dtype=np.bool_))
    for field in fit.HOST_FIELDS:
        assert getattr(found, field) == pytest.approx(getattr(true, field), rel=1e-2)


def test_recovers_the_line_of_a_step_over_its_batch() -> None:
    run = served(10.0, prefill=False)
    run = with_seconds(run, 10.0 * (0.02 + 0.001 * run.prompt / 128 * run.batch))
    for sizes, seconds in batch.settings(run):
        line = batch.fit_line(sizes[:2], seconds[:2])
        assert line.shared_s == pytest.approx(0.02)
        assert line.step_s(sizes) == pytest.approx(seconds)
    for greatest, rows in ((None, 6), (4.0, 6), (16.0, 3), (1.0, 0)):
        predicted, found = batch.held_out(run, greatest=greatest)
        assert len(found) == rows
        assert predicted == pytest.approx(found)


def test_whole_runs_cannot_tell_prompt_tokens_from_sequences() -> None:
    run = served(100.0, prefill=True)
    steps = fit.device_steps(run, load_device("a100"))
    found = fit.fit_host(run, steps, load_host("vllm"), np.ones(len(run.seconds), dtype=np.bool_))
    assert found.prompt_token_s == 0


def with_seconds(run: ServedRuns, seconds: np.ndarray) -> ServedRuns:
    return ServedRuns(run.models, run.tp, run.batch, run.prompt, run.context, run.steps, run.prefill, seconds)


def test_octaves_have_equal_say() -> None:
    weight = measured.octave_weights(np.array([1.0, 2.0, 3.0, 8.0, 9.0, 10.0, 15.0]))
    assert weight.sum() == pytest.approx(1)
    assert weight[0] == pytest.approx(weight[1:3].sum()) == pytest.approx(weight[3:].sum())


@pytest.fixture(scope="module")
def refits(shared_data: Path) -> list[Refit]:
    return list(heldout.refit(shared_data))


def claims_of(refits: list[Refit]) -> dict[tuple[str, str], PublishedClaim]:
    return {(claim.what, claim.tested_on): claim for part in refits for claim in part.claims}


# What docs/profiles.md states, rounded up to the next half percent: (what, tested on): (median, 90th percentile).
STATED = {
    ("linear part, a100, decode", "phi-2"): (4.5, 10.0),
    ("linear part, a100, prefill", "phi-2"): (3.5, 10.0),
    ("linear part, a40, decode", "same, tp 2, 8"): (3.5, 7.0),
    ("linear part, a40, prefill", "same, tp 2, 8"): (3.0, 8.5),
    ("linear part, h100, decode", "same, tp 2, 8"): (4.5, 9.0),
    ("linear part, h100, prefill", "same, tp 2, 8"): (5.0, 9.5),
    ("linear part, a100, data sheet", "a100"): (3.5, 9.5),
    ("linear part, a40, data sheet", "a40"): (10.5, 16.0),
    ("linear part, h100, data sheet", "h100"): (4.5, 11.5),
    ("linear part, data sheet", "all devices in turn"): (4.5, 14.0),
    ("attention, a100, prefill", "between the sizes fitted"): (8.5, 19.5),
    ("attention, a100, decode", "between the sizes fitted"): (9.5, 20.0),
    ("attention, a100, prefill", "beyond 2048 tokens"): (22.0, 34.0),
    ("attention, a100, decode", "beyond 2048 tokens"): (10.0, 20.0),
    ("whole model, splitwise", "bloom-176b"): (11.5, 19.5),
    ("whole model, vllm", "llama-3-8b, mistral-7b, qwen2-7b"): (6.5, 15.0),
    ("whole model, tensorrt-llm", "llama-3-8b, mistral-7b, qwen2-7b"): (8.0, 18.5),
    ("step over batch, splitwise", "the batches between"): (3.5, 10.0),
    ("step over batch, splitwise", "greater batches"): (5.0, 15.5),
    ("step over batch, vllm", "the batches between"): (2.5, 4.0),
    ("step over batch, vllm", "greater batches"): (2.5, 9.0),
    ("step over batch, tensorrt-llm", "the batches between"): (3.5, 8.5),
    ("step over batch, tensorrt-llm", "greater batches"): (8.0, 23.5),
    ("edge decode, agx-orin", "each model in turn"): (3.0, 7.5),
    ("edge decode, agx-orin", "all others"): (5.0, 9.5),
}
MISSED = {
    ("linear part, a40, data sheet", "a40"),
    ("attention, a100, prefill", "beyond 2048 tokens"),
    ("whole model, splitwise", "bloom-176b"),
}


def test_held_out_errors_are_what_the_docs_state(refits: list[Refit]) -> None:
    found = claims_of(refits)
    assert set(found) == set(STATED)
    for key, (median, p90) in STATED.items():
        assert found[key].median_pct <= median, key
        assert found[key].p90_pct <= p90, key
    assert {key for key, claim in found.items() if not claim.holds} == MISSED


def test_shipped_numbers_are_the_refitted_ones(refits: list[Refit]) -> None:
    checked = set()
    for part in refits:
        fitted: dict[str, Device | Host] = {**part.devices, **part.hosts}
        for key, new in fitted.items():
            shipped = load_device(key) if key in part.devices else load_host(key)
            refitted = fitted_values(new, part.source)
            assert fitted_values(shipped, part.source) == pytest.approx(refitted, rel=0.01)
            checked.add(key)
    assert checked == {"a100", "a40", "h100", "agx-orin", "splitwise", "vllm", "tensorrt-llm"}


def test_the_same_data_give_the_same_numbers(refits: list[Refit], shared_data: Path) -> None:
    runs = measured.read_operators(shared_data)
    run = next(run for run in runs if run.device == "h100")
    again = fit.fit_linear([run], load_device("h100"))
    before = next(part for part in refits if part.source == "operators").devices["h100"]
    for field in FITTED_FIELDS["operators"]:
        assert getattr(again, field) == getattr(before, field)


@pytest.mark.parametrize(("key", "group"), [("a100", "devices"), ("agx-orin", "devices"), ("vllm", "hosts")])
def test_rewritten_profile_holds_the_numbers(refits: list[Refit], tmp_path: Path, key: str, group: str) -> None:
    text = config_file(group, f"{key}.toml").read_text(encoding="utf-8")
    parts = [part for part in refits if key in part.devices or key in part.hosts]
    for part in parts:
        text = rewrite(text, part.devices.get(key) or part.hosts[key], part.source)
    path = tmp_path / f"{key}.toml"
    path.write_text(text, encoding="utf-8")
    written = load_device(path) if group == "devices" else load_host(path)
    for part in parts:
        new = part.devices.get(key) or part.hosts[key]
        assert fitted_values(written, part.source) == pytest.approx(fitted_values(new, part.source))


def test_rewriting_takes_away_what_is_no_guess_any_more() -> None:
    text = config_file("devices", "h200.toml").read_text(encoding="utf-8")
    new = rewrite(text, true_device(), "operators")
    assert 'guess = ["attention", "quantised", "link", "power"]' in new
    with pytest.raises(BadInput, match="missing"):
        rewrite(text.replace("latency_us", "# latency_us"), true_device(), "link")


def test_orin_power_is_the_mean_of_what_was_measured(shared_data: Path) -> None:
    run = measured.read_edge(shared_data)
    assert run is not None
    assert load_device("agx-orin").power_w.busy == pytest.approx(run.power_w.mean(), rel=0.03)


def test_overflowing_rows_are_left_out(shared_data: Path) -> None:
    run = measured.read_argonne(shared_data, "vLLM")
    assert run is not None
    keep = fit.fits_memory(run, fit.A100_40GB_BYTES)
    worst = (run.names == "llama-2-7b") & (run.tp == 1) & (run.batch == 64) & (run.prompt == 2048)
    assert worst.any()
    assert not (keep & worst).any()
    assert 0.5 < keep.mean() < 1


def test_absent_data_are_left_out(tmp_path: Path) -> None:
    assert list(heldout.refit(tmp_path)) == []


def write_csv(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"model_name": "Llama-3.2-1B-Q4_K_M.gguf", "power_avg_w": 1}, "tok_s_avg: no such column"),
        ({"model_name": "Llama-3.2-1B-Q4_K_M.gguf", "tok_s_avg": "fast", "power_avg_w": 1}, "'fast' is no number"),
        ({"model_name": "Llama-3.2-1B-Q4_K_M.gguf", "tok_s_avg": "nan", "power_avg_w": 1}, "finite"),
        ({"model_name": "Llama-3.2-1B-Q4_K_M.gguf", "tok_s_avg": -1, "power_avg_w": 1}, "finite"),
        ({"model_name": "Llama-3.2-1B-Q2_K.gguf", "tok_s_avg": 9, "power_avg_w": 1}, "ends with none of"),
        ({"model_name": "Unheard-Of-1B-Q8_0.gguf", "tok_s_avg": 9, "power_avg_w": 1}, "no such file"),
    ],
)
def test_bad_rows_give_one_line(tmp_path: Path, row: dict[str, object], says: str) -> None:
    write_csv(tmp_path / "prof-edge-llamacpp" / "jetson_agx_orin.csv.gz", [row])
    with pytest.raises(BadInput, match=says) as raised:
        list(heldout.refit(tmp_path))
    assert "\n" not in str(raised.value)


def test_damaged_files_give_one_line(tmp_path: Path) -> None:
    path = tmp_path / "prof-edge-llamacpp" / "jetson_agx_orin.csv.gz"
    write_csv(path, [{"model_name": "x"}])
    whole = path.read_bytes()
    for damaged in (whole[:-9], b"not gzip", gzip.compress(b"only,a,header\n"), gzip.compress(b"a\n\xff\xfe\n")):
        path.write_bytes(damaged)
        with pytest.raises(BadInput, match=r"jetson_agx_orin"):
            measured.read_edge(tmp_path)
