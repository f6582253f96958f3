"""Large remote files come by several ranges at once."""

import random

import pytest

from minetorch.checkpoint import ranges

DATA = random.Random(1).randbytes(20_500)


class Files:
    """A file system with one file, which may be shorter than it is said to be."""

    def __init__(self, data):
        self.data = data
        self.starts = []

    def cat_file(self, path, start, end):
        self.starts.append(start)
        return self.data[start:end]


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(ranges, "RANGE", 1000)


def test_every_range_is_fetched_once_and_handed_over_in_order():
    files, pieces = Files(DATA), []
    content = ranges.fetch(files, "file", len(DATA), lambda piece: pieces.append(bytes(piece)))
    assert content == DATA == b"".join(pieces)
    assert sorted(files.starts) == list(range(0, len(DATA), 1000))


def test_a_file_that_ends_early_is_an_error():
    with pytest.raises(EOFError, match="file ends before byte 20500"):
        ranges.fetch(Files(DATA[:-1]), "file", len(DATA), lambda piece: None)
