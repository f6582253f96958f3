"""A small process that outlives a killed launcher, just long enough to take the launch's processes along.

``kill -9`` gives the launcher no time to stop anything, and its workers are not even its children. So the
launcher tells this process, over a pipe, what it has started; when that pipe closes without the list having
been emptied, whatever is left on it is killed. It runs as ``python -I -S guard.py``, in a session of its
own, so that neither Ctrl-C nor a kill of the launcher's whole process group reaches it.

Each line of the pipe is ``+`` or ``-``, a kind, and its name: ``g 123`` a process group, ``p 123`` a
process, ``d /tmp/pymp-abc`` a folder.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import Literal

__all__ = ["Guard", "main"]

Kind = Literal["g", "p", "d"]

_DYING_SECONDS = 5.0
"""For so long a process may go on that was killed, where cores are short."""


class Guard:
    """The launcher's end: starts the guarding process and keeps its list. Use as a context manager."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Guard:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is None or self._process.stdin is None:
            return
        with suppress(OSError):
            self._process.stdin.close()
        self._process.wait()

    def add(self, kind: Kind, name: object) -> None:
        """Put something on the list of what must not outlive the launcher."""
        self._tell(f"+{kind} {name}\n")

    def remove(self, kind: Kind, name: object) -> None:
        """Take it off again: its number may soon be another process's."""
        self._tell(f"-{kind} {name}\n")

    def _tell(self, line: str) -> None:
        if self._process is None or self._process.stdin is None:
            return
        # A guard that somebody killed is no reason to end a job that runs well without it.
        with suppress(OSError, ValueError):
            os.write(self._process.stdin.fileno(), os.fsencode(line))


def main() -> None:
    """Read the list until the launcher is gone, then kill what is left on it."""
    # SLURM signals every process of a job step, whatever its session.
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, signal.SIG_IGN)
    listed: dict[bytes, None] = {}
    for line in sys.stdin.buffer:
        entry = line.rstrip(b"\n")
        if entry.startswith(b"+"):
            listed[entry[1:]] = None
        else:
            listed.pop(entry[1:], None)
    # Folders last: those who are killed put files into them.
    for entry in sorted(listed, key=lambda entry: entry.startswith(b"d")):
        kind, name = entry.split(b" ", 1)
        with suppress(OSError):
            _end(kind, name)


def _end(kind: bytes, name: bytes) -> None:
    if kind == b"g":
        os.killpg(int(name), signal.SIGKILL)
    elif kind == b"p":
        os.kill(int(name), signal.SIGKILL)
    else:
        import shutil  # only now: it would double this process's start and memory

        end = time.monotonic() + _DYING_SECONDS
        while os.path.lexists(name) and time.monotonic() < end:
            shutil.rmtree(os.fsdecode(name), ignore_errors=True)
            time.sleep(0.02)


if __name__ == "__main__":
    main()
