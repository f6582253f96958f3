"""The writer and the reader of payloads, which agree on what a payload is."""

from __future__ import annotations

import errno
import io
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch

from minetorch.checkpoint import Manifest, Store, decode
from minetorch.checkpoint.digest import digest_of
from minetorch.checkpoint.restoring import read_state
from minetorch.checkpoint.verification import read_verified, verify_in_place
from minetorch.checkpoint.writer import write_payload
from minetorch.errors import CheckpointCorruptError, CheckpointMismatchError, StorageError

STATE = {"model": {"w": torch.arange(300_000.0), "v": torch.ones(3)}, "step": 5}


class Evil:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch /tmp/minetorch-was-hacked",)


def saved(state: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(state, file, **options)
    return file.getvalue()


def test_what_is_written_is_what_torch_writes_with_its_size_and_digest(store: Store) -> None:
    written = write_payload(store, "x.pth.tar", STATE)
    data = store.read("x.pth.tar")
    assert written.size == len(data)
    assert written.digest == digest_of(data)
    if store.is_local:
        assert torch.load(store.local_path("x.pth.tar"), weights_only=True)["step"] == 5
    assert zipfile.ZipFile(io.BytesIO(data)).testzip() is None


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_decodes_any_kind_of_bytes(kind: Callable[[bytes], bytes]) -> None:
    state = decode(kind(saved(STATE)))
    assert torch.equal(state["model"]["w"], STATE["model"]["w"])  # type: ignore[index]
    assert state["step"] == 5


@pytest.mark.parametrize("after", [0, 1, 5, 8])
def test_a_full_disk_is_called_so_whenever_it_fills(store: Store, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """After one write torch itself would say "unexpected pos 64 vs 0"."""
    real = type(store._files).write_stream

    class Disk:
        def __init__(self, file: BinaryIO) -> None:
            self.file, self.left = file, after

        def write(self, data: bytes) -> int:
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.file.write(data)

        def flush(self) -> None:
            self.file.flush()

    def write_stream(self: Any, path: str, write: Callable[[Any], object], expected: int) -> None:
        real(self, path, lambda file: write(Disk(file)), expected)

    monkeypatch.setattr(type(store._files), "write_stream", write_stream)
    with pytest.raises(StorageError, match=r"cannot write .*x\.pth\.tar: .*No space left"):
        write_payload(store, "x.pth.tar", STATE)
    assert store.list() == []


@pytest.mark.parametrize(
    ("payload", "words"),
    [(b"1234", "truncated: it has 4 of its 5"), (b"123456", "6 bytes, not 5"), (b"12344", "digest")],
)
def test_verifying(store: Store, manifest: Callable[..., Manifest], payload: bytes, words: str) -> None:
    good = manifest(size=5, digest=digest_of(b"12345"))
    store.write(good.payload, b"12345")
    assert read_verified(store, good.state) == b"12345"
    verify_in_place(store, good.state)
    store.write(good.payload, payload)
    with pytest.raises(CheckpointCorruptError, match=words):
        read_verified(store, good.state)
    with pytest.raises(CheckpointCorruptError, match=words):
        verify_in_place(store, good.state)
    with pytest.raises(CheckpointCorruptError, match=words):
        read_state(store, good)


def test_what_is_whole_but_no_checkpoint_is_not_called_changed(store: Store, manifest: Callable[..., Manifest]) -> None:
    good = manifest(size=5, digest=digest_of(b"12345"))
    store.write(good.payload, b"12345")
    with pytest.raises(CheckpointCorruptError, match="cannot be read as a checkpoint"):
        read_state(store, good)


HOSTILE: dict[str, Callable[[], bytes]] = {
    "zip": lambda: saved({"model": Evil()}),
    "legacy": lambda: saved({"model": Evil()}, _use_new_zipfile_serialization=False),
    "plain pickle": lambda: pickle.dumps({"model": Evil()}, protocol=2),
    "class": lambda: saved({"model": Reduced()}),
}


class Reduced:
    pass


@pytest.mark.parametrize("kind", HOSTILE)
def test_code_is_refused_and_not_run(kind: str) -> None:
    with pytest.raises(CheckpointMismatchError, match=r"^/x is refused because it contains code \(.*\)"):
        decode(HOSTILE[kind](), "/x")
    assert not Path("/tmp/minetorch-was-hacked").exists()


def test_torchscript_is_refused() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/constants.pkl", pickle.dumps((), protocol=2))
        archive.writestr("archive/data.pkl", pickle.dumps({}, protocol=2))
        archive.writestr("archive/version", "3\n")
    with pytest.raises(CheckpointMismatchError, match="contains code"):
        decode(file.getvalue())


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"hello",
        b"PK\x03\x04",
        b"\x80\x05]",
        pickle.dumps({"a": b"x" * 300}),
        random.Random(0).randbytes(1000),
        b"\0" * 100,
    ],
    ids=lambda payload: repr(payload[:6]),
)
def test_garbage_is_refused(payload: bytes) -> None:
    with pytest.raises(CheckpointCorruptError, match=r"^/x cannot be read as a checkpoint: ."):
        decode(payload, "/x")


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(cut: float) -> None:
    data = saved(STATE)
    with pytest.raises(CheckpointCorruptError):
        decode(data[: int(len(data) * cut)])


def test_what_is_not_a_dict_is_refused() -> None:
    with pytest.raises(CheckpointMismatchError, match="holds a list, not a state dict"):
        decode(saved([1]))
