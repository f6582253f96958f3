from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from minetorch.checkpoint import Checkpoint, Checkpointer, Manifest, Store, parse_resume
from minetorch.checkpoint.catalogue import Catalogue
from minetorch.checkpoint.finder import Finder
from minetorch.checkpoint.names import CheckpointName
from minetorch.checkpoint.patience import Patience
from minetorch.drawers import Curves

# A folder name that has broken many a path handler.
UGLY = "my run [1] ünï#%20 'x'"


@pytest.fixture
def memory_url() -> Iterator[str]:
    url = f"memory://tests-{uuid.uuid4().hex}/{UGLY}"
    yield url
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture
def local_url(tmp_path: Path) -> str:
    return str(tmp_path / UGLY)


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, local_url: str, memory_url: str) -> Store:
    """Every storage that claims the contract of a store."""
    return Store.open({"local": local_url, "memory": memory_url}[request.param])


@pytest.fixture
def models(store: Store) -> Store:
    return store.child("models")


@pytest.fixture
def checkpointer() -> Callable[..., Checkpointer]:
    """Makes a checkpointer with a clock of its own, whose log goes to `caplog`."""

    def make(store: Store, **options: Any) -> Checkpointer:
        logger = logging.getLogger("tests")
        at_once = {"patience": Patience(logger, delays_s=())}
        return Checkpointer(store, logger=logger, clock=lambda: 1000.0, **{**at_once, **options})

    return make


@pytest.fixture
def peek() -> Callable[..., Checkpoint | None]:
    """Reads a checkpoint without starting the run, as nobody's successor."""

    def peek(store: Store, resume: Any = True) -> Checkpoint | None:
        return Finder(store, (), logging.getLogger("tests")).find(Catalogue.read(store), parse_resume(resume))

    return peek


@pytest.fixture
def save() -> Callable[..., Manifest]:
    """Saves a state and a curve that hold `value`, at the end of an epoch."""

    def save(checkpointer: Checkpointer, value: float, **changes: Any) -> Manifest:
        arguments: dict[str, Any] = {
            "step": int(value) * 10,
            "epoch": int(value),
            "epoch_complete": True,
            "position": 0,
            "world_size": 2,
            "metrics": {"val_loss": 1 / value} if value else {},
        }
        curves = Curves()
        curves.add("loss", "train", 1.0, float(value))
        state = {"model": torch.full((100,), float(value))}
        return checkpointer.save(state, **{"curves": curves.snapshot(), **arguments, **changes})

    return save


@pytest.fixture
def manifest() -> Callable[..., Manifest]:
    """Makes a manifest out of thin air."""

    def make(generation: int = 1, sequence: int = 1, step: int = 10, **changes: Any) -> Manifest:
        name = CheckpointName(generation, sequence, step, "abcdef")
        values: dict[str, Any] = {
            "name": str(name),
            "generation": generation,
            "sequence": sequence,
            "step": step,
            "epoch": 1,
            "epoch_complete": True,
            "position": 0,
            "world_size": 1,
            "payload": name.payload,
            "size": 5,
            "digest": "crc32:" + "0" * 8,
            "metrics": {},
            "aliases": {},
            "created": 1000.0,
        }
        return Manifest(**{**values, **changes})

    return make
