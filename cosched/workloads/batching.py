"""Sessions on nodes that decode in batches: tables without decode work, and what solvers/batching.py needs beside."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from cosched.workloads import llm
from cosched.workloads.base import LOCAL, Floats, PointTable, WorkloadContext
from telemetry.messages import TaskOffer


@dataclass(frozen=True, slots=True)
class BatchedTable:
    """Operating points whose decode step is the node's, not theirs."""

    table: PointTable  # as the workload's, without work and waiting on the node in phase 1
    own_s: Floats  # (J,) what a sequence adds to a step
    shared_s: Floats  # (nodes,) greatest shared part of a step over the points


def batched(offer: TaskOffer, context: WorkloadContext) -> BatchedTable:
    """Return every way to serve an LlmSession where nodes decode in steps. Raises BadInput as `llm.points` does."""
    table = llm.all_points(offer, context)
    shared_s, own_s = llm.decode_parts(offer, context, table)
    away = table.node != LOCAL
    batch = np.array([node.decode_batch for node in context.site.nodes], dtype=np.float64)[table.node]
    node_s, fixed_s = table.node_s.copy(), table.fixed_s.copy()
    node_s[:, 1] = 0.0
    fixed_s[:, 1] -= np.where(away, shared_s * (1 - 1 / batch), 0.0)
    of_nodes = [shared_s[table.node == n].max(initial=0.0) for n in range(len(context.site.nodes))]
    return BatchedTable(dataclasses.replace(table, node_s=node_s, fixed_s=fixed_s), own_s, np.array(of_nodes))
