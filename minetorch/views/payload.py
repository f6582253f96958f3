"""Reads single values out of a payload, without its weights and without torch.

A payload is a zip archive that `torch.save` wrote: a pickle, and a file for each storage of tensors. The pickle is
read with every class in it replaced by a husk that does nothing, so that nothing in a payload is ever run; a tensor
becomes a note of where its bytes are, which are fetched when they are asked for.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from collections import OrderedDict
from io import SEEK_END, BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from minetorch.checkpoint.pickled import check_pickle, read_pickle
from minetorch.checkpoint.schema import WrongKindError, check_state
from minetorch.checkpoint.streaming import SeekableFile
from minetorch.errors import CheckpointCorruptError, StorageError

if TYPE_CHECKING:
    import numpy.typing as npt

    from minetorch.checkpoint.manifest import Manifest
    from minetorch.checkpoint.store import Store

_DTYPES = {"DoubleStorage": "<f8", "FloatStorage": "<f4", "LongStorage": "<i8", "IntStorage": "<i4"}


class _Husk:
    """Stands for any class or function of a pickle, and for whatever it would make: it takes all, and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Husk:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        pass

    def extend(self, items: Any) -> None:
        pass

    def add(self, item: Any) -> None:
        pass


class _Storage(NamedTuple):
    """A file of the archive that holds the numbers of tensors."""

    kind: str
    key: str


class StoredTensor(NamedTuple):
    """A tensor that was not fetched. A tuple, for a pickle cannot change what one holds."""

    storage: _Storage
    offset: int
    """Numbers of the storage before its first."""
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def is_contiguous(self) -> bool:
        """Whether its numbers stand in the storage as in an array of C."""
        expected = [math.prod(self.shape[axis + 1 :]) for axis in range(len(self.shape))]
        return all(size < 2 or a == b for size, a, b in zip(self.shape, self.stride, expected, strict=True))


class _Storages:
    """What a payload's `torch.DoubleStorage` and the like become: a name, and a call without effect."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __call__(self, *args: Any) -> _Husk:
        return _Husk()


class _TensorMaker:
    """Stands for what makes a tensor again. Of each unpickler its own, so that a pickle cannot change another's."""

    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> StoredTensor | _Husk:
        numbers = [offset, *shape, *stride] if isinstance(shape, tuple) and isinstance(stride, tuple) else [None]
        if not isinstance(storage, _Storage) or not all(isinstance(number, int) and number >= 0 for number in numbers):
            return _Husk()
        return StoredTensor(storage, offset, shape, stride)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _TensorMaker()
        return _Storages(name) if module == "torch" and name.endswith("Storage") else _Husk

    def persistent_load(self, pid: Any) -> Any:
        if isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage" and isinstance(pid[1], _Storages):
            return _Storage(pid[1].kind, str(pid[2]))
        return _Husk()


class Payload:
    """One checkpoint's state, of which tensors are fetched by `array` alone."""

    state: dict[str, Any]
    """As `minetorch.load` gives it, with a `StoredTensor` for each tensor; objects of any class are left blank."""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        """Read the archive's directory and the pickle.

        Raises:
            CheckpointCorruptError: it is missing or cannot be read.
            StorageError: the storage could not be read.
        """
        self._origin = store.url_of(manifest.payload)
        try:
            file = SeekableFile(store, manifest.payload)
            file.seek(-1, SEEK_END)
            file.read(1)  # zipfile would take an error of the storage there for "no archive"
            self._archive = zipfile.ZipFile(file)
            self._folder, pickled = read_pickle(self._archive)
            check_pickle(BytesIO(pickled))
            state = _Unpickler(BytesIO(pickled)).load()
        except StorageError:
            raise
        except Exception as err:  # garbage fails in any way
            raise self._unreadable(err) from None
        if not isinstance(state, dict):
            raise self._unreadable("it holds no state dict")
        try:
            check_state(state)
        except WrongKindError as err:
            raise self._unreadable(err) from None
        self.state = state

    def array(self, tensor: StoredTensor) -> npt.NDArray[Any]:
        """A tensor's numbers; raises as the constructor."""
        dtype = _DTYPES.get(tensor.storage.kind)
        if dtype is None or not tensor.is_contiguous:
            raise self._unreadable(f"a curve in it is of {tensor.storage.kind}, or strided")
        try:
            data = self._archive.read(f"{self._folder}data/{tensor.storage.key}")
            return np.frombuffer(data, dtype, math.prod(tensor.shape), tensor.offset * int(dtype[-1])).reshape(
                tensor.shape
            )
        except StorageError:
            raise
        except Exception as err:
            raise self._unreadable(err) from None

    def _unreadable(self, why: object) -> CheckpointCorruptError:
        return CheckpointCorruptError(f"{self._origin} cannot be read as a checkpoint: {why}")
