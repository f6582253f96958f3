"""What all tests share."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).parents[1]

# For pytest --hypothesis-profile=deep, which looks for minutes where the suite looks for seconds.
settings.register_profile("deep", max_examples=2_000)


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
