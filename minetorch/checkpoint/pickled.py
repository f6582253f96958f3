"""A look at a payload's pickle before it is loaded: whether that takes no longer than its length allows.

A pickle that runs no code can still keep its reader busy for years. A tuple that contains one tuple twice, which again
contains one tuple twice, takes 7 bytes per level; each level doubles the time to hash it, as the key of a dict is.
A check of the loaded state comes too late, since the hash is taken while the pickle is loaded.
"""

from __future__ import annotations

import zipfile
from io import BufferedReader, BytesIO
from pickletools import genops
from typing import IO, Any

_ZIP = b"PK\x03\x04"
_LEGACY_PICKLES = 5
"""A file that is not a zip archive contains this many pickles, one after the other."""

_PARTS_PER_OPCODE = 20
"""What torch writes needs about 3: the parts of each tensor are looked at when it is made."""
_PARTS_FREE = 100_000

_NUMBERS = frozenset({"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"})
_LEAVES = _NUMBERS | {"NONE", "NEWTRUE", "NEWFALSE", "BINUNICODE", "SHORT_BINSTRING", "GLOBAL"}
_EMPTY = frozenset({"EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"})
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_ENCODINGS = ("latin1", "utf-8")
"""Pickles store bytes as text in the first. Others of Python's encodings take a time that grows with the square."""


class TooMuchWorkError(ValueError):
    """The pickle is made so that loading it takes far longer than its length allows."""


def check_payload(file: IO[bytes]) -> None:
    """Look at the pickles in a file of `torch.save`; its position is at the beginning before and after.

    Raises:
        TooMuchWorkError: loading them would take far longer than their length allows.
        Exception: it is no such file.
    """
    is_zip = file.read(len(_ZIP)) == _ZIP
    file.seek(0)
    try:
        if is_zip:
            check_pickle(BytesIO(read_pickle(zipfile.ZipFile(file))[1]))
        else:
            _check_legacy(file)
    finally:
        file.seek(0)


def read_pickle(archive: zipfile.ZipFile) -> tuple[str, bytes]:
    """The folder of an archive of `torch.save`, with a slash at its end, and the pickle in it.

    Raises:
        ValueError: it is no such archive.
    """
    infos = archive.infolist()
    pickles = [info for info in infos if info.filename.lower().endswith("/data.pkl")]
    # What is compressed may be any number of times as long as the file. And an archive behind something else, which
    # zipfile skips, could be another to torch.
    if (
        len(pickles) != 1
        or any(info.compress_type != zipfile.ZIP_STORED for info in infos)
        or min(info.header_offset for info in infos) != 0
    ):
        raise ValueError("it is no archive of torch.save")
    return pickles[0].filename[: -len("data.pkl")], archive.read(pickles[0])


def check_pickle(file: IO[bytes]) -> None:
    """Look at one pickle, with the instructions that `torch.save` writes and torch's restricted reader knows.

    Raises:
        TooMuchWorkError: loading it would take far longer than its length allows.
        ValueError: it is damaged, or has other instructions.
    """
    _Scan().run(file)


def _check_legacy(file: IO[bytes]) -> None:
    buffered = BufferedReader(file)  # type: ignore[type-var]  # any file with readinto
    try:
        for number in range(_LEGACY_PICKLES):
            try:
                check_pickle(buffered)
            except TooMuchWorkError:
                raise
            except ValueError:
                if number == 0:
                    raise
                return  # torch comes no further, and says what is wrong with it
    finally:
        buffered.detach()


class _Scan:
    """Follows a pickle's instructions with lists in the place of everything that has parts.

    Whatever is hashed or given to a function is counted with all of its parts, each as often as it is reached.
    """

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._outer: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._allowed = _PARTS_FREE

    def run(self, file: IO[bytes]) -> None:
        try:
            for opcode, argument, _ in genops(file):
                self._allowed += _PARTS_PER_OPCODE
                self._follow(opcode.name, argument)
        except (LookupError, AttributeError) as error:  # of the stack, of the memo
            raise ValueError(f"its pickle is damaged ({type(error).__name__}: {error})") from None

    def _follow(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _LEAVES:
            stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name == "MARK":
            self._outer.append(stack)
            self._stack = []
        elif name in _EMPTY:
            stack.append([])
        elif name in _TUPLES:
            parts = [stack.pop() for _ in range(_TUPLES[name])]
            stack.append(parts[::-1])
        elif name in ("TUPLE", "APPENDS", "SETITEMS"):
            self._end_mark(name)
        elif name == "APPEND":
            part = stack.pop()
            stack[-1].append(part)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            self._count(key)
            stack[-1].extend((key, value))
        elif name in ("REDUCE", "NEWOBJ", "BUILD", "BINPERSID"):
            self._call(name)
        elif name not in ("PROTO", "STOP"):
            raise ValueError(f"its pickle has the instruction {name}, which torch.save does not write")

    def _end_mark(self, name: str) -> None:
        parts, self._stack = self._stack, self._outer.pop()
        if name == "TUPLE":
            self._stack.append(parts)
            return
        if name == "SETITEMS":
            for key in parts[::2]:
                self._count(key)
        self._stack[-1].extend(parts)

    def _call(self, name: str) -> None:
        given = self._stack.pop()
        self._count(given)
        if name == "BINPERSID":
            self._stack.append([])
        elif name == "BUILD":
            self._stack[-1].append(given)
        else:
            function = self._stack.pop()
            if function == "_codecs encode" and not (isinstance(given, list) and given[-1] in _ENCODINGS):
                raise ValueError("its pickle has text in an encoding that torch.save does not write")
            self._stack.append([given])

    def _count(self, value: Any) -> None:
        waiting = [value]
        while waiting:
            value = waiting.pop()
            if isinstance(value, list):
                self._allowed -= len(value)
                if self._allowed >= 0:
                    waiting.extend(value)
            elif isinstance(value, str | bytes):
                self._allowed -= len(value) >> 6
            if self._allowed < 0:
                raise TooMuchWorkError("it is made so that reading it takes far longer than its length allows")
