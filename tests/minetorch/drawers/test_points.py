import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from minetorch.drawers.points import check_graph, check_values, check_x, to_float
from minetorch.errors import ConfigurationError


@pytest.mark.parametrize(
    "value",
    [
        2,
        2.0,
        Fraction(2),
        np.float32(2),
        np.int64(2),
        np.array(2.0),
        torch.tensor(2),
        torch.tensor(2.0, requires_grad=True),
        torch.tensor(2.0, dtype=torch.bfloat16),
        torch.tensor(1.0, requires_grad=True) * 2,
        pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
    ],
)
def test_numbers_of_every_kind(value):
    if value == "cuda":
        value = torch.tensor(2.0, device="cuda", requires_grad=True)
    number = to_float(value, "it")
    assert type(number) is float
    assert number == 2


def test_booleans_and_non_finite_values():
    assert to_float(True, "it") == 1
    assert to_float(np.bool_(True), "it") == 1
    assert to_float(torch.tensor(True), "it") == 1
    assert math.isnan(to_float(torch.tensor(math.nan), "it"))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("0.5", "str '0.5'"),
        (None, "NoneType"),
        ([1.0], "list"),
        (1j, "complex"),
        (torch.zeros(3), "shape \\(3,\\)"),
        (torch.zeros(1), "shape \\(1,\\)"),
        (torch.tensor(1j), "complex64"),
        (np.zeros((2, 2)), "shape \\(2, 2\\)"),
        (np.array("x"), "ndarray"),
        (10**400, "too large"),
    ],
)
def test_anything_else_is_named(value, said):
    with pytest.raises(ConfigurationError, match=said):
        check_values({"train": value}, "loss")
    with pytest.raises(ConfigurationError, match=r"'train' on the graph 'loss'"):
        check_values({"train": value}, "loss")


@pytest.mark.parametrize("graph", ["", " ", ".", "..", "a/b", "/etc", "a\\b", "a\nb", "a\0b", "ü" * 101, 3, None])
def test_names_that_cannot_be_a_file(graph):
    with pytest.raises(ConfigurationError, match="graph"):
        check_graph(graph)


@pytest.mark.parametrize("graph", ["loss", "val loss", "损失", "a.b", "..a", "lr (½)", "a" * 200])
def test_names_that_can(graph):
    assert check_graph(graph) == graph


def test_scalars_needs_a_dict_and_says_what_to_type():
    with pytest.raises(ConfigurationError, match=r"drawer\.scalar\(value, 'loss'\)"):
        check_values(0.5, "loss")
    with pytest.raises(ConfigurationError, match="cannot name a curve"):
        check_values({3: 0.5}, "loss")


@pytest.mark.parametrize("x", [math.nan, math.inf, "3", None])
def test_x_must_be_a_finite_number(x):
    with pytest.raises(ConfigurationError, match="x on the graph 'loss'"):
        check_x(x, "loss")
