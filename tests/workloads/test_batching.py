"""Decode steps of sessions: their two parts against the tables that mix them, and the decision on real sessions."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from workload_cases import CLIP, SESSION, offer, shipped

from cosched.bench import batching as suite
from cosched.errors import BadInput
from cosched.simulate.offers import RecordedRequest
from cosched.workloads import llm
from cosched.workloads.base import LOCAL
from cosched.workloads.batching import batched
from cosched.workloads.context import load_profiles

URBAN = shipped("urban-llm")


@pytest.mark.parametrize("batch", [1, 2, 16])
@pytest.mark.parametrize("share", [0, 2])
def test_parts_add_up_to_the_table_of_every_batch(batch: int, share: int) -> None:
    """node_s = shared / B + own and the rest of the shared part is waiting, whatever B the site counts on."""
    nodes = tuple(msgspec.structs.replace(n, decode_batch=batch) for n in URBAN.site.nodes)
    context = load_profiles(msgspec.structs.replace(URBAN.site, nodes=nodes)).context_of(share, 1)
    table, found = llm.all_points(offer(SESSION), context), batched(offer(SESSION), context)
    shared_s, own_s = llm.decode_parts(offer(SESSION), context, table)
    assert table.node_s[:, 1] == pytest.approx(shared_s / batch + own_s)
    assert table.fixed_s[:, 1] == pytest.approx(found.table.fixed_s[:, 1] + shared_s * (1 - 1 / batch))
    assert np.array_equal(found.own_s, own_s)
    assert (found.table.node_s[:, 1] == 0).all()
    assert np.array_equal(found.table.node_s[:, 0], table.node_s[:, 0])
    assert np.array_equal(found.table.ul_bits, table.ul_bits)
    away = table.node != LOCAL
    assert (shared_s[away] > own_s[away]).all()
    assert (own_s[away] > 0).all()
    assert (shared_s[~away] == 0).all()
    assert found.shared_s.tolist() == [shared_s[table.node == n].max() for n in range(len(nodes))]


def test_what_does_not_decode_is_refused() -> None:
    with pytest.raises(BadInput, match="is no LLM session"):
        batched(offer(CLIP), URBAN.context_of(0, 0))


REQUESTS = [RecordedRequest(at_s=0.1 * k, context_tokens=200 + 37 * k, output_tokens=50 + k) for k in range(40)]


def test_the_chosen_step_admits_as_much_as_any_other_and_a_larger_batch_is_promised_more() -> None:
    """What an assumed batch of 16 promises is more than steps can hold: nobody waits for the step there."""
    for seed in range(2):
        found = suite.one_case(suite.draw(REQUESTS, 30, seed), 0.25)
        steps = [admitted for name, admitted in found.items() if name.endswith(" ms")]
        assert len(steps) >= 5
        assert found["chosen"] >= max(steps) - 1  # it counts value: quality x weight
        assert found["B=1"] <= found["B=2"] <= found["B=4"] <= found["B=16"]
        assert max(steps) < found["B=16"]
        assert found[suite.CHOSEN_MS] / 1e3 in suite.STEPS_S


def test_equal_seeds_draw_equal_sessions() -> None:
    first, again, other = (suite.draw(REQUESTS, 12, seed) for seed in (3, 3, 4))
    assert first.offers == again.offers
    assert np.array_equal(first.efficiency, again.efficiency)
    assert first.offers != other.offers
    assert len({o.ue for o in first.offers}) == 12
