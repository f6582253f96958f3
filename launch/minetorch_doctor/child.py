"""A child process with a time limit, which never outlives the doctor."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

_STOP_SECONDS = 15.0
_PR_SET_PDEATHSIG = 1


def run_child(command: Sequence[str], folder: Path, seconds: float) -> tuple[int | None, str, str]:
    """Run ``command`` in ``folder``, and stop it after so many seconds or when an exception comes.

    Returns:
        Its exit code (None if it had to be stopped), its stdout, and the last line of its stderr.
    """
    libc = ctypes.CDLL(None)
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            cwd=folder,  # in the doctor's own working directory, a random.py would hide Python's
            # torch leaves a folder for compiled code behind.
            env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled")},
            preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0),
        )
        code = None
        try:
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(seconds)
        finally:
            process.terminate()  # does nothing to a process that has ended
            with suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_SECONDS)
            process.kill()
            process.wait()
    output, errors = ((folder / name).read_text(encoding="utf-8", errors="replace") for name in ("out", "err"))
    return code, output, errors.strip().rpartition("\n")[2].strip()
