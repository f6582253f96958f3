"""Batches that are taken from tensors at once are those that torch makes of the samples."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, default_collate

from minetorch.data import share_out
from minetorch.data.fetching import Fetcher, Task
from minetorch.data.gathering import can_gather, gather
from minetorch.distributed.world import World
from minetorch.errors import ConfigurationError

LENGTH = 45

TENSORS = {
    "images and classes": (torch.randn(LENGTH, 3, 4, 4), torch.arange(LENGTH)),
    "flags": (torch.arange(LENGTH) % 2 == 0,),
    "empty samples": (torch.empty(LENGTH, 0),),
    "half": (torch.randn(LENGTH, 2).half(), torch.randn(LENGTH, 1, dtype=torch.complex64)),
}

PARTS = {
    "whole": lambda dataset: dataset,
    "part": lambda dataset: Subset(dataset, list(range(LENGTH))[::-1]),
    "part of a part": lambda dataset: Subset(Subset(dataset, torch.randperm(LENGTH)), range(LENGTH)),
}


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("tensors", TENSORS.values(), ids=TENSORS)
def test_a_batch_is_what_torch_makes_of_the_samples(tensors, part):
    dataset = part(TensorDataset(*tensors))
    fetcher = Fetcher(dataset, default_collate, batched=True)
    assert fetcher.gathers
    for keys in ([3, 1, 44], range(5, 30, 7), list(torch.tensor([2, 2]))):
        batch, expected = fetcher[Task(keys, 0, 0, None)], default_collate([dataset[key] for key in keys])
        assert type(batch) is type(expected)
        assert [each.stride() for each in batch] == [each.stride() for each in expected]
        torch.testing.assert_close(batch, expected, rtol=0, atol=0)


def test_a_batch_shares_no_memory_with_the_dataset():
    dataset = TensorDataset(torch.ones(LENGTH))
    gather(dataset, range(4))[0].zero_()
    assert dataset.tensors[0].all()


class Own(TensorDataset):
    def __getitem__(self, index):
        return super().__getitem__(index)[0] + 1


class Named(Dataset):
    def __getitem__(self, index):
        return {"index": index}


@pytest.mark.parametrize(
    "dataset",
    [
        Own(torch.ones(3)),
        Named(),
        [torch.ones(3)],
        TensorDataset(torch.ones(3, 2).T.contiguous().T),
        TensorDataset(torch.ones(3, requires_grad=True)),
        TensorDataset(nn.Parameter(torch.ones(3), requires_grad=False)),
        TensorDataset(torch.ones(3, 2).to_sparse()),
    ],
    ids=lambda dataset: type(dataset).__name__,
)
def test_what_torch_may_make_something_else_of_is_left_to_it(dataset):
    assert not can_gather(dataset)


def test_so_are_a_collate_function_of_the_user_and_a_loader_without_batches():
    dataset = TensorDataset(torch.ones(3))
    assert not Fetcher(dataset, list, batched=True).gathers
    assert not Fetcher(dataset, default_collate, batched=False).gathers


@pytest.mark.parametrize("keys", [[-1, 0], [slice(0, 2)], []], ids=["negative", "slices", "none"])
def test_keys_that_are_no_plain_indices_are_left_to_the_dataset(keys):
    dataset = TensorDataset(torch.arange(6.0))
    assert gather(dataset, keys) is None
    if keys:
        batch = Fetcher(dataset, default_collate, batched=True)[Task(keys, 0, 0, None)]
        torch.testing.assert_close(batch, default_collate([dataset[key] for key in keys]))


def test_an_index_beyond_the_end_is_an_error():
    with pytest.raises(IndexError):
        gather(TensorDataset(torch.arange(6.0)), [6])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pass_gives_the_same_batches_wherever_they_are_fetched(workers):
    dataset = TensorDataset(torch.arange(LENGTH), torch.randn(LENGTH, 2))
    source = DataLoader(dataset, batch_size=4, shuffle=True, num_workers=workers)
    ours = [batch.data for batch in share_out(source, World(), seed=3).epoch(1).batches]
    order = torch.cat([indices for indices, _ in ours])
    assert sorted(order.tolist()) == list(range(LENGTH))
    expected = DataLoader(dataset, batch_size=4, sampler=order.tolist())
    torch.testing.assert_close(ours, list(expected), rtol=0, atol=0)


class Ending(Dataset):
    def __init__(self):
        self.left = iter(range(10))

    def __len__(self):
        return 16

    def __getitem__(self, index):
        return next(self.left)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_dataset_cannot_end_the_epoch_by_accident(workers):
    loader = share_out(DataLoader(Ending(), batch_size=4, num_workers=workers), World())
    with pytest.raises(ConfigurationError, match="let a StopIteration through for a sample"):
        list(loader.epoch(1).batches)
