import io
import math

import torch

from minetorch.drawers import Curves


def record() -> Curves:
    curves = Curves()
    curves.add("loss", "train", 1, 0.5)
    curves.add("loss", "val", 1, math.nan)
    curves.add("loss", "train", 2, math.inf)
    curves.add("lr ü", "lr ü", 0.25, 1e-300)
    curves.name_x("lr ü", "x")
    return curves


def test_the_state_survives_a_file_that_is_read_without_pickle():
    file = io.BytesIO()
    torch.save(record().state_dict(), file)
    file.seek(0)
    loaded = Curves()
    loaded.add("gone", "gone", 1, 1)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    assert list(loaded) == ["loss", "lr ü"]
    assert list(loaded["loss"]) == ["train", "val"]
    assert list(loaded["loss"]["train"].x) == [1, 2]
    assert list(loaded["loss"]["train"].y) == [0.5, math.inf]
    assert math.isnan(loaded["loss"]["val"].y[0])
    assert list(loaded["lr ü"]["lr ü"].y) == [1e-300]
    assert (loaded.x_name("loss"), loaded.x_name("lr ü")) == ("epoch", "x")
    assert len(loaded) == 4
    loaded.add("loss", "train", 3, 0.1)
    assert len(loaded) == 5


def test_the_state_is_a_snapshot_of_one_tensor_per_curve():
    curves = record()
    state = curves.state_dict()
    curves.add("loss", "train", 3, 9)
    points = state["graphs"]["loss"]["train"]
    assert points.dtype == torch.float64
    assert points.tolist() == [[1, 2], [0.5, math.inf]]


def test_an_empty_state_is_an_empty_record():
    curves = record()
    curves.load_state_dict({})
    assert list(curves) == []
    curves.load_state_dict(Curves().state_dict())
    assert len(curves) == 0


def test_a_copy_goes_on_independently():
    curves = record()
    copy = curves.copy()
    copy.add("loss", "train", 3, 1)
    copy.name_x("loss", "step")
    assert len(curves) == 4
    assert curves.x_name("loss") == "epoch"
    assert list(curves.points())[:2] == [("loss", "train", 1, 0.5), ("loss", "train", 2, math.inf)]
