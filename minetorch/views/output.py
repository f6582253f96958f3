"""What commands print: tables, sizes and ages for people, JSON for programs. Pure but for `write*` and `warn`.

All text of a command goes through `write` and `warn`, which escape the control characters in it.
"""

from __future__ import annotations

import json
import math
import sys
from typing import TYPE_CHECKING, Any

from minetorch.errors import visible

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_AGES = ((86_400 * 2, 86_400, "d"), (3_600 * 2, 3_600, "h"), (120, 60, "min"), (0, 1, "s"))


def write(text: str) -> None:
    """Print a line, or several."""
    sys.stdout.write(f"{visible(text)}\n")
    sys.stdout.flush()


def warn(text: str) -> None:
    """Print a line where it is not taken for the result."""
    sys.stderr.write(f"minetorch: {visible(text)}\n")


def write_json(value: Any) -> None:
    """Print strict JSON; NaN and infinities are the strings "nan", "inf" and "-inf"."""
    write(json.dumps(_strict(value), indent=2, ensure_ascii=False, allow_nan=False))  # its escapes are JSON's, too


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as they must be, two spaces between them; numbers stand to the right."""
    texts = [[str(cell).replace("\n", "\\n").replace("\t", "\\t") for cell in row] for row in rows]
    texts = [[visible(cell) for cell in row] for row in texts]  # before they are measured
    widths = [max(map(len, column)) for column in zip(headings, *texts, strict=True)]
    right = [bool(rows) and all(isinstance(row[at], int) for row in rows) for at in range(len(headings))]
    lines = []
    for row in [list(headings), *texts]:
        cells = (
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        )
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def bytes_text(size: int) -> str:
    """Bytes for people: `512 B`, `1.2 MiB`."""
    if size < 1024:
        return f"{size} B"
    exponent = min(int(math.log2(size) // 10), len(_UNITS) - 1)
    return f"{size / 1024**exponent:.1f} {_UNITS[exponent]}"


def age(then: float | None, now: float) -> str:
    """Time gone by, for people: `3 min`; "?" where it is not known."""
    if then is None:
        return "?"
    seconds = max(0.0, now - then)
    unit, name = next((unit, name) for least, unit, name in _AGES if seconds >= least)
    return f"{int(seconds // unit)} {name}"


def metrics_text(metrics: Mapping[str, float]) -> str:
    """Figures in one line."""
    return ", ".join(f"{name} {value:.5g}" for name, value in metrics.items())


def plural(count: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _strict(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return value
