"""One-shot benchmarks: all tasks at one instant, the channel known, shares reserved for good (activity 1).

The harshest and clearest comparison of solvers: no time, no estimate, no statistical multiplexing. A task is one
frame of video, or the first token of an LLM session. What a solver promises is not believed: deadlines and capacities
are worked out again from the shares that it returned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from cosched.errors import BadInput, CoschedError
from cosched.simulate.arrivals import requests_of
from cosched.simulate.channel import losses_db, observe
from cosched.simulate.offers import RecordedRequest, assign_devices, draw_offers
from cosched.simulate.reports import ue_ids
from cosched.simulate.scenario import LoadedScenario
from cosched.site import Site
from cosched.workloads import registry as workloads
from cosched.workloads.base import LOCAL, Floats, Ints, PointTable
from cosched.workloads.context import load_profiles
from cosched.workloads.pruning import local_feasible
from solvers import registry as solvers
from solvers.problem import PHASES, Problem
from solvers.solution import Solution
from telemetry.messages import TaskOffer

SLOTS: Final = 2  # cell uplink, node
TOLERANCE: Final = 1e-6  # of a deadline or a capacity: what a solver's rounding may cost
BATCH: Final = 64  # UEs dropped at a time, whatever the number asked for: of one seed, more tasks are the same and more
ATTEMPTS: Final = 50  # batches of offers drawn before a scenario counts as one without networked tasks


class Overcommitted(CoschedError):
    """A solver gave away more than there is: a defect, never bad input."""


@dataclass(frozen=True, slots=True)
class Attached:
    """U UEs that a cell hears. cell (U,): the serving one; efficiency (U,): bit/s/Hz there.

    cap (U,): greatest share of the uplink that the UE's power carries at this efficiency.
    """

    cell: Ints
    efficiency: Floats
    cap: Floats


@dataclass(frozen=True, slots=True)
class Drop:
    """N tasks that need the network, task i on UE i. `local`: drawn besides, served by their devices alone in time."""

    site: Site
    ues: Attached
    tables: tuple[PointTable, ...]
    weights: Floats  # (N,)
    local: int


@dataclass(frozen=True, slots=True)
class OneshotOutcome:
    """What a policy reached on one drop. `met`: tasks that hold their deadline; `value`: their weights x quality."""

    met: int
    value: float
    admitted: int
    bound: float  # of the certificate: on the value


def attach(loaded: LoadedScenario, count: int, rng: np.random.Generator) -> Attached:
    """Drop UEs until `count` of them are heard: one below the least SINR is in no cell, so it asks nothing."""
    radio, area, site = loaded.scenario.radio, loaded.area, loaded.site
    parts: list[tuple[Ints, Floats, Floats]] = []
    while sum(len(cell) for cell, _, _ in parts) < count:
        path_m = area.drop(BATCH, rng)[None]  # (1, U, 2)
        loss_db = losses_db(loaded.propagation, path_m, area.sites_m, loaded.indoors(BATCH, rng), rng)
        link = observe(radio.uplink, loss_db, radio.hysteresis_db, site.cells[0].scs_khz)
        heard = link.efficiency_bps_hz[0] > 0
        carried = radio.uplink.reference_prbs * 10.0 ** (np.maximum(link.headroom_db[0], 0.0) / 10.0)
        prbs = np.array([cell.ul_prbs for cell in site.cells])[link.cell[0]]
        cap = np.minimum(carried / prbs, 1.0)
        parts.append((link.cell[0][heard], link.efficiency_bps_hz[0][heard], cap[heard]))
    cell, efficiency, cap = (np.concatenate(column)[:count] for column in zip(*parts, strict=True))
    return Attached(cell, efficiency, cap)


def devices_of(site: Site, count: int, rng: np.random.Generator) -> Ints:
    """(count,) index into site.ues.devices: of every BATCH UEs as many as the shares say, in random order."""
    batch = np.array(list(assign_devices(site, ue_ids(BATCH)).values()), dtype=np.int64)
    return np.concatenate([rng.permutation(batch) for _ in range(-(-count // BATCH))])[:count]


def draw(loaded: LoadedScenario, count: int, seed: int) -> Drop:
    """Draw `count` tasks that need the network, on as many attached UEs. Raises BadInput if the scenario has none.

    Of one seed the first n tasks are the same for every count: curves over the offered load are of one drop growing.
    """
    ue_rng, offer_rng, device_rng = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3))
    ues = attach(loaded, count, ue_rng)
    devices = devices_of(loaded.site, count, device_rng)
    profiles = load_profiles(loaded.site)
    requests = requests_of(loaded.scenario.arrivals, loaded.folder, offer_rng)
    tables: list[PointTable] = []
    weights: list[float] = []
    local = 0
    for _ in range(ATTEMPTS):
        for offer in _offers(loaded, requests, offer_rng):
            rank = len(tables)
            table = workloads.points(offer, profiles.context_of(int(devices[rank]), int(ues.cell[rank])))
            if local_feasible(table):
                local += 1
                continue
            tables.append(table)
            weights.append(offer.weight)
            if len(tables) == count:
                return Drop(loaded.site, ues, tuple(tables), np.array(weights), local)
    raise BadInput(f"scenario {loaded.scenario.name}: its devices serve nearly all tasks alone; nothing to schedule")


def _offers(loaded: LoadedScenario, requests: Sequence[RecordedRequest], rng: np.random.Generator) -> list[TaskOffer]:
    """Draw a hundred or so offers of the site's mix: what is asked for counts here, not when or by whom."""
    offers, _ = draw_offers(loaded.site, requests, rate_per_s=100.0, duration_s=1.0, rng=rng, ues=ue_ids(1))
    return offers


def build(drop: Drop) -> Problem:
    """Columns of the drop: first phase only, floor = mean use at the deadline's pace, everything reserved."""
    site, tables = drop.site, drop.tables
    rows = [np.flatnonzero(table.node != LOCAL) for table in tables]
    count = np.array([len(r) for r in rows])
    owner = np.repeat(np.arange(len(tables)), count)
    node = np.concatenate([t.node[r] for t, r in zip(tables, rows, strict=True)])
    bits, node_s, fixed_s = (
        np.concatenate([getattr(t, name)[r, 0] for t, r in zip(tables, rows, strict=True)])
        for name in ("ul_bits", "node_s", "fixed_s")
    )
    deadline_s = np.array([t.deadline_s[0] for t in tables])[owner]
    rate_hz = np.array([t.rate_hz[0] for t in tables])[owner]
    bandwidth_hz = np.array([cell.ul_bandwidth_hz for cell in site.cells])[drop.ues.cell]
    work = np.zeros((len(owner), PHASES, SLOTS))
    work[:, 0, 0] = bits / (drop.ues.efficiency * bandwidth_hz)[owner]
    work[:, 0, 1] = node_s
    cap = np.stack([drop.ues.cap[owner], np.ones(len(owner))], axis=1)
    quality = np.concatenate([t.quality[r] for t, r in zip(tables, rows, strict=True)])
    return Problem(
        resource_ids=(*(f"{c.id}/ul" for c in site.cells), *(n.id for n in site.nodes)),
        kinds=("comm",) * len(site.cells) + ("compute",) * len(site.nodes),
        background=np.array([c.background_fraction for c in site.cells] + [n.background_fraction for n in site.nodes]),
        coupling_from=np.zeros(0, dtype=np.int64),
        coupling_to=np.zeros(0, dtype=np.int64),
        coupling_per_share=np.zeros(0),
        task_ids=tuple(f"t{i}" for i in range(len(tables))),
        first=np.concatenate([[0], np.cumsum(count)]),
        point_ids=tuple(t.point_ids[j] for t, r in zip(tables, rows, strict=True) for j in r),
        value=drop.weights[owner] * quality,
        slack=np.stack([deadline_s - fixed_s, np.full(len(owner), np.inf)], axis=1),
        slot=np.stack([drop.ues.cell[owner], len(site.cells) + node], axis=1),
        work=work,
        floor=np.minimum(work[:, 0] * rate_hz[:, None], cap),
        cap=cap,
        activity=np.ones((len(owner), SLOTS)),
        rigid=np.zeros((len(owner), SLOTS)),
        held=np.full(len(tables), -1),
        order=np.arange(len(tables)),
        channel=drop.ues.efficiency,
    )


def solve(problem: Problem, solver: str, options: Mapping[str, float] | None = None) -> OneshotOutcome:
    """Run one solver and count what its shares really reach. Raises Overcommitted."""
    solution = solvers.get(solver)(problem, options=options)
    met = holds(problem, solution)
    used = usage(problem, solution)
    if (used > 1.0 + TOLERANCE).any():
        worst = int(used.argmax())
        raise Overcommitted(f"{solver} gave away {used[worst]:.6f} of {problem.resource_ids[worst]}")
    value = float(problem.value[solution.chosen[met]].sum())
    admitted = int((solution.chosen >= 0).sum())
    return OneshotOutcome(int(met.sum()), value, admitted, solution.certificate.bound)


def holds(problem: Problem, solution: Solution) -> npt.NDArray[np.bool_]:
    """Which tasks (N,) are chosen and hold every deadline at the shares returned, promised or not."""
    chosen, share = solution.chosen, solution.share
    work = problem.work[chosen]  # (N, Q, S); row of task -1 is not used
    with np.errstate(divide="ignore", invalid="ignore"):
        seconds = np.where(work > 0, work / share[:, None, :], 0.0).sum(axis=2)  # (N, Q)
    in_time = (seconds <= problem.slack[chosen] * (1.0 + TOLERANCE)).all(axis=1)
    fits = ((share <= problem.cap[chosen] + TOLERANCE) & (share >= 0)).all(axis=1)
    return np.asarray((chosen >= 0) & in_time & fits)


def usage(problem: Problem, solution: Solution) -> Floats:
    """Fraction (R,) of each resource that the shares returned take, background included. No couplings here."""
    on = np.flatnonzero(solution.chosen >= 0)
    point = solution.chosen[on]
    taken = problem.activity[point] * solution.share[on] + problem.rigid[point]  # (n, S)
    total = np.bincount(problem.slot[point].ravel(), weights=taken.ravel(), minlength=problem.n_resources + 1)
    return np.asarray(problem.background + total[: problem.n_resources])
