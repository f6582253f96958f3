"""The digest by which a payload is known to be whole. Pure."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer


class Digest:
    """Digests what is added to it, in order: `crc32:` and 8 hexadecimal digits, as manifests give it.

    It guards against damage, not against attackers, who could rewrite the manifest too (and whose code `decode`
    never runs). For that CRC-32 is what storages themselves rely on, and together with the size it misses one
    damaged file in four billion. It runs at 5 to 7 GB/s a core, SHA-256 at 1.3.
    """

    size = 0
    """Bytes added so far."""

    def __init__(self) -> None:
        self._crc = 0

    def __str__(self) -> str:
        return f"crc32:{self._crc:08x}"

    def add(self, data: Buffer) -> None:
        """Go on with these bytes."""
        self._crc = zlib.crc32(data, self._crc)
        self.size += memoryview(data).nbytes


def digest_of(data: Buffer) -> str:
    """The digest of these bytes."""
    digest = Digest()
    digest.add(data)
    return str(digest)
