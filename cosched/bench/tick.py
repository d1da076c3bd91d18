"""Suite `tick`: what one near-RT period costs around the solve, from a changed snapshot, at city scale.

Sessions on 4 cells and 4 nodes, each with 32 points to choose from (`open`), or decoding on the point that they hold
(`running`). In each round every UE's efficiency has moved by 10%, and one session has gone, so that the points are
gathered anew. Times are the CPU's, not the wall's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import msgspec
import numpy as np

from cosched.bench.model import BenchRow, ModelClaim, Result, spread
from cosched.core.events import Progress
from cosched.core.planner import Layout, make_layout, plan_problem
from cosched.core.settings import Settings
from cosched.core.state import State, Task
from cosched.resources import config_file
from cosched.simulate.reports import ue_ids
from cosched.site import Site, load_site
from cosched.workloads import llm
from cosched.workloads.base import Floats, PointTable
from cosched.workloads.context import load_profiles
from cosched.workloads.pruning import take
from solvers import statistical as effective
from solvers.price import solver as price
from telemetry.messages import LlmSession, TaskOffer, UeReport

SUITE: Final = "tick"
TASKS: Final = (100, 1_000)
POINTS: Final = 32
PLACES: Final = 4  # cells, and nodes
PER_PLACE: Final = 12.0  # sessions that a cell or node of the site as it ships about carries
ROUNDS: Final = 5  # per seed
MOVED: Final = 0.1  # standard deviation of the change of an efficiency
PERIOD_S: Final = 0.1
VARIANCE: Final = 0.05  # of each resource's use: where the tangent of statistical admission is taken

TABLES: Final = "tables from a changed channel"
SOLVE: Final = "solve, warm"

Timed = dict[tuple[str, str], list[float]]  # (case, what) -> ms
Kind = tuple[LlmSession, tuple[PointTable, ...]]  # a session, and its points by serving cell


def run(*, seeds: int, progress: Callable[[float], None]) -> Result:
    """Milliseconds of tables and solve by number of sessions, and how much longer the solve takes."""
    timed: Timed = {}
    for done, (count, seed) in enumerate((n, s) for n in TASKS for s in range(seeds)):
        for name, is_running in (("open", False), ("running", True)):
            _rounds(timed, f"{count} {name}", TickCase(count, np.random.default_rng(seed), is_running=is_running))
        progress((done + 1) / (len(TASKS) * seeds))
    rows, claims = [], []
    for (case, what), values in timed.items():
        p50, p99, mean = spread(values)
        rows.append(
            BenchRow(suite=SUITE, case=case, subject=what, figure="ms", p50=p50, p99=p99, n=len(values), value=mean)
        )
    for case in dict.fromkeys(case for case, _ in timed):
        ratio = float(np.median(timed[case, SOLVE]) / np.median(timed[case, TABLES]))
        claims.append(ModelClaim(text=f"{case}: time of the solve over that of the tables", reached=ratio, asked=1.0))
    return Result(rows=rows, claims=claims, sweeps=[])


class TickCase:
    """What a core knows at an instant, made by hand: `count` sessions, one a UE."""

    def __init__(self, count: int, rng: np.random.Generator, *, is_running: bool) -> None:
        self.site = _site(count)
        self.settings = Settings()
        self.state = State(self.site, self.settings)
        self.node_bytes = np.full(PLACES, np.inf)
        self._rng = rng
        self._efficiency = rng.uniform(1.0, 5.0, count)
        self.now_s = 0.0
        self.observe()
        tables = _tables(self.site)
        tasks = [self._task(ue, i, tables[i % len(tables)]) for i, ue in enumerate(ue_ids(count))]
        self.newcomers: Sequence[Task] = () if is_running else tasks
        for task in tasks if is_running else ():
            self._start(task)

    def _task(self, ue: str, i: int, kind: Kind) -> Task:
        session, tables = kind
        offer = TaskOffer(at_ns=0, source=SUITE, seq=i, task=ue, ue=ue, work=session, weight=float(1 + 4 * (i % 2)))
        return Task(offer, tables[i % PLACES], self.state.channel.index(ue), i % PLACES)

    def _start(self, task: Task) -> None:
        task.point = int(self._rng.integers(task.table.n_points))
        self.state.tasks[task.offer.task] = task
        self.state.progressed(Progress(task.offer.task, 1, 9, 0, 0.0, 0.05 * self._rng.uniform(), 0.0, 0.0, 0.0))

    def observe(self) -> None:
        """Let every efficiency move, and be reported."""
        self._efficiency = self._efficiency * np.exp(MOVED * self._rng.standard_normal(len(self._efficiency)))
        for i, (ue, value) in enumerate(zip(ue_ids(len(self._efficiency)), self._efficiency.tolist(), strict=True)):
            report = UeReport(
                at_ns=0, source=SUITE, seq=0, ue=ue, cell=self.site.cells[i % PLACES].id, ul_efficiency_bps_hz=value
            )
            self.state.observe(self.now_s, report)
        self.now_s += PERIOD_S

    def layout(self) -> Layout:
        """Gather the points."""
        return make_layout(self.state, self.newcomers, self.settings, self.node_bytes)

    def lose_one(self) -> None:
        """One session goes."""
        if self.newcomers:
            self.newcomers = self.newcomers[1:]
        else:
            self.state.remove(next(iter(self.state.tasks)))


def _rounds(timed: Timed, case: str, snapshot: TickCase) -> None:
    state, settings, gather = snapshot.state, snapshot.settings, snapshot.layout
    layout, prices = gather(), state.prices
    variance: Floats = np.full(len(prices), VARIANCE)
    for k in range(ROUNDS + 1):  # the first finds prices and is not counted
        snapshot.observe()
        times: dict[str, float] = {}
        with _took(times, TABLES):
            planned = plan_problem(state, layout, snapshot.now_s, settings)
        with _took(times, "tangent"):
            problem = effective.restrict(planned.problem, planned.mean_use, z=settings.z, variance0=variance)
        with _took(times, SOLVE):
            prices = price.solve(problem, warm=prices, options={"nodes": 0}).prices
        snapshot.lose_one()
        with _took(times, "points gathered anew"):
            layout = gather()
        for what, ms in times.items() if k else ():
            timed.setdefault((case, what), []).append(ms)


@contextmanager
def _took(times: dict[str, float], what: str) -> Iterator[None]:
    started = time.process_time()
    yield
    times[what] = 1e3 * (time.process_time() - started)


def _site(count: int) -> Site:
    """Cells and nodes as wide as `count` sessions need."""
    site = load_site(config_file("sites", "node-bound.toml"))
    (cell,), (node,) = site.cells, site.nodes
    wide = count / PLACES / PER_PLACE
    prbs, fraction = round(wide * cell.ul_prbs), wide * node.fraction
    return msgspec.structs.replace(
        site,
        cells=tuple(msgspec.structs.replace(cell, id=f"cell{i}", ul_prbs=prbs) for i in range(PLACES)),
        nodes=tuple(msgspec.structs.replace(node, id=f"edge{i}", fraction=fraction) for i in range(PLACES)),
    )


def _tables(site: Site) -> list[Kind]:
    """Sessions of every device, open and private, each with its points by serving cell, POINTS of them at most."""
    profiles, kinds = load_profiles(site), []
    for share in range(len(site.ues.devices)):
        for private in (False, True):
            session = LlmSession(
                model=site.mix.model, context_tokens=500, new_tokens=64, max_output_tokens=200, ttft_s=1.0, tpot_s=0.1,
                private=private,
            )  # fmt: skip
            offer = TaskOffer(at_ns=0, source=SUITE, seq=0, task="", ue="", work=session)
            tables = [llm.points(offer, profiles.context_of(share, cell)) for cell in range(PLACES)]
            kinds.append((session, tuple(_thinned(table) for table in tables)))
    return kinds


def _thinned(table: PointTable) -> PointTable:
    rows = np.unique(np.linspace(0, table.n_points - 1, POINTS).round().astype(np.int64))
    return take(table, rows)
