"""LLM operating points: the toy model worked out by hand, and properties of the real profiles."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from workload_cases import CLIP, SESSION, TOY, offer, plain_host, shipped, toy_context

from cosched.errors import BadInput
from cosched.profiles import latency
from cosched.workloads import llm, registry
from cosched.workloads.base import LOCAL, PointTable

TOY_SESSION = msgspec.structs.replace(SESSION, model="toy", context_tokens=3, new_tokens=2, max_output_tokens=10)

# The toy's layer: 8 x (2 x 8 + 2 x 4) + 3 x 8 x 16 = 576 elements; 1152 FLOP a token; 1152 bytes at 16 bit.
PREFILL_LAYER_S = 0.005 + 4 * 8 * 2 * (3 + 2) / 576e3  # hypot(3 ms, 4 ms) + attention of 2 tokens on 5
CONTEXT = 3 + 2 + 10 / 2  # tokens that the middle output token attends to
KV_READ_S = CONTEXT * 2 * 4 * 2 / 384e3  # keys and values, one head of 4 elements, 2 bytes each
DECODE_LAYER_S = math.hypot(0.003, 0.002) + KV_READ_S
HEAD_S = math.hypot(512 / 384e3, 512 / 576e3)  # 32 x 8 elements
EMBED_S = 2 * 2 * 8 / 384e3  # one row of 8 elements read and written

NODE_BOUND = shipped("node-bound")
URBAN = shipped("urban-llm")
PHONE, JETSON, LAPTOP = range(3)


def row(table: PointTable, name: str) -> int:
    return table.point_ids.index(name)


def test_toy_points_are_those_that_exist() -> None:
    table = llm.all_points(offer(TOY_SESSION), toy_context())
    networked = ["k=0/edge0", *(f"k={k}/{bits}bit/edge0" for k in (1, 2, 3) for bits in (16, 8))]
    assert table.point_ids == (*networked, "local")
    assert table.split.tolist() == [0, 1, 1, 2, 2, 3, 3, 4]
    assert table.precision_bits.tolist() == [0, 16, 8, 16, 8, 16, 8, 0]
    assert table.node.tolist() == [0] * 7 + [LOCAL]
    assert table.quality.tolist() == [1.0, 0.999, 0.9, 0.999, 0.9, 0.999, 0.9, 1.0]
    assert table.deadline_s.tolist() == [2.0, 0.2]
    assert table.rate_hz.tolist() == [0.5, 5.0]


def test_toy_split_at_three_by_hand() -> None:
    table = llm.all_points(offer(TOY_SESSION), toy_context())
    j = row(table, "k=3/16bit/edge0")
    assert table.device_s[j] == pytest.approx([3 * PREFILL_LAYER_S + 2 * EMBED_S, 3 * DECODE_LAYER_S + EMBED_S])
    assert table.ul_bits[j].tolist() == [2 * 8 * 16, 8 * 16]
    # The node is ten times as fast; one of its layers and the head. A decode step: 3 ms / 10 and the head are read once
    # for all sequences in it, each adds its arithmetic (2 ms / 10) and its cache.
    shared_s = (0.003 + 512 / 384e3) / 10
    own_s = (0.002 + KV_READ_S + HEAD_S - 512 / 384e3) / 10
    prefill_s = (PREFILL_LAYER_S + HEAD_S) / 10
    assert table.steps[j] == pytest.approx([shared_s, own_s])
    assert table.node_s[j].tolist() == [pytest.approx(prefill_s), 0.0]
    assert table.least_s[j] == pytest.approx([prefill_s, shared_s + own_s])
    assert table.alone_s is not None
    assert table.alone_s[j] == pytest.approx([prefill_s, shared_s + own_s])
    assert table.fixed_s[j] - table.device_s[j] == pytest.approx([0.006, 0.006])
    assert table.node_bytes[j] == (3 + 2 + 10) * 2 * 4 * 2
    assert table.device_energy_j[j] == pytest.approx(10.0 * table.device_s[j])


def test_toy_ends_by_hand() -> None:
    table = llm.all_points(offer(TOY_SESSION), toy_context(one_way_s=0.05))
    whole, local = row(table, "k=0/edge0"), row(table, "local")
    assert table.ul_bits[whole].tolist() == [64.0, 0.0]  # the prompt's tokens; the node knows its own
    assert table.device_s[whole].tolist() == [0.0, 0.0]
    assert table.fixed_s[whole] == pytest.approx([2 * (0.003 + 0.05), 0.0])  # a token waits for nobody's answer
    assert table.node_s[whole, 0] == pytest.approx((4 * PREFILL_LAYER_S + HEAD_S + 2 * EMBED_S) / 10)
    shared_s = 4 * 0.003 + 512 / 384e3
    own_s = 4 * (0.002 + KV_READ_S) + HEAD_S - 512 / 384e3 + EMBED_S
    assert table.steps[whole] == pytest.approx([shared_s / 10, own_s / 10])
    expected = [4 * PREFILL_LAYER_S + HEAD_S + 2 * EMBED_S, 4 * DECODE_LAYER_S + HEAD_S + EMBED_S]
    assert table.fixed_s[local] == pytest.approx(expected)
    for column in (table.ul_bits, table.node_s, table.node_bytes, table.steps):
        assert not column[local].any()


def test_host_terms_are_those_of_a_served_step() -> None:
    host = plain_host(layer_s=2e-3, sequence_s=1e-4, prompt_token_s=1e-5)
    bare = llm.all_points(offer(TOY_SESSION), toy_context())
    table = llm.all_points(offer(TOY_SESSION), toy_context(host=host))
    j = row(table, "k=2/8bit/edge0")
    floor_s = 2 * 2e-3
    step_s = (bare.least_s[j] ** 4 + floor_s**4) ** 0.25 + 1e-4 + np.array([2 * 1e-5, 0.0])
    assert table.least_s[j] == pytest.approx(step_s)
    assert table.steps[j, 1] == pytest.approx(bare.steps[j, 1] + 1e-4)  # the launch floor is of what all share
    assert "edge: host terms of Host" in table.guess


def test_a_sequence_adds_its_own_host_term_and_the_launches_are_shared() -> None:
    bare = llm.all_points(offer(TOY_SESSION), toy_context())
    sequence = llm.all_points(offer(TOY_SESSION), toy_context(host=plain_host(0.0, 1e-3, 0.0)))
    launches = llm.all_points(offer(TOY_SESSION), toy_context(host=plain_host(1e-2, 0.0, 0.0)))
    rows = bare.node != LOCAL
    assert sequence.node_s[rows, 0] == pytest.approx(bare.node_s[rows, 0] + 1e-3)
    assert sequence.steps[rows, 0] == pytest.approx(bare.steps[rows, 0])
    assert sequence.steps[rows, 1] == pytest.approx(bare.steps[rows, 1] + 1e-3)
    assert ((launches.steps - bare.steps)[rows, 0] > 1e-3).all()
    assert launches.steps[rows, 1] == pytest.approx(bare.steps[rows, 1])
    for table in (sequence, launches):
        assert table.fixed_s == pytest.approx(bare.fixed_s)
        assert not table.node_s[:, 1].any()


@pytest.mark.parametrize(("batch", "most"), [(1, 1.1), (2, 1.1), (16, 1.35), (64, 1.35)])
def test_a_step_of_any_batch_is_close_to_the_calibrated_one(batch: int, most: float) -> None:
    """Shared part plus own parts bounds latency.decode_layer_s of a batch from above, and not by much."""
    context = NODE_BOUND.context_of(PHONE, 0)
    table = llm.all_points(offer(SESSION), context)
    model, (node,), (device,) = context.models["llama-3-8b"].model, context.site.nodes, context.node_devices
    for k in (0, 8):
        layer_s = latency.decode_layer_s(model, device, 800 + 100 + 150.0, 4, batch, fraction=node.fraction)
        gpu_s = (32 - k) * layer_s + latency.head_s(model, device, 4, batch, node.fraction)
        step_s = latency.served_step_s(gpu_s, context.node_hosts[0], 32 - k, batch)
        j = int(np.flatnonzero(table.split == k)[0])
        shared_s, own_s = table.steps[j]
        assert step_s <= shared_s + batch * own_s <= most * step_s


def test_a_step_shares_more_than_a_sequence_adds_and_only_where_somebody_decodes() -> None:
    table = llm.all_points(offer(SESSION), URBAN.context_of(PHONE, 0))
    away = table.node != LOCAL
    assert (table.steps[away, 0] > table.steps[away, 1]).all()
    assert (table.steps[away, 1] > 0).all()
    assert not table.steps[~away].any()


sessions = st.builds(
    lambda **changes: msgspec.structs.replace(SESSION, **changes),
    context_tokens=st.integers(0, 20_000),
    new_tokens=st.integers(1, 4_000),
    max_output_tokens=st.integers(1, 2_000),
    ttft_s=st.floats(0.05, 5),
    tpot_s=st.floats(0.02, 0.5),
    private=st.booleans(),
)
devices = st.integers(0, 2)


@given(sessions, devices)
@settings(max_examples=60, deadline=None)
def test_privacy_memory_and_deadlines_are_respected(session: object, share: int) -> None:
    assert isinstance(session, type(SESSION))
    context = URBAN.context_of(share, 0)
    table = llm.points(offer(session), context)
    assert (table.split >= (1 if session.private else 0)).all()
    assert (table.split <= (context.max_layers or 32)).all()
    assert (table.fixed_s <= table.deadline_s).all()
    assert ((table.split == 32) == (table.node == LOCAL)).all()
    assert ((table.precision_bits == 0) == ((table.split == 0) | (table.node == LOCAL))).all()
    assert all(np.isfinite(column).all() for column in (table.fixed_s, table.ul_bits, table.node_s, table.quality))


@given(sessions, st.floats(1e8, 2e10))
@settings(max_examples=60, deadline=None)
def test_memory_holds_weights_embedding_and_cache(session: object, memory_bytes: float) -> None:
    assert isinstance(session, type(SESSION))
    base = NODE_BOUND.context_of(LAPTOP, 0)
    device = msgspec.structs.replace(base.device, memory_bytes=memory_bytes)
    table = llm.all_points(offer(session), dataclasses.replace(base, device=device))
    tokens = session.context_tokens + session.new_tokens + session.max_output_tokens
    layer = 218_103_808 * 4.85 / 8 + 2 * 8192 + 4096 * tokens  # docs/profiles.md: KV bytes of a token and layer
    embedding, head, norm = 128_256 * 4096 * 4.5 / 8, 128_256 * 4096 * 6.56 / 8, 2 * 4096
    most = min(int((memory_bytes - embedding - norm) / layer), 31) if memory_bytes > embedding + norm else 0
    networked = table.split[table.node != LOCAL]
    assert networked.max(initial=0) == most
    assert (LOCAL in table.node) == (32 * layer + embedding + head + norm <= memory_bytes)


@given(sessions, devices)
@settings(max_examples=40, deadline=None)
def test_more_layers_on_the_device_is_less_on_the_node(session: object, share: int) -> None:
    assert isinstance(session, type(SESSION))
    table = llm.all_points(offer(session), URBAN.context_of(share, 0))
    for node in range(3):
        for bits in (16, 8, 4):
            rows = np.flatnonzero((table.node == node) & (table.precision_bits == bits))
            assert (np.diff(table.split[rows]) == 1).all()
            assert (np.diff(table.device_s[rows], axis=0) > 0).all()
            assert (np.diff(table.node_s[rows, 0]) < 0).all()
            assert (np.diff(table.steps[rows], axis=0) < 0).all()
            assert not table.node_s[rows, 1].any()
            assert (np.diff(table.node_bytes[rows]) < 0).all()
            assert (np.diff(table.ul_bits[rows], axis=0) == 0).all()


def test_cloud_is_a_far_node() -> None:
    table = llm.all_points(offer(SESSION), URBAN.context_of(PHONE, 0))
    edge, cloud = row(table, "k=0/edge0"), row(table, "k=0/cloud0")
    assert table.fixed_s[edge, 0] == pytest.approx(0.02)
    assert table.fixed_s[cloud, 0] == pytest.approx(0.02 + 0.06)
    assert table.node_s[cloud, 0] < table.node_s[edge, 0]


def test_fewer_bits_cost_quality_and_save_air() -> None:
    table = llm.all_points(offer(SESSION), NODE_BOUND.context_of(PHONE, 0))
    rows = [row(table, f"k=3/{bits}bit/edge0") for bits in (16, 8, 4)]
    assert (np.diff(table.quality[rows]) < 0).all()
    assert table.ul_bits[rows, 1].tolist() == [65536, 32768 + 512, 16384 + 512]  # a 16-bit scale per 128 values


def test_guesses_name_what_enters_the_table_and_nothing_else() -> None:
    phone = llm.points(offer(SESSION), NODE_BOUND.context_of(PHONE, 0)).guess
    assert {"phone: prefill time", "phone: decode time", "phone: power", "a100: 4-bit kernels"} <= set(phone)
    assert any(line.startswith("quality of activation precision") for line in phone)
    assert not any("laptop" in line for line in phone)
    base = NODE_BOUND.context_of(PHONE, 0)
    offload_only = llm.points(offer(SESSION), dataclasses.replace(base, max_layers=0))
    assert offload_only.point_ids == ("k=0/edge0",)
    assert offload_only.guess == ("a100: 4-bit kernels", "vllm: host time per prompt token")


def test_no_point_is_an_answer() -> None:
    base = NODE_BOUND.context_of(PHONE, 0)
    assert llm.points(offer(SESSION, private=True), dataclasses.replace(base, max_layers=0)).n_points == 0
    assert llm.points(offer(SESSION, tpot_s=1e-3), base).n_points == 0


def test_equal_offers_give_equal_tables() -> None:
    context = URBAN.context_of(JETSON, 1)
    first, second = (registry.points(offer(SESSION), context) for _ in range(2))
    for field in dataclasses.fields(first):
        assert np.array_equal(getattr(first, field.name), getattr(second, field.name)), field.name


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": "gpt"}, "unknown model 'gpt'; the site has: llama-3-8b"),
        ({"context_tokens": -1}, "context_tokens = -1"),
        ({"new_tokens": 0}, "new_tokens = 0"),
        ({"new_tokens": -7}, "new_tokens = -7"),
        ({"max_output_tokens": 0}, "max_output_tokens = 0"),
        ({"ttft_s": math.nan}, "ttft_s = nan"),
        ({"ttft_s": 0.0}, "ttft_s = 0"),
        ({"tpot_s": -0.1}, "tpot_s = -0.1"),
        ({"tpot_s": math.inf}, "tpot_s = inf"),
        ({"weight": math.nan}, "weight = nan"),
        ({"weight": -1.0}, "weight = -1"),
    ],
)
def test_impossible_sessions_are_refused_in_one_line(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput) as caught:
        registry.points(offer(SESSION, **changes), NODE_BOUND.context_of(PHONE, 0))
    assert str(caught.value).startswith("task t1: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_work_is_refused() -> None:
    with pytest.raises(BadInput, match="no LLM session"):
        llm.points(offer(CLIP), NODE_BOUND.context_of(PHONE, 0))


def test_unknown_kind_names_those_there_are() -> None:
    with pytest.raises(BadInput, match="unknown kind of work 'audio'; there are: llm, video"):
        registry.get("audio")


def test_toy_model_is_what_the_hand_calculation_assumes() -> None:
    assert TOY.linear_parameters_layer == 576
    assert TOY.head_weight_bytes(16) == 512
