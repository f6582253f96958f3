"""What many workers, checkpoints, steps and runs cost: ``scripts/load [NAME ...]`` puts it into docs/reliability.md."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.faults import summary
from tests.load.slope import slope

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reliability.md"
TRAINING = Path(__file__).with_name("training.py")
_LIMIT_S = 1800.0


def workers(folder: Path, count: int = 64) -> str:
    """So many workers on one machine start, train 50 steps and stop."""
    began = time.monotonic()
    launch = [sys.executable, "-m", "minetorch_launch", "--nproc", count, "--device", "cpu", "--threads", 1]
    run([[*launch, TRAINING, folder / "runs", "wide", 50, 1, 0, 10]], folder)
    took = time.monotonic() - began
    notes = read(folder)
    must(
        len(notes) == count and all(note["steps"] == 50 for note in notes), f"{len(notes)} of {count} ranks have ended"
    )
    first = max(note["seen"][0][1] for note in notes) - began
    last = max(note["seen"][-1][1] for note in notes) - began
    memory = statistics.median(note["seen"][-1][2] for note in notes) / 1024
    return (
        f"| {count} workers on {os.cpu_count()} cores: start, 50 steps, stop | first step of all after {first:.0f} s, "
        f"{(last - first) / 49:.2f} s a step, over after {took:.0f} s; {memory:.0f} MiB of its own a worker |"
    )


def checkpoints(folder: Path, count: int = 200) -> str:
    """So many checkpoints in a row on S3, of which three are kept."""
    from tests.fakes.s3_server import serving

    with serving(folder) as server:
        client = server.client()
        client.create_bucket(Bucket="many")
        words = [sys.executable, TRAINING, "s3://many/runs", "saving", count, 1, 1, max(1, count // 10)]
        run([words], folder, **server.environ)
        found = client.list_objects_v2(Bucket="many").get("Contents", [])
        client.close()
    payloads = [item["Key"] for item in found if item["Key"].endswith(".pth.tar")]
    [note] = read(folder)
    steps, times, memory, files, _ = zip(*note["seen"], strict=True)
    must(len(payloads) == 3, f"{len(payloads)} checkpoints are there, and must be 3")
    must(len(found) < 20, f"{len(found)} objects are there")
    early, late = ((times[j] - times[i]) / (steps[j] - steps[i]) for i, j in ((1, 3), (-3, -1)))
    must(late < 2 * early, f"a save takes {late:.2f} s in the end, and {early:.2f} s in the beginning")
    must(files[-1] <= files[2] + 4, f"{files[-1]} files are open in the end, and {files[2]} in the beginning")
    grown = (memory[-1] - memory[2]) / 1024
    return (
        f"| {count} checkpoints in a row on S3, `keep_last=3` | {early * 1000:.0f} ms each in the beginning, "
        f"{late * 1000:.0f} ms in the end; 3 payloads and {len(found)} objects left; {grown:+.1f} MiB |"
    )


def steps(folder: Path, count: int = 100_000) -> str:
    """So many steps of one run: memory, open files, threads and the time of a step must not grow."""
    epochs = 20
    run([[sys.executable, TRAINING, folder / "runs", "long", count // epochs, epochs, 10_000, 1000]], folder)
    [note] = read(folder)
    settled = [row for row in note["seen"] if row[0] >= count / 10]
    at, times, memory, files, threads = zip(*settled, strict=True)
    took = [(after - before) / 1000 * 1e6 for before, after in itertools.pairwise(times)]
    memory_slope = slope(at, memory) * 10_000
    time_slope = slope(at[1:], took) * 10_000
    must(memory_slope < 512, f"memory grows by {memory_slope:.0f} KiB in 10,000 steps")
    must(len(set(files)) == 1 or slope(at, files) == 0, f"open files grow: {files}")
    must(slope(at, threads) == 0, f"threads grow: {threads}")
    usual = statistics.median(took)
    must(time_slope < 0.05 * usual, f"a step of {usual:.0f} µs takes {time_slope:.1f} µs longer every 10,000 steps")
    return (
        f"| {count:,} steps of one run, saved every 10,000 | every 10,000 steps: memory {memory_slope:+.0f} KiB of "
        f"{memory[-1] / 1024:.0f} MiB, open files {slope(at, files) * 10_000:+.0f} of {files[-1]}, threads "
        f"{slope(at, threads) * 10_000:+.0f} of {threads[-1]}, a step {time_slope:+.1f} µs of {usual:.0f} µs |"
    )


def runs(folder: Path, count: int = 20) -> str:
    """So many runs at once in one folder, each stopped by nothing, and each started again to no more work."""
    began = time.monotonic()
    words = [[sys.executable, TRAINING, folder / "runs", f"plan/{number}", 100, 2, 20, 50] for number in range(count)]
    run(words, folder)
    took = time.monotonic() - began
    notes = read(folder)
    must(
        len(notes) == count and all(note["steps"] == 200 for note in notes), f"{len(notes)} of {count} runs have ended"
    )
    for number in range(count):
        place = folder / f"runs/plan/{number}"
        names = sorted(path.name for path in place.iterdir())
        must({"log.txt", "models"} <= set(names), f"{place} holds {names}")
        ended = (place / "log.txt").read_text().count("Ended at step 200.")
        must(ended == 1, f"the log of run {number} tells of {ended} ends")
    what = f"{count} runs at once in one `alchemistic_directory`"
    return f"| {what} | all ended, each in its own folder, after {took:.0f} s |"


LOADS: dict[str, Callable[[Path], str]] = {
    "workers": workers,
    "checkpoints": checkpoints,
    "steps": steps,
    "runs": runs,
}


def run(commands: Sequence[Sequence[object]], folder: Path, **environ: str) -> None:
    """Run commands side by side to their end."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "MINETORCH_"))}
    variables |= {"NOTES": str(folder), "OMP_NUM_THREADS": "1", **environ}
    log = folder / "output"
    with log.open("w") as output:
        started = [
            subprocess.Popen([str(word) for word in words], cwd=ROOT, env=variables, stdout=output, stderr=output)
            for words in commands
        ]
        try:
            end = time.monotonic() + _LIMIT_S
            while any(process.poll() is None for process in started) and time.monotonic() < end:
                time.sleep(0.2)
        finally:
            for process in started:
                if process.poll() is None:
                    process.kill()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(30)
    must(not any(process.returncode for process in started), log.read_text()[-4000:])


def read(folder: Path) -> list[dict[str, Any]]:
    """The notes of all ranks and runs."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def must(is_so: bool, words: str) -> None:
    """Or it has failed."""
    if not is_so:
        raise SystemExit(f"scripts/load: {words}")


def main() -> None:
    """Run what is asked for, and keep the other rows of the table."""
    parser = argparse.ArgumentParser(prog="scripts/load", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(LOADS)}; all by default")
    asked = parser.parse_args().names or [*LOADS]
    if unknown := set(asked) - set(LOADS):
        parser.error(f"{', '.join(sorted(unknown))}: there are {', '.join(LOADS)}")
    kept = ROOT / ".faults/load.json"
    kept.parent.mkdir(exist_ok=True)
    rows = json.loads(kept.read_text()) if kept.exists() else {}
    for name in asked:
        with tempfile.TemporaryDirectory(prefix="load-") as folder:
            rows[name] = LOADS[name](Path(folder))
        print(rows[name], flush=True)
        kept.write_text(json.dumps(rows))
        table = ["| load | measured |", "| --- | --- |", *(rows[name] for name in LOADS if name in rows)]
        PAGE.write_text(summary.put(PAGE.read_text(), "load", "\n".join(table)))


if __name__ == "__main__":
    main()
