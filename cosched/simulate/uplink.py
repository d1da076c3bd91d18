"""From path loss to what a UE gets per hertz of uplink: power control, noise, truncated Shannon.

Power control is open-loop TS 38.213 7.1.1 (no closed-loop and no MCS-dependent term); its path loss is the coupling
loss (antenna gain included), as a UE measures it on reference signals. SINR to efficiency is the attenuated and
truncated Shannon bound of TR 36.942 A.1 with the NR uplink parameters of TR 38.803 5.2.7.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np

from cosched.simulate.pathloss import Floats

THERMAL_DBM_HZ: Final = -174.0  # at 290 K
SUBCARRIERS: Final = 12  # of a PRB, TS 38.211 4.4.4.1


class Uplink(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Uplink link budget. Gains in dB, powers in dBm."""

    max_power_dbm: float = 23.0  # P_CMAX of power class 3, TS 38.101-1 6.2.1
    p0_dbm: float = -86.0  # P_O_PUSCH, per PRB of 15 kHz: 27 dB over the noise below, so that near UEs reach 64QAM
    alpha: float = 0.9  # fractional compensation of path loss, one of the values of TS 38.331; 1 = full
    reference_prbs: int = 8  # allocation at which efficiency and headroom are reported
    antenna_gain_dbi: float = 8.0  # one element of TR 38.901 Table 7.3-1; the UE has 0 dBi
    noise_figure_db: float = 5.0  # gNB
    interference_db: float = 3.0  # rise over thermal from other cells
    shannon_factor: float = 0.4  # uplink, TR 38.803 5.2.7
    sinr_min_db: float = -10.0  # no service below
    sinr_max_db: float = 22.0  # 64QAM; no gain above


def power_dbm(link: Uplink, coupling_db: Floats, prbs: float, scs_khz: float) -> Floats:
    """P_PUSCH on `prbs` PRBs: the lower of P_CMAX and P_O + 10 log10(2^mu M) + alpha PL (TS 38.213 7.1.1)."""
    return np.asarray(np.minimum(link.max_power_dbm, _wanted_dbm(link, coupling_db, prbs, scs_khz)))


def headroom_db(link: Uplink, coupling_db: Floats, scs_khz: float) -> Floats:
    """Type 1 power headroom at the reference allocation (TS 38.213 7.7.1); negative = power-limited."""
    return np.asarray(link.max_power_dbm - _wanted_dbm(link, coupling_db, link.reference_prbs, scs_khz))


def sinr_db(link: Uplink, coupling_db: Floats, prbs: float, scs_khz: float) -> Floats:
    """SINR per PRB at the gNB when the UE's power spreads over `prbs` PRBs. coupling_db: any shape."""
    bandwidth_hz = prbs * SUBCARRIERS * scs_khz * 1e3
    noise_dbm = THERMAL_DBM_HZ + 10.0 * np.log10(bandwidth_hz) + link.noise_figure_db + link.interference_db
    return np.asarray(power_dbm(link, coupling_db, prbs, scs_khz) - coupling_db - noise_dbm)


def efficiency_bps_hz(link: Uplink, sinr: Floats) -> Floats:
    """Attenuated, truncated Shannon bound (TR 36.942 A.1): 0 below sinr_min_db, flat above sinr_max_db."""
    linear = 10.0 ** (np.minimum(sinr, link.sinr_max_db) / 10.0)
    return np.asarray(np.where(sinr < link.sinr_min_db, 0.0, link.shannon_factor * np.log2(1.0 + linear)))


def _wanted_dbm(link: Uplink, coupling_db: Floats, prbs: float, scs_khz: float) -> Floats:
    return np.asarray(link.p0_dbm + 10.0 * np.log10(scs_khz / 15.0 * prbs) + link.alpha * coupling_db)
