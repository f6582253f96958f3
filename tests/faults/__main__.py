"""Runs the fault matrix: ``scripts/faults [CELL ...]``. Can be stopped and started again at any moment."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict

from tests.faults import room, summary
from tests.faults.cells import Cell, every_cell, possible
from tests.faults.launches import ROOT
from tests.faults.representative import chosen
from tests.faults.trial import Verdict, run_sealed

RESULTS = ROOT / ".faults"
RELIABILITY = ROOT / "docs/reliability.md"


def main() -> int:
    """Run what is asked for and has not passed yet. Returns 1 if anything has failed."""
    asked = _parser().parse_args()
    if (reason := room.why_none()) is not None:
        sys.exit(f"scripts/faults: {reason}")
    RESULTS.mkdir(exist_ok=True)
    done = {} if asked.fresh else read_results()
    cells = [Cell.parse(text) for text in asked.cells] or in_order()
    if asked.only:
        cells = [cell for cell in cells if any(word in str(cell) for word in asked.only)]
    left = [cell for cell in cells if asked.cells or _is_due(done.get(str(cell)), again=asked.again)]
    if not asked.table:
        done |= run_all(left, jobs=asked.jobs, until=time.monotonic() + 60 * asked.minutes)
    RELIABILITY.write_text(summary.put(RELIABILITY.read_text(), "matrix", summary.table(list(done.values()))))
    failed = [verdict for verdict in done.values() if verdict.problems]
    for verdict in failed:
        print(f"FAILED {verdict.cell}: {'; '.join(verdict.problems)}")
    print(f"{len(done)} of {len(possible())} cells run, {len(failed)} failed; {len(every_cell())} are in the product")
    return 1 if failed else 0


def in_order() -> list[Cell]:
    """All cells, those first that together show the most."""
    first = chosen()
    rest = [cell for cell in possible() if cell not in first]
    # Spread, so that a matrix that is cut short has still seen something of everything.
    return [*first, *sorted(rest, key=lambda cell: hashlib.sha256(str(cell).encode()).digest())]


def read_results() -> dict[str, Verdict]:
    """What earlier runs have found, the newest for each cell that there still is."""
    known = set(map(str, possible()))
    path = RESULTS / "results.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    verdicts = (Verdict(**json.loads(line)) for line in lines)
    return {verdict.cell: verdict for verdict in verdicts if verdict.cell in known}


def run_all(cells: list[Cell], *, jobs: int, until: float) -> dict[str, Verdict]:
    """Run cells side by side; each result is written down at once."""
    if not cells:
        return {}
    baseline = run_sealed(None, None)
    if baseline.problems:
        raise SystemExit(f"the uninterrupted training failed: {baseline.problems}\n{baseline.text}")
    found = {}
    with ThreadPoolExecutor(jobs) as pool, (RESULTS / "results.jsonl").open("a") as file:

        def run(cell: Cell) -> Verdict | None:
            return run_sealed(cell, baseline.result) if time.monotonic() < until else None

        for count, future in enumerate(as_completed([pool.submit(run, cell) for cell in cells]), 1):
            if (verdict := future.result()) is None:
                continue
            found[verdict.cell] = verdict
            file.write(json.dumps(asdict(verdict)) + "\n")
            file.flush()
            said = "; ".join(verdict.problems) or verdict.outcome
            print(f"{count}/{len(cells)} {verdict.cell}: {said} ({verdict.took_s:.0f} s)", flush=True)
    return found


def _is_due(verdict: Verdict | None, *, again: bool) -> bool:
    return verdict is None or (again and bool(verdict.problems))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/faults", description=__doc__)
    add = parser.add_argument
    add("cells", nargs="*", metavar="CELL", help="'fault / victim / phase'; all by default")
    add("--jobs", type=int, default=(os.cpu_count() or 1) + 1, help="trials at once (default: cores and one)")
    add("--minutes", type=float, default=float("inf"), help="begin no trial after so many minutes")
    add("--only", action="append", help="cells in whose names this stands; repeatable")
    add("--again", action="store_true", help="run those that failed once more, too")
    add("--fresh", action="store_true", help="forget earlier results")
    add("--table", action="store_true", help="run nothing; write the table of what there is")
    return parser


if __name__ == "__main__":
    sys.exit(main())
