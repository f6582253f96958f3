"""Runs the user's script, and starts it again after each kill, as its user would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from minetorch.errors import ProofError
from minetorch.prove.orders import VARIABLE, Orders

_TAIL = 20
"""Lines of a script's output that are shown when it fails."""

_POLL_S = 0.05
_GRACE_S = 5.0


@dataclass(frozen=True)
class Script:
    """What the user wants to be run."""

    path: str
    arguments: Sequence[str]
    device: str
    """"auto", "cpu" or "cuda"."""
    timeout_s: float
    """For each run, all its starts together."""

    def command(self, nproc: int, restarts: int) -> list[str]:
        """How to start it: by Python itself, or for several ranks by the launcher."""
        if nproc == 1:
            return [sys.executable, self.path, *self.arguments]
        options = ["--nproc", str(nproc), "--device", self.device, "--max-restarts", str(restarts), "--grace", "10"]
        return [sys.executable, "-m", "minetorch_launch", *options, self.path, *self.arguments]

    def environ(self, nproc: int) -> dict[str, str]:
        """The user's, with the device for a script that no launcher tells."""
        return {**os.environ, **({"MINETORCH_DEVICE": self.device} if nproc == 1 and self.device != "auto" else {})}


def execute(
    script: Script,
    orders: Orders,
    nproc: int,
    then_nproc: int | None = None,
) -> float:
    """Run the script until it ends by itself, through all kills that its orders hold. Returns the seconds it took.

    Args:
        script: the script.
        orders: for its Trainers; they are given here.
        nproc: ranks of the first start.
        then_nproc: ranks of every later start; the same by default.

    Raises:
        ConfigurationError: the script cannot be proved like this.
        ProofError: it failed by itself, or took too long.
    """
    variables = orders.give()
    begun = time.monotonic()
    deadline = begun + script.timeout_s
    start, ranks = 0, nproc
    while True:
        start += 1
        before = orders.done()
        # A kill of one rank is the launcher's to mend, at once; after any other one the user starts the script again.
        coming = next((kill for number, kill in enumerate(orders.kills) if number not in before), None)
        restarts = 1 if coming is not None and coming.what == "rank" else 0
        log = orders.folder / f"start-{start}.log"
        environ = {**script.environ(ranks), **variables}
        code = _run(script.command(ranks, restarts), environ, log, deadline)
        done = orders.done() - before
        if code and not done:
            raise ProofError(_failure(script, orders, start, code, log))
        if not done:
            return time.monotonic() - begun
        ranks = then_nproc or nproc


def _failure(script: Script, orders: Orders, start: int, code: int, log: Path) -> str:
    refusal = orders.refusal()
    if refusal is not None:
        return refusal
    lines = log.read_text(errors="replace").splitlines()[-_TAIL:]
    ended = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    when = "" if start == 1 else f", when it was started again after {start - 1} kill{'s' * (start > 2)}"
    return "\n".join([f"{script.path} {ended}{when}. Its last lines:", *(f"  {line}" for line in lines)])


def _run(command: Sequence[str], environ: Mapping[str, str], log: Path, deadline: float) -> int:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        return process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise ProofError(f"{command[1]} did not end within the time that --timeout allows") from None
    finally:
        _end(process)
        _end_all(f"{VARIABLE}={environ[VARIABLE]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the script or its launcher, with all that is in its session; gently first, for it to tidy up."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _end_all(token: str) -> None:
    """Return when no process is left that was started with this variable: launchers' workers, and workers of those."""
    begun = time.monotonic()
    while left := list(_processes(token)):
        # A launcher that is killed has a guard, which tidies up after it within seconds.
        for pid in left if time.monotonic() - begun > _GRACE_S else ():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() - begun > 3 * _GRACE_S:
            raise ProofError(f"processes of the script could not be ended: {', '.join(map(str, left))}")
        time.sleep(_POLL_S)


def _processes(token: str) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        with suppress(OSError, IndexError):
            if not entry.name.isdecimal() or os.fsencode(token) not in (entry / "environ").read_bytes().split(b"\0"):
                continue
            if (entry / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                yield int(entry.name)


@contextmanager
def signals_as_interrupts() -> Iterator[None]:
    """Have SIGTERM and SIGHUP do what Ctrl-C does, so that nothing is left behind."""

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {signum: signal.signal(signum, interrupt) for signum in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
