"""Where tasks may be: on which nodes, and by the layers that those hold, at which splits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np

from cosched.workloads.base import Bools, PointTable

First = Mapping[str, int]
"""Model -> the first of the layers, up to the last, that a node holds; a model that is not named it does not hold."""

NOWHERE: Final = 1 << 30  # a split that no model has


class NodeLayers(msgspec.Struct, frozen=True, kw_only=True):
    """What one node holds. None: that is not known, and it is planned with as if it held all."""

    node: str
    holds: dict[str, int] | None  # that running tasks may count on
    keeps: dict[str, int] | None  # ... and goes on holding: newcomers get no others


@dataclass(frozen=True, slots=True, eq=False)
class Where:
    """Nodes by index: no task may be on `barred` ones, on the others as far as their layers go (None: all)."""

    barred: frozenset[int] = frozenset()
    holds: tuple[First | None, ...] = ()
    keeps: tuple[First | None, ...] = ()

    def open(self, table: PointTable, model: str) -> Bools:
        """(J,) which points a newcomer may take; a model "" has no layers that must be held."""
        least = np.zeros(int(table.node.max(initial=-1)) + 2, dtype=np.int64)  # of a split, by node; the last: no node
        for node in range(len(least) - 1):
            least[node] = NOWHERE if node in self.barred else _first(self.keeps, node, model)
        return np.asarray(table.split >= least[table.node])

    def is_lost(self, node: int, split: int, model: str) -> bool:
        """Whether a task that runs there cannot go on there."""
        return node >= 0 and (node in self.barred or split < _first(self.holds, node, model))

    def is_to_go(self, node: int, split: int, model: str) -> bool:
        """Whether what a task runs on there is not to be kept."""
        return node >= 0 and split < _first(self.keeps, node, model)


def _first(layers: Sequence[First | None], node: int, model: str) -> int:
    known = layers[node] if node < len(layers) else None
    return 0 if known is None or not model else known.get(model, NOWHERE)


def where(ids: Sequence[str], barred: frozenset[int], nodes: Iterable[NodeLayers]) -> Where:
    """Return the same by index; nodes that the site does not have are ignored."""
    told = {one.node: one for one in nodes}
    known = [told.get(name, NodeLayers(node=name, holds=None, keeps=None)) for name in ids]
    return Where(barred, tuple(one.holds for one in known), tuple(one.keeps for one in known))


ANYWHERE: Final = Where()
