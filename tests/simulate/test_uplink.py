"""Link budget by hand, and what must hold of any of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosched.simulate.uplink import Uplink, efficiency_bps_hz, headroom_db, power_dbm, sinr_db

LINK = Uplink()


def at(value: float) -> np.ndarray:
    return np.array([value])


def test_power_control_by_hand():
    # 8 PRBs of 15 kHz, 90 dB: -86 + 10 log10(8) + 0.9 x 90 = -86 + 9.031 + 81
    assert power_dbm(LINK, at(90.0), 8, 15.0)[0] == pytest.approx(4.031, abs=1e-3)
    # of 30 kHz: twice the bandwidth, 3.010 dB more
    assert power_dbm(LINK, at(90.0), 8, 30.0)[0] == pytest.approx(7.041, abs=1e-3)
    # 120 dB asks for 31.03 dBm: limited to 23, headroom -8.03
    assert power_dbm(LINK, at(120.0), 8, 15.0)[0] == 23.0
    assert headroom_db(LINK, at(120.0), 15.0)[0] == pytest.approx(-8.031, abs=1e-3)


def test_sinr_by_hand():
    # noise on 8 PRBs: -174 + 10 log10(8 x 180e3) + 5 + 3 = -174 + 61.584 + 8 = -104.416 dBm
    # at 120 dB: 23 - 120 + 104.416; at 90 dB: 4.031 - 90 + 104.416
    assert sinr_db(LINK, at(120.0), 8, 15.0)[0] == pytest.approx(7.416, abs=1e-3)
    assert sinr_db(LINK, at(90.0), 8, 15.0)[0] == pytest.approx(18.447, abs=1e-3)


def test_full_compensation_gives_equal_sinr_within_power():
    full = Uplink(alpha=1.0, p0_dbm=-95.0)
    assert np.ptp(sinr_db(full, np.array([70.0, 90.0, 105.0]), 8, 15.0)) == pytest.approx(0.0, abs=1e-9)


def test_truncated_shannon_by_hand():
    # 0.4 log2(1 + 10) at 10 dB; flat above 22 dB: 0.4 log2(1 + 10^2.2); 0 below -10 dB
    assert efficiency_bps_hz(LINK, at(10.0))[0] == pytest.approx(1.3838, abs=1e-4)
    assert efficiency_bps_hz(LINK, at(22.0))[0] == pytest.approx(2.9270, abs=1e-4)
    assert efficiency_bps_hz(LINK, at(40.0))[0] == efficiency_bps_hz(LINK, at(22.0))[0]
    assert efficiency_bps_hz(LINK, at(-10.01))[0] == 0.0
    assert efficiency_bps_hz(LINK, at(-10.0))[0] > 0.05


@given(
    coupling_db=st.floats(40.0, 180.0),
    alpha=st.floats(0.0, 1.0),
    p0_dbm=st.floats(-202.0, 24.0),  # range of TS 38.331 p0
    prbs=st.integers(1, 273),
)
def test_more_loss_is_never_better_and_power_never_above_its_limit(
    coupling_db: float, alpha: float, p0_dbm: float, prbs: int
):
    link = Uplink(alpha=alpha, p0_dbm=p0_dbm)
    near_far = np.array([coupling_db, coupling_db + 1.0])
    assert (power_dbm(link, near_far, prbs, 30.0) <= link.max_power_dbm).all()
    sinr = sinr_db(link, near_far, prbs, 30.0)
    assert sinr[1] <= sinr[0] + 1e-9
    efficiency = efficiency_bps_hz(link, sinr)
    assert 0.0 <= efficiency[1] <= efficiency[0] + 1e-9
