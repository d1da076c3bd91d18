"""Shadowing statistics, the normal distribution, handover."""

import math

import numpy as np
import pytest

from cosched.simulate import channel
from cosched.simulate.channel import Propagation, gudmundson, losses_db, observe, serve
from cosched.simulate.pathloss import UMA, UMI, Environment, los_loss_db, los_probability, nlos_loss_db
from cosched.simulate.uplink import Uplink


def test_shadowing_decorrelates_as_gudmundson_says():
    # 13 m correlation, steps of 1 m: autocorrelation exp(-d / 13) at 5 and 26 m, unit variance throughout
    moved = np.full((60, 4000), 1.0)
    field = gudmundson(moved, np.full((60, 4000, 1), 13.0), np.random.default_rng(1))[:, :, 0]
    assert field.std() == pytest.approx(1.0, abs=0.03)
    for metres in (5, 26):
        measured = np.mean([np.corrcoef(field[t], field[t + metres])[0, 1] for t in range(0, 30, 5)])
        assert measured == pytest.approx(math.exp(-metres / 13.0), abs=0.03)


def test_who_stands_keeps_the_shadow_and_links_are_independent():
    field = gudmundson(np.zeros((5, 3000)), np.full((5, 3000, 2), 10.0), np.random.default_rng(1))
    assert np.array_equal(field[0], field[4])
    assert abs(np.corrcoef(field[0, :, 0], field[0, :, 1])[0, 1]) < 0.06


def test_normal_distribution_against_the_error_function():
    x = np.linspace(-6.0, 6.0, 241)
    exact = np.array([0.5 * math.erfc(-v / math.sqrt(2.0)) for v in x])
    assert np.abs(channel._normal_cdf(x) - exact).max() < 1e-7


@pytest.mark.parametrize("env", [UMA, UMI])
def test_share_of_los_is_the_tables(env: Environment) -> None:
    path = np.tile(np.array([60.0, 0.0]), (1, 20_000, 1))
    sites = np.zeros((1, 2))
    loss = losses_db(Propagation(env, 3.5, 1.5), path, sites, np.zeros(20_000, dtype=bool), np.random.default_rng(2))
    # at 60 m the two states are over 10 dB apart on average: the mean tells their shares
    los, nlos = (f(env, np.array([60.0]), 3.5, 1.5)[0] for f in (los_loss_db, nlos_loss_db))
    share = los_probability(env, np.array([60.0]))[0]
    assert loss.mean() == pytest.approx(share * los + (1 - share) * nlos, abs=0.3)


def test_walls_cost_what_the_table_says():
    path = np.tile(np.array([60.0, 0.0]), (1, 20_000, 1))
    indoors = np.arange(20_000) % 2 == 0
    loss = losses_db(Propagation(UMI, 3.5, 1.5), path, np.zeros((1, 2)), indoors, np.random.default_rng(3))[0, :, 0]
    assert loss[indoors].mean() - loss[~indoors].mean() == pytest.approx(12.7 + 25 / 6, abs=0.4)


def test_handover_waits_for_the_hysteresis():
    # cell 1 gets better by 1 dB a step; with 3 dB of hysteresis it takes over when it is more than 3 dB better
    loss = np.stack([np.full((8, 1), 100.0), 102.0 - np.arange(8.0)[:, None]], axis=2)
    assert serve(loss, 3.0)[:, 0].tolist() == [0, 0, 0, 0, 0, 0, 1, 1]
    assert serve(loss, 0.0)[:, 0].tolist() == [0, 0, 0, 1, 1, 1, 1, 1]


def test_a_link_is_observed_on_its_serving_cell():
    loss = np.array([[[120.0, 90.0]]])
    link = observe(Uplink(antenna_gain_dbi=8.0), loss, 3.0, 15.0)
    assert link.cell.tolist() == [[1]]
    # coupling loss 82 dB on cell 1: -86 + 73.8 - 82 + ... as in test_simulate_uplink, per 8 PRBs
    assert link.sinr_db[0, 0] == pytest.approx(
        -86.0 + 0.9 * 82.0 - 82.0 + 174.0 - 10 * math.log10(180e3) - 8.0, abs=1e-6
    )
