"""Measures Minetorch beside what a user would pick instead, and prints one table.

    python -m benchmarks [NAME...] [--quick] [--json FILE] [--docs]

Each benchmark runs in a process of its own, one after the other, as `python -m benchmarks.NAME` would, which has more
options. Peers are installed at pinned versions into a cache folder the first time. With --docs, what was measured
replaces its part of docs/benchmarks.md. All of them take 15 to 20 minutes; do nothing else on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from benchmarks import page
from benchmarks.harness import Row, end_on_sigterm, load, machine, markdown, progress, save

ROOT = Path(__file__).parents[1]
LONGEST, TO_END = 540.0, 20.0
REST = "the rest"


def names() -> list[str]:
    """Of all benchmarks: the modules that have a function `measure`, in the order of `page.SECTIONS`."""
    found = [path.stem for path in Path(__file__).parent.glob("*.py") if "\ndef measure(" in path.read_text()]
    known = [name for name in page.SECTIONS if name in found]
    return known + sorted(set(found) - set(known))


def run(name: str, *, quick: bool) -> list[Row]:
    """The rows of one benchmark, also of one that fails before its end."""
    progress(f"== {name}")
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="minetorch-benchmark-") as folder:
        file = Path(folder) / "rows.json"
        command = [sys.executable, "-m", f"benchmarks.{name}", "--json", str(file), *(["--quick"] if quick else [])]
        trouble = _finish(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL))
        rows = load(file) if file.exists() else []
    if trouble is not None:
        progress(f"{name} {trouble}")
        rows.append(Row(name, REST, "s", note=f"not measured: {name} {trouble}"))
    progress(f"== {name}: {time.monotonic() - start:.0f} s")
    return rows


def _finish(process: subprocess.Popen[bytes]) -> str | None:
    """Wait for a benchmark, and return what was wrong with it, None if nothing was."""
    try:
        code = process.wait(LONGEST)
    except subprocess.TimeoutExpired:
        return f"took more than {LONGEST:.0f} s"
    finally:
        process.terminate()  # so that it ends what it has started
        with suppress(subprocess.TimeoutExpired):
            process.wait(TO_END)
        process.kill()
        process.wait()
    return f"failed with exit code {code}" if code else None


def main() -> int:
    """Run what the command line names, and return 1 if one failed."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one or more of {', '.join(names())}; default: all")
    parser.add_argument("--quick", action="store_true", help="as small as shows that it works; figures of no worth")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, too")
    parser.add_argument("--docs", action="store_true", help="put the tables and plots into docs/benchmarks.md")
    arguments = parser.parse_args()
    end_on_sigterm()
    if unknown := set(arguments.names) - set(names()):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(names())}")
    if arguments.quick and arguments.docs:
        parser.error("--docs is for what has been measured in earnest: leave out --quick")
    rows: list[Row] = []
    for name in arguments.names or names():
        rows += run(name, quick=arguments.quick)
        if arguments.json is not None:
            save(arguments.json, rows)
    for name in dict.fromkeys(row.benchmark for row in rows):
        print(f"## {name}\n\n{markdown(row for row in rows if row.benchmark == name)}")
    if arguments.docs:
        page.write(rows, machine())
    return int(any(row.what == REST for row in rows))


if __name__ == "__main__":
    sys.exit(main())
