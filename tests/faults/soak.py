"""Kills at random for so many minutes, and checks after every run what the matrix checks: ``scripts/soak MINUTES``."""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.faults import room, summary
from tests.faults.launches import ROOT, Launch
from tests.faults.trial import Trial

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

EPOCHS = 40
_STRIKES = 8
_MOST_LAUNCHES = 20
_END_S = 180.0
_LONGEST_S = 2400.0

SIGNALS = ("SIGKILL", "SIGKILL", "SIGSEGV", "SIGABRT", "SIGTERM", "SIGSTOP")
"""By their weight. One that is stopped is found by its hang."""

VICTIMS: dict[str, Callable[[Launch], list[int]]] = {
    "a rank": Launch.workers,
    "a loader worker": Launch.loader_workers,
    "the fork server": Launch.fork_servers,
    "the launcher": lambda launch: [launch.process.pid],
}


@dataclass
class Run:
    """One training, killed at random until it was finished."""

    seed: int
    problems: list[str] = field(default_factory=list)
    strikes: list[str] = field(default_factory=list)
    launches: int = 0
    restarts: int = 0
    took_s: float = 0.0
    text: str = ""
    result: dict[str, str] = field(default_factory=dict)


class RandomTrial(Trial):
    """A training to which much happens. From within its room."""

    epochs = EPOCHS

    def __init__(self, folder: Path, seed: int, strikes: int, baseline: Mapping[str, str]) -> None:
        super().__init__(None, folder, baseline)
        self.run_ = Run(seed)
        self._chance, self._left = random.Random(seed), strikes

    def kill_until_done(self) -> Run:
        """Do all of it."""
        room.furnish()
        with ExitStack() as stack:
            stack.callback(lambda: [launch.close() for launch in self.launches])
            while not (self.notes / "result.json").exists() and len(self.launches) < _MOST_LAUNCHES:
                self._launch()
            self._compare()
        found, self.run_.problems = self.verdict, [*self.verdict.problems]
        self.run_.result, self.run_.launches = found.result, len(self.launches)
        self.run_.restarts = sum(launch.text.count("; restart ") for launch in self.launches)
        if self.run_.problems:
            self.run_.text = self.told()
        return self.run_

    def _launch(self) -> None:
        launch = self.start(["--nproc", 2, "--max-restarts", 3])
        while self._left and launch.process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                launch.process.wait(self._chance.uniform(0.2, 8.0))
                break
            self._strike(launch)
        code = launch.end(_END_S * self.slack)
        if code is None:
            self.blame("a launch did not end")
            launch.close()
        elif code == 0 and not (self.notes / "result.json").exists():
            self.blame("a launch ended with 0, and the run is not finished")
        self.check_left()

    def _strike(self, launch: Launch) -> None:
        name = self._chance.choice([*VICTIMS])
        signum = signal.Signals[self._chance.choice(SIGNALS)]
        if name == "the launcher" and signum == signal.SIGSTOP:
            return  # who stops it must continue it
        if name == "the fork server" and signum in (signal.SIGSTOP, signal.SIGTERM):
            return
        while not (pids := VICTIMS[name](launch)):
            if launch.process.poll() is not None:
                return
            time.sleep(0.05)
        with suppress(ProcessLookupError):
            os.kill(self._chance.choice(pids), signum)
            self.run_.strikes.append(f"{signum.name} to {name}")
            self._left -= 1


def run_sealed(seed: int, strikes: int, baseline: Mapping[str, str]) -> Run:
    """One such training in a room of its own."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak é ") as folder:
        words = [sys.executable, "-m", "tests.faults.soak", "--inside", folder]
        words += ["--seed", str(seed), "--strikes", str(strikes), "--baseline", json.dumps(dict(baseline)), "0"]
        try:
            done = subprocess.run(
                room.sealed(words), cwd=ROOT, capture_output=True, text=True, check=False, timeout=_LONGEST_S
            )
            run = Run(**json.loads(done.stdout.splitlines()[-1]))
        except subprocess.TimeoutExpired:
            run = Run(seed, [f"not over after {_LONGEST_S:g} s"])
        except (ValueError, IndexError, TypeError):
            run = Run(seed, [f"the trial itself failed: {done.stderr[-2000:]}"])
    run.took_s = time.monotonic() - began
    return run


def text(runs: list[Run], minutes: float, first_seed: int) -> str:
    """What was found, in a few sentences."""
    strikes = Counter(strike for run in runs for strike in run.strikes)
    bad = [run for run in runs if run.problems]
    lines = [
        f"A soak of {minutes:.0f} minutes, from seed {first_seed}: {len(runs)} runs, {strikes.total()} signals, "
        f"{sum(run.launches for run in runs)} launches, {sum(run.restarts for run in runs)} restarts; "
        f"{len(runs) - len(bad)} runs ended with the same bits as an uninterrupted one, with nothing left.",
        "",
        "; ".join(f"{count} {strike}" for strike, count in strikes.most_common()) + ".",
    ]
    for run in bad:
        lines += ["", f"Seed {run.seed}: {'; '.join(run.problems)}."]
    return "\n".join(lines)


def main() -> int:
    """Run until the time is up. Returns 1 if anything was not as it must be."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    parser.add_argument("minutes", type=float)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the first run; the next take the next")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--strikes", type=int, default=_STRIKES, help="signals in each run (default: 8)")
    parser.add_argument("--baseline", default="{}", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inside is not None:
        trial = RandomTrial(asked.inside, asked.seed, asked.strikes, json.loads(asked.baseline))
        print(json.dumps(asdict(trial.kill_until_done())), flush=True)
        return 0
    if (reason := room.why_none()) is not None:
        sys.exit(f"scripts/soak: {reason}")
    return _soak(asked.minutes, asked.seed, asked.strikes)


def _soak(minutes: float, seed: int, strikes: int) -> int:
    began = time.monotonic()
    whole = run_sealed(seed, 0, {})
    if whole.problems:
        sys.exit(f"the uninterrupted training failed: {whole.problems}\n{whole.text}")
    runs: list[Run] = []
    while time.monotonic() - began < 60 * minutes:
        runs.append(run_sealed(seed + len(runs), strikes, whole.result))
        said = "; ".join(runs[-1].problems) or "good"
        print(f"seed {runs[-1].seed}: {said}; {len(runs[-1].strikes)} signals, {runs[-1].took_s:.0f} s", flush=True)
        if runs[-1].problems:
            print(runs[-1].strikes, runs[-1].text, flush=True)
        page = ROOT / "docs/reliability.md"
        took = (time.monotonic() - began) / 60
        page.write_text(summary.put(page.read_text(), "soak", text(runs, took, seed)))
    print(text(runs, (time.monotonic() - began) / 60, seed))
    return 1 if any(run.problems for run in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
