"""Puts what was measured into docs/benchmarks.md: each benchmark's table and plot between two marks of its own.

python -m benchmarks.page FILE    # the rows that `python -m benchmarks --json FILE` wrote
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import plots
from benchmarks.harness import Row, load, markdown

__all__ = ["PAGE", "SECTIONS", "replaced", "write"]

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
IMAGES = PAGE.parent / "images"

SECTIONS = (
    *("launch", "restart", "answers", "resume", "scale", "step", "data", "checkpoint", "drawing", "exactness"),
    *("elastic", "gpu", "membership"),
)
"""In the order in which they are run and shown."""


def write(rows: Sequence[Row], measured_on: Mapping[str, str], page: Path = PAGE, images: Path = IMAGES) -> None:
    """Replace the parts of those benchmarks that there are rows of, which were measured on such a `machine`."""
    text = page.read_text(encoding="utf-8")
    for name in dict.fromkeys(row.benchmark for row in rows):
        own = [row for row in rows if row.benchmark == name]
        drawn = plots.draw(name, own, images)
        shown = "".join(f"![{caption}](images/{file.name})\n\n" for file, caption in drawn)
        text = replaced(text, name, f"{shown}{markdown(own)}\n{_told(measured_on)}\n")
    page.write_text(text, encoding="utf-8")


def replaced(text: str, name: str, part: str) -> str:
    """The page with one benchmark's part exchanged.

    Raises:
        ValueError: the page has no such part.
    """
    marks = re.compile(rf"(<!-- {re.escape(name)}: begin -->\n).*?(<!-- {re.escape(name)}: end -->)", re.DOTALL)
    if not marks.search(text):
        raise ValueError(f"docs/benchmarks.md has no part for {name}: put <!-- {name}: begin --> and end there")
    return marks.sub(lambda match: f"{match[1]}\n{part}\n{match[2]}", text)


def _told(machine: Mapping[str, str]) -> str:
    return (
        f"Measured on {machine['date']}: {machine['cores']}, {machine['memory']}, torch {machine['torch']}, Python "
        f"{machine['python']}; load from other work: {machine['load']}."
    )


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    file = parser.parse_args().file
    write(load(file), json.loads(file.read_text(encoding="utf-8"))["machine"])


if __name__ == "__main__":
    main()
