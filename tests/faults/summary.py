"""What was found, as tables of docs/reliability.md. Pure."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from typing import TYPE_CHECKING

from tests.faults.cells import FAULTS, VICTIMS, Cell, every_cell, excluded, possible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.faults.trial import Verdict


def put(page: str, name: str, content: str) -> str:
    """The page with what stands between the marks of ``name`` replaced.

    Raises:
        ValueError: the page has no such marks.
    """
    pattern = rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)"
    changed, count = re.subn(pattern, lambda found: f"{found[1]}\n{content}\n\n{found[2]}", page, flags=re.DOTALL)
    if not count:
        raise ValueError(f"the page has no marks of {name!r}")
    return changed


def table(verdicts: Sequence[Verdict]) -> str:
    """Faults by victims: how many cells have passed of how many there are, and how soon they were noticed."""
    found = {verdict.cell: verdict for verdict in verdicts}
    lines = [
        _sentence(verdicts),
        "",
        f"| fault | {' | '.join(VICTIMS)} | noticed after: median, longest |",
        "| --- |" + " ---: |" * len(VICTIMS) + " --- |",
    ]
    for fault in FAULTS:
        shown = [_cell(fault, victim, found) for victim in VICTIMS]
        lines.append(f"| {fault} | {' | '.join(shown)} | {_noticed(fault, verdicts)} |")
    lines += ["", "Left out, with how many cells:", ""]
    lines += [f"- {count}: {reason}" for reason, count in _reasons().most_common()]
    return "\n".join(lines)


def _sentence(verdicts: Sequence[Verdict]) -> str:
    passed = sum(not verdict.problems for verdict in verdicts)
    of, product = len(possible()), len(every_cell())
    return (
        f"Of {product:,} combinations {product - of:,} cannot be, or repeat another; of the other {of}, "
        f"{len(verdicts)} were run, and {passed} passed. A field shows how many passed of how many there are."
    )


def _cell(fault: str, victim: str, found: dict[str, Verdict]) -> str:
    cells = [str(cell) for cell in possible() if (cell.fault, cell.victim) == (fault, victim)]
    if not cells:
        return ""
    run = [found[cell] for cell in cells if cell in found]
    passed = sum(not verdict.problems for verdict in run)
    failed = f" ({len(run) - passed} failed)" if passed < len(run) else ""
    return f"{passed}/{len(cells)}{failed}"


def _noticed(fault: str, verdicts: Sequence[Verdict]) -> str:
    times = [v.noticed_s for v in verdicts if Cell.parse(v.cell).fault == fault and v.noticed_s is not None]
    return f"{statistics.median(times):.1f} s, {max(times):.1f} s" if times else ""


def _reasons() -> Counter[str]:
    return Counter(reason for cell in every_cell() if (reason := excluded(cell)) is not None)
