"""Layouts, drops and walks: distances are measured here with other code."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cosched.simulate.mobility import Area, Mobility, hexagonal_sites, walk


def distances(sites: np.ndarray) -> np.ndarray:
    return np.array([[np.hypot(*(a - b)) for b in sites] for a in sites])


def test_hexagonal_sites_have_six_neighbours_at_the_spacing():
    apart = distances(hexagonal_sites(19, 500.0))
    assert apart[~np.eye(19, dtype=bool)].min() == pytest.approx(500.0)
    assert np.isclose(apart[0], 500.0).sum() == 6
    assert hexagonal_sites(1, 500.0).tolist() == [[0.0, 0.0]]


def test_three_sites_are_a_triangle():
    apart = distances(hexagonal_sites(3, 350.0))
    assert apart[np.triu_indices(3, 1)] == pytest.approx([350.0] * 3)


def area(radius_m: float = 200.0) -> Area:
    return Area(hexagonal_sites(3, 350.0), radius_m, 10.0)


def test_drop_is_uniform_over_a_ring():
    one = Area(np.zeros((1, 2)), 200.0, 10.0)
    radius = np.hypot(*one.drop(20_000, np.random.default_rng(1)).T)
    assert radius.min() >= 10.0
    assert radius.max() <= 200.0
    # half of the area lies within sqrt((10^2 + 200^2) / 2)
    assert (radius < np.sqrt((10.0**2 + 200.0**2) / 2)).mean() == pytest.approx(0.5, abs=0.02)


@settings(max_examples=25)
@given(
    kind=st.sampled_from(["static", "waypoint", "line"]),
    speed_m_s=st.floats(0.0, 30.0),
    pause_s=st.floats(0.0, 10.0),
    seed=st.integers(0, 2**32 - 1),
)
def test_nobody_walks_faster_than_said_or_out_of_the_box(kind: str, speed_m_s: float, pause_s: float, seed: int):
    rng = np.random.default_rng(seed)
    where = area()
    start = where.drop(5, rng)
    path = walk(where, Mobility(kind=kind, speed_m_s=speed_m_s, pause_s=pause_s), start, times=60, step_s=0.5, rng=rng)
    assert path.shape == (60, 5, 2)
    assert np.array_equal(path[0], start) or np.allclose(path[0], start)
    steps = np.hypot(*np.moveaxis(np.diff(path, axis=0), -1, 0))
    assert steps.max() <= speed_m_s * 0.5 + 1e-6
    assert (path >= where.low_m - 1e-6).all()
    assert (path <= where.high_m + 1e-6).all()


def test_waypoints_pause_and_lines_do_not():
    rng = np.random.default_rng(3)
    small = Area(np.zeros((1, 2)), 20.0, 10.0)
    start = small.drop(4, rng)
    walks = walk(small, Mobility(kind="waypoint", speed_m_s=5.0, pause_s=3.0), start, times=400, step_s=0.5, rng=rng)
    moved = np.hypot(*np.moveaxis(np.diff(walks, axis=0), -1, 0))
    still = moved == 0.0
    assert still.any()
    # whole pauses last pause_s / step_s steps
    runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[0], still[:, 0].astype(int), [0]])) != 0))[::2]
    assert (runs[:-1] == 6).all()
    lines = walk(small, Mobility(kind="line", speed_m_s=5.0), start, times=100, step_s=0.1, rng=rng)
    assert (np.hypot(*np.moveaxis(np.diff(lines, axis=0), -1, 0)) > 0).all()
