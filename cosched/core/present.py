"""What of an answer still holds: while a solver worked, tasks ended, nodes went or shrank, and UEs changed their cell.

Nobody is told of a place that is known to be gone by then: newcomers that were given one are asked for again, and who
runs there is planned elsewhere with the next solve.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from cosched.core.layers import Where
from cosched.core.planner import Layout
from cosched.core.state import State, Task
from cosched.workloads.base import LOCAL, Bools, Floats, Ints
from solvers.solution import Solution

ROUNDING: Final = 1e-9  # of a node's memory: a solver's own tolerance
MOST_ASKS: Final = 3  # for a newcomer; then it is refused: nodes that come and go must not keep its answer for ever


@dataclass(frozen=True, slots=True)
class Present:
    """A solution as far as it holds now. `left_out` (N,): tasks that the plan says nothing of."""

    solution: Solution
    left_out: Bools

    def again(self, layout: Layout) -> list[Task]:
        """Newcomers to be asked for again."""
        return [t for t, out in zip(layout.tasks, self.left_out.tolist(), strict=True) if out and t.point < 0]


def as_asked(solution: Solution) -> Present:
    """Nothing has changed meanwhile."""
    return Present(solution, np.zeros(len(solution.chosen), dtype=np.bool_))


def present(state: State, layout: Layout, solution: Solution) -> Present:
    """Take out of a solution what is not so any more: who has ended, and who would be where nobody can be."""
    gone = np.array([t.point >= 0 and state.tasks.get(t.offer.task) is not t for t in layout.tasks], dtype=np.bool_)
    lost = np.zeros(len(gone), dtype=np.bool_)
    for i in np.flatnonzero(~gone):
        lost[i] = _is_lost(state, layout, int(i), int(solution.chosen[i]))
    held = replace(solution, promised=solution.promised & ~handed_over(layout))
    return _without(layout, Present(_cleared(held, gone), gone), lost)


def handed_over(layout: Layout) -> Bools:
    """(N,) whose UE is in another cell than it was planned in. Nothing is held for it there until the next plan."""
    return np.asarray(layout.cell != [t.cell for t in layout.tasks], dtype=np.bool_)


def make_room(layout: Layout, now: Present, chosen: Ints, node_bytes: Floats, *, ask: bool) -> Present:
    """Keep those away that would come to a full node; ask: newcomers are asked for again, for memory has shrunk."""
    full = crowded(layout, chosen, node_bytes)
    if not full.any():
        return now
    return _without(layout, now, full) if ask else Present(_cleared(now.solution, full), now.left_out)


def crowded(layout: Layout, chosen: Ints, node_bytes: Floats) -> Bools:
    """(N,) who would come to a node (points chosen (N,)) whose memory (nodes,) is full of those that run there.

    Who runs keeps his memory whatever is planned; of those that would come the lightest stay away, the latest first.
    """
    out = np.zeros(len(chosen), dtype=np.bool_)
    has = np.flatnonzero(chosen >= 0)
    node, needs = _node_and_bytes(layout, has, chosen[has])
    comes = chosen[has] != layout.held[has]
    for n in np.unique(node[comes & (node != LOCAL)]):
        there = np.flatnonzero(node == n)
        over = needs[there].sum() - node_bytes[n] * (1 + ROUNDING)
        coming = sorted(there[comes[there]], key=lambda k: (layout.tasks[has[k]].offer.weight, -k))
        for k in coming:
            if over <= 0:
                break
            if needs[k] > 0:
                over -= needs[k]
                out[has[k]] = True
    return out


def _is_lost(state: State, layout: Layout, i: int, chosen: int) -> bool:
    """Whether task i cannot be where point `chosen` has it: by the nodes, the layers and the cells of now."""
    task = layout.tasks[i]
    is_new = task.point < 0
    if is_new and state.cell_of_ue.get(task.offer.ue, -1) != int(layout.cell[i]):
        return True
    if chosen < 0:  # a session stays where it is
        return not is_new and layout.held[i] >= 0 and task.is_stranded(state.places)
    row = int(layout.row[chosen])
    if chosen == layout.held[i]:
        return task.is_stranded(state.places)
    return not _is_open(state.places, task, row)


def _is_open(places: Where, task: Task, row: int) -> bool:
    if task.point >= 0 and not task.is_stranded(places) and task.table.node[row] == task.table.node[task.point]:
        return True  # it stays on its node, and goes on with what that holds
    return bool(places.open(task.table, task.model)[row])


def _without(layout: Layout, now: Present, tasks: Bools) -> Present:
    """Leave these out as well, but for newcomers that were asked for often enough: those have no point."""
    tried = np.array([t.point < 0 and t.asks >= MOST_ASKS for t in layout.tasks], dtype=np.bool_)
    return Present(_cleared(now.solution, tasks), now.left_out | (tasks & ~tried))


def _cleared(solution: Solution, tasks: Bools) -> Solution:
    if not tasks.any():
        return solution
    return replace(
        solution,
        chosen=np.where(tasks, -1, solution.chosen),
        share=np.where(tasks[:, None], 0.0, solution.share),
        promised=solution.promised & ~tasks,
    )


def _node_and_bytes(layout: Layout, tasks: Ints, points: Ints) -> tuple[Ints, Floats]:
    """Node and memory there (n,) of points `points` of tasks `tasks`."""
    rows = layout.row[points].tolist()
    tables = [layout.tasks[i].table for i in tasks]
    node = np.array([t.node[r] for t, r in zip(tables, rows, strict=True)], dtype=np.int64)
    needs = np.array([t.node_bytes[r] for t, r in zip(tables, rows, strict=True)], dtype=np.float64)
    return node, needs
