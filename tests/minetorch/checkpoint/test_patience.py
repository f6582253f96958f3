"""What a storage refuses is tried again after each delay, but for what would last."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from minetorch.checkpoint.patience import Patience
from minetorch.errors import StorageError

LOGGER = logging.getLogger("tests")


@pytest.fixture
def slept() -> list[float]:
    return []


def failing(*errors: Exception) -> Iterator[Exception | None]:
    yield from errors
    yield None


def persist(slept: list[float], *errors: Exception) -> str:
    left = failing(*errors)

    def action() -> str:
        error = next(left)
        if error is not None:
            raise error
        return "done"

    return Patience(LOGGER, (1.0, 20.0), slept.append).persist(action)


def test_the_first_try_that_succeeds(slept: list[float], caplog: pytest.LogCaptureFixture) -> None:
    assert persist(slept, StorageError("busy"), StorageError("slow")) == "done"
    assert slept == [1.0, 20.0]
    assert [record.getMessage() for record in caplog.records] == [
        "busy. Trying again in 1 s (1 of 2).",
        "slow. Trying again in 20 s (2 of 2).",
    ]
    assert persist(slept) == "done"
    assert slept == [1.0, 20.0]


def test_the_last_tries_error(slept: list[float]) -> None:
    with pytest.raises(StorageError, match=r"^third$"):
        persist(slept, StorageError("first"), StorageError("second"), StorageError("third"))
    assert slept == [1.0, 20.0]


def test_what_would_last_or_is_another_error_is_raised_at_once(slept: list[float]) -> None:
    lasting = StorageError("no such bucket")
    lasting.is_lasting = True
    for error in (lasting, ValueError("a bug")):
        with pytest.raises(type(error), match=str(error)):
            persist(slept, error)
    assert slept == []
