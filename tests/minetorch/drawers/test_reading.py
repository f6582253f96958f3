import numpy as np
import pytest

from minetorch.drawers.reading import are_whole, best_point, better, wants_log_scale


def curve(*y):
    return np.array([np.arange(len(y), dtype=float), y], dtype=float)


@pytest.mark.parametrize(
    ("graph", "name", "way"),
    [
        ("loss", "train", "min"),
        ("Loss", "Loss", "min"),
        ("train_loss", "x", "min"),
        ("gloss", "a", "min"),
        ("valError", "valError", "min"),
        ("metrics", "top1-error", "min"),
        ("accuracy", "accuracy", "max"),
        ("val acc", "val acc", "max"),
        ("f1", "macro", "max"),
        ("accuracy", "loss", "min"),
        ("loss", "accuracy", "max"),
        ("lr", "lr", None),
        ("acceleration", "x", None),
        ("mapping", "terror", None),
        ("损失", "训练", None),
    ],
)
def test_which_way_is_better(graph, name, way):
    assert better(graph, name) == way


def test_best_point():
    assert best_point(curve(3, 1, np.nan, 1, -np.inf), "min") == (1, 1)
    assert best_point(curve(3, 4, np.inf), "max") == (1, 4)
    assert best_point(curve(3, 4), None) is None
    assert best_point(curve(3, np.nan), "min") is None  # the only point is no better than any other


@pytest.mark.parametrize(
    ("values", "way", "log"),
    [
        ([(100, 1)], "min", False),
        ([(101, 1)], "min", True),
        ([(1, 2), (300, 200)], None, True),
        ([(1000, 1, 0)], "min", False),
        ([(1000, 1, -1)], "min", False),
        ([(1000, 1, np.nan, np.inf)], "min", True),
        ([(0.001, 0.99)], "max", False),
        ([(np.nan,)], "min", False),
        ([()], "min", False),
        ([], "min", False),
    ],
)
def test_log_scale(values, way, log):
    assert wants_log_scale([curve(*y) for y in values], way) is log


def test_whole_numbers_on_x():
    assert are_whole([curve(1, 2)])
    assert not are_whole([curve(1, 2), np.array([[0.5], [1]])])
    assert are_whole([])
