"""Staging from a GPU: the copy is of the moment that it was asked for, and the host does not wait for it."""

import threading

import pytest
import torch
from torch import nn

from minetorch.checkpoint.plain import plain_state
from minetorch.checkpoint.staging import Stager

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

MIB = 1 << 20
LONG = 500_000_000
"""Cycles of a kernel that takes a quarter of a second or more."""


@pytest.fixture
def weights():
    return [torch.full((4 * MIB,), float(number), device="cuda") for number in range(8)]


def values(staged):
    return [tensor.unique().tolist() for tensor in staged.state["weights"]]


def test_the_host_waits_neither_for_the_copies_nor_for_what_is_before_them(weights):
    stager = Stager()
    stager.stage({"weights": weights}).wait()  # the memory is taken
    torch.cuda.synchronize()
    torch.cuda._sleep(LONG)
    before = torch.cuda.Event()
    before.record()
    staged = stager.stage({"weights": weights})
    for weight in weights:
        weight.fill_(-1)
    assert not before.query(), "the host has waited"
    staged.wait()
    assert values(staged) == [[number] for number in range(8)]


def test_everything_is_copied_before_the_next_kernel(weights):
    staged = Stager().stage({"weights": weights})
    for weight in weights:
        weight.fill_(-1)
    staged.wait()
    assert values(staged) == [[number] for number in range(8)]


def test_what_is_still_being_computed_is_copied_when_it_is_there(weights):
    torch.cuda._sleep(LONG)
    for weight in weights:
        weight.add_(100)
    staged = Stager().stage({"weights": weights})
    for weight in weights:
        weight.zero_()
    staged.wait()
    assert values(staged) == [[100 + number] for number in range(8)]


def test_a_tensor_that_is_let_go_is_not_overwritten_before_its_copy():
    held = [torch.full((64 * MIB,), 5.0, device="cuda")]
    torch.cuda._sleep(LONG)
    staged = Stager().stage({"weights": held})
    held.clear()
    others = [torch.full((64 * MIB,), -1.0, device="cuda") for _ in range(4)]
    staged.wait()
    assert values(staged) == [[5.0]]
    assert len(others) == 4


def test_the_memory_is_pinned_and_used_again(weights):
    stager = Stager()
    state = {"weights": [*weights, torch.ones(MIB)]}
    first = stager.stage(state)
    first.wait()
    places = [tensor.data_ptr() for tensor in first.state["weights"]]
    again = stager.stage(state)
    again.wait()
    assert sorted(tensor.data_ptr() for tensor in again.state["weights"]) == sorted(places)
    pinned = [tensor.is_pinned() for tensor in again.state["weights"]]
    assert pinned == [True] * 8 + [False]


def test_another_thread_may_wait_while_this_one_trains(weights):
    for turn in range(5):
        staged = Stager().stage({"weights": weights})
        saving = threading.Thread(target=staged.wait)
        saving.start()
        for number, weight in enumerate(weights):
            weight.fill_(number + turn + 1)
        saving.join()
        assert values(staged) == [[number + turn] for number in range(8)]


def test_a_model_and_its_optimizer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.Flatten(), nn.Linear(64 * 36, 10)).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(torch.randn(4, 3, 8, 8, device="cuda")).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    expected = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    staged = Stager().stage(plain_state(state))
    optimizer.step()
    staged.wait()
    assert all(torch.equal(staged.state["model"][name], tensor) for name, tensor in expected.items())
    assert {tensor.device.type for tensor in staged.state["model"].values()} == {"cpu"}
    assert {float(s["step"]) for s in staged.state["optimizer"]["state"].values()} == {1.0}
