"""One launch of a trial: its lines with their times, and its processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tests.faults import room

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


class Launch:
    """A launcher that was started, on one machine or as one of two."""

    def __init__(
        self,
        words: Sequence[object],
        environ: Mapping[str, str],
        cwd: Path,
        inside: Sequence[str] = (),
        token: str = "",
    ) -> None:
        self.token = token
        name, _, value = token.partition("=")
        self.lines: list[tuple[float, str]] = []
        self._more = threading.Condition()
        self.process = subprocess.Popen(
            [*inside, sys.executable, "-m", "minetorch_launch", *map(str, words)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=cwd,
            start_new_session=True,
            env={**environ, name: value},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with suppress(ValueError):  # closed under us
            for line in self.process.stdout:
                with self._more:
                    self.lines.append((time.monotonic(), line.rstrip("\n")))
                    self._more.notify_all()

    @property
    def text(self) -> str:
        """All that it has said."""
        return "\n".join(line for _, line in self.lines)

    def find(self, pattern: str, after: float = 0.0) -> tuple[float, str] | None:
        """The first line that matches, with its time."""
        return next((one for one in list(self.lines) if one[0] >= after and re.search(pattern, one[1])), None)

    def wait_for(self, pattern: str, within_s: float, count: int = 1) -> bool:
        """Whether so many lines match in time; not if it ends before."""
        end = time.monotonic() + within_s

        def found() -> bool:
            return sum(bool(re.search(pattern, line)) for _, line in self.lines) >= count

        while not found() and time.monotonic() < end and (self.process.poll() is None or self._reader.is_alive()):
            with self._more:
                self._more.wait(0.05)
        return found()

    def processes(self) -> dict[int, str]:
        """All of it that lives."""
        return room.processes(self.token)

    def fork_servers(self) -> list[int]:
        """Its fork server, which is a child of the orphan reaper."""
        mine = self.process.pid
        return [
            pid
            for pid, command in self.processes().items()
            if "processes.fork_server" in command and room.parent(room.parent(pid) or 0) == mine
        ]

    def workers(self) -> list[int]:
        """Its ranks' processes, in the order in which they were made."""
        servers = self.fork_servers()
        return sorted(
            pid
            for pid, command in self.processes().items()
            if room.parent(pid) in servers and "resource_tracker" not in command
        )

    def loader_workers(self) -> list[int]:
        """The children of these."""
        workers = self.workers()
        return sorted(pid for pid in self.processes() if room.parent(pid) in workers)

    def signal_all(self, signum: int) -> None:
        """To all processes of it, until no new one appears."""
        done: set[int] = set()
        while new := set(self.processes()) - done:
            for pid in new:
                with suppress(ProcessLookupError):
                    os.kill(pid, signum)
            done |= new

    def end(self, within_s: float) -> int | None:
        """Its exit code; None if it does not end in time."""
        try:
            code = self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            return None
        self._reader.join(5)
        return code

    def close(self) -> None:
        """Kill what is left."""
        self.signal_all(signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        self._reader.join(5)
        if self.process.stdout is not None and not self._reader.is_alive():
            self.process.stdout.close()
