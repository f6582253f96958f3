"""Each sample has the random numbers of its own seed, whichever generators it and those before it draw from."""

import random
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minetorch.data import seeding
from minetorch.data.order import derive_seed, derive_seeds
from minetorch.data.seeding import OBSERVED, SampleSeeds
from minetorch.randomness import reseed

DRAWS = {
    "nothing": lambda: None,
    "python": random.random,
    "numpy": np.random.random,
    "torch": lambda: torch.rand(()).item(),
    "python's normal": lambda: random.gauss(0, 1),
    "numpy's normal": np.random.standard_normal,
    "all words of python's": lambda: [random.getrandbits(32) for _ in range(624)][-1],
    "all words of numpy's": lambda: np.random.random(312)[-1],
    "seeds and draws": lambda: (random.seed(7), np.random.seed(7), random.random(), np.random.random())[2:],
    "seeds": lambda: (random.seed(7), np.random.seed(7))[0],
    "python and numpy": lambda: (random.random(), np.random.random()),
}


def reference(fetch, keys, seeds):
    samples = []
    for key, seed in zip(keys, seeds, strict=True):
        reseed(seed)
        samples.append(fetch(key))
    return samples


@given(
    st.lists(st.lists(st.sampled_from(sorted(DRAWS)), min_size=1, max_size=12), min_size=1, max_size=8),
    st.integers(0, 2**63 - 1),
)
def test_samples_are_what_they_are_if_all_is_seeded_before_each(batches, first):
    seeds = SampleSeeds()
    for batch in batches:
        own = [derive_seed(first, place) for place in range(len(batch))]
        expected = reference(lambda name: DRAWS[name](), batch, own)
        random.random()  # somebody else draws between two batches
        np.random.standard_normal()
        assert seeds.fetch(lambda name: DRAWS[name](), batch, own) == expected


class Counting:
    """Counts how often each sample was fetched; some draw, or fail after they have drawn an unlucky number."""

    def __init__(self, draws=lambda key: None):
        self.draws = draws
        self.fetched = []

    def __call__(self, key):
        self.fetched.append(key)
        return self.draws(key)


def test_only_the_first_sample_that_draws_after_others_did_not_is_fetched_twice():
    late = Counting(lambda key: np.random.random() if key in (OBSERVED + 5, OBSERVED + 9) else key)
    SampleSeeds().fetch(late, range(64), range(64))
    assert sorted(late.fetched) == sorted([*range(64), OBSERVED + 5])
    always = Counting(lambda key: (random.random(), np.random.random()))
    SampleSeeds().fetch(always, range(64), range(64))
    assert always.fetched == list(range(64))


def test_slow_samples_are_never_fetched_twice():
    def draw(key):
        time.sleep(2 * seeding.SLOW_S)
        return np.random.random() if key == OBSERVED + 5 else key

    slow = Counting(draw)
    SampleSeeds().fetch(slow, range(32), range(32))
    assert slow.fetched == list(range(32))


def test_a_generator_that_nothing_draws_from_costs_no_seed(monkeypatch):
    seeded = []
    monkeypatch.setattr(np.random, "seed", lambda seed: seeded.append(seed))
    SampleSeeds().fetch(lambda key: random.random(), range(64), range(64))
    assert len(seeded) == OBSERVED


def test_an_error_that_the_sample_owes_to_anothers_numbers_is_not_raised():
    def draw(key):
        if key > OBSERVED and random.random() != expected[key]:
            raise ValueError("unlucky")
        return key

    keys, seeds = range(40), [derive_seed(1, key) for key in range(40)]
    expected = reference(lambda key: random.random(), keys, seeds)
    assert SampleSeeds().fetch(draw, keys, seeds) == list(keys)


@pytest.mark.parametrize("draw", [lambda: None, random.random])
def test_a_samples_own_error_is_raised(draw):
    def fetch(key):
        if key == OBSERVED + 5:
            draw()
            raise ValueError(f"sample {key}")

    with pytest.raises(ValueError, match=f"sample {OBSERVED + 5}"):
        SampleSeeds().fetch(fetch, range(64), range(64))


@given(st.integers(0, 2**64), st.lists(st.integers(0, 2**40) | st.text("abc/", max_size=3), max_size=3))
def test_many_seeds_are_those_that_one_gets_one_by_one(seed, path):
    numbers = range(3, 30, 7)
    assert derive_seeds(seed, *path, numbers=numbers) == [derive_seed(seed, *path, number) for number in numbers]
