"""Offered load: 1 is the rate of arrivals whose cheapest fluid work just fits the site (scenarios.md).

Fluid: fractions of tasks, no deadline but at full shares, every task split in the way that lets the most loaded
resource carry most, nodes in steps as long as the loosest promise a token allows. A linear programme over a large
sample; so no policy can serve all of a load above 1 for long.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from cosched.replay.hindsight import least_work
from cosched.replay.replayer import Workbook
from cosched.workloads.base import Floats, Ints

SAMPLE_TASKS: Final = 1500


def capacity_per_s(book: Workbook) -> float:
    """Arrivals a second (those that a device serves alone included) at load 1.

    book: a sample of the mix; each task is taken at its UE's mean seconds per bit. Tasks that no share serves in time
    count as arrivals without work: no policy spends anything on them.
    """
    mean_rate = _harmonic_mean_efficiency(book)
    free = 1.0 - np.array(
        [c.background_fraction for c in book.site.cells] + [n.background_fraction for n in book.site.nodes]
    )
    free[len(book.site.cells) :] -= _reading(book)
    works: list[Floats] = []
    cells = {c.id: i for i, c in enumerate(book.site.cells)}
    for _, offer in book.offers:
        cell = cells[book.cell_of_ue[offer.ue]]
        rate = mean_rate[book.ue_rows[offer.ue]] * book.site.cells[cell].ul_bandwidth_hz
        work = least_work(book, offer, rate, cell)
        if len(work):
            works.append(work / free)
    arrivals = len(book.offers) + len(book.local)
    busiest_s = _least_greatest_sum(works)
    return arrivals / busiest_s if busiest_s > 0 else np.inf


def _reading(book: Workbook) -> Floats:
    """(nodes,) part of each node that reading weights takes, in the longest steps that any session allows."""
    shared_s, longest_s = np.zeros(len(book.site.nodes)), 0.0
    for table in book.tables.values():
        away = table.node >= 0
        np.maximum.at(shared_s, table.node[away], table.steps[away, 0])
        longest_s = max(longest_s, float(table.deadline_s[1]) if table.step_s is not None else 0.0)
    return shared_s / longest_s if longest_s > 0 else shared_s


def _harmonic_mean_efficiency(book: Workbook) -> Floats:
    """(U,) 1 / mean of 1 / efficiency over each UE's samples: what its bits cost on average."""
    truth = book.truth
    inverse = 1.0 / truth.initial_bps_hz
    count = np.ones_like(inverse)
    np.add.at(inverse, truth.ue, 1.0 / truth.efficiency_bps_hz)
    np.add.at(count, truth.ue, 1.0)
    return np.asarray(count / inverse)


def _least_greatest_sum(works: list[Floats]) -> float:
    """Least over choices of the greatest total over resources: works[i] (J_i, R), one (mixed) row of each is taken."""
    from scipy.optimize import linprog
    from scipy.sparse import coo_matrix

    if not works:
        return 0.0
    stacked = np.concatenate(works)  # (J, R)
    n_points, n_resources = stacked.shape
    owner: Ints = np.repeat(np.arange(len(works)), [len(w) for w in works])
    j, r = np.nonzero(stacked)
    rows = np.concatenate([r, np.arange(n_resources)])
    columns = np.concatenate([j, np.full(n_resources, n_points)])
    entries = np.concatenate([stacked[j, r], np.full(n_resources, -1.0)])
    upper = coo_matrix((entries, (rows, columns)), shape=(n_resources, n_points + 1)).tocsr()
    equal = coo_matrix((np.ones(n_points), (owner, np.arange(n_points))), shape=(len(works), n_points + 1)).tocsr()
    cost = np.zeros(n_points + 1)
    cost[-1] = 1.0
    answer = linprog(cost, A_ub=upper, b_ub=np.zeros(n_resources), A_eq=equal, b_eq=np.ones(len(works)), method="highs")
    return float(answer.fun)
