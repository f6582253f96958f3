"""What only a GPU can show. Without one, all of this folder is skipped."""

import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

LAUNCHER = [sys.executable, "-m", "minetorch_launch"]


@pytest.fixture
def script(tmp_path):
    """Writes a script into the test's folder."""

    def write(text, name="script.py"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    return write


@pytest.fixture
def start(tmp_path, tools):
    """Starts a command in the test's folder; none outlives the test."""
    started = []

    def begin(*command, **variables):
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=tmp_path,
            env=tools | {name: str(value) for name, value in variables.items()},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def launch(start):
    """Runs a script by the launcher to its end: exit code and output."""

    def run(*words, timeout=120, **variables):
        process = start(*LAUNCHER, *words, **variables)
        output, _ = process.communicate(timeout=timeout)
        return process.returncode, output

    return run


@pytest.fixture
def start_two(start):
    """Starts two workers that exchange gradients by NCCL on one GPU, each by a launcher of its own.

    NCCL refuses two ranks on one GPU of one machine. So each is told to be on a machine of its own, which is what
    the two launchers take themselves for anyhow; between machines NCCL speaks over sockets.
    """

    def begin(*words, **variables):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        nodes = ["--nodes", "2", "--rdzv", f"127.0.0.1:{port}", "--nproc", "1", "--device", "cuda"]
        return [
            start(
                *LAUNCHER,
                *nodes,
                *("--node-rank", rank),
                *words,
                NCCL_HOSTID=f"node{rank}",
                NCCL_SOCKET_IFNAME="lo",
                NCCL_IB_DISABLE="1",
                **variables,
            )
            for rank in range(2)
        ]

    return begin


@pytest.fixture
def launch_two(start_two):
    """The same, to their ends: exit codes and outputs."""

    def run(*words, timeout=150, **variables):
        nodes = start_two(*words, **variables)
        outputs = [node.communicate(timeout=timeout)[0] for node in nodes]
        return [node.returncode for node in nodes], outputs

    return run


@pytest.fixture(scope="session")
def examples():
    return Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="session")
def worlds():
    return Path(__file__).parents[1] / "minetorch" / "worlds"


@pytest.fixture
def users_of_gpus(tmp_path):
    """Finds the processes in the test's folder that have opened a GPU: their command lines by process."""

    def find():
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                opened = {str(link.readlink()) for link in (entry / "fd").iterdir()}
                if (entry / "cwd").readlink() == tmp_path and any(
                    name.startswith("/dev/nvidia-uvm") for name in opened
                ):
                    found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
        return found

    return find
