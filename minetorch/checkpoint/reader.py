"""Decodes payloads. Nothing in a payload is ever run."""

from __future__ import annotations

import io
import re
import warnings
from typing import Any, BinaryIO, cast

import torch

from minetorch.checkpoint.pickled import check_payload
from minetorch.checkpoint.plain import sharded_entry
from minetorch.checkpoint.schema import WrongKindError, check_state
from minetorch.checkpoint.seekable import SeekableReader
from minetorch.errors import CheckpointCorruptError, CheckpointMismatchError, StorageError

# The ways in which torch's restricted reader says that a file wants to call or make something.
_CODE = re.compile(
    r"Unsupported global: GLOBAL (?P<a>\S+)|unsupported GLOBAL (?P<b>\S+)|unrecognized function (?P<c>.+)"
    r"|Can only create new object|Can only build|TorchScript"
)


def decode(payload: bytes | memoryview, origin: str = "the checkpoint") -> dict[str, Any]:
    """The state in a payload, its tensors on the CPU.

    Raises:
        CheckpointMismatchError: it contains code, or is not a state dict.
        CheckpointCorruptError: it cannot be read at all, or a value in it is of the wrong kind.
    """
    return _decode(_MemoryFile(payload), origin, "cpu")


def decode_onto(payload: memoryview, origin: str, map_location: Any) -> dict[str, Any]:
    """As `decode`, with the tensors where `torch.load` puts them by `map_location`; its own errors pass through."""
    if map_location == "cpu":
        return decode(payload, origin)
    _decode(_MemoryFile(payload), origin, "meta")  # what is wrong with the file itself
    state = torch.load(_MemoryFile(payload), map_location=map_location, weights_only=True)  # type: ignore[arg-type]
    return cast("dict[str, Any]", state)


def decode_file(file: BinaryIO, origin: str) -> dict[str, Any]:
    """As `decode`, from a file on a local disk."""
    return _decode(file, origin, "cpu")


def decode_skeleton(file: io.RawIOBase, origin: str) -> dict[str, Any]:
    """As `decode`, with tensors on the meta device: shapes and types without data, of which nothing is read.

    Raises:
        CheckpointMismatchError, CheckpointCorruptError: as `decode`.
        StorageError: the file's own, where reading it raises one.
    """
    return _decode(file, origin, "meta")


def _decode(file: io.RawIOBase | BinaryIO, origin: str, device: str) -> dict[str, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of odd pickle protocols in files that it then refuses
            check_payload(file)  # type: ignore[arg-type]
            state = torch.load(file, map_location=device, weights_only=True)  # type: ignore[arg-type]
    except StorageError:
        raise
    except Exception as err:  # garbage fails in any way
        raise _undecodable(err, origin) from None
    if not isinstance(state, dict):
        raise CheckpointMismatchError(f"{origin} holds a {type(state).__name__}, not a state dict")
    sharded = sharded_entry(state)
    if sharded is not None:
        raise _sharded(origin, sharded)
    try:
        if "progress" in state:  # otherwise it is another program's, and may hold anything
            check_state(state)
    except WrongKindError as err:
        raise CheckpointCorruptError(f"{origin} cannot be read as a checkpoint: {err}") from None
    return state


def _sharded(origin: str, what: str) -> CheckpointMismatchError:
    return CheckpointMismatchError(
        f"{origin} holds a part of a sharded model ({what}), not all of it. Sharded checkpoints are not supported yet; "
        "gather the full tensors where the model was trained, and save those"
    )


def _undecodable(err: Exception, origin: str) -> Exception:
    if "DTensor" in str(err):  # torch refuses it until `torch.distributed.tensor` is imported
        return _sharded(origin, "DTensor")
    code = _CODE.search(str(err))
    if code is not None:
        what = next((name.rstrip(".,") for name in code.groups() if name), "an object of its own class")
        return CheckpointMismatchError(
            f"{origin} is refused because it contains code ({what}), which loading it would run. If you trust what "
            "wrote it, convert it once with torch.load(weights_only=False) to tensors and plain values"
        )
    reason = next(iter(str(err).splitlines()), "") or type(err).__name__
    return CheckpointCorruptError(f"{origin} cannot be read as a checkpoint: {reason}")


class _MemoryFile(SeekableReader):
    """Reads from bytes in memory without copying them first, as BytesIO does with all but `bytes`."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data).cast("B")
        super().__init__(len(self._data))

    def _read_at(self, start: int, length: int) -> memoryview:
        return self._data[start : start + length]
