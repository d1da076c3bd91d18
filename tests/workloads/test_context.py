"""What is read once per site: profiles, devices of UEs, memory of nodes, quality table."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from workload_cases import SESSION, offer, quality, shipped

from cosched.errors import BadInput
from cosched.profiles import quant
from cosched.resources import config_dir, config_file
from cosched.site import DeviceShare, ModelRef, Site, Transport, Ues, load_site
from cosched.workloads import llm, registry
from cosched.workloads.base import pipelined_s
from cosched.workloads.context import load_profiles, session_memory_bytes
from cosched.workloads.quality import load_quality
from telemetry.messages import LlmSession

NODE_BOUND = shipped("node-bound")
TOOL = Path(__file__).resolve().parents[2] / "tools" / "measure_activation_quality.py"


def changed(site: Site, **changes: object) -> Site:
    return msgspec.structs.replace(site, **changes)


def test_contexts_differ_by_device_and_cell() -> None:
    cells = (NODE_BOUND.site.cells[0], msgspec.structs.replace(NODE_BOUND.site.cells[0], id="far", one_way_s=0.05))
    profiles = load_profiles(changed(NODE_BOUND.site, cells=cells))
    near, far = (registry.points(offer(SESSION), profiles.context_of(0, cell)) for cell in (0, 1))
    kept = [near.point_ids.index(name) for name in far.point_ids]
    farther_s = far.fixed_s - near.fixed_s[kept]
    away = far.node >= 0
    assert farther_s[away, 0] == pytest.approx(np.full(away.sum(), 2 * (0.05 - 0.012)))
    asks = (away & (far.split > 0)).astype(float)  # at k = 0 tokens stream down: none waits for a round trip
    assert farther_s[:, 1] == pytest.approx(asks * 2 * (0.05 - 0.012))
    assert asks.any()
    assert not asks.all()
    assert profiles.context_of(0, 1) is profiles.context_of(0, 1)
    assert [profiles.context_of(share, 0).device.key for share in range(3)] == ["phone", "jetson", "laptop"]


def test_node_memory_is_the_slice_less_the_weights() -> None:
    """8B at 4 bit on a quarter of 80 GB: layers at 4.156 bits, embedding and head at 16 (cosched/profiles/quant.py)."""
    weights = 32 * (218_103_808 * (4 + 20 / 128) / 8 + 2 * 2 * 4096) + 2 * 128_256 * 4096 * 2 + 2 * 4096
    assert session_memory_bytes(NODE_BOUND) == pytest.approx([20e9 - weights])
    node = msgspec.structs.replace(NODE_BOUND.site.nodes[0], memory_bytes=1e9)
    assert session_memory_bytes(load_profiles(changed(NODE_BOUND.site, nodes=(node,)))).tolist() == [1e9]


@given(st.floats(0.05, 1.0), st.floats(0.0, 0.01))
def test_memory_of_placed_nodes_grows_with_their_slice_and_never_in_jumps(fraction: float, more: float) -> None:
    def bytes_of(part: float) -> float:
        node = msgspec.structs.replace(NODE_BOUND.site.nodes[0], fraction=part)
        profiles = dataclasses.replace(NODE_BOUND, site=changed(NODE_BOUND.site, nodes=(node,)))
        return float(session_memory_bytes(profiles, placed=True)[0])

    whole = NODE_BOUND.node_devices[0].memory_bytes
    assert bytes_of(fraction) >= 0.2 * fraction * whole * (1 - 1e-9)
    assert -1.0 <= bytes_of(fraction + more) - bytes_of(fraction) <= more * whole + 1.0


def test_weights_that_do_not_fit_are_refused() -> None:
    node = msgspec.structs.replace(NODE_BOUND.site.nodes[0], fraction=0.05)
    with pytest.raises(BadInput, match=r"edge0: the models' weights take 5\.\d GB of 4\.0 GB"):
        session_memory_bytes(load_profiles(changed(NODE_BOUND.site, nodes=(node,))))


@pytest.mark.parametrize(
    ("ref", "says"),
    [
        (ModelRef(id="m", config="llama-3-8b", activation_bits=(16, 6)), "activation_bits 6: quality was measured at"),
        (ModelRef(id="m", config="llama-3-8b", weight_bits=3), "weight_bits = 3"),
        (ModelRef(id="m", config="no-such-model"), "no-such-model"),
    ],
)
def test_models_that_cannot_be_served_are_refused_at_load(ref: ModelRef, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        load_profiles(changed(NODE_BOUND.site, models=(ref,)))


def test_unknown_device_is_refused() -> None:
    ues = Ues(count=1, devices=(DeviceShare(device="toaster", share=1.0),))
    with pytest.raises(BadInput, match=r"toaster.*there are: .*phone"):
        load_profiles(changed(NODE_BOUND.site, ues=ues))


def test_every_shipped_site_loads() -> None:
    for path in sorted((config_dir() / "sites").glob("*.toml")):
        profiles = shipped(path.stem)
        assert (session_memory_bytes(profiles) > 0).all()


def test_quality_handed_in_is_used() -> None:
    profiles = load_profiles(NODE_BOUND.site, quality(bits16=1.0, bits8=0.7, bits4=0.1))
    table = registry.points(offer(SESSION), profiles.context_of(0, 0))
    assert set(table.quality.tolist()) == {1.0, 0.7, 0.1}


def test_shipped_quality_is_measured_with_what_is_sent() -> None:
    """The bits per value of the measured schemes are those that the profiles charge the air with."""
    table = load_quality().activation
    assert sorted(table) == [4, 8, 16]
    for bits, entry in table.items():
        assert entry.wire_bits_per_value == quant.activation_bytes(4096, bits) * 8 / 4096
        assert entry.guess
        assert "measure_activation_quality.py" in entry.source
    assert table[4].value + table[4].ci95 < table[8].value - table[8].ci95  # or 4 bit would always be chosen
    assert table[8].value <= table[16].value <= 1


ENTRY = '{ value = 1.0, ci95 = 0.0, wire_bits_per_value = 16, scheme = "s", source = "s", guess = "" }'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("v = 1\nactivation = {", "quality.toml"),
        ("v = 2\nactivation = {}", "this version reads v = 1"),
        ("v = 1", "missing required field `activation`"),
        (f"v = 1\nactivation.8 = {ENTRY.replace('1.0', '1.2')}", "<= 1"),
        (f"v = 1\nactivation.8 = {ENTRY.replace('1.0', 'nan')}", ">= 0.0"),
        (f"v = 1\nactivation.8 = {ENTRY.replace('16', 'inf')}", "<= 32"),
        (f"v = 1\nactivation.x = {ENTRY}", "Expected `int`"),
        (f"v = 1\nactivation.8 = {ENTRY.replace('scheme', 'schema')}", "schema"),
    ],
)
def test_wrong_quality_files_are_refused_in_one_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "quality.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BadInput) as caught:
        load_quality(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_quality_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"none\.toml: No such file"):
        load_quality(tmp_path / "none.toml")


def test_measuring_tool_explains_itself_without_torch() -> None:
    done = subprocess.run([sys.executable, TOOL, "--help"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert "config/quality.toml" in done.stdout


@pytest.mark.parametrize(("new", "messages"), [(1, 1), (64, 1), (65, 2), (500, 8)])
def test_the_transport_adds_framing_and_headers_to_what_crosses_the_air(new: int, messages: int) -> None:
    site = load_site(config_file("sites", "node-bound.toml"))
    framed = msgspec.structs.replace(site, transport=Transport(chunk_tokens=64, message_bytes=100.0, overhead=0.04))
    work = LlmSession(
        model="llama-3-8b", context_tokens=0, new_tokens=new, max_output_tokens=10, ttft_s=9.0, tpot_s=9.0
    )
    plain, added = (llm.all_points(offer(work), load_profiles(s).context_of(0, 0)) for s in (site, framed))
    away = plain.node >= 0
    assert added.point_ids == plain.point_ids
    asks = (plain.split[away] > 0).astype(float)  # who sends something at every token
    expected = 1.04 * plain.ul_bits[away] + 800.0 * np.stack([np.full(away.sum(), messages), asks], axis=1)
    np.testing.assert_allclose(added.ul_bits[away], expected, rtol=1e-12)
    assert (added.ul_bits[~away] == 0).all()


@pytest.mark.parametrize(
    ("chunks", "stages_s", "expected_s"),
    [
        ((1.0,), (1.0, 2.0, 3.0), 6.0),
        ((0.5, 0.5), (1.0, 2.0, 3.0), 0.5 + 1.0 + 3.0),  # the last stage never waits once it has begun
        ((0.25,) * 4, (8.0, 4.0, 4.0), 8.0 + 1.0 + 1.0),
        ((0.75, 0.25), (0.0, 0.0, 2.0), 2.0),
    ],
)
def test_chunks_overlap_in_the_stages_that_they_pass(
    chunks: tuple[float, ...], stages_s: tuple[float, ...], expected_s: float
) -> None:
    assert pipelined_s(chunks, stages_s) == pytest.approx(expected_s)


@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=9), st.lists(st.floats(0.0, 10.0), min_size=3, max_size=3))
def test_a_pipeline_takes_between_its_longest_stage_and_all_of_them(sizes: list[float], stages_s: list[float]) -> None:
    chunks = tuple(size / sum(sizes) for size in sizes)
    took_s = pipelined_s(chunks, stages_s)
    assert max(stages_s) - 1e-9 <= took_s <= sum(stages_s) + 1e-9
