"""Which virtual shard has which samples: the ranks' loaders are looked at one after the other."""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, TensorDataset

from minetorch.data import share_out_by_shards
from minetorch.distributed.world import World


class Stream(IterableDataset):
    def __init__(self, length):
        self.length = length

    def __iter__(self):
        return iter(torch.arange(self.length))


def shuffled(length, batch_size):
    return DataLoader(TensorDataset(torch.arange(length)), batch_size=batch_size, shuffle=True)


def streamed(length, batch_size):
    return DataLoader(Stream(length), batch_size=batch_size)


def own_batches(length, batch_size):
    data = TensorDataset(torch.arange(length))
    return DataLoader(data, batch_sampler=list(BatchSampler(RandomSampler(range(length)), batch_size, False)))


def loaders(source, shards, world_size, **options):
    return [
        share_out_by_shards(source, World(rank, world_size), shards=shards, **options) for rank in range(world_size)
    ]


def numbers(data):
    return (data[0] if isinstance(data, list) else data).tolist()


def by_shard(source, shards, world_size, start=0):
    """What every shard of every iteration gets, whichever rank has it."""
    found = {}
    for loader in loaders(source, shards, world_size):
        for batch in loader.epoch(2, start).batches:
            key = (batch.position, batch.total, batch.units)
            parts = [(part.shard, part.counted, numbers(part.data)) for part in batch.parts()]
            assert sum(part.counted for part in batch.parts()) == batch.counted
            found.setdefault(key, []).extend(parts)
    return found


@settings(max_examples=25, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from([shuffled, streamed, own_batches]), st.integers(1, 60), st.integers(1, 9), st.data())
def test_a_shard_has_the_same_samples_at_any_world_size(kind, length, shards, data):
    source = kind(length, data.draw(st.integers(shards, shards + 12), label="batch size"))
    world_size = data.draw(st.integers(1, shards), label="world size")
    alone = by_shard(source, shards, 1)
    assert by_shard(source, shards, world_size) == alone
    every = [number for parts in alone.values() for _, _, numbers in parts for number in numbers]
    assert sorted(every) == list(range(length))
    half = data.draw(st.sampled_from([position for position, _, _ in alone]), label="start")
    rest = {key: parts for key, parts in alone.items() if key[0] >= half}
    assert by_shard(source, shards, world_size, start=half) == rest


def test_workers_bring_the_same():
    plain, with_workers = shuffled(45, 20), DataLoader(TensorDataset(torch.arange(45)), 20, shuffle=True, num_workers=2)
    assert by_shard(with_workers, 8, 2) == by_shard(plain, 8, 1)


def test_in_training_every_rank_has_every_iteration_and_in_validation_none_without_a_sample():
    source = shuffled(21, 8)
    training = [[batch.counted for batch in one.epoch(1).batches] for one in loaders(source, 8, 4)]
    assert training == [[2, 2, 2], [2, 2, 2], [2, 2, 1], [2, 2, 0]]
    validation = [[batch.counted for batch in one.epoch(1).batches] for one in loaders(source, 8, 4, training=False)]
    assert validation == [[2, 2, 2], [2, 2, 2], [2, 2, 1], [2, 2]]


def test_iterating_gives_the_batches_of_the_shards():
    (loader,) = loaders(shuffled(16, 8), 4, 1)
    batches = [numbers(batch) for batch in loader]
    assert [len(batch) for batch in batches] == [2] * 8 == [2] * len(loader)
    assert sorted(number for batch in batches for number in batch) == list(range(16))
    assert [len(batch[0]) for batch in loader.alone()] == [8, 8]
