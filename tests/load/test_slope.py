"""The measure of growth, without any load."""

import pytest

from tests.load.slope import slope


def test_a_line_has_its_slope():
    assert slope([0, 10, 20, 30], [5, 25, 45, 65]) == pytest.approx(2.0)


def test_what_is_flat_but_for_an_outlier_has_none():
    assert slope(range(11), [7, 7, 7, 900, 7, 7, 7, 7, 7, 7, 7]) == 0


def test_nothing_to_compare_is_no_growth():
    assert slope([3], [4]) == 0
    assert slope([3, 3], [4, 9]) == 0
