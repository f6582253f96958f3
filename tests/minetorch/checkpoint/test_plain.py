from __future__ import annotations

import collections
import enum
import io
import random
from typing import Any

import numpy as np
import pytest
import torch

from minetorch.checkpoint.plain import plain_state
from minetorch.errors import ConfigurationError


def through_a_file(state: dict[str, Any]) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


PLAIN: dict[str, Any] = {
    "none": None,
    "numbers": [True, 1, -(2**40), 2**1999, 1.5, float("inf"), 1j],
    "texts": ("", "ünï\udcff", b"\0\xff", bytearray(b"x")),
    "set": {1, 2},
    "counter": collections.Counter("abca"),
    "ordered": collections.OrderedDict(a=1),
    "keys": {1: 1, 1.5: 2, (1, "a"): 3, None: 4, b"x": 5},
    "torch": [torch.float32, torch.bfloat16, torch.device("cuda:1"), torch.Size([2, 3]), torch.strided],
    "random": random.getstate(),
    "bit_generator": np.random.default_rng(0).bit_generator.state,
}
TENSORS: dict[str, Any] = {
    "scalar": torch.tensor(1.5),
    "parameter": torch.nn.Parameter(torch.ones(2)),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "bool": torch.tensor([True, False]),
    "complex": torch.tensor([1j]),
    "sparse": torch.eye(3).to_sparse(),
    "empty": torch.empty(0, 3),
    "uint16": torch.zeros(2, dtype=torch.uint16),
    "generator": torch.get_rng_state(),
    "meta": torch.empty(2, device="meta"),
}


@pytest.mark.parametrize("key", PLAIN)
def test_what_passes_can_be_read_back(key: str) -> None:
    state = {key: PLAIN[key]}
    assert plain_state(state) is state
    assert through_a_file(state) == state


@pytest.mark.parametrize("key", TENSORS)
def test_tensors_pass_and_can_be_read_back(key: str) -> None:
    state = {key: TENSORS[key]}
    assert plain_state(state) is state
    assert type(through_a_file(state)[key]) is type(TENSORS[key])


def test_states_of_torch_itself_pass() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 2)).sum().backward()
    optimizer.step()
    schedulers = torch.optim.lr_scheduler
    made = [
        schedulers.LambdaLR(optimizer, lambda epoch: 1.0),
        schedulers.ReduceLROnPlateau(optimizer),
        schedulers.OneCycleLR(optimizer, 1.0, total_steps=10),
        schedulers.CosineAnnealingWarmRestarts(optimizer, 5),
        schedulers.SequentialLR(
            optimizer, [schedulers.ConstantLR(optimizer), schedulers.ExponentialLR(optimizer, 0.9)], [2]
        ),
    ]
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
        "statable": [scheduler.state_dict() for scheduler in made],
    }
    assert through_a_file(plain_state(state))["model"].keys() == model.state_dict().keys()


def test_numpy_scalars_become_pythons_and_nothing_else_is_copied() -> None:
    tensor, untouched = torch.ones(1), {"a": [1]}
    shared = [np.float64(0.5)]
    state = {
        "best": np.float64(0.5),
        "nested": [({"x": np.int64(3)}, tensor)],
        "flag": np.bool_(True),
        "text": np.str_("a"),
        "half": np.float32(0.5),
        "zero": np.array(1.5)[()],
        np.int64(7): "key",
        "shared": [shared, shared],
        "set": {np.int64(1)},
        "untouched": untouched,
    }
    plain = plain_state(state)
    assert plain == through_a_file(plain)
    assert type(plain["best"]) is float
    assert type(plain["flag"]) is bool
    assert type(plain["text"]) is str
    assert [type(key) for key in plain if not isinstance(key, str)] == [int]
    assert plain["nested"][0][1] is tensor
    assert plain["untouched"] is untouched
    assert plain["shared"][0] is plain["shared"][1]
    assert type(state["best"]) is np.float64  # the caller's own is left alone


def test_the_metadata_of_a_converted_module_state_is_kept() -> None:
    state = torch.nn.Linear(1, 1).state_dict()
    state["extra"] = np.float64(1)
    plain = plain_state({"model": state})["model"]
    assert plain._metadata == state._metadata  # type: ignore[attr-defined]
    assert type(plain["extra"]) is float


class Colour(enum.IntEnum):
    RED = 1


class Text(str):
    __slots__ = ()


class Subclass(torch.Tensor):
    pass


class Scheduler:
    def state_dict(self) -> dict[str, Any]:
        return {}


Point = collections.namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("value", "where", "advice"),
    [
        ([lambda: 0], r"statable\.it\[0\]: function", "leave it out of state_dict"),
        ({"a": {5: print}}, r"statable\.it\.a\[5\]: builtin_function", "leave it out"),
        (np.ones(2), r"statable\.it: numpy\.ndarray", "torch.from_numpy"),
        (np.datetime64("2020-01-01"), r"numpy\.datetime64", "store tensors"),
        (Colour.RED, r"Colour", "as a plain int"),
        (Text("x"), r"Text", "as a plain str"),
        (Point(1, 2), r"Point", "as a plain tuple"),
        (collections.defaultdict(list), r"collections\.defaultdict", "as a plain dict"),
        (frozenset({1}), r"frozenset", "as a plain set"),
        (torch.ones(1).as_subclass(Subclass), r"Subclass", "add_safe_globals"),
        (Scheduler(), r"Scheduler", "its state_dict"),
        (object(), r"statable\.it: object", "store tensors"),
        (2**2001, r"statable\.it: int", "as a string"),
        ({(1, print): 1}, r"key.*\[1\]: builtin_function", "leave it out"),
        ({1, print}, r"\{…\}: builtin_function", "leave it out"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_read_back_is_refused_by_its_place(value: Any, where: str, advice: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"cannot hold .*{where}.*{advice}"):
        plain_state({"model": torch.ones(1), "statable": {"it": value}})


def test_attributes_are_looked_at_too() -> None:
    tensor = torch.ones(1)
    tensor.note = print  # type: ignore[attr-defined]
    with pytest.raises(ConfigurationError, match=r"model\.w\.note: builtin_function"):
        plain_state({"model": {"w": tensor}})
    tensor.note = np.float64(1)  # type: ignore[attr-defined]
    with pytest.raises(ConfigurationError, match=r"model\.w\.note: numpy.float64.*plain Python"):
        plain_state({"model": {"w": tensor}})
    tensor.note = "fine"  # type: ignore[attr-defined]
    assert through_a_file(plain_state({"w": tensor}))["w"].note == "fine"


def test_what_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ConfigurationError, match=r"statable\[0\]: it contains itself"):
        plain_state({"statable": loop})


def test_a_state_is_a_dict() -> None:
    with pytest.raises(ConfigurationError, match="must be a dict, not a list"):
        plain_state([])  # type: ignore[arg-type]


def test_what_the_user_told_torch_to_trust_passes() -> None:
    with torch.serialization.safe_globals([Colour]):
        assert plain_state({"colour": Colour.RED}) == {"colour": 1}
