"""A slow device and a slow uplink change times and nothing else; the demo's reference is the model in one piece."""

from __future__ import annotations

import functools
import time
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the extra [llm] is not installed")

import runtime_cases as cases
import torch

from cosched.demo import reference
from cosched.demo.reference import UNROUNDED, ReferenceStep
from cosched.profiles import latency
from cosched.profiles.device import load_device
from cosched.runtime.chain import Hop, Links, Route
from cosched.runtime.emulated import SlowLink, SlowPart
from cosched.runtime.generation import Generation
from cosched.runtime.kv import KvCache
from cosched.runtime.model import ModelSource, open_model
from cosched.runtime.move import MIGRATED, RECOMPUTED, MoveCosts
from cosched.runtime.parts import Part
from cosched.runtime.weights import write_checkpoint

L = cases.LAYERS
CPU_BITS = 16
DEAR_LINKS = MoveCosts(up_bps=1e-3, down_bps=1e-3, peer_bps=1e-3, device_layer_s=1e-9, node_layer_s=1e-9)


def whole(source: ModelSource) -> Part:
    part = Part(source)
    part.load(0, L)
    return part


def test_a_slow_part_takes_its_devices_time_and_computes_the_same(tmp_path: Path) -> None:
    source, phone = cases.seeded(tmp_path), load_device("phone")
    slow = SlowPart(source, phone, CPU_BITS)
    slow.load(0, L)
    caches = KvCache(), KvCache()
    for tokens in (cases.PROMPT, [1], [2]):
        model_s = latency.prefill_layer_s if len(tokens) > 1 else latency.decode_layer_s
        sizes = (float(len(tokens)), float(caches[0].length)) if len(tokens) > 1 else (float(caches[0].length),)
        least_s = L * model_s(source.sizes, phone, *sizes, CPU_BITS)  # type: ignore[operator]
        hidden = slow.embed(tokens)
        began_s = time.perf_counter()
        found = slow.run(hidden, caches[0], 0, L)
        assert time.perf_counter() - began_s >= least_s
        assert torch.equal(found, whole(source).run(hidden, caches[1], 0, L))


def test_a_slow_link_takes_as_long_as_the_bytes_do(tmp_path: Path) -> None:
    source, rate_bps, frame_bytes, steps = cases.seeded(tmp_path), 2e5, 50.0, 3
    with cases.host_threads(source, 1) as (host,):
        links = Links(connect=functools.partial(SlowLink, lambda: rate_bps, frame_bytes))
        run = Generation(Part(source), "t", cases.PROMPT, Route(2, (Hop(host.endpoint, L),), 16), links)
        began_s = time.perf_counter()
        for _ in range(steps):
            run.advance()
        took_s = time.perf_counter() - began_s
        run.close()
        links.close()
    sent_bytes = steps * frame_bytes + (len(cases.PROMPT) + steps - 1) * 2 * cases.HIDDEN
    assert took_s >= 8 * sent_bytes / rate_bps


def test_a_checkpoint_written_from_a_seed_is_the_seeds(tmp_path: Path) -> None:
    source = cases.seeded(tmp_path)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    write_checkpoint(folder, whole(source).tensors())
    (folder / "config.json").write_bytes((tmp_path / "llama.json").read_bytes())
    again = whole(open_model(folder)).tensors()
    drawn = whole(source).tensors()
    assert set(again) == set(drawn)
    assert all(torch.equal(again[name], tensor) for name, tensor in drawn.items())


def test_unrounded_the_reference_is_transformers_own_model(tmp_path: Path) -> None:
    source = cases.seeded(tmp_path)
    expected = cases.reference_tokens(tmp_path, "llama", 40)
    for split in (0, 2, L):
        assert (
            reference.tokens(whole(source), cases.PROMPT, [ReferenceStep(split, UNROUNDED, anew=False)] * 40)
            == expected
        )


def test_rounded_the_reference_is_what_a_split_generation_gives_through_moves(tmp_path: Path) -> None:
    """8 and 4 bit round where the split is, so the tokens are others; migrated and recomputed KV differ too."""
    source = cases.seeded(tmp_path)
    with cases.host_threads(source, 2) as hosts:
        here, there = (Hop(host.endpoint, L) for host in hosts)
        links, steps = Links(), []
        run = Generation(Part(source), "t", cases.PROMPT, Route(4, (here,), 8), links)
        moves = {10: (Route(2, (there,), 4), None), 20: (Route(5, (here,), 4), DEAR_LINKS)}
        seen = []
        for done in range(30):
            if done in moves:
                seen.append(run.resplit(*moves[done]).how)
            run.advance()
            steps.append(ReferenceStep(run.route.split, run.route.precision_bits, anew=done == 20))
        run.close()
        links.close()
    assert seen == [MIGRATED, RECOMPUTED]
    assert reference.tokens(whole(source), cases.PROMPT, steps) == run.output
    assert reference.equal_from_start(run.output, cases.reference_tokens(tmp_path, "llama", 30)) < 30
