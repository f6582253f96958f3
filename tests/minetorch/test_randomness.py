"""Whatever draws within `kept_generators`, nothing of it is seen after."""

import random

import numpy as np
import pytest
import torch

from minetorch.data import randomness
from minetorch.data.randomness import kept_generators

DRAWS = {
    "nothing": lambda: None,
    "numbers": lambda: (random.random(), np.random.rand(), torch.rand(())),
    "many numbers": lambda: (random.randbytes(9_999), np.random.rand(9_999), torch.rand(9_999)),
    "normal numbers": lambda: (random.gauss(0, 1), np.random.standard_normal(), torch.randn(())),
    "seeds": lambda: randomness.reseed(17 << 40),
    "another state": lambda: (random.setstate(random.Random(3).getstate()), np.random.seed(3)),
}


def states():
    numpy = np.random.get_state(legacy=False)
    # What stood in store before is of no meaning where nothing is in store.
    store = numpy["gauss"] if numpy["has_gauss"] else None
    return (
        random.getstate(),
        numpy["state"]["key"].tolist(),
        numpy["state"]["pos"],
        store,
        torch.get_rng_state().tolist(),
    )


@pytest.mark.parametrize("stored", [False, True], ids=["", "with normal numbers in store"])
@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_generators_are_as_before(draw, stored):
    with kept_generators():
        randomness.reseed(5 << 40)
        random.random()
        if stored:
            random.gauss(0, 1), np.random.standard_normal(), torch.randn(())
        before = states()
        with kept_generators():
            draw()
        assert states() == before
        following = random.gauss(0, 1), np.random.standard_normal(), torch.randn(()).item()
        randomness.reseed(5 << 40)
        random.random()
        if stored:
            random.gauss(0, 1), np.random.standard_normal(), torch.randn(())
        assert following == (random.gauss(0, 1), np.random.standard_normal(), torch.randn(()).item())


def test_an_error_does_not_keep_them_from_it():
    before = states()
    with pytest.raises(TypeError), kept_generators():
        random.shuffle((random.random(), random.random()))
    assert states() == before
