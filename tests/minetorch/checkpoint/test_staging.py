"""Staging: the copy equals the state, shares nothing with it, and is complete before the caller continues."""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict
from typing import Any

import pytest
import torch
from torch import nn

from minetorch.checkpoint import staging
from minetorch.checkpoint.staging import Stager

MIB = 1 << 20


def tensors(value: Any) -> list[torch.Tensor]:
    return list(staging._tensors(value, set()))


def test_the_copy_equals_the_state_and_shares_nothing_with_it() -> None:
    base = torch.arange(10.0)
    state: dict[str, Any] = {
        "views": [base[2:5], base[::2], base.view(2, 5).t()],
        "bf16": torch.ones(3, dtype=torch.bfloat16),
        "bool": torch.tensor([True, False]),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(3),
        "sparse": torch.eye(3).to_sparse(),
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "parameter": nn.Parameter(torch.ones(2), requires_grad=False),
        "containers": ({1, 2}, (1, [2, {"x": None}]), OrderedDict(a=1), Counter("aab"), b"x", bytearray(b"y")),
        "types": [torch.float32, torch.Size([1]), torch.device("cpu"), 1.5, "text"],
    }
    before = copy.deepcopy(state)
    staged = Stager().stage(state)
    staged.wait()
    for given, copied in zip(tensors(state), tensors(staged.state), strict=True):
        assert type(copied) is type(given)
        assert copied.dtype == given.dtype
        assert copied.requires_grad == given.requires_grad
        assert torch.equal(copied.to_dense(), given.to_dense())
    for tensor in tensors(state):
        tensor.zero_()
    state["containers"][1][1].append(5)
    state["containers"][5].clear()
    for expected, copied in zip(tensors(before), tensors(staged.state), strict=True):
        assert torch.equal(copied.to_dense(), expected.to_dense())
    assert staged.state["containers"] == before["containers"]
    assert [type(item) for item in staged.state["containers"]] == [type(item) for item in before["containers"]]
    assert staged.state["types"] == before["types"]


def test_what_shares_memory_still_does() -> None:
    base = torch.arange(6.0)
    shared = [1]
    staged = Stager().stage({"a": base[:3], "b": base[3:], "twice": [base, base], "lists": [shared, shared]})
    copied = staged.state
    assert copied["a"].untyped_storage()._cdata == copied["b"].untyped_storage()._cdata
    assert copied["twice"][0] is copied["twice"][1]
    assert copied["lists"][0] is copied["lists"][1]


def test_a_modules_metadata_is_kept() -> None:
    state = nn.Linear(2, 2).state_dict()
    staged = Stager().stage({"model": state})
    assert staged.state["model"]._metadata == state._metadata  # type: ignore[attr-defined]
    assert staged.state["model"]._metadata is not state._metadata  # type: ignore[attr-defined]


def test_the_memory_is_used_again_and_not_more_of_it() -> None:
    stager = Stager()
    state = {"a": torch.ones(MIB), "b": torch.ones(2 * MIB), "c": torch.ones(MIB)}
    first = {tensor.data_ptr() for tensor in tensors(stager.stage(state).state)}
    again = {tensor.data_ptr() for tensor in tensors(stager.stage(state).state)}
    assert again == first
    stager.stage({"a": torch.ones(MIB)})
    assert sum(piece.nbytes for piece in stager._memory) == 4 * MIB


def test_memory_that_does_not_fit_is_let_go_before_any_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    stager = Stager()
    stager.stage({"a": torch.ones(MIB)})
    held = []
    take = staging._Staging._take

    def look(self: Any, source: torch.Tensor) -> torch.Tensor:
        held.append(len(self._memory))
        return take(self, source)

    monkeypatch.setattr(staging._Staging, "_take", look)
    stager.stage({"a": torch.ones(2 * MIB)})
    assert held == [0]
