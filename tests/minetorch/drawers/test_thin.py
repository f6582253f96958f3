import warnings

import numpy as np
import pytest

from minetorch.drawers.thin import BUCKETS, MOST_POINTS, isolated, thin


def curve(y):
    return np.array([np.arange(len(y), dtype=float), y], dtype=float)


def test_few_points_stand_for_themselves():
    points = thin(curve([1, np.inf, -np.inf, 2]))
    np.testing.assert_array_equal(points.y, [1, np.nan, np.nan, 2])
    assert points.low is None
    assert thin(curve([])).x.size == 0
    assert thin(curve(np.arange(MOST_POINTS))).x.size == MOST_POINTS


@pytest.mark.parametrize("count", [MOST_POINTS + 1, 5000, 123_457])
def test_many_points_keep_their_mean_and_every_spike(count):
    rng = np.random.default_rng(count)
    y = rng.normal(size=count)
    y[count // 3], y[count // 2] = 1e9, -1e9
    points = thin(curve(y))
    assert points.x.size == BUCKETS
    assert np.all(np.diff(points.x) > 0)
    assert points.high.max() == 1e9
    assert points.low.min() == -1e9
    assert np.all((points.low <= points.y) & (points.y <= points.high))
    steady = thin(curve(np.full(count, 3.25)))
    np.testing.assert_allclose(steady.y, 3.25)
    np.testing.assert_array_equal(steady.low, 3.25)


def test_what_is_not_finite_spoils_no_neighbour():
    y = np.ones(10_000)
    y[::7] = np.nan
    y[1::7] = np.inf
    y[4000:6000] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        points = thin(curve(y))
    gap = np.isnan(points.y)
    assert 0.15 < gap.mean() < 0.25
    np.testing.assert_allclose(points.y[~gap], 1)
    np.testing.assert_allclose(points.high[~gap], 1)
    assert np.all(np.isnan(points.low[gap]))


def test_the_largest_floats_do_not_overflow():
    points = thin(curve(np.full(10_000, 1.7e308)))
    np.testing.assert_allclose(points.y, 1.7e308)


def test_isolated_points():
    nan = np.nan
    assert isolated(np.array([1, nan, 1, 1, nan, 1])).tolist() == [True, False, False, False, False, True]
    assert isolated(np.array([1.0])).tolist() == [True]
    assert isolated(np.array([])).tolist() == []


def test_whole_x_stay_whole_and_what_is_lost_is_counted():
    points = thin(curve([np.nan, *range(4999)]))
    assert np.all(points.x == np.floor(points.x))
    assert points.lost == 1
    assert thin(curve([np.nan, np.inf, 1])).lost == 2
    assert points.line.shape == (2, BUCKETS)
