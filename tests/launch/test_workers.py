"""What the launcher makes of its workers' ends, at moments that real ones would hit once in a thousand launches."""

import itertools
import os
from types import SimpleNamespace

import pytest
from minetorch_launch.engine.council import Council
from minetorch_launch.engine.workers import Workers
from torch.distributed import HashStore


class Dying:
    """A process that ends right after somebody has looked whether it has."""

    pid = 0

    def __init__(self, code, sentinel):
        self.sentinel = sentinel
        self._code, self._looks = code, 0

    @property
    def exitcode(self):
        self._looks += 1
        return None if self._looks == 1 else self._code


@pytest.fixture
def quiet_files():
    """Three descriptors on which nothing happens."""
    pipes = [os.pipe() for _ in range(3)]
    yield [reading for reading, _ in pipes]
    for descriptor in itertools.chain(*pipes):
        os.close(descriptor)


def test_workers_that_all_die_while_they_are_looked_at_have_not_ended_well(quiet_files):
    told, one, other = quiet_files
    workers = Workers(
        SimpleNamespace(_pc=SimpleNamespace(processes=[Dying(-9, one), Dying(1, other)])),
        [0, 1],
        plan=SimpleNamespace(hang_timeout=None, grace=1.0),
        channel=SimpleNamespace(heard=dict, wakeup=told),
        signals=None,
        rendezvous=SimpleNamespace(council=Council(HashStore(), 0, ())),
        say=print,
    )
    for _ in range(2):
        if workers.noticed_at is None:
            workers._look_for_ends()
        assert not workers._ended_well
    assert workers.noticed_at is not None
