"""The channel along the UEs' paths: LOS state, correlated shadowing, serving cell, uplink quality.

Shadow fading decorrelates with the distance moved (Gudmundson, Electronics Letters 27(23), 1991; TR 38.901 7.4.4),
separately for each pair of UE and cell. The LOS state compares Pr_LOS with a uniform variable that decorrelates in
the same way over 50 m (TR 38.901 7.6.3.3). Fast fading is not drawn: a report is a mean over 100 ms or more.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cosched.simulate.pathloss import (
    Bools,
    Environment,
    Floats,
    correlation_m,
    entry_loss_db,
    los_loss_db,
    los_probability,
    nlos_loss_db,
    sigma_db,
)
from cosched.simulate.uplink import Uplink, efficiency_bps_hz, headroom_db, sinr_db

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Propagation:
    """What path loss depends on besides distance."""

    env: Environment
    carrier_ghz: float
    ue_height_m: float


@dataclass(frozen=True, slots=True)
class RadioLink:
    """T instants, U UEs: serving cell (T, U), and on it SINR in dB, efficiency in bit/s/Hz, headroom in dB."""

    cell: Ints
    sinr_db: Floats
    efficiency_bps_hz: Floats
    headroom_db: Floats


def gudmundson(moved_m: Floats, scale_m: Floats, rng: np.random.Generator) -> Floats:
    """Draw standard normal processes with autocorrelation exp(-distance / correlation).

    moved_m (T, U): distance since the instant before (row 0 is ignored); scale_m (T, U, C): the correlation distance.
    Returns (T, U, C).
    """
    noise = rng.standard_normal(scale_m.shape)
    keep = np.exp(-moved_m[:, :, None] / scale_m)
    new = np.sqrt(1.0 - keep**2)
    field = np.empty_like(noise)
    field[0] = noise[0]
    for t in range(1, len(noise)):
        field[t] = keep[t] * field[t - 1] + new[t] * noise[t]
    return field


def losses_db(
    propagation: Propagation, path_m: Floats, sites_m: Floats, indoors: Bools, rng: np.random.Generator
) -> Floats:
    """Path loss, building entry loss and shadow fading (T, U, C). path_m: (T, U, 2), sites_m: (C, 2), indoors: (U,)."""
    env, carrier_ghz, height_m = propagation.env, propagation.carrier_ghz, propagation.ue_height_m
    offset = path_m[:, :, None, :] - sites_m
    distance_m = np.hypot(offset[..., 0], offset[..., 1])  # (T, U, C)
    steps = np.diff(path_m, axis=0, prepend=path_m[:1])
    moved_m = np.hypot(steps[..., 0], steps[..., 1])  # (T, U)
    los = _los_state(env, distance_m, moved_m, rng)
    clear_db = los_loss_db(env, distance_m, carrier_ghz, height_m)
    mean_db = np.where(los, clear_db, nlos_loss_db(env, distance_m, carrier_ghz, height_m))
    entry_db = entry_loss_db(carrier_ghz, indoors, rng)[:, None]
    fading = gudmundson(moved_m, correlation_m(env, los, indoors), rng)
    return np.asarray(mean_db + entry_db + sigma_db(env, los, indoors) * fading)


def _los_state(env: Environment, distance_m: Floats, moved_m: Floats, rng: np.random.Generator) -> Bools:
    state = gudmundson(moved_m, np.full(distance_m.shape, env.correlation_state_m), rng)
    return np.asarray(_normal_cdf(state) < los_probability(env, distance_m))


def _normal_cdf(x: Floats) -> Floats:
    """Abramowitz and Stegun 26.2.17, absolute error below 7.5e-8: NumPy has no error function."""
    k = 1.0 / (1.0 + 0.2316419 * np.abs(x))
    series = k * (0.319381530 + k * (-0.356563782 + k * (1.781477937 + k * (-1.821255978 + k * 1.330274429))))
    tail = np.exp(-0.5 * x * x) / np.sqrt(2.0 * np.pi) * series
    return np.asarray(np.where(x >= 0.0, 1.0 - tail, tail))


def serve(loss_db: Floats, hysteresis_db: float) -> Ints:
    """Return the serving cell (T, U): the best at first, then another that is `hysteresis_db` better (event A3)."""
    best = loss_db.argmin(axis=2)
    cell: Ints = best.copy()
    for t in range(1, len(loss_db)):
        stay = np.take_along_axis(loss_db[t], cell[t - 1][:, None], axis=1)[:, 0]
        there = np.take_along_axis(loss_db[t], best[t][:, None], axis=1)[:, 0]
        cell[t] = np.where(there < stay - hysteresis_db, best[t], cell[t - 1])
    return cell


def observe(link: Uplink, loss_db: Floats, hysteresis_db: float, scs_khz: float) -> RadioLink:
    """Return what each UE reports from its serving cell at each instant. loss_db: (T, U, C)."""
    cell = serve(loss_db, hysteresis_db)
    served = np.take_along_axis(loss_db, cell[:, :, None], axis=2)[:, :, 0]
    coupling_db = served - link.antenna_gain_dbi
    sinr = sinr_db(link, coupling_db, link.reference_prbs, scs_khz)
    return RadioLink(cell, sinr, efficiency_bps_hz(link, sinr), headroom_db(link, coupling_db, scs_khz))
