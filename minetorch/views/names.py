"""Short names that tell runs apart. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def labels(urls: Sequence[str]) -> list[str]:
    """As few of the last parts of each URL as tell all of them apart; a number where even the whole does not."""
    parts = [url.rstrip("/").split("/") for url in urls]
    for count in range(1, max(map(len, parts), default=0) + 1):
        short = ["/".join(part[-count:]) for part in parts]
        if len(set(short)) == len(short):
            return short
    return [f"{url} ({number})" for number, url in enumerate(urls, 1)]
