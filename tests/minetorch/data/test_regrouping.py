"""Whatever the sizes, ranks, workers and stops: an epoch's samples come once, in one order, augmented alike.

Ranks are simulated: each has the real loader of its place in a world, and no process group.
"""

import random
from itertools import islice, pairwise

import numpy as np
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from minetorch.data import share_out
from minetorch.distributed.world import World


def drawn(index):
    return index, random.random(), np.random.random(), float(torch.rand(1))


class Augmented(Dataset):
    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return drawn(index)


class Stream(IterableDataset):
    """Draws which sample is next from a buffer."""

    def __init__(self, length):
        self.length = length

    def __iter__(self):
        info = get_worker_info()
        held = list(range(self.length) if info is None else range(info.id, self.length, info.num_workers))
        while held:
            yield drawn(held.pop(random.randrange(min(5, len(held)))))


class StatefulStream(IterableDataset):
    """Cannot be read up to a place: it goes on from where it is told."""

    def __init__(self, length):
        self.length = length
        self.at = 0

    def __iter__(self):
        info = get_worker_info()
        part = range(self.length) if info is None else range(info.id, self.length, info.num_workers)
        while self.at < len(part):
            self.at += 1
            yield drawn(part[self.at - 1])
        self.at = 0

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


class Buckets:
    """Batches of one to four samples."""

    def __init__(self, length):
        self.bounds = [*range(0, length, 4), *range(1, length, 7), length]

    def __iter__(self):
        return iter([list(range(a, b)) for a, b in pairwise(sorted(set(self.bounds)))])

    def __len__(self):
        return len(set(self.bounds)) - 1


KINDS = {
    "shuffled": lambda length, size, **how: DataLoader(Augmented(length), batch_size=size, shuffle=True, **how),
    "in order": lambda length, size, **how: DataLoader(Augmented(length), batch_size=size, **how),
    "batch sampler": lambda length, size, **how: DataLoader(Augmented(length), batch_sampler=Buckets(length), **how),
    "stream": lambda length, size, **how: DataLoader(Stream(length), batch_size=size, **how),
    "stateful": lambda length, size, **how: DataLoader(StatefulStream(length), batch_size=size, **how),
}


def read(kind, length, size, legs, *, split=False, accumulate=1):
    """The samples of an epoch in their global order, as runs see them that are stopped and gone on with.

    Args:
        kind: of the data.
        length: samples in it.
        size: samples in a batch.
        legs: of each run the world's size, its workers, and the steps after which it ends; the last goes on.
        split: as `split_batches`.
        accumulate: iterations that make a step: a run ends after a whole step.
    """
    seen, position, stream = [], 0, None
    for number, (world, workers, steps) in enumerate(legs):
        loaders = [
            share_out(KINDS[kind](length, size, num_workers=workers), World(rank, world), seed=5, split_batches=split)
            for rank in range(world)
        ]
        epochs = [loader.epoch(3, position, stream).batches for loader in loaders]
        last = number == len(legs) - 1
        for batches in islice(zip(*epochs, strict=True), None if last else steps * accumulate):
            rows = [
                list(zip(*(part.tolist() for part in batch.data), strict=True))[: batch.counted] for batch in batches
            ]
            seen += [row for share in rows for row in share]
            assert len({(batch.units, batch.total) for batch in batches}) == 1
            assert sum(map(len, rows)) == batches[0].total
            position, stream = position + batches[0].units, batches[0].stream
        for batches in epochs:
            batches.close()
    return seen


def legs(workers):
    return st.lists(st.tuples(st.integers(1, 4), workers, st.integers(0, 5)), min_size=1, max_size=4)


WITHOUT_WORKERS = settings(database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow])
WITH_WORKERS = settings(database=None, max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SIZES = {
    "kind": st.sampled_from(list(KINDS)),
    "length": st.integers(1, 70),
    "size": st.integers(1, 9),
    "accumulate": st.integers(1, 3),
}


@WITHOUT_WORKERS
@given(legs=legs(st.just(0)), **SIZES)
def test_stops_and_worlds_change_neither_the_order_nor_the_augmentation(kind, length, size, accumulate, legs):
    whole = read(kind, length, size, [(1, 0, 0)])
    assert sorted(index for index, *_ in whole) == list(range(length))
    assert read(kind, length, size, legs, accumulate=accumulate) == whole


@WITHOUT_WORKERS
@given(legs=legs(st.just(0)), **SIZES | {"size": st.integers(4, 9), "kind": st.sampled_from(["shuffled", "stream"])})
def test_nor_where_batches_are_split(kind, length, size, accumulate, legs):
    whole = read(kind, length, size, [(1, 0, 0)])
    assert read(kind, length, size, legs, accumulate=accumulate, split=True) == whole


@WITH_WORKERS
@example(legs=[(3, 0, 0), (4, 2, 0)], kind="stream", length=2, size=5, accumulate=3)
@given(legs=legs(st.integers(0, 2)), **SIZES)
def test_nor_do_the_loaders_workers(kind, length, size, accumulate, legs):
    """Of a stream the workers that began an epoch decide what it gives; how many there are later is the same to it."""
    seen = read(kind, length, size, legs, accumulate=accumulate)
    if kind not in ("stream", "stateful"):
        assert seen == read(kind, length, size, [(1, 0, 0)])
    else:
        began = next((workers for _, workers, steps in legs[:-1] if steps), legs[-1][1])
        assert sorted(seen) == sorted(read(kind, length, size, [(1, began, 0)]))


def test_the_main_process_draws_as_if_nothing_had_been_fetched():
    def following():
        return random.random(), random.gauss(0, 1), np.random.standard_normal(), float(torch.rand(1))

    for normals in (0, 1):  # NumPy makes two at a time, and has one in store
        expected = []
        for fetch in (False, True):
            random.seed(3), np.random.seed(3), torch.manual_seed(3)
            np.random.standard_normal(normals), random.gauss(0, 1)
            if fetch:
                for kind in KINDS:
                    read(kind, 20, 4, [(1, 0, 0)])
            expected.append(following())
        assert expected[0] == expected[1]
