"""UE reports of a scenario: all UEs' once per reporting period, as a near-RT RIC would receive them."""

from __future__ import annotations

from typing import Final

import numpy as np

from cosched.simulate.channel import RadioLink, losses_db, observe
from cosched.simulate.mobility import walk
from cosched.simulate.scenario import LoadedScenario
from telemetry.messages import UeReportBatch

SOURCE: Final = "simulate"
WALK_STEP_S: Final = 0.05  # divides both report periods; a car moves 1.5 m meanwhile, a tenth of the least correlation
SINR_RANGE_DB: Final = (-23.0, 40.0)  # reportable, TS 38.133 10.1.16
LEAST_EFFICIENCY: Final = 0.01  # bit/s/Hz reported below the least SINR: the UE is there, and as good as out of reach


def ue_ids(count: int) -> tuple[str, ...]:
    """Return the names of the UEs, in order."""
    width = max(2, len(str(count - 1)))
    return tuple(f"ue{i:0{width}d}" for i in range(count))


def channel(loaded: LoadedScenario, count: int, rng: np.random.Generator, duration_s: float) -> RadioLink:
    """Drop `count` UEs, let them move, and observe them once per report period, both ends included."""
    scenario = loaded.scenario
    radio, area = scenario.radio, loaded.area
    every = round(radio.report_period_s / WALK_STEP_S)
    times = every * int(duration_s / radio.report_period_s) + 1
    start_m, indoors = area.drop(count, rng), loaded.indoors(count, rng)
    path_m = walk(area, scenario.mobility, start_m, times=times, step_s=WALK_STEP_S, rng=rng)
    path_m[:, indoors] = start_m[indoors]  # who is indoors stays there: nobody walks through the walls of a street
    loss_db = losses_db(loaded.propagation, path_m, area.sites_m, indoors, rng)
    return observe(radio.uplink, loss_db[::every], radio.hysteresis_db, loaded.site.cells[0].scs_khz)


def ue_reports(loaded: LoadedScenario, rng: np.random.Generator, duration_s: float) -> list[UeReportBatch]:
    """Return one batch per reporting period. Values are rounded: a logarithm's last bits differ between machines."""
    count = loaded.site.ues.count
    link = channel(loaded, count, rng, duration_s)
    names, cells = ue_ids(count), [cell.id for cell in loaded.site.cells]
    efficiency = np.maximum(link.efficiency_bps_hz, LEAST_EFFICIENCY).round(3)
    sinr_db = np.clip(link.sinr_db, *SINR_RANGE_DB).round(1)
    period_ns = round(loaded.scenario.radio.report_period_s * 1e9)
    return [
        UeReportBatch(
            at_ns=t * period_ns,
            source=SOURCE,
            seq=t,
            ue=names,
            cell=tuple(cells[c] for c in link.cell[t]),
            ul_efficiency_bps_hz=tuple(efficiency[t].tolist()),
            ul_sinr_db=tuple(sinr_db[t].tolist()),
        )
        for t in range(len(link.cell))
    ]
