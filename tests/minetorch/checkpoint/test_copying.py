"""What copying a run will do, decided without touching anything."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from minetorch.checkpoint import Manifest
from minetorch.checkpoint.copying import plan_copy
from minetorch.errors import CheckpointMismatchError

Make = Callable[..., Manifest]


@pytest.fixture
def run(manifest: Make) -> list[Manifest]:
    return [manifest(1, sequence, sequence * 10) for sequence in (1, 2, 3, 4)]


def planned(wanted: list[Manifest], run: list[Manifest], there: list[Manifest]) -> list[tuple[int, str]]:
    plan = plan_copy(wanted, {one.name for one in run}, there, "there")
    return [(one.sequence, action) for one, action in plan]


def test_the_oldest_first_so_that_the_names_come_last(run: list[Manifest]) -> None:
    assert planned(run[::-1], run, []) == [(1, "copied"), (2, "copied"), (3, "copied"), (4, "copied")]


def test_what_is_there_is_not_copied(run: list[Manifest]) -> None:
    assert planned(run, run, [run[2], run[0]]) == [(1, "there"), (2, "copied"), (3, "there"), (4, "copied")]
    assert planned([run[0]], run, run) == [(1, "there")]


def test_what_was_dropped_here_since_may_be_there(run: list[Manifest]) -> None:
    assert planned(run[2:], run[2:], run[:3]) == [(3, "there"), (4, "copied")]


def test_another_run(run: list[Manifest], manifest: Make) -> None:
    with pytest.raises(CheckpointMismatchError, match="there holds another run's checkpoints"):
        planned(run, run, [manifest(2, 1, 10)])


def test_a_copy_that_has_gone_on(run: list[Manifest], manifest: Make) -> None:
    with pytest.raises(CheckpointMismatchError, match="there has gone on by itself: its newest checkpoint, g0002-"):
        planned(run, run, [*run, manifest(2, 1, 50)])


def test_another_checkpoint_of_the_same_name(run: list[Manifest], manifest: Make) -> None:
    with pytest.raises(CheckpointMismatchError, match="another checkpoint of the same name"):
        planned(run, run, [manifest(1, 1, 10, epoch=7), run[1]])


def test_a_copy_on_which_the_run_was_started(run: list[Manifest]) -> None:
    bounds = {2: run[1].key}
    plan = plan_copy(run[:2], {one.name for one in run}, run[:1], "there", bounds)
    assert [action for _, action in plan] == ["there", "copied"]
    with pytest.raises(CheckpointMismatchError, match="was started at there since"):
        plan_copy(run, {one.name for one in run}, run[:2], "there", bounds)
