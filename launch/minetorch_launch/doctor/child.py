"""A child process that is given so much time, and never outlives the doctor."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from minetorch_launch.guard import Guard

__all__ = ["Child"]

_TAIL = 4000


class Child:
    """Runs a command in ``folder``, where its output goes, too. Use as a context manager: leaving it ends it.

    Args:
        command: program and arguments.
        folder: an empty one of its own.
        guard: kills it should this process be killed.
        env: its environment.
        grace: seconds from SIGTERM to SIGKILL.
    """

    def __init__(
        self, command: Sequence[str], folder: Path, guard: Guard, env: Mapping[str, str], *, grace: float = 15.0
    ) -> None:
        self._folder, self._guard, self._grace = folder, guard, grace
        # Not in the folder that the doctor was started in: a random.py there would stand in for Python's own.
        with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=folder, env=dict(env)
            )
        guard.add("p", self._process.pid)

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.wait(0) is None:
            self._process.terminate()
            if self.wait(self._grace) is None:
                self._process.kill()
                self._process.wait()
        self._guard.remove("p", self._process.pid)

    def wait(self, seconds: float) -> int | None:
        """Its exit code; None if it is still running after so many seconds."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def send(self, signum: int) -> None:
        """Send it a signal, if it still runs."""
        self._process.send_signal(signum)

    def output(self) -> str:
        """What it has written to stdout."""
        return (self._folder / "out").read_text(encoding="utf-8", errors="replace")

    def last_words(self) -> str:
        """The end of what it has written to stderr, in a line."""
        text = (self._folder / "err").read_text(encoding="utf-8", errors="replace")[-_TAIL:]
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return lines[-1] if lines else ""
