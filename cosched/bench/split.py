"""Suite `split`: what running an LLM split costs on one machine, and what activation precision does to its answers.

Overhead: a seeded model of 290 MB, unsplit and with its upper half in a host process on loopback, a token of each in
turn, so that both see the same machine. What the claim allows beside is one round trip of a message as long as a
step's, to a host that was idle for as long as it is between two steps. Precision: a small seeded model, error of the
logits and greedy tokens by split layer (docs/runtime.md; models that were trained: docs/quality.md).
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cosched.bench.model import BenchRow, ModelClaim, Result, spread
from cosched.errors import BadInput
from cosched.runtime.extra import prepare

if TYPE_CHECKING:
    from cosched.runtime.chain import Hop, Links

SUITE: Final = "split"
SEED: Final = 1
ALLOWED: Final = 1.1  # of the unsplit time per token, beside one round trip
TOKENS: Final = 40  # a seed, of each subject
PROMPT: Final = 32
ANSWER: Final = 200  # tokens of which precision is judged
BITS: Final = (16, 8, 4)
_FAMILY: Final = {"model_type": "llama", "max_position_embeddings": 4096, "tie_word_embeddings": True}
LARGE: Final = _FAMILY | {
    "hidden_size": 768, "num_hidden_layers": 10, "num_attention_heads": 12, "num_key_value_heads": 4,
    "intermediate_size": 2048, "vocab_size": 8192,
}  # fmt: skip
SMALL: Final = _FAMILY | {
    "hidden_size": 128, "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 2,
    "intermediate_size": 352, "vocab_size": 512, "tie_word_embeddings": False,
}  # fmt: skip  # with tied embeddings a model without training repeats its last token, whatever the error


def run(*, seeds: int, progress: Callable[[float], None]) -> Result:
    """Milliseconds per token split and unsplit; error of the logits and tokens that stay, by split and precision."""
    prepare(threads=1)
    with tempfile.TemporaryDirectory() as folder:
        rows, claim = _overhead(Path(folder), seeds)
        progress(0.5)
        judged = Judged()
        for seed in range(seeds):
            judged.add(Path(folder), seed)
            progress(0.5 + 0.5 * (seed + 1) / seeds)
    return Result(rows=rows + judged.rows(), claims=[claim], sweeps=[])


def write_config(folder: Path, name: str, config: dict[str, object]) -> Path:
    """Write a model's configuration."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps(config))
    return path


def _overhead(folder: Path, seeds: int) -> tuple[list[BenchRow], ModelClaim]:
    """Return rows of ms per token and round trip, and the claim on their ratio."""
    from cosched.runtime.chain import Hop, Links, Route
    from cosched.runtime.generation import Generation
    from cosched.runtime.model import open_model
    from cosched.runtime.parts import Part

    config = write_config(folder, "large", LARGE)
    source = open_model(config, seed=SEED)
    n_layers, half, links = source.n_layers, source.n_layers // 2, Links()
    layers = f"{config.stem}:{half}:{LARGE['num_hidden_layers']}"
    with host_process(config, SEED, "--layers", layers) as endpoint:
        prompt = [i % source.sizes.vocab for i in range(1, PROMPT + 1)]
        part = Part(source)
        routes = {"unsplit": Route(n_layers), "split": Route(half, (Hop(endpoint, n_layers),), 32)}
        runs = {name: Generation(part, name, prompt, route, links) for name, route in routes.items()}
        ping = _ping(links, routes["split"].hops[0], 4 * source.sizes.hidden)
        times = _in_turn({name: run.advance for name, run in runs.items()} | {"round trip": ping}, seeds * TOKENS)
        if runs["unsplit"].output != runs["split"].output:
            raise BadInput("the split run's tokens differ from the unsplit run's: are both of one version?")
        for generation in runs.values():
            generation.close()
        links.close()
    rows = [_row("290 MB, fp32", subject, "token_ms", [1e3 * t for t in some]) for subject, some in times.items()]
    rounds = zip(times["unsplit"], times["split"], times["round trip"], strict=True)
    reached = statistics.median((ALLOWED * unsplit + trip) / split for unsplit, split, trip in rounds)
    return rows, ModelClaim(text="1.10 x unsplit + round trip, over split", reached=reached, asked=1.0)


@contextmanager
def host_process(config: Path, seed: int, *options: str) -> Iterator[str]:
    """Run a host of one thread with a seeded model, all its layers but for options; yield its endpoint."""
    command = [sys.executable, "-m", "cosched.cli.main", "host", "--model", str(config), "--seed", str(seed)]
    command += ["--threads", "1", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603  # this program itself
    try:
        endpoint = process.stdout.readline().strip() if process.stdout else ""
        if not endpoint:
            raise BadInput("the host process did not start; try 'cosched host' by hand")
        yield endpoint
    finally:
        process.terminate()
        process.communicate()


def _in_turn(subjects: dict[str, Callable[[], object]], count: int) -> dict[str, list[float]]:
    """Seconds of each call of each subject, one after the other; the first calls (the prefill) are not counted."""
    times: dict[str, list[float]] = {name: [] for name in subjects}
    for call in subjects.values():
        call()
    for _ in range(count):
        for name, call in subjects.items():
            began = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - began)
    return times


def _ping(links: Links, hop: Hop, n_bytes: int) -> Callable[[], object]:
    """Return what sends a host a frame of a step's length, with nothing to do, and waits for its answer."""
    from cosched.runtime.protocol import Look

    frame = bytes(n_bytes)
    return lambda: links.to(hop).ask(Look(), [frame])


class Judged:
    """Deviations by split and precision, over models of several seeds."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str, str], list[float]] = {}

    def add(self, folder: Path, seed: int) -> None:
        """Judge the small model of one seed at all splits."""
        from cosched.runtime.model import open_model
        from cosched.runtime.precision import deviations

        source = open_model(write_config(folder, "small", SMALL), seed=seed)
        prompt = [(seed + 17 * i) % source.sizes.vocab for i in range(PROMPT)]
        for found in deviations(source, prompt, ANSWER, range(1, source.n_layers), BITS):
            case, subject = f"k={found.split}", f"{found.bits} bit"
            for figure, values in (
                ("logit_error_percent", [100 * error for error in found.logit_error]),
                ("same_next_of_200", [float(found.same_next)]),
                ("same_run_of_200", [float(found.same_run)]),
            ):
                self._found.setdefault((case, subject, figure), []).extend(values)

    def rows(self) -> list[BenchRow]:
        """One row for each split, precision and figure."""
        return [_row(case, subject, figure, values) for (case, subject, figure), values in self._found.items()]


def _row(case: str, subject: str, figure: str, values: list[float]) -> BenchRow:
    p50, p99, mean = spread(values)
    return BenchRow(suite=SUITE, case=case, subject=subject, figure=figure, p50=p50, p99=p99, n=len(values), value=mean)
