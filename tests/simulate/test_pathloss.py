"""TR 38.901 by hand: the numbers below were worked out from the tables with a pocket calculator, not with the code."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosched.simulate import pathloss
from cosched.simulate.pathloss import UMA, UMI, Environment


def at(metres: float) -> np.ndarray:
    return np.array([metres])


def test_breakpoint_distance():
    # 4 (h_BS - 1) (1.5 - 1) f_c / c: 4 x 24 x 0.5 x 3.5e9 / 3e8 and 4 x 9 x 0.5 x 3.5e9 / 3e8
    assert pathloss.breakpoint_m(UMA, 3.5, 1.5) == pytest.approx(560.0)
    assert pathloss.breakpoint_m(UMI, 3.5, 1.5) == pytest.approx(210.0)


@pytest.mark.parametrize(
    ("loss", "env", "distance_m", "expected_db"),
    [
        # d_3D = sqrt(100^2 + 23.5^2) = 102.724 m: 28 + 22 x 2.011672 + 20 x 0.544068
        (pathloss.los_loss_db, UMA, 100.0, 83.138),
        # d_3D = 1000.276 m, beyond 560 m: 28 + 40 x 3.000120 + 10.8814 - 9 log10(560^2 + 23.5^2)
        (pathloss.los_loss_db, UMA, 1000.0, 109.411),
        # 13.54 + 39.08 x 2.011672 + 10.8814
        (pathloss.nlos_loss_db, UMA, 100.0, 103.038),
        # d_3D = sqrt(50^2 + 8.5^2) = 50.717 m: 32.4 + 21 x 1.705157 + 10.8814
        (pathloss.los_loss_db, UMI, 50.0, 79.090),
        # d_3D = 500.072 m, beyond 210 m: 32.4 + 40 x 2.699033 + 10.8814 - 9.5 log10(210^2 + 8.5^2)
        (pathloss.los_loss_db, UMI, 500.0, 107.115),
        # 22.4 + 35.3 x 1.705157 + 21.3 x 0.544068
        (pathloss.nlos_loss_db, UMI, 50.0, 94.181),
    ],
)
def test_path_loss_by_hand(loss: Callable[..., np.ndarray], env: Environment, distance_m: float, expected_db: float):
    assert loss(env, at(distance_m), 3.5, 1.5)[0] == pytest.approx(expected_db, abs=5e-3)


def test_ue_height_lowers_the_nlos_loss():
    # at h_UT = 2.5 m: -0.6 dB for UMa; d_3D changes by less than 0.05 dB at 1 km
    low, high = (pathloss.nlos_loss_db(UMA, at(1000.0), 3.5, h)[0] for h in (1.5, 2.5))
    assert low - high == pytest.approx(0.6, abs=0.05)


def test_los_probability_by_hand():
    # UMi at 36 m: 0.5 + exp(-1) x 0.5; UMa at 63 m: 18/63 + exp(-1) x (1 - 18/63)
    assert pathloss.los_probability(UMI, at(36.0))[0] == pytest.approx(0.68394, abs=1e-5)
    assert pathloss.los_probability(UMA, at(63.0))[0] == pytest.approx(0.54848, abs=1e-5)
    assert pathloss.los_probability(UMI, at(18.0))[0] == 1.0
    assert pathloss.los_probability(UMA, at(1.0))[0] == 1.0


def test_fading_and_correlation_of_the_tables():
    los, outdoors = np.array([[[True], [False]]]), np.array([False, False])
    assert pathloss.sigma_db(UMA, los, outdoors).ravel().tolist() == [4.0, 6.0]
    assert pathloss.sigma_db(UMI, los, outdoors).ravel().tolist() == [4.0, 7.82]
    assert pathloss.correlation_m(UMA, los, outdoors).ravel().tolist() == [37.0, 50.0]
    assert pathloss.correlation_m(UMI, los, outdoors).ravel().tolist() == [10.0, 13.0]
    indoors = np.array([True, True])
    assert pathloss.sigma_db(UMI, los, indoors).ravel().tolist() == [7.0, 7.0]
    assert pathloss.correlation_m(UMA, los, indoors).ravel().tolist() == [7.0, 7.0]


def test_wall_loss_by_hand():
    # 3.5 GHz: glass 2.7 dB, concrete 19 dB; 5 - 10 log10(0.3 x 0.53703 + 0.7 x 0.012589) = 5 + 7.698
    assert pathloss.wall_loss_db(3.5) == pytest.approx(12.70, abs=0.01)


def test_entry_loss_is_zero_outdoors_and_has_the_tables_mean_indoors():
    indoors = np.arange(20_000) % 2 == 1
    loss_db = pathloss.entry_loss_db(3.5, indoors, np.random.default_rng(1))
    assert not loss_db[~indoors].any()
    # the lesser of two uniform variables in 0 .. 25 has mean 25 / 3
    assert loss_db[indoors].mean() == pytest.approx(12.70 + 0.5 * 25.0 / 3.0, abs=0.2)


@given(
    distance_m=st.floats(10.0, 5000.0),
    carrier_ghz=st.floats(0.5, 100.0),
    env=st.sampled_from([UMA, UMI]),
)
def test_loss_grows_with_distance_and_nlos_is_never_below_los(distance_m: float, carrier_ghz: float, env: Environment):
    near_far = np.array([distance_m, distance_m * 1.01])
    los = pathloss.los_loss_db(env, near_far, carrier_ghz, 1.5)
    nlos = pathloss.nlos_loss_db(env, near_far, carrier_ghz, 1.5)
    # the table's two LOS branches meet at the breakpoint to within 0.1 dB (it is d_2D, the slopes are in d_3D)
    assert los[1] > los[0] - 0.1
    assert (nlos >= los).all()
    assert 0.0 < pathloss.los_probability(env, near_far)[1] <= 1.0
