"""What all tests share."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from hypothesis import settings

from tests.faults.room import is_torchs

ROOT = Path(__file__).parents[1]

# What stays in TMPDIR where a test kills a script with SIGKILL, or torchrun does.
LEFT_BY_THE_KILLED = ("pymp-", "minetorch-tensorboard-", "minetorch-launch-", "torchelastic_")

# The suite takes the same examples each time, so that a change is never blamed for what it has not done;
# pytest --hypothesis-profile=deep looks for new ones, for minutes where the suite looks for seconds.
settings.register_profile("same", max_examples=50, derandomize=True)
settings.register_profile("deep", max_examples=2_000, derandomize=False)
settings.load_profile("same")


def pytest_configure():
    """Have no signal ignored, as a script's shell starts what it leaves in the background: children inherit it."""
    for signum, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
        if signal.getsignal(signum) is signal.SIG_IGN:
            signal.signal(signum, usual)


# Fixtures that start a program which a machine may lack. Their names are the markers of the tests that use them.
PROGRAMS = ("slurm", "postgres", "chromium")


def pytest_collection_modifyitems(items):
    """Mark each test by the programs that it uses."""
    for item in items:
        for name in PROGRAMS:
            if name in item.fixturenames:
                item.add_marker(name)


@pytest.fixture(scope="session", autouse=True)
def _temporary_files(tmp_path_factory):
    """Keep what this session puts into TMPDIR in a folder of its own, and take that away at the end."""
    tmp_path_factory.getbasetemp()  # pytest's own files stay where people look for them
    with (
        tempfile.TemporaryDirectory(prefix="mt-", ignore_cleanup_errors=True) as name,
        pytest.MonkeyPatch.context() as patch,
    ):
        folder = Path(name)
        folder.chmod(0o711)  # a database has a user of its own
        patch.setenv("TMPDIR", name)
        patch.setattr(tempfile, "tempdir", name)
        yield
        others = [path.name for path in folder.iterdir() if not is_torchs(path)]
        left = [name for name in others if not name.startswith(LEFT_BY_THE_KILLED)]
        assert not left, f"left in TMPDIR: {left}"


@pytest.fixture(autouse=True)
def _nothing_is_left_behind():
    """What one test leaves in this process, a later one would meet; which one, depends on their order."""
    before, threads = _surroundings(), _own_threads()
    yield
    after = _surroundings()
    changed = {name: (before.get(name), after.get(name)) for name in before.keys() | after.keys()}
    assert {name: pair for name, pair in changed.items() if pair[0] != pair[1]} == {}, "left behind by this test"
    deadline = time.monotonic() + 5
    while _own_threads() - threads:
        assert time.monotonic() < deadline, f"still running: {_own_threads() - threads}"
        time.sleep(0.01)


def _surroundings():
    # pytest sets the one, torch the other when it compiles something for the first time.
    passing = ("PYTEST_CURRENT_TEST", "TORCHINDUCTOR_CACHE_DIR")
    found = {name: value for name, value in os.environ.items() if name not in passing}
    found |= {signum.name: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)}
    return found | {"blocked signals": signal.pthread_sigmask(signal.SIG_BLOCK, []), "folder": Path.cwd()}


def _own_threads():
    return {thread for thread in threading.enumerate() if thread.name.startswith("minetorch")}


@pytest.fixture(scope="session")
def run_command():
    """Runs a command to its end and returns its output; whatever happens, it and its children are gone after."""

    def run(*command, expect=0, timeout=150, **options):
        with subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            **options,
        ) as process:
            try:
                output, _ = process.communicate(timeout=timeout)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        assert process.returncode == expect, output
        return output

    return run


@pytest.fixture(scope="session")
def tools():
    """An environment in which the commands of this Python's own folder come first, and no launcher's variables."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "MINETORCH_"))}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        variables.pop(name, None)
    variables["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), variables["PATH"]])
    return variables
