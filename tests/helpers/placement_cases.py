"""Seeded sites for the placement tests, as the slow loop asks for them (cosched/core/placement.py)."""

from __future__ import annotations

import numpy as np

from solvers.placement import Demand, Layers, PlacementModel, PlacementNode, Way

LAYERS = 32
STEPS = (0, 1, 4, 8, 12, 16, 20, 24, 28)  # first layers that are considered


def site(
    seed: int, n_nodes: int, n_models: int, *, classes: int = 2, held: bool = False
) -> tuple[list[PlacementNode], list[PlacementModel], list[Demand], list[Layers]]:
    """Nodes with room for about 1.5 models; every class may be served on every node from any of STEPS on.

    Holding more layers is worth more and takes more of the node's compute. `held`: nodes hold what fits at random.
    """
    rng = np.random.default_rng((seed, n_nodes, n_models))
    models = [PlacementModel(f"m{k}", (float(rng.uniform(0.1e9, 0.3e9)),) * LAYERS) for k in range(n_models)]
    room = 1.5 * sum(sum(m.layer_bytes) for m in models) / n_models
    nodes = [
        PlacementNode(
            f"n{k:03d}", room * float(rng.uniform(0.6, 1.4)), float(rng.uniform(0.5e9, 2e9)), float(rng.uniform(0, 0.3))
        )
        for k in range(n_nodes)
    ]
    demands = []
    for m, model in enumerate(models):
        for c in range(classes):
            asked, worth = rng.uniform(0.5, 1.5) * n_nodes / n_models, float(rng.uniform(0.5, 5.0))  # nodes' compute
            ways = []
            for node in nodes:
                there = float(rng.uniform(0.6, 1.0))
                for k in reversed(STEPS):
                    part = (LAYERS - k) / LAYERS
                    load = float(asked * part * rng.uniform(0.8, 1.2) / classes)
                    ways.append(Way((Layers(node.id, model.id, k, LAYERS),), worth * there * part**0.6, (load,)))
            demands.append(Demand(f"m{m}/{c}", tuple(ways)))
    current = []
    for k, node in enumerate(nodes if held else []):
        model = models[k % n_models]
        count = min(LAYERS, int(node.memory_bytes / model.layer_bytes[0]))
        if count:
            current.append(Layers(node.id, model.id, LAYERS - count, LAYERS))
    return nodes, models, demands, current
