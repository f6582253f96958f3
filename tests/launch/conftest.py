"""Runs the real launcher, and makes sure that it leaves no process behind."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from contextlib import suppress
from pathlib import Path

import pytest

LAUNCH = (sys.executable, "-m", "minetorch_launch")


class Launches:
    """Starts launchers in a scratch folder; all their processes are told apart by a token in the environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._token = f"MINETORCH_TEST={uuid.uuid4().hex}"
        self._open: list[subprocess.Popen[str]] = []

    def script(self, text: str, name: str = "script.py") -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    def start(
        self,
        *args: object,
        env: dict[str, str] | None = None,
        command: tuple[str, ...] = LAUNCH,
        **popen: object,
    ) -> subprocess.Popen[str]:
        name, value = self._token.split("=")
        plain = {
            key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS" and not key.startswith("SLURM_")
        }
        process = subprocess.Popen(
            [*command, *map(str, args)],
            **{
                "stdin": subprocess.DEVNULL,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                "text": True,
                "cwd": self.folder,
                "start_new_session": True,
                "env": {**plain, **(env or {}), name: value},
                **popen,
            },
        )
        self._open.append(process)
        return process

    def run(self, *args: object, timeout: float = 100, **start: object) -> subprocess.CompletedProcess[str]:
        process = self.start(*args, **start)
        out, err = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(args, process.returncode, out, err)

    def processes(self) -> dict[int, str]:
        """Command lines of all living processes that our launchers started, and they themselves."""
        found = {}
        for entry in Path("/proc").iterdir():
            with suppress(OSError, IndexError):
                if not entry.name.isdecimal() or self._token.encode() not in (entry / "environ").read_bytes():
                    continue
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                if state not in "ZX":
                    found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
        return found

    @staticmethod
    def by_rank(output: str) -> dict[int, list[str]]:
        """Each rank's lines, without what stands before them: lines that ranks share belong to each of them."""
        found: dict[int, list[str]] = {}
        for line in output.splitlines():
            shown = re.match(r"\[(?:[^]:]+:)?([\d,-]+)\] (.*)", line)
            for span in shown[1].split(",") if shown else ():
                first, _, last = span.partition("-")
                for rank in range(int(first), int(last or first) + 1):
                    found.setdefault(rank, []).append(shown[2])
        return found

    def gone_within(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while self.processes() and time.monotonic() < end:
            time.sleep(0.02)
        return not self.processes()

    def close(self) -> None:
        for process in self._open:
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        left = self.processes()
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self._open:
            process.wait(timeout=10)
        assert not left, f"left running: {left}"


@pytest.fixture
def launches(tmp_path):
    folder = tmp_path / "with space é"
    folder.mkdir()
    launches = Launches(folder)
    yield launches
    launches.gone_within(5)
    launches.close()


@pytest.fixture(scope="session")
def slurm(tools):
    """A SLURM cluster of two nodes."""
    spec = importlib.util.spec_from_file_location("slurm_cluster", Path(__file__).with_name("slurm_cluster.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if (reason := module.missing()) is not None:
        pytest.skip(reason)
    cluster = module.Cluster.start(tools)
    try:
        yield cluster
    finally:
        cluster.close()
