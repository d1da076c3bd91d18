"""Suite `batching`: sessions that a node promises to decode for, by step time, against processor sharing.

Processor sharing assumes a batch of B that nobody guarantees (site.toml's decode_batch); a step time is a guarantee.
All sessions at one instant, everything reserved (activity 1), one cell and one node of the site `node-bound`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np

from cosched.bench.closed_loop import read_recordings, recordings_folder
from cosched.bench.model import BenchRow, Result, spread
from cosched.core.planner import make_layout, plan_problem
from cosched.core.settings import Settings
from cosched.core.state import State, Task
from cosched.resources import config_file
from cosched.simulate.offers import RecordedRequest, assign_devices, draw_offers
from cosched.simulate.reports import ue_ids
from cosched.site import Site, load_site
from cosched.workloads import llm
from cosched.workloads.base import Floats
from cosched.workloads.batching import batched
from cosched.workloads.context import SiteProfiles, load_profiles, session_memory_bytes
from cosched.workloads.pruning import holds_deadlines, local_feasible, take
from solvers.batching import Decoding, choose_steps, with_steps
from solvers.price import solver as price
from solvers.problem import Problem
from telemetry.messages import TaskOffer, UeReport

SUITE: Final = "batching"
FRACTIONS: Final = (0.25, 1.0)  # of an A100
SESSIONS: Final = (20, 40, 80)
BATCHES: Final = (1, 2, 4, 16)
STEPS_S: Final = (0.01, 0.015, 0.02, 0.025, 0.03, 0.035, 0.04, 0.06, 0.08)
CHOSEN_MS: Final = "chosen step"
EFFICIENCY_BPS_HZ: Final = (1.0, 4.0)  # of the uplinks, drawn evenly


@dataclass(frozen=True)
class Drawn:
    """Sessions of one seed, one a UE, with their UEs' efficiencies in bit/s/Hz."""

    offers: tuple[TaskOffer, ...]
    efficiency: Floats


def run(*, seeds: int, progress: Callable[[float], None]) -> Result:
    """Sessions admitted per part of the card and number of sessions: by step time, and by assumed batch."""
    requests = read_recordings(recordings_folder()).requests
    admitted: dict[tuple[str, str], list[float]] = {}
    cases = [(fraction, count, seed) for fraction in FRACTIONS for count in SESSIONS for seed in range(seeds)]
    for done, (fraction, count, seed) in enumerate(cases, start=1):
        drawn = draw(requests, count, seed)
        for subject, value in one_case(drawn, fraction).items():
            admitted.setdefault((f"{fraction:g} of an A100, {count} UEs", subject), []).append(value)
        progress(done / len(cases))
    rows = []
    for (case, subject), values in admitted.items():
        p50, p99, mean = spread(values)
        figure = "step_ms" if subject == CHOSEN_MS else "admitted"
        n = len(values)
        rows.append(BenchRow(suite=SUITE, case=case, subject=subject, figure=figure, p50=p50, p99=p99, n=n, value=mean))
    return Result(rows=rows, claims=[], sweeps=[])


def draw(requests: Sequence[RecordedRequest], count: int, seed: int) -> Drawn:
    """Draw one session for each of `count` UEs."""
    rng = np.random.default_rng(seed)
    offers: dict[str, TaskOffer] = {}
    while len(offers) < count:
        some, _ = draw_offers(_site(1.0, 1), requests, rate_per_s=100.0, duration_s=1.0, rng=rng, ues=ue_ids(count))
        offers |= {o.ue: msgspec.structs.replace(o, at_ns=0, task=o.ue) for o in some if o.ue not in offers}
    return Drawn(tuple(offers[ue] for ue in ue_ids(count)), rng.uniform(*EFFICIENCY_BPS_HZ, count))


def one_case(drawn: Drawn, fraction: float) -> dict[str, float]:
    """Sessions admitted at an assumed batch ("B=2"), at a step time ("20 ms"), at the chosen one, and which that is."""
    found = {}
    for batch in BATCHES:
        site = _site(fraction, batch)
        found[f"B={batch}"] = _admitted(price.solve(shared(drawn, site)).chosen)
    problem, decoding = in_steps(drawn, _site(fraction, 1))
    nodes = decoding.shared_s > 0
    for step_s in STEPS_S:
        if step_s > decoding.shared_s.max():
            at = with_steps(problem, decoding, np.where(nodes, step_s, np.inf))
            found[f"{1e3 * step_s:g} ms"] = _admitted(price.solve(at).chosen)
    chosen = choose_steps(problem, decoding, STEPS_S, price.solve)
    found["chosen"] = _admitted(chosen.solution.chosen)
    found[CHOSEN_MS] = 1e3 * float(chosen.step_s[nodes].min())
    return found


def shared(drawn: Drawn, site: Site) -> Problem:
    """Decode as processor sharing with the site's decode_batch."""
    profiles, devices = load_profiles(site), assign_devices(site, [o.ue for o in drawn.offers])
    state = _state(drawn, site)
    tasks = []
    for offer in drawn.offers:
        table = llm.points(offer, profiles.context_of(devices[offer.ue], 0))
        if not local_feasible(table):
            tasks.append(Task(offer, table, state.channel.index(offer.ue), 0))
    return _problem(state, tasks, profiles)


def in_steps(drawn: Drawn, site: Site) -> tuple[Problem, Decoding]:
    """Decode in steps whose length is still to be chosen."""
    profiles, devices = load_profiles(site), assign_devices(site, [o.ue for o in drawn.offers])
    state = _state(drawn, site)
    tasks, own_s, shared_s = [], [np.zeros(0)], np.zeros(len(site.nodes))
    for offer in drawn.offers:
        found = batched(offer, profiles.context_of(devices[offer.ue], 0))
        if local_feasible(found.table):
            continue
        rows = np.flatnonzero(holds_deadlines(found.table))
        tasks.append(Task(offer, take(found.table, rows), state.channel.index(offer.ue), 0))
        own_s.append(found.own_s[rows])
        shared_s = np.maximum(shared_s, found.shared_s)
    problem = _problem(state, tasks, profiles)
    of_resources = np.zeros(problem.n_resources)
    of_resources[len(site.cells) : len(site.cells) + len(site.nodes)] = shared_s
    slot = np.where(problem.slot[:, 1] < problem.n_resources, 1, -1)
    return problem, Decoding(slot=slot, own_s=np.concatenate(own_s), shared_s=of_resources)


def _site(fraction: float, batch: int) -> Site:
    site = load_site(config_file("sites", "node-bound.toml"))
    nodes = tuple(msgspec.structs.replace(n, fraction=fraction, decode_batch=batch) for n in site.nodes)
    return msgspec.structs.replace(site, nodes=nodes, mix=msgspec.structs.replace(site.mix, video_share=0.0))


def _state(drawn: Drawn, site: Site) -> State:
    state = State(site, Settings())
    for offer, efficiency in zip(drawn.offers, drawn.efficiency.tolist(), strict=True):
        report = UeReport(
            at_ns=0, source=SUITE, seq=0, ue=offer.ue, cell=site.cells[0].id, ul_efficiency_bps_hz=efficiency
        )
        state.observe(0.0, report)
    return state


def _problem(state: State, tasks: Sequence[Task], profiles: SiteProfiles) -> Problem:
    layout = make_layout(state, tasks, Settings(), session_memory_bytes(profiles))
    return plan_problem(state, layout, 0.0, Settings()).problem


def _admitted(chosen: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> float:
    return float((chosen >= 0).sum())
