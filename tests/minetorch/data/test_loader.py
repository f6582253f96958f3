"""DataLoaders of every kind, shared out over simulated ranks: real loaders, no processes but their workers."""

import multiprocessing
import random
from itertools import chain, pairwise

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    get_worker_info,
)

from minetorch.data import mark_last, share_out
from minetorch.distributed.world import World
from minetorch.errors import ConfigurationError

LENGTH = 45


class Numbers(Dataset):
    def __init__(self, length=LENGTH):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return index


class Stream(IterableDataset):
    """Split over DataLoader workers, as torch's documentation has it."""

    def __init__(self, length=LENGTH):
        self.length = length

    def __iter__(self):
        info = get_worker_info()
        first, step = (0, 1) if info is None else (info.id, info.num_workers)
        return iter(range(first, self.length, step))


class SizedStream(Stream):
    def __len__(self):
        return self.length


class EvenFirst:
    """A custom sampler that draws from Python's and torch's global generators."""

    def __iter__(self):
        even, odd = list(range(0, LENGTH, 2)), list(range(1, LENGTH, 2))
        random.shuffle(even)
        return iter(even + [odd[i] for i in torch.randperm(len(odd))])

    def __len__(self):
        return LENGTH


class Buckets:
    """A custom batch sampler with batches of unequal size."""

    def __iter__(self):
        bounds = [0, 4, 9, 10, 22, 30, 38, 45]
        return iter([list(range(a, b)) for a, b in pairwise(bounds)])

    def __len__(self):
        return 7


def shared(make, world_size, **options):
    return [share_out(make(), World(rank, world_size), **options) for rank in range(world_size)]


def counted(loaders, epoch=1, start=0):
    """Each rank's samples, those that count only, by iteration."""
    return [
        [batch.data.tolist()[: batch.counted] if batch.counted else [] for batch in loader.epoch(epoch, start).batches]
        for loader in loaders
    ]


def in_order(ranks):
    return [sample for iteration in zip(*ranks, strict=True) for share in iteration for sample in share]


KINDS = {
    "sequential": lambda: DataLoader(Numbers(), batch_size=4),
    "shuffled": lambda: DataLoader(Numbers(), batch_size=4, shuffle=True),
    "workers": lambda: DataLoader(Numbers(), batch_size=4, shuffle=True, num_workers=2),
    "custom sampler": lambda: DataLoader(Numbers(), batch_size=4, sampler=EvenFirst()),
    "subset": lambda: DataLoader(Numbers(), batch_size=4, sampler=SubsetRandomSampler(range(LENGTH))),
    "batch sampler": lambda: DataLoader(Numbers(), batch_sampler=Buckets()),
    "plain batch sampler": lambda: DataLoader(
        Numbers(), batch_sampler=BatchSampler(RandomSampler(Numbers()), 4, drop_last=False)
    ),
    "distributed sampler": lambda: DataLoader(
        Numbers(), batch_size=4, sampler=DistributedSampler(Numbers(), num_replicas=2, rank=0)
    ),
    "stream": lambda: DataLoader(Stream(), batch_size=4),
    "sized stream": lambda: DataLoader(SizedStream(), batch_size=4),
}


@pytest.mark.parametrize("split", [False, True], ids=["per worker", "split"])
@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_training_sees_every_sample_once_in_the_same_global_order(kind, world_size, split):
    alone = in_order(counted(shared(KINDS[kind], 1, split_batches=split)))
    ranks = counted(shared(KINDS[kind], world_size, split_batches=split))
    assert sorted(alone) == list(range(LENGTH))
    assert in_order(ranks) == alone
    assert len({len(rank) for rank in ranks}) == 1


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_validation_neither_repeats_nor_drops(kind, world_size):
    loaders = shared(KINDS[kind], world_size, training=False)
    seen = [batch.data.tolist() for loader in loaders for batch in loader.epoch(1).batches]
    assert sorted(chain.from_iterable(seen)) == list(range(LENGTH))


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "workers"])
def test_going_on_in_the_middle_takes_up_where_it_stopped(kind, world_size):
    loaders = shared(KINDS[kind], world_size)
    whole = counted(loaders)
    batches = list(loaders[0].epoch(1).batches)[:3]
    rest = counted(loaders, start=sum(batch.units for batch in batches))
    assert rest == [rank[3:] for rank in whole]


def test_every_epoch_has_an_order_of_its_own_that_comes_again():
    loader = share_out(KINDS["shuffled"](), World())
    epochs = [in_order(counted([loader], epoch)) for epoch in (1, 2, 1)]
    assert epochs[0] != epochs[1]
    assert epochs[0] == epochs[2]
    other_seed = share_out(KINDS["shuffled"](), World(), seed=1)
    assert in_order(counted([other_seed])) != epochs[0]


def test_drawing_with_replacement_is_shared_out_too():
    def make():
        return DataLoader(Numbers(), batch_size=4, sampler=WeightedRandomSampler([1.0] * LENGTH, 20))

    assert in_order(counted(shared(make, 2))) == in_order(counted(shared(make, 1)))


def test_listing_a_sampler_leaves_the_global_generators_alone():
    random.seed(3), torch.manual_seed(3)
    expected = random.random(), torch.rand(1)
    random.seed(3), torch.manual_seed(3)
    list(share_out(KINDS["custom sampler"](), World()))
    assert (random.random(), torch.rand(1)) == expected


def test_a_rank_without_a_sample_of_its_own_borrows_one_that_does_not_count():
    loaders = shared(lambda: DataLoader(Numbers(5), batch_size=1), 4)
    last = [list(loader.epoch(1).batches)[-1] for loader in loaders]
    assert [(batch.counted, batch.total, len(batch.data)) for batch in last] == [(1, 1, 1)] + [(0, 1, 1)] * 3
    assert [len(list(loader)) for loader in loaders] == [2, 1, 1, 1]


def test_drop_last_leaves_out_the_last_partial_batch_of_all():
    ranks = counted(shared(lambda: DataLoader(Numbers(), batch_size=4, drop_last=True), 2))
    assert in_order(ranks) == list(range(40))
    streams = counted(shared(lambda: DataLoader(Stream(), batch_size=4, drop_last=True), 2))
    assert in_order(streams) == list(range(40))


def test_without_batching_each_sample_is_an_iteration():
    ranks = shared(lambda: DataLoader(Numbers(6), batch_size=None), 2)
    assert [list(loader) for loader in ranks] == [[0, 2, 4], [1, 3, 5]]
    streams = shared(lambda: DataLoader(Stream(6), batch_size=None), 2)
    assert [list(loader) for loader in streams] == [[0, 2, 4], [1, 3, 5]]


def test_a_stream_is_split_over_ranks_and_workers():
    loaders = shared(lambda: DataLoader(Stream(), batch_size=4, num_workers=2), 2)
    assert sorted(in_order(counted(loaders))) == list(range(LENGTH))


def test_len_and_other_attributes_are_the_users():
    loader = share_out(KINDS["shuffled"](), World(0, 2))
    assert len(loader) == 6
    assert (loader.batch_size, len(loader.dataset)) == (4, LENGTH)
    assert len(share_out(KINDS["sized stream"](), World(0, 2))) == 6
    with pytest.raises(TypeError, match="Stream has no length"):
        len(share_out(KINDS["stream"](), World(0, 2)))
    with pytest.raises(AttributeError):
        _ = loader.no_such_thing


def test_batches_are_placed_on_the_device():
    loader = share_out(
        DataLoader(TensorDataset(torch.zeros(3)), batch_size=2), World(), place=lambda data: ("placed", data)
    )
    assert [data[0] for data in loader] == ["placed", "placed"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DataLoader(Numbers(), batch_size=3), "Use a batch_size of 4 or more, or fewer workers"),
        (lambda: DataLoader(Numbers(), batch_size=None), "has batch_size=None"),
    ],
)
def test_a_batch_that_cannot_be_split_is_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        share_out(make(), World(0, 4), split_batches=True)


def test_a_sampler_is_listed_once_an_epoch_and_not_for_its_length():
    class Counting(EvenFirst):
        listed = 0

        def __iter__(self):
            self.listed += 1
            return super().__iter__()

    sampler = Counting()
    loader = share_out(DataLoader(Numbers(), batch_size=4, sampler=sampler), World(0, 2))
    assert (len(loader), sampler.listed) == (6, 0)
    assert (len(list(loader.epoch(1).batches)), sampler.listed) == (6, 1)


def test_a_second_pass_does_not_disturb_the_first():
    loader = share_out(KINDS["shuffled"](), World())
    undisturbed = [batch.data.tolist() for batch in loader.epoch(1, 8).batches]
    first = loader.epoch(1, 8).batches
    seen = [next(first).data.tolist()]
    list(loader)
    assert seen + [batch.data.tolist() for batch in first] == undisturbed


def test_the_last_batch_is_marked():
    assert list(mark_last(iter("abc"))) == [("a", False), ("b", False), ("c", True)]
    assert list(mark_last(iter("a"))) == [("a", True)]
    assert list(mark_last(iter(""))) == []


def learn_of_the_dataset(worker):
    get_worker_info().dataset.length = 100 + worker


class Length(Dataset):
    length = 3

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return self.length


class LengthStream(Length, IterableDataset):
    def __iter__(self):
        return iter([self.length] * 2)


@pytest.mark.parametrize("kind", [Length, LengthStream])
def test_a_worker_init_fn_finds_the_users_own_dataset(kind):
    """As torch's documentation has it, which has a worker's part of a stream set there."""
    loader = share_out(DataLoader(kind(), num_workers=2, worker_init_fn=learn_of_the_dataset), World())
    assert sorted(torch.cat(list(loader)).tolist()) == [100, 100, 101, 101]


@pytest.mark.parametrize("kind", ["workers", "stream"])
def test_a_second_pass_has_other_workers_while_those_that_live_on_are_busy(kind):
    def make():
        dataset = Stream() if kind == "stream" else Numbers()
        return DataLoader(dataset, batch_size=4, num_workers=2, persistent_workers=True)

    loader, undisturbed = share_out(make(), World()), counted([share_out(make(), World())])[0]
    first = loader.epoch(1).batches
    seen = [next(first).data.tolist()]
    assert [data.tolist() for data in loader] == undisturbed
    assert seen + [batch.data.tolist() for batch in first] == undisturbed
    assert [data.tolist() for data in loader] == undisturbed


def test_workers_that_live_on_end_when_told_to_and_a_later_pass_has_new_ones():
    others = {child.pid for child in multiprocessing.active_children()}

    def workers():
        return {child.pid for child in multiprocessing.active_children()} - others

    loader = share_out(DataLoader(Numbers(), batch_size=4, num_workers=2, persistent_workers=True), World())
    passes = [[batch.tolist() for batch in loader] for _ in range(2)]
    first = workers()
    assert len(first) == 2
    loader.end_workers()
    assert not workers()
    passes.append([batch.tolist() for batch in loader])
    assert passes[0] == passes[1] == passes[2]
    assert not workers() & first
    batches = iter(loader)
    next(batches)
    loader.end_workers()
    assert not workers()
