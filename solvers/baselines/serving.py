"""What serves language models today: an engine that takes all, and a gateway that predicts (docs/policies.md).

Both leave the radio to proportional fair and let a node's step be as long as those in it make it, up to a limit that is
an option (an engine's budget of tokens a step). They choose points and nodes by the latency that they predict, and
promise nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from solvers.baselines.common import HOLDS, Bools, newcomers, read_options, resources_of_kind, solution
from solvers.problem import NEVER, Floats, Ints, Problem
from solvers.solution import Solution

BUSIEST: Final = 0.95  # mean use of a resource that predictions count with at most: beyond, they would be endless
PINNED: Final = 1.0  # option `place`: on the first node that can serve it at all


def engine(problem: Problem, *, warm: Floats | None = None, options: Mapping[str, float] | None = None) -> Solution:
    """Everybody is let in while a node has a sequence free, at the point that is predicted to be the least late.

    Nothing is promised. Options: step_s (0.1) longest step; sequences (256) on a node at most, vLLM's default; place
    (0): 0 the least late node, 1 the first that can serve it.
    """
    del warm
    read = read_options(options, step_s=0.1, sequences=256.0, place=0.0)
    view = _Nodes(problem, read["step_s"])
    chosen = view.running.copy()
    for i in newcomers(problem).tolist():
        late = view.late(chosen, i)
        full = view.sequences(chosen) >= read["sequences"]
        late[full[view.resource[view.points(i)]]] = np.inf
        chosen[i] = view.best(i, late, first=read["place"] == PINNED)
    return view.answer("engine", chosen)


def predicted(problem: Problem, *, warm: Floats | None = None, options: Mapping[str, float] | None = None) -> Solution:
    """A request goes to the node where it is predicted to be least late, if both its latencies hold there.

    What inference gateways do. Options: step_s (0.1) longest step; margin (1) of a deadline that a prediction may take;
    place (0): 1 is the first node where it holds; pools (0): so many nodes, the first, are for deadlines per token of
    at most pool_s (0.06), the others take the rest, who come to the first as well where those have no room (PolyServe,
    arXiv 2507.17769); queue (0): 1 predicts a first token by the prefills that are due before, one after the other,
    instead of by how busy the node is on average.
    """
    del warm
    read = read_options(options, step_s=0.1, margin=1.0, place=0.0, pools=0.0, pool_s=0.06, queue=0.0)
    view = _Nodes(problem, read["step_s"], in_turn=bool(read["queue"]))
    chosen = view.running.copy()
    for i in newcomers(problem).tolist():
        late = view.late(chosen, i)
        late[late > read["margin"]] = np.inf
        pool = view.in_tight_pool(i, int(read["pools"]))
        tight = view.token_deadline(i) <= read["pool_s"]
        own = late if not read["pools"] else np.where(pool == tight, late, np.inf)
        j = view.best(i, own, first=read["place"] == PINNED)
        chosen[i] = j if j >= 0 or tight else view.best(i, late, first=False)
    return view.answer("predicted", chosen)


@dataclass(frozen=True, slots=True)
class _Loads:
    """What the chosen points put on resources (R + 1,)."""

    mean: Floats  # elastic work, background included
    shared_s: Floats  # of a step
    own_s: Floats  # of all sequences in it


class _Nodes:
    """Nodes whose steps are as long as those in them make them, and cells shared by processor sharing."""

    def __init__(self, problem: Problem, step_s: float, *, in_turn: bool = False) -> None:
        self.problem, self._step_s, self._in_turn = problem, step_s, in_turn
        n, steps = problem.n_points, problem.steps
        self._queued = np.zeros(n, dtype=np.bool_) if steps is None else steps.queued
        self.running: Ints = problem.held.copy()
        self._comm = np.append(resources_of_kind(problem, "comm"), False)
        self._memory = np.append(resources_of_kind(problem, "memory"), False)
        slot = np.full(n, -1) if steps is None else steps.slot
        self._has_node = slot >= 0
        self.resource: Ints = np.where(
            self._has_node, problem.slot[np.arange(n), np.maximum(slot, 0)], problem.n_resources
        )
        self._shared_s = np.zeros(n) if steps is None else steps.shared_s
        self._own_s = np.zeros(n) if steps is None else steps.own_s
        self._wait = np.zeros((n, 2)) if steps is None else steps.wait
        self._is_decoder = self._shared_s > 0

    def points(self, i: int) -> slice:
        """Points of task i."""
        return slice(int(self.problem.first[i]), int(self.problem.first[i + 1]))

    def token_deadline(self, i: int) -> float:
        """The longest slack that a point of task i has for a token, inf where it decodes nothing."""
        rows = self.points(i)
        slack = self.problem.slack[rows, 1][self._is_decoder[rows]]
        return float(slack.max(initial=-np.inf)) if slack.size else np.inf

    def in_tight_pool(self, i: int, pools: int) -> Bools:
        """(J_i,) whether a point of task i is on one of the first `pools` nodes."""
        nodes = np.unique(self.resource[self._has_node])
        return np.isin(self.resource[self.points(i)], nodes[:pools])

    def sequences(self, chosen: Ints) -> Ints:
        """(R + 1,) of each node."""
        on = chosen[chosen >= 0]
        on = on[self._is_decoder[on]]
        return np.bincount(self.resource[on], minlength=self.problem.n_resources + 1)

    def _loads(self, chosen: Ints, i: int) -> _Loads:
        """Of all but task i."""
        p, others = self.problem, np.delete(chosen, i)
        on = others[others >= 0]
        size = p.n_resources + 1
        mean = np.append(p.background, 0.0)
        mean += np.bincount(p.slot[on].ravel(), weights=p.floor[on].ravel(), minlength=size)
        mean[-1] = 0.0
        shared, own = np.zeros(size), np.zeros(size)
        np.maximum.at(shared, self.resource[on], self._shared_s[on])
        np.add.at(own, self.resource[on], self._own_s[on])
        return _Loads(mean, shared, own)

    def late(self, chosen: Ints, i: int) -> Floats:
        """(J_i,) predicted latency of each point over its deadline, the worse phase; inf where it cannot be."""
        p, rows = self.problem, self.points(i)
        load = self._loads(chosen, i)
        slot, work = p.slot[rows], p.work[rows]
        free = 1.0 - np.minimum(load.mean, BUSIEST)
        node = self.resource[rows]
        shared = np.maximum(load.shared_s[node], self._shared_s[rows])
        decoding = shared + load.own_s[node] + self._own_s[rows]
        # pieces of other work make a step longer, as long as it is allowed to be; what decodes leaves the rest to them
        step = np.where(shared > 0, np.maximum(decoding, np.minimum(decoding / free[node], self._step_s)), 0.0)
        left = np.where(
            self._has_node[rows], np.maximum(1.0 - decoding / self._step_s, 1.0 - BUSIEST) * free[node], 1.0
        )
        rate = np.where(self._comm[slot], free[slot], left[:, None])
        with np.errstate(divide="ignore", invalid="ignore"):
            takes = np.where(work > 0, work / rate[:, None, :], 0.0).sum(axis=2) + self._wait[rows] * step[:, None]
            ratio = np.where(np.isinf(p.slack[rows]), 0.0, takes / p.slack[rows])
        if self._in_turn:
            self._by_turn(chosen, i, ratio, step)
        ratio[p.slack[rows] <= 0] = np.inf
        worst = ratio.max(axis=1)
        worst[~self._fits(chosen, i)] = np.inf
        return np.asarray(np.where(p.value[rows] > 0, worst, np.inf))

    def _by_turn(self, chosen: Ints, i: int, ratio: Floats, step_s: Floats) -> None:
        """Set in ratio (J_i, 2) when points that wait in a queue are predicted to have their first token, over due.

        First what is due before, then their own, at what decoding and all that has a share leave of the node. Whom that
        makes late counts as well. step_s (J_i,): a step's length.
        """
        p, first = self.problem, self.points(i).start
        others = np.delete(chosen, i)
        waiting = others[others >= 0]
        waiting = waiting[self._queued[waiting]]
        load = self._loads(chosen, i)
        for k in np.flatnonzero(self._queued[self.points(i)]).tolist():
            j, node = first + k, self.resource[first + k]
            here = waiting[self.resource[waiting] == node]
            shared = min(max(load.mean[node] - float(p.floor[here, 1].sum()), 0.0), BUSIEST)
            decoding = max(load.shared_s[node], self._shared_s[j]) + load.own_s[node] + self._own_s[j]
            rate = max(1.0 - decoding / self._step_s, 1.0 - BUSIEST) * (1.0 - shared)
            points = np.append(here, j)
            due, work = p.slack[points, 0], p.work[points, 0, 1]
            order = np.argsort(due, kind="stable")
            ends = np.cumsum(work[order]) / rate
            own = int(np.flatnonzero(points[order] == j)[0])
            ends[own] += p.work[j, 0, 0] + self._wait[j, 0] * step_s[k]
            late = np.divide(ends, due[order], out=np.zeros_like(ends), where=due[order] > 0)
            ratio[k, 0] = late[own:].max() if (late[own:] > 1).any() else late[own]

    def _fits(self, chosen: Ints, i: int) -> Bools:
        """(J_i,) whether the memory that a point of task i takes is free."""
        p, rows, others = self.problem, self.points(i), np.delete(chosen, i)
        on = others[others >= 0]
        used = np.bincount(p.slot[on].ravel(), weights=p.rigid[on].ravel(), minlength=p.n_resources + 1)
        after = used[p.slot[rows]] + p.rigid[rows]
        return np.asarray(~(self._memory[p.slot[rows]] & (after > HOLDS)).any(axis=1))

    def best(self, i: int, late: Floats, *, first: bool) -> int:
        """The least late point, or the least late on the first node that has one; -1 where there is none."""
        if not np.isfinite(late).any():
            return -1
        if first:
            node = self.resource[self.points(i)]
            late = np.where(node == node[np.isfinite(late)].min(), late, np.inf)
        return int(self.problem.first[i] + np.argmin(late))

    def answer(self, name: str, chosen: Ints) -> Solution:
        """Equal airtime, and of nodes what steps leave. Nothing is promised: a prediction keeps nothing free."""
        p = self.problem
        share = np.zeros((p.n_tasks, p.slot.shape[1]))
        on = np.flatnonzero(chosen >= 0)
        used = (p.work[chosen[on]] > 0).any(axis=1)  # (n, S)
        users = np.bincount(p.slot[chosen[on]][used], minlength=p.n_resources + 1)
        room = np.append(np.maximum(1.0 - p.background, 0.0), 0.0)
        equal = (room / np.maximum(users, 1))[p.slot[chosen[on]]]
        share[on] = np.where(used, np.minimum(equal, p.cap[chosen[on]]), 0.0)
        step_s = np.full(p.n_resources, NEVER)
        step_s[np.unique(self.resource[self._is_decoder])] = self._step_s
        nothing = np.zeros(p.n_tasks, dtype=np.bool_)
        return replace(solution(p, name, chosen, share, nothing, evaluations=1), step_s=step_s, period_s=step_s)
