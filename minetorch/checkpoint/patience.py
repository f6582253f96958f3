"""Tries again what a storage refused, for as long as an outage usually lasts."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from minetorch.errors import StorageError

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Sequence

T = TypeVar("T")

DELAYS_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Seconds between tries, about a minute in all; clients such as s3fs try several times in each of them."""


class Patience:
    """How often to try, and how long to wait in between."""

    def __init__(
        self,
        logger: logging.Logger,
        delays_s: Sequence[float] = DELAYS_S,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._logger = logger
        self._delays_s = delays_s
        self._sleep = sleep

    def persist(self, action: Callable[[], T]) -> T:
        """What `action` returns, at the first try that succeeds.

        Raises:
            StorageError: the last try's, or one that would last.
            Exception: any other, at once.
        """
        for number, delay_s in enumerate(self._delays_s, 1):
            try:
                return action()
            except StorageError as err:
                if err.is_lasting:
                    raise
                self._logger.warning("%s. Trying again in %g s (%d of %d).", err, delay_s, number, len(self._delays_s))
            self._sleep(delay_s)
        return action()
