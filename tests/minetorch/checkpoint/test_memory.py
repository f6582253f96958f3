from __future__ import annotations

import pytest

from minetorch.checkpoint.memory import allocate


@pytest.mark.parametrize("size", [0, 1, 4096, (4 << 20) + 1])
def test_gives_so_many_bytes_to_write_to(size: int) -> None:
    memory = allocate(size)
    assert memory.nbytes == size
    assert bytes(memory) == bytes(size)
    memory[:] = b"x" * size
    assert bytes(memory) == b"x" * size


def test_outlives_whoever_asked_for_it() -> None:
    piece = allocate(8 << 20)[-3:]
    piece[:] = b"end"
    assert bytes(piece) == b"end"
