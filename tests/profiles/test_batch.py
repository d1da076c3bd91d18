"""The line of a decode step that is planned with, from a profile alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
from workload_cases import SESSION, offer, shipped

from cosched.profiles import latency
from cosched.profiles.batch import planned_line
from cosched.profiles.device import load_device, load_host
from cosched.profiles.model import load_model
from cosched.workloads import llm

URBAN = shipped("urban-llm")


def test_it_is_what_the_planner_counts_with() -> None:
    """The two parts of whole offload, at every node of a site that ships."""
    context = URBAN.context_of(0, 0)
    table = llm.all_points(offer(SESSION), context)
    shared_s, own_s = table.steps.T
    tokens = SESSION.context_tokens + SESSION.new_tokens + SESSION.max_output_tokens / 2
    served = context.models[SESSION.model]
    for i, node in enumerate(context.site.nodes):
        (row,) = np.flatnonzero((table.node == i) & (table.split == 0))
        device, host = context.node_devices[i], context.node_hosts[i]
        line = planned_line(served.model, device, host, tokens, served.ref.weight_bits, fraction=node.fraction)
        assert line == pytest.approx((shared_s[row], own_s[row]), rel=1e-12)


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
@pytest.mark.parametrize("host", ["ideal", "vllm"])
def test_it_bounds_the_full_equations_from_above(tp: int, host: str) -> None:
    """hypot(a, b) <= a + b <= sqrt 2 hypot(a, b); the host's launch floor only brings the two together."""
    model, device, terms = load_model("llama-3-8b"), load_device("a100"), load_host(host)
    line = planned_line(model, device, terms, 1000.0, 16, tp=tp)
    for batch in (1, 4, 16, 64, 256):
        layer_s = latency.decode_layer_s(model, device, 1000.0, 16, batch, tp=tp)
        gpu_s = model.n_layers * layer_s + latency.head_s(model, device, 16, batch, tp=tp)
        full_s = latency.served_step_s(gpu_s, terms, float(model.n_layers), batch)
        planned_s = line.shared_s + batch * line.sequence_s
        assert full_s <= planned_s <= (1.01 * math.sqrt(2) + 0.1) * full_s, batch
        if batch == 1:
            assert planned_s == pytest.approx(full_s, rel=0.03)
