"""Saving to and reading from a real S3 server through a proxy that spoils requests."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from minetorch.checkpoint import Checkpoint, Checkpointer, Manifest, Store, s3
from minetorch.checkpoint.catalogue import Catalogue
from minetorch.checkpoint.patience import Patience
from minetorch.errors import CheckpointCorruptError, StorageError
from tests.fakes.flaky_s3 import Proxy, Rule

Peek = Callable[..., Checkpoint]

STATE = {"model": torch.arange(200_000.0)}


@pytest.fixture
def proxy(s3_server: Any) -> Iterator[Proxy]:
    with Proxy(s3_server.url) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def models(bucket: Any, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Behind the proxy; a payload of 800 KB goes in parts, and comes in ranges, of 128 KiB."""
    monkeypatch.setattr(s3, "PART", 128 << 10)
    options = {**bucket.options, "endpoint_url": proxy.url, "config_kwargs": {"retries": {"max_attempts": 1}}}
    return Store.open(bucket.url, options).child("run", "models")


@pytest.fixture
def run(models: Store) -> Checkpointer:
    logger = logging.getLogger("tests")
    made = Checkpointer(models, logger=logger, keep_last=2, patience=Patience(logger, delays_s=[0.2] * 12))
    made.open(False)
    save(made, 1)
    return made


def save(run: Checkpointer, step: int) -> Any:
    facts = {"epoch": step, "epoch_complete": True, "position": 0, "world_size": 1, "metrics": {}}
    return run.save({**STATE, "step": step}, step=step, **facts, names=["mine"])


# What these show of a connection, losing an answer shows too.
SLOWLY = [pytest.param(fault, marks=pytest.mark.slow) for fault in ("reset", "slow")]

UPLOADS = {
    "a part": r"^PUT .*partNumber=3",
    "the start": r"^POST .*uploads",
    "the end": r"^POST .*uploadId=",
    "the manifest": r"^PUT .*\.json ",
}


@pytest.mark.parametrize("fault", ["503", "lose", "truncate", *SLOWLY])
@pytest.mark.parametrize("which", UPLOADS)
def test_a_save_rides_out(which: str, fault: str, run: Checkpointer, models: Store, proxy: Proxy, peek: Peek) -> None:
    proxy.rules = [Rule(fault, UPLOADS[which], count=2)]
    manifest = save(run, 2)
    assert proxy.spoiled >= 1
    proxy.rules = []
    found = peek(models)
    assert found.manifest == manifest
    assert torch.equal(found.state["model"], STATE["model"])


READINGS = [
    *[("payload", fault) for fault in ("503", "reset", "lose", "short", "corrupt", "slow")],
    *[("manifest", fault) for fault in ("503", "reset", "lose", "short", "slow")],  # a corrupt one is refused
]


@pytest.mark.parametrize(("which", "fault"), READINGS)
def test_reading_rides_out(which: str, fault: str, run: Checkpointer, models: Store, proxy: Proxy, peek: Peek) -> None:
    save(run, 2)
    proxy.rules = [Rule(fault, r"^GET .*\.pth\.tar" if which == "payload" else r"^GET .*\.json", count=1)]
    assert peek(models).state["step"] == 2
    assert proxy.spoiled == 1


@pytest.mark.slow
def test_four_ranks_fetch_the_payload_once(
    bucket: Any, proxy: Proxy, launch: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (bucket.environ | {"AWS_ENDPOINT_URL": proxy.url}).items():
        monkeypatch.setenv(name, value)
    place = f"{bucket.url}/world"
    launch(4, "wide.py", place, 1)
    newest = max(Catalogue.read(Store.open(place, bucket.options).child("default", "models")).manifests, key=_key)
    proxy.fetched = 0
    assert "Resumed from" in launch(4, "wide.py", place, 1)
    assert newest.size > 4_000_000
    assert newest.size <= proxy.fetched <= 1.02 * newest.size


def _key(manifest: Manifest) -> Any:
    return manifest.key


def test_a_black_out_is_waited_for(run: Checkpointer, models: Store, proxy: Proxy, peek: Peek) -> None:
    proxy.dark_until = time.monotonic() + 1.5
    save(run, 2)
    assert peek(models).state["step"] == 2


def test_a_storage_that_stays_away_is_an_error_in_its_own_words_and_no_checkpoint_is_lost(
    run: Checkpointer, models: Store, proxy: Proxy, peek: Peek
) -> None:
    run._patience = Patience(logging.getLogger("tests"), delays_s=[0.1])
    proxy.rules = [Rule("503", r"^(PUT|POST)", count=10**6)]
    with pytest.raises(StorageError, match=r"cannot write s3://.*reduce your request rate") as raised:
        save(run, 2)
    assert models._files.options["secret"] not in str(raised.value)
    proxy.rules = []
    assert peek(models).state["step"] == 1
    assert save(run, 3).aliases["mine"].startswith("g0001-000003")


def test_what_is_damaged_in_the_storage_is_not_read_a_second_time_as_good(
    run: Checkpointer, models: Store, proxy: Proxy, peek: Peek
) -> None:
    manifest = save(run, 2)
    proxy.rules = [Rule("corrupt", r"^GET .*g0001-000002.*\.pth\.tar", count=10**6)]
    with pytest.raises(CheckpointCorruptError, match="its digest does not match"):
        peek(models, manifest.name)
    assert peek(models).state["step"] == 1


def test_a_claim_whose_answer_is_lost(run: Checkpointer, models: Store, proxy: Proxy) -> None:
    proxy.rules = [Rule("lose", r"^PUT .*writers/g0002\.json", count=1)]
    successor = Checkpointer(models, logger=logging.getLogger("tests"))
    successor.open(True)
    assert successor.fence.generation == 2
    assert proxy.spoiled == 1
