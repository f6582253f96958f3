"""Interpreters that live through a benchmark, so that a round costs no imports, and contenders can go by turns."""

from __future__ import annotations

import json
import os
import pty
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

from benchmarks.harness import FAILED
from benchmarks.processes import environment

__all__ = ["Loop"]

_COLUMNS_AND_ROWS = {"COLUMNS": "100", "LINES": "24"}


class Loop:
    """A loop of `benchmarks.loops` in processes of its own, one for each rank, on a terminal that somebody reads."""

    def __init__(self, name: str, python: Path | None = None, *, world_size: int = 1, device: str = "cpu") -> None:
        """Start the processes, which import torch and wait.

        Args:
            name: of the loop.
            python: the interpreter; None for this one's.
            world_size: how many ranks.
            device: "cpu" or "cuda".
        """
        self.name = name
        self.device = device
        self.world_size = world_size
        self._terminal, screen = pty.openpty()
        # Nobody would read what a bar draws, and the terminal's buffer is small.
        threading.Thread(target=self._read, daemon=True).start()
        port = _free_port()
        command = [python or sys.executable, "-m", "benchmarks.loops", name]
        self._ranks = [_Rank(command, screen, _variables(rank, world_size, port, device)) for rank in range(world_size)]
        os.close(screen)

    def run(self, steps: int, epochs: int, *, ready: bool = False) -> float:
        """Seconds of a step of one whole training, of the slowest rank; NaN where it failed."""
        with tempfile.TemporaryDirectory(prefix="minetorch-benchmark-") as directory:
            order = {"steps": steps, "epochs": epochs, "directory": directory, "world_size": self.world_size}
            order |= {"device": self.device, "ready": ready}
            for rank in self._ranks:
                rank.tell(json.dumps(order))
            answers = [rank.answer() for rank in self._ranks]
        return max(float(answer) for answer in answers) if all(answers) else FAILED

    @property
    def said(self) -> str:
        """The last that was written on the terminal."""
        return self._said[-4000:].decode(errors="replace")

    _said = b""

    def _read(self) -> None:
        with suppress(OSError):
            while read := os.read(self._terminal, 1 << 16):
                self._said = (self._said + read)[-8000:]

    def __enter__(self) -> Loop:
        return self

    def __exit__(self, *error: object) -> None:
        for rank in self._ranks:
            rank.end()
        with suppress(OSError):
            os.close(self._terminal)


class _Rank:
    def __init__(self, command: list[object], screen: int, variables: dict[str, str]) -> None:
        reading, writing = os.pipe()
        self._process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE,
            stdout=screen,
            stderr=screen,
            text=True,
            bufsize=1,
            pass_fds=[writing],
            env=environment(BENCHMARK_PIPE=str(writing), **variables),
            cwd=Path(__file__).parents[1],
            start_new_session=True,
        )
        os.close(writing)
        self._answers = os.fdopen(reading)

    def tell(self, line: str) -> None:
        """Give it an order; one that has died takes none."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(line + "\n")

    def answer(self) -> str:
        """What it has measured; nothing if it has died."""
        return self._answers.readline()

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._answers.close()


def _variables(rank: int, world_size: int, port: int, device: str) -> dict[str, str]:
    variables = {"OMP_NUM_THREADS": "1", "MINETORCH_DEVICE": device, **_COLUMNS_AND_ROWS}
    if world_size > 1:
        variables |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank)}
        variables |= {"LOCAL_WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return variables


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port
