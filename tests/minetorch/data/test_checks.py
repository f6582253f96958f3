"""Loaders and samplers that the Trainer cannot share out are refused, and others like them are used as they are."""

import sys
import types

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    default_collate,
)
from torch.utils.data.datapipes.iter import IterableWrapper

from minetorch import ConfigurationError
from minetorch.data import share_out
from minetorch.distributed.world import World

LENGTH = 20


class Numbers(Dataset):
    def __len__(self):
        return LENGTH

    def __getitem__(self, index):
        return torch.tensor([float(index)])


def mean(trainer, data):
    return trainer.model(data).mean()


@pytest.fixture
def seen(make_trainer):
    """Trains an epoch on a loader; returns the numbers that it trained on, in order."""

    def train(loader, **changes):
        numbers = []

        def loss_func(trainer, data):
            numbers.extend(int(number) for number in data.flatten())
            return mean(trainer, data)

        options = {"val_dataloader": None, "max_epochs": 1, "resume": False} | changes
        make_trainer(train_dataloader=loader, loss_func=loss_func, **options).train()
        return numbers

    return train


def refused(make_trainer, loader, message):
    """As data to train on and as data to validate on, before anything is written."""
    with pytest.raises(ConfigurationError, match="train_dataloader " + message):
        make_trainer(train_dataloader=loader, loss_func=mean)
    with pytest.raises(ConfigurationError, match="val_dataloader " + message):
        make_trainer(train_dataloader=DataLoader(Numbers()), val_dataloader=loader, loss_func=mean)


class OwnIteration(DataLoader):
    def __iter__(self):
        for batch in super().__iter__():
            yield batch / 100


class OwnLength(DataLoader):
    def __len__(self):
        return 3


class OwnIterator(DataLoader):
    def _get_iterator(self):
        return iter([torch.zeros(1, 1)])


@pytest.mark.parametrize(
    ("kind", "overridden"), [(OwnIteration, "__iter__"), (OwnLength, "__len__"), (OwnIterator, "_get_iterator")]
)
def test_a_loader_class_that_iterates_in_its_own_way_is_refused(make_trainer, tmp_path, kind, overridden):
    refused(make_trainer, kind(Numbers()), rf"is a {kind.__name__} with its own {overridden}, which")
    assert not (tmp_path / "runs").exists()


def test_a_loader_class_that_only_sets_options_is_used(seen):
    class Doubling(DataLoader):
        def __init__(self, dataset, **options):
            super().__init__(dataset, collate_fn=lambda samples: 2 * default_collate(samples), **options)

    assert seen(Doubling(Numbers(), batch_size=4)) == list(range(0, 2 * LENGTH, 2))


def test_a_stateful_loader_of_torchdata_is_used_but_not_a_class_that_changes_it(seen, make_trainer, monkeypatch):
    class StatefulDataLoader(DataLoader):
        """Has what torchdata's has, by which its position can be saved."""

        def __iter__(self):
            return super().__iter__()

        def _get_iterator(self):
            return super()._get_iterator()

    class Changed(StatefulDataLoader):
        def __iter__(self):
            return iter([torch.zeros(1, 1)])

    module = types.ModuleType("torchdata.stateful_dataloader")
    module.StatefulDataLoader = StatefulDataLoader
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert seen(StatefulDataLoader(Numbers(), batch_size=4)) == list(range(LENGTH))
    refused(make_trainer, Changed(Numbers()), "is a Changed with its own __iter__")


class Upper(DistributedSampler):
    """Gives the upper half of the data only."""

    def __iter__(self):
        return iter(range(LENGTH // 2, LENGTH)[self.rank :: self.num_replicas])

    def __len__(self):
        return LENGTH // 2 // self.num_replicas


class Renamed(DistributedSampler):
    pass


class InPairs(Sampler):
    """A batch sampler around a sampler."""

    def __init__(self, sampler):
        self.sampler = sampler

    def __iter__(self):
        return iter(BatchSampler(self.sampler, 2, drop_last=False))

    def __len__(self):
        return len(self.sampler) // 2


def test_a_sampler_that_splits_by_rank_is_refused_unless_it_is_made_for_one(make_trainer, seen):
    def upper(replicas):
        return DataLoader(Numbers(), batch_size=4, sampler=Upper(Numbers(), num_replicas=replicas, rank=0))

    refused(make_trainer, upper(2), "has a Upper that splits the data over 2 ranks")
    assert seen(upper(1)) == list(range(LENGTH // 2, LENGTH))


def test_a_distributed_sampler_inside_a_batch_sampler_is_refused_unless_it_is_made_for_one(make_trainer, seen):
    def pairs(replicas):
        inner = DistributedSampler(Numbers(), num_replicas=replicas, rank=0, shuffle=False)
        return DataLoader(Numbers(), batch_sampler=InPairs(inner))

    refused(make_trainer, pairs(2), "has a DistributedSampler that splits the data over 2 ranks")
    assert seen(pairs(1)) == list(range(LENGTH))


def test_a_sampler_with_replicas_that_knows_no_rank_does_not_split(seen):
    class Repeating(Sampler):
        num_replicas = 2

        def __iter__(self):
            return iter([key for key in range(LENGTH) for _ in range(self.num_replicas)])

        def __len__(self):
            return LENGTH * self.num_replicas

    assert seen(DataLoader(Numbers(), batch_size=4, sampler=Repeating())) == sorted([*range(LENGTH)] * 2)


@pytest.mark.parametrize("kind", [DistributedSampler, Renamed])
def test_torchs_own_distributed_sampler_is_taken_for_its_shuffle(seen, kind):
    for shuffle in (False, True):
        sampler = kind(Numbers(), num_replicas=2, rank=0, shuffle=shuffle)
        numbers = seen(DataLoader(Numbers(), batch_size=4, sampler=sampler))
        assert (numbers != sorted(numbers)) == shuffle
        assert sorted(numbers) == list(range(LENGTH))


class Endless(Sampler):
    def __iter__(self):
        while True:
            yield from torch.randperm(LENGTH).tolist()


class EndlessWithLength(Endless):
    def __len__(self):
        return LENGTH


class EndlessBatches(Sampler):
    def __iter__(self):
        while True:
            yield [0] * 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": Endless()}, "Endless seems to be endless: it gave more than 1,000,000 keys .* has no len"),
        ({"sampler": EndlessWithLength()}, "more than 40 keys for one epoch, and its len.. is 20"),
        ({"batch_sampler": EndlessBatches()}, "more than 1,000,000 keys"),
    ],
)
def test_an_endless_sampler_is_an_error(make_trainer, options, message):
    with pytest.raises(ConfigurationError, match=message):
        make_trainer(train_dataloader=DataLoader(Numbers(), **options), loss_func=mean).train()


def test_a_sampler_may_give_more_keys_than_its_length_or_its_dataset_has(seen):
    class Twice(Sampler):
        def __iter__(self):
            return iter([*range(LENGTH), *range(LENGTH)])

    class TwiceWithLength(Twice):
        def __len__(self):
            return LENGTH

    for sampler in (Twice(), TwiceWithLength()):
        assert len(seen(DataLoader(Numbers(), batch_size=4, sampler=sampler))) == 2 * LENGTH


def test_with_a_batch_sampler_of_torch_nothing_is_refused(seen):
    for sampler in (SequentialSampler(Numbers()), RandomSampler(Numbers(), replacement=True, num_samples=LENGTH)):
        assert len(seen(DataLoader(Numbers(), batch_sampler=BatchSampler(sampler, 3, drop_last=False)))) == LENGTH


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_pipe_gives_each_sample_once_with_any_number_of_workers(workers):
    pipe = IterableWrapper(range(LENGTH)).shuffle().sharding_filter()
    ranks = [share_out(DataLoader(pipe, batch_size=4, num_workers=workers), World(rank, 2)) for rank in range(2)]
    epochs = []
    for epoch in (1, 2):
        batches = [batch for loader in ranks for batch in loader.epoch(epoch).batches if batch.counted]
        epochs.append([int(number) for batch in batches for number in batch.data])
        assert sorted(epochs[-1]) == list(range(LENGTH))
    assert epochs[0] != epochs[1]
