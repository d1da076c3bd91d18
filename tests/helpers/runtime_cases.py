"""Small models with seeded weights for the tests of the runtime, whole or a checkpoint; the unsplit reference."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from cosched.runtime.engine import HostLimits
from cosched.runtime.host import LayerHost
from cosched.runtime.kv import KvCache
from cosched.runtime.model import ModelSource, open_model
from cosched.runtime.parts import Part

LAYERS, HIDDEN, VOCAB, SEED = 6, 64, 256, 7
COMMON = {
    "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": 8, "num_key_value_heads": 2,
    "intermediate_size": 160, "vocab_size": VOCAB, "max_position_embeddings": 1024, "rms_norm_eps": 1e-6,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "tie_word_embeddings": False},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "tie_word_embeddings": True, "head_dim": 16},
}
PROMPT = [(31 * i * i + 7 * i + 3) % VOCAB for i in range(37)]
CHUNK = 16

torch.set_num_threads(1)  # results of a matrix product may differ in the last bit with the number of threads


def write_config(folder: Path, family: str, **other: object) -> Path:
    path = folder / f"{family}.json"
    path.write_text(json.dumps(COMMON | FAMILIES[family] | other))
    return path


def seeded(folder: Path, family: str = "llama", **other: object) -> ModelSource:
    return open_model(write_config(folder, family, **other), seed=SEED, name=family)


def transformers_model(source: ModelSource) -> Any:  # noqa: ANN401
    """Return the same model as transformers builds it, whole."""
    model = AutoModelForCausalLM.from_config(source.config, dtype=torch.float32, attn_implementation="sdpa").eval()
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if source.sizes.tied:
        del shapes["lm_head.weight"]
    model.load_state_dict(source.weights.read(shapes), strict=not source.sizes.tied)
    model.tie_weights()
    return model


def checkpoint(source: ModelSource, folder: Path, shard: str = "10GB") -> Path:
    transformers_model(source).save_pretrained(folder, max_shard_size=shard)
    return folder


def chunks(tokens: list[int], size: int = CHUNK) -> list[list[int]]:
    return [tokens[i : i + size] for i in range(0, len(tokens), size)]


def reference_steps(source: ModelSource, n_tokens: int, prompt: list[int] = PROMPT) -> list[torch.Tensor]:
    """Logits of transformers' own model, unsplit: after the chunked prompt, then after each greedy token."""
    model, past, found = transformers_model(source), None, []
    steps = chunks(prompt)
    while len(found) < n_tokens:
        with torch.inference_mode():
            out = model(torch.tensor([steps.pop(0)]), past_key_values=past, use_cache=True, logits_to_keep=1)
        past = out.past_key_values
        if not steps:
            found.append(out.logits[0, -1])
            steps = [[int(found[-1].argmax())]]
    return found


@cache
def reference_tokens(folder: Path, family: str, n_tokens: int) -> list[int]:
    return [int(logits.argmax()) for logits in reference_steps(seeded(folder, family), n_tokens)]


def reference_tokens_of(source: ModelSource, n_tokens: int) -> list[int]:
    return [int(logits.argmax()) for logits in reference_steps(source, n_tokens)]


def split_steps(source: ModelSource, splits: tuple[int, ...], n_tokens: int) -> list[torch.Tensor]:
    """Compute the same in parts that hold their own layers only, cut at `splits`, in this process."""
    bounds = (0, *splits, source.n_layers)
    parts = []
    for start, stop in itertools.pairwise(bounds):
        part = Part(source)
        part.load(start, stop)
        parts.append((part, KvCache(), start, stop))
    found: list[torch.Tensor] = []
    steps = chunks(PROMPT)
    while len(found) < n_tokens:
        hidden = parts[0][0].embed(steps.pop(0))
        for part, kv, start, stop in parts:
            hidden = part.run(hidden, kv, start, stop)
        if not steps:
            found.append(parts[-1][0].logits(hidden[:, -1:])[0, -1])
            steps = [[int(found[-1].argmax())]]
    return found


class HostProcess:
    """`cosched host` in a process of its own, with a tiny model of each family. limits: NAME=VALUE."""

    def __init__(self, folder: Path, name: str, *limits: str, stderr: int | None = None) -> None:
        models = [f"--model={family}={write_config(folder, family)}" for family in FAMILIES]
        command = [sys.executable, "-m", "cosched.cli.main", "host", "--node", name, "--seed", str(SEED)]
        self.process = subprocess.Popen(
            [*command, "--threads", "1", "--bind", "tcp://127.0.0.1:0", *models, *[f"--limit={one}" for one in limits]],
            stdout=subprocess.PIPE, stderr=stderr, text=True,
        )  # fmt: skip

    def endpoint(self) -> str:
        """Wait until it is ready."""
        assert self.process.stdout is not None
        found = self.process.stdout.readline().strip()
        assert found.startswith("tcp://"), "the host did not start"
        return found

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


@contextmanager
def host_threads(source: ModelSource, count: int = 2, limits: HostLimits | None = None) -> Iterator[list[LayerHost]]:
    """Hosts in this process, on real sockets, with all layers loaded."""
    running = [LayerHost(f"edge{i}", [source], bind=["tcp://127.0.0.1:0"], limits=limits) for i in range(count)]
    for host in running:
        host.start()
        host.load(source.name, 0, source.n_layers)
    try:
        yield running
    finally:
        for host in running:
            host.stop()
