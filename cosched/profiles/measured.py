"""Readers of measured profiles (prof-*): public measurements of others, in their own formats, as arrays in seconds.

A folder that is not there reads as None or as no runs, so that a part of the data can be refitted too.
"""

from __future__ import annotations

import csv
import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from cosched.errors import BadInput
from cosched.profiles.model import Model, load_model

Floats = npt.NDArray[np.float64]
Names = npt.NDArray[np.str_]
Rows = list[dict[str, str]]

GEMM_OPS: Final = ("attn_pre_proj", "attn_post_proj", "mlp_up_proj", "mlp_down_proj")  # latency.gemm_shapes' order
NORM_OPS: Final = ("input_layernorm", "post_attention_layernorm")
SMALL_OPS: Final = (*NORM_OPS, "attn_rope", "mlp_act", "add")  # latency.elementwise_elements' order

# BLOOM-176B (its config.json: n_embed 14336, n_layer 70, 112 heads): no family of ours, needed as a held-out model.
BLOOM: Final = Model(
    name="bloom-176b",
    family="bloom",
    n_layers=70,
    hidden=14336,
    heads=112,
    kv_heads=112,
    head_dim=128,
    ffn=57344,
    gated=False,
    vocab=250_880,
    tied=True,
    norm_bias=True,
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
)

ARGONNE_MODELS: Final = {
    "meta-llama/Llama-2-7b-hf": "llama-2-7b",
    "meta-llama/Meta-Llama-3-8B": "llama-3-8b",
    "mistralai/Mistral-7B-v0.1": "mistral-7b",
    "Qwen/Qwen2-7B": "qwen2-7b",
    "meta-llama/Llama-2-70b-hf": "llama-2-70b",
    "meta-llama/Meta-Llama-3-70B": "llama-3-70b",
}
ARGONNE_HOSTS: Final = {"vLLM": "vllm", "TensorRT-LLM": "tensorrt-llm"}
GGUF_BITS: Final = {"q4_k_m": 4, "q6_k": 6, "q8_0": 8}


@dataclass(frozen=True, slots=True)
class OperatorRun:
    """Kernel times of one model on one device: (R,) per operator, with (R,) tokens and ranks."""

    device: str
    model: Model
    tokens: Floats
    tp: Floats
    seconds: dict[str, Floats]

    @property
    def total_s(self) -> Floats:
        """(R,) time of one layer without its attention kernel."""
        total = np.zeros_like(self.tokens)
        for op in (*GEMM_OPS, *SMALL_OPS):
            total = total + self.seconds.get(op, 0.0)
        return total


@dataclass(frozen=True, slots=True)
class AttentionRun:
    """Attention kernel of one rank: (R,) prefill chunk (prefill) or batch (decode), and cached tokens."""

    model: Model
    tp: int
    size: Floats
    context: Floats
    seconds: Floats


@dataclass(frozen=True, slots=True)
class ServedRuns:
    """Times that a server delivered: (R,) rows; `steps` is 0 for a prompt alone.

    seconds = one prefill of `batch` x `prompt`, plus `steps` decode steps at mean context `context`; with
    `prefill` False the decode steps alone.
    """

    models: tuple[Model, ...]
    tp: Floats
    batch: Floats
    prompt: Floats
    context: Floats
    steps: Floats
    prefill: npt.NDArray[np.bool_]
    seconds: Floats

    @property
    def names(self) -> Names:
        """(R,) model names."""
        return np.array([model.name for model in self.models], dtype=np.str_)


@dataclass(frozen=True, slots=True)
class EdgeRun:
    """Decode on a llama.cpp device: (R,) models, nominal weight bits, seconds per token, watts."""

    models: tuple[Model, ...]
    bits: tuple[int, ...]
    seconds: Floats
    power_w: Floats


def read_rows(path: Path) -> Rows:
    """Read a CSV, gzipped or not. Raises BadInput when it is missing, empty or not text."""
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8", newline="")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8", newline="") as file
        ):
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror or error}") from None
    except (EOFError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{path}: {error}") from None
    if not rows:
        raise BadInput(f"{path}: no rows below the header")
    return rows


def column(rows: Rows, name: str, path: Path) -> Floats:
    """Return one column as finite, non-negative numbers (R,). Raises BadInput with the row of the first that is not."""
    values = np.empty(len(rows))
    for i, row in enumerate(rows):
        text = row.get(name)
        try:
            values[i] = float(text if text is not None else "")
        except ValueError:
            missing = "no such column" if name not in rows[0] else f"'{text}' is no number"
            raise BadInput(f"{path}: row {i + 1}: {name}: {missing}") from None
        if not 0 <= values[i] < np.inf:
            raise BadInput(f"{path}: row {i + 1}: {name} = {text}: a finite number of at least 0 is needed")
    return values


def read_operators(data: Path) -> list[OperatorRun]:
    """Vidur's `<device>__<org>__<model>__mlp.csv` files, sorted by name; medians."""
    return [_operator_run(path) for path in sorted((data / "prof-vidur").glob("*__mlp.csv*"))]


def _operator_run(path: Path) -> OperatorRun:
    parts = path.name.split("__")
    rows = read_rows(path)
    ops = [op for op in (*GEMM_OPS, *SMALL_OPS) if f"time_stats.{op}.median" in rows[0]]
    return OperatorRun(
        device=parts[0],
        model=_vidur_model(rows[0], path, parts[-2], norms=sum(op in ops for op in NORM_OPS)),
        tokens=column(rows, "num_tokens", path),
        tp=column(rows, "num_tensor_parallel_workers", path),
        seconds={op: column(rows, f"time_stats.{op}.median", path) * 1e-3 for op in ops},
    )


def _vidur_model(row: dict[str, str], path: Path, name: str, norms: int) -> Model:
    keys = ("n_head", "n_kv_head", "n_embd", "n_expanded_embd", "vocab_size")
    heads, kv_heads, hidden, ffn, vocab = (int(column([row], key, path)[0]) for key in keys)
    return Model(
        name=name.lower(),
        family="vidur",
        n_layers=1,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=hidden // heads,
        ffn=ffn,
        gated=row.get("use_gated_mlp") == "True",
        vocab=vocab,
        tied=False,
        norms=norms,
    )


def read_attention(data: Path) -> tuple[AttentionRun, AttentionRun] | None:
    """Vidur's attention kernel times on the A100: (prefill, decode)."""
    path = _one(data / "prof-vidur", "a100_old__attention*.csv*")
    if path is None:
        return None
    rows = read_rows(path)
    prefill = [row for row in rows if row.get("is_prefill") == "True"]
    decode = [row for row in rows if row.get("is_prefill") == "False"]
    return (
        _attention_run(prefill, "prefill_chunk_size", "attn_prefill", path),
        _attention_run(decode, "batch_size", "attn_decode", path),
    )


def _attention_run(rows: Rows, size: str, op: str, path: Path) -> AttentionRun:
    if not rows:
        raise BadInput(f"{path}: no rows with {op} times")
    heads, kv_heads, hidden, tp = (
        int(column(rows, key, path)[0]) for key in ("n_q_head", "n_kv_head", "n_embd", "num_tensor_parallel_workers")
    )
    model = Model(
        "vidur-attention", "vidur", 1, hidden, heads, kv_heads, hidden // heads, 1, gated=False, vocab=1, tied=False
    )
    return AttentionRun(
        model=model,
        tp=tp,
        size=column(rows, size, path),
        context=column(rows, "kv_cache_size", path),
        seconds=column(rows, f"time_stats.{op}.median", path) * 1e-3,
    )


def read_link(data: Path) -> tuple[Floats, Floats] | None:
    """Return (bytes, seconds) of Vidur's send_recv between two ranks of one node."""
    path = _one(data / "prof-vidur", "a100_dgx__send_recv.csv*")
    if path is None:
        return None
    rows = [row for row in read_rows(path) if row.get("devices_per_node") == "2"]
    if not rows:
        raise BadInput(f"{path}: no rows with devices_per_node = 2")
    return column(rows, "size", path), column(rows, "time_stats.send_recv.median", path) * 1e-3


def read_splitwise(data: Path) -> ServedRuns | None:
    """Splitwise's prompt and token times on the A100 (e2e_time is not to be trusted), one row per setting."""
    path = _one(data / "prof-splitwise", "perf_model*.csv*")
    if path is None:
        return None
    rows = read_rows(path)
    keys = ("tensor_parallel", "prompt_size", "batch_size", "token_size", "prompt_time", "token_time")
    columns = [column(rows, key, path) for key in keys]
    samples: dict[tuple[str, float, float, float, float], list[float]] = {}
    for row, tp, prompt, batch, out, prompt_ms, token_ms in zip(rows, *columns, strict=True):
        if row["model"] == "llama2-70b" and tp == 2 and batch == 64:
            continue  # a failed point: 64 sequences do not fit beside 70e9 weights on two cards
        samples.setdefault((row["model"], tp, batch, prompt, 0.0), []).append(prompt_ms)
        samples.setdefault((row["model"], tp, batch, prompt, out), []).append(token_ms)
    models = {"llama2-70b": load_model("llama-2-70b"), "bloom-176b": BLOOM}
    found = sorted(key for key in samples if key[0] in models)
    table = np.array([key[1:] for key in found])  # (R, 4): tp, batch, prompt, output tokens
    return ServedRuns(
        models=tuple(models[key[0]] for key in found),
        tp=table[:, 0],
        batch=table[:, 1],
        prompt=table[:, 2],
        context=table[:, 2] + table[:, 3] / 2,
        steps=(table[:, 3] > 0).astype(np.float64),
        prefill=table[:, 3] == 0,
        seconds=np.array([float(np.median(samples[key])) for key in found]) * 1e-3,
    )


def read_argonne(data: Path, framework: str) -> ServedRuns | None:
    """Whole-run latencies of LLM-Inference-Bench on the A100: prompt and output of equal length, one row each."""
    path = _one(data / "prof-argonne", "All_results_A100.csv*")
    if path is None:
        return None
    rows = [row for row in read_rows(path) if row.get("Framework") == framework and row.get("Model") in ARGONNE_MODELS]
    if not rows:
        raise BadInput(f"{path}: no rows of {framework}")
    models = {name: load_model(key) for name, key in ARGONNE_MODELS.items()}
    length = column(rows, "Input Output Length", path)
    return ServedRuns(
        models=tuple(models[row["Model"]] for row in rows),
        tp=column(rows, "Num of Hardware", path),
        batch=column(rows, "Batch Size", path),
        prompt=length,
        context=1.5 * length,
        steps=length,
        prefill=np.ones(len(rows), dtype=np.bool_),
        seconds=column(rows, "Latency", path),
    )


def count_argonne(data: Path) -> dict[tuple[str, str], int]:
    """Rows of LLM-Inference-Bench on the A100 by framework and model, those that `read_argonne` leaves out too."""
    path = _one(data / "prof-argonne", "All_results_A100.csv*")
    counts: dict[tuple[str, str], int] = {}
    for row in read_rows(path) if path is not None else []:
        key = (row.get("Framework") or "", row.get("Model") or "")
        counts[key] = counts.get(key, 0) + 1
    return counts


def read_edge(data: Path) -> EdgeRun | None:
    """Decode of GGUF models with llama.cpp on a Jetson AGX Orin."""
    path = _one(data / "prof-edge-llamacpp", "jetson_agx_orin*.csv*")
    if path is None:
        return None
    rows = read_rows(path)
    parsed = [_gguf(row.get("model_name") or "", path) for row in rows]
    return EdgeRun(
        models=tuple(model for model, _ in parsed),
        bits=tuple(bits for _, bits in parsed),
        seconds=1.0 / column(rows, "tok_s_avg", path),
        power_w=column(rows, "power_avg_w", path),
    )


def _gguf(file_name: str, path: Path) -> tuple[Model, int]:
    """Model and weight bits of a GGUF file name: fine-tunes have the shape of their base model."""
    stem = file_name.lower().removesuffix(".gguf")
    for quantiser, bits in GGUF_BITS.items():
        if stem.endswith(quantiser):
            base = stem.removesuffix(quantiser).strip("-_")
            for part in ("meta-", "-instruct", "-coder"):
                base = base.replace(part, "")
            return load_model({"llama-3.1-8b": "llama-3-8b"}.get(base, base)), bits
    raise BadInput(f"{path}: model_name '{file_name}': ends with none of {', '.join(sorted(GGUF_BITS))}")


def _one(folder: Path, pattern: str) -> Path | None:
    return min(folder.glob(pattern), default=None)


def octave_weights(values: Floats) -> Floats:
    """Return weights that give each factor of two in `values` the same say; (R,), adding up to 1.

    Profilers sweep token counts evenly: without this, decode (few tokens) would have next to no say.
    """
    octave = np.floor(np.log2(np.maximum(values, 1.0))).astype(np.int64)
    counts = np.bincount(octave)
    return 1.0 / (counts[octave] * np.count_nonzero(counts))


def select(run: ServedRuns, keep: npt.NDArray[np.bool_]) -> ServedRuns:
    """Return the rows of `run` for which `keep` is true."""
    return take(run, np.flatnonzero(keep))


def take(run: ServedRuns, rows: npt.NDArray[np.int64], *, batch: Floats | None = None) -> ServedRuns:
    """Return the rows `rows` (G,) of `run`, any number of times each; with other batch sizes (G,) where given."""
    return ServedRuns(
        models=tuple(run.models[row] for row in rows.tolist()),
        tp=run.tp[rows],
        batch=run.batch[rows] if batch is None else batch,
        prompt=run.prompt[rows],
        context=run.context[rows],
        steps=run.steps[rows],
        prefill=run.prefill[rows],
        seconds=run.seconds[rows],
    )
