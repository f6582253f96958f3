import importlib.util
import logging

import pytest

from minetorch.checkpoint import Store
from minetorch.drawers import Drawer, MatplotlibDrawer, SilentDrawers, TensorboardDrawer, make_drawers
from minetorch.errors import ConfigurationError


class Own(Drawer):
    def scalars(self, values, graph, x):
        pass


def make(spec, tmp_path, **options):
    return make_drawers(
        spec, store=Store.open(tmp_path), code="run", current_x=lambda: 1, logger=logging.Logger("test"), **options
    )


@pytest.mark.parametrize(
    ("spec", "kinds"),
    [
        (None, []),
        (False, []),
        ([], []),
        ("matplotlib", [MatplotlibDrawer]),
        ("tensorboard", [TensorboardDrawer]),
        (Own(), [Own]),
        (["tensorboard", Own(), Own()], [TensorboardDrawer, Own, Own]),
        (("matplotlib", "tensorboard"), [MatplotlibDrawer, TensorboardDrawer]),
    ],
)
def test_names_drawers_and_lists(spec, kinds, tmp_path):
    drawers = make(spec, tmp_path)
    assert [type(drawer) for drawer in drawers.drawers] == kinds
    drawers.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("matplotlb", "no drawer 'matplotlb'. Did you mean 'matplotlib'\\? Known are 'matplotlib', 'tensorboard'"),
        ("TensorBoard", "Did you mean 'tensorboard'"),
        ("wandb", "no drawer 'wandb'. Known are"),
        ("", "no drawer ''"),
        (True, "drawer=True is no drawer"),
        (3, "drawer=3 is no drawer"),
        (Own, r"drawer=Own is a class: give an instance, drawer=Own\(\)"),
        (["matplotlib", "matplotlib"], "has 'matplotlib' twice"),
        (["matplotlib", None], "drawer=None is no drawer"),
    ],
)
@pytest.mark.parametrize("silent", [False, True])
def test_what_is_no_drawer(spec, said, silent, tmp_path):
    with pytest.raises(ConfigurationError, match=said):
        make(spec, tmp_path, silent=silent)


def test_silent(tmp_path):
    assert isinstance(make(["matplotlib", "tensorboard"], tmp_path, silent=True), SilentDrawers)


@pytest.mark.parametrize("name", ["matplotlib", "tensorboard"])
def test_a_missing_library_says_what_to_install(name, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(ConfigurationError, match=f"pip install {name}"):
        make(name, tmp_path)
