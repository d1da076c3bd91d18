"""Large-scale loss of 3GPP TR 38.901 V17: urban macro (UMa) and urban micro street canyon (UMi).

Path loss and shadow fading are Table 7.4.1-1, LOS probability Table 7.4.2-1, correlation distances Tables 7.5-6
(shadow fading) and 7.6.3.1-2 (LOS state). UE antennas are below 13 m here, so UMa's effective environment height is
always 1 m (note 1 of Table 7.4.1-1) and C'(h_UT) of Table 7.4.2-1 is 0. Indoor UEs add the low-loss building entry
of 7.4.3.1; the distance indoors (at most 25 m) is left in the distance outdoors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

LIGHT_M_S: Final = 3.0e8  # the value that note 1 of Table 7.4.1-1 prescribes
ENVIRONMENT_HEIGHT_M: Final = 1.0  # h_E
LEAST_DISTANCE_M: Final = 10.0  # lower end of the table's range; nearer UEs get the loss there


@dataclass(frozen=True, slots=True)
class Environment:
    """One column of the tables. Distances in metres, fading in decibels."""

    name: str
    site_height_m: float  # h_BS
    los_const_db: float
    los_slope: float  # per decade, before the breakpoint
    beyond_breakpoint: float  # factor of log10(d_BP^2 + (h_BS - h_UT)^2)
    nlos_const_db: float
    nlos_slope: float
    nlos_frequency_slope: float
    nlos_height_slope: float  # per metre of h_UT above 1.5 m
    los_decay_m: float  # of the LOS probability
    sigma_los_db: float
    sigma_nlos_db: float
    correlation_los_m: float
    correlation_nlos_m: float
    correlation_state_m: float  # of the LOS state
    sigma_indoor_db: float = 7.0  # O2I columns of Table 7.5-6, the same for UMa and UMi
    correlation_indoor_m: float = 7.0


UMA: Final = Environment(
    name="uma",
    site_height_m=25.0,
    los_const_db=28.0,
    los_slope=22.0,
    beyond_breakpoint=9.0,
    nlos_const_db=13.54,
    nlos_slope=39.08,
    nlos_frequency_slope=20.0,
    nlos_height_slope=0.6,
    los_decay_m=63.0,
    sigma_los_db=4.0,
    sigma_nlos_db=6.0,
    correlation_los_m=37.0,
    correlation_nlos_m=50.0,
    correlation_state_m=50.0,
)
UMI: Final = Environment(
    name="umi",
    site_height_m=10.0,
    los_const_db=32.4,
    los_slope=21.0,
    beyond_breakpoint=9.5,
    nlos_const_db=22.4,
    nlos_slope=35.3,
    nlos_frequency_slope=21.3,
    nlos_height_slope=0.3,
    los_decay_m=36.0,
    sigma_los_db=4.0,
    sigma_nlos_db=7.82,
    correlation_los_m=10.0,
    correlation_nlos_m=13.0,
    correlation_state_m=50.0,
)
ENVIRONMENTS: Final = {"uma": UMA, "umi": UMI}


def breakpoint_m(env: Environment, carrier_ghz: float, ue_height_m: float) -> float:
    """d'_BP = 4 h'_BS h'_UT f_c / c, heights above the effective environment (note 1 of Table 7.4.1-1)."""
    site_m = env.site_height_m - ENVIRONMENT_HEIGHT_M
    return 4.0 * site_m * (ue_height_m - ENVIRONMENT_HEIGHT_M) * carrier_ghz * 1e9 / LIGHT_M_S


def los_loss_db(env: Environment, distance_m: Floats, carrier_ghz: float, ue_height_m: float) -> Floats:
    """PL_UMa-LOS or PL_UMi-LOS. distance_m: d_2D, any shape; the result has the same shape."""
    flat_m = np.maximum(distance_m, LEAST_DISTANCE_M)
    height_m = env.site_height_m - ue_height_m
    decades = np.log10(np.hypot(flat_m, height_m))
    carrier_db = env.los_const_db + 20.0 * np.log10(carrier_ghz)
    break_m = breakpoint_m(env, carrier_ghz, ue_height_m)
    beyond_db = env.beyond_breakpoint * np.log10(break_m**2 + height_m**2)
    loss = np.where(flat_m <= break_m, env.los_slope * decades, 40.0 * decades - beyond_db)
    return np.asarray(loss + carrier_db)


def nlos_loss_db(env: Environment, distance_m: Floats, carrier_ghz: float, ue_height_m: float) -> Floats:
    """PL_UMa-NLOS or PL_UMi-NLOS: never below the LOS loss. Shapes as in `los_loss_db`."""
    flat_m = np.maximum(distance_m, LEAST_DISTANCE_M)
    decades = np.log10(np.hypot(flat_m, env.site_height_m - ue_height_m))
    loss = (
        env.nlos_const_db
        + env.nlos_slope * decades
        + env.nlos_frequency_slope * np.log10(carrier_ghz)
        - env.nlos_height_slope * (ue_height_m - 1.5)
    )
    return np.asarray(np.maximum(los_loss_db(env, distance_m, carrier_ghz, ue_height_m), loss))


def los_probability(env: Environment, distance_m: Floats) -> Floats:
    """Pr_LOS of an outdoor UE below 13 m. distance_m: d_2D, any shape."""
    near = 18.0 / np.maximum(distance_m, 18.0)
    return np.asarray(near + np.exp(-distance_m / env.los_decay_m) * (1.0 - near))


def wall_loss_db(carrier_ghz: float) -> float:
    """PL_tw of the low-loss model, Table 7.4.3-2: 30% standard multi-pane glass and 70% concrete (7.4.3-1)."""
    glass_db = 2.0 + 0.2 * carrier_ghz
    concrete_db = 5.0 + 4.0 * carrier_ghz
    through: float = np.log10(0.3 * 10.0 ** (-glass_db / 10.0) + 0.7 * 10.0 ** (-concrete_db / 10.0))
    return 5.0 - 10.0 * through


def entry_loss_db(carrier_ghz: float, indoors: Bools, rng: np.random.Generator) -> Floats:
    """Draw the building entry loss of each UE, 0 outdoors. indoors: (U,).

    PL_tw + 0.5 d_2D-in + N(0, 4.4^2), with d_2D-in the lesser of two uniform variables in 0 .. 25 m (7.4.3.1).
    """
    inside_m = rng.uniform(0.0, 25.0, size=(2, len(indoors))).min(axis=0)
    spread_db = 4.4 * rng.standard_normal(len(indoors))
    return np.asarray(np.where(indoors, wall_loss_db(carrier_ghz) + 0.5 * inside_m + spread_db, 0.0))


def sigma_db(env: Environment, los: Bools, indoors: Bools) -> Floats:
    """Return the standard deviation of shadow fading; los (..., U, C), indoors (U,)."""
    outdoors = np.where(los, env.sigma_los_db, env.sigma_nlos_db)
    return np.where(indoors[:, None], env.sigma_indoor_db, outdoors)


def correlation_m(env: Environment, los: Bools, indoors: Bools) -> Floats:
    """Return the distance over which shadow fading decorrelates; shapes as in `sigma_db`."""
    outdoors = np.where(los, env.correlation_los_m, env.correlation_nlos_m)
    return np.where(indoors[:, None], env.correlation_indoor_m, outdoors)
