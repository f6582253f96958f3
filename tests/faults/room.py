"""A sealed room for one trial: its own processes, network, shared memory and disks, which all end with it.

So nothing of a trial can escape, nothing of the machine's can disturb it, and what is left in it can be seen at once.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_UNSHARE = ("unshare", "--mount", "--net", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc")
_LISTENING = "0A"
_GONE_S = 5.0


def why_none() -> str | None:
    """Why no room can be made here; None if one can."""
    if os.geteuid() != 0:
        return "making namespaces needs root"
    if missing := [name for name in ("unshare", "ip", "mount") if shutil.which(name) is None]:
        return f"making namespaces needs the commands {', '.join(missing)}"
    tried = subprocess.run([*_UNSHARE, "ip", "link", "set", "lo", "up"], capture_output=True, text=True, check=False)
    return f"this machine allows no namespaces: {tried.stderr.strip()}" if tried.returncode else None


def sealed(command: Sequence[str]) -> list[str]:
    """The command that runs ``command`` in a room of its own, as the first of its processes."""
    return [*_UNSHARE, *command]


def furnish() -> None:
    """Set the room up from within."""
    run("ip", "link", "set", "lo", "up")
    run("mount", "-t", "tmpfs", "-o", "size=1g", "none", "/dev/shm")
    Path("/run/netns").mkdir(exist_ok=True)
    run("mount", "-t", "tmpfs", "none", "/run/netns")
    # There is nobody to ask for names; to try would only take time.
    with tempfile.NamedTemporaryFile("w", prefix="names-") as file:
        file.write("hosts: files\n")
        file.flush()
        run("mount", "--bind", file.name, "/etc/nsswitch.conf")


def run(*words: str, check: bool = True) -> str:
    """Run a command; its output."""
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}: {done.stderr or done.stdout}")
    return done.stdout


def processes(with_variable: str = "") -> dict[int, str]:
    """Command lines of the living processes in the room, or of those with such a variable in their environment."""
    found = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError, IndexError):
            if not entry.name.isdecimal() or int(entry.name) == os.getpid():
                continue
            if with_variable and with_variable.encode() not in (entry / "environ").read_bytes().split(b"\0"):
                continue
            if (entry / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ").strip()
    return found


def parent(pid: int) -> int | None:
    """Of a process."""
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return None


def listening() -> set[int]:
    """Ports on which somebody listens in the room's own network."""
    ports = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            if state == _LISTENING:
                ports.add(int(local.rpartition(":")[2], 16))
    return ports


def left_over(*, variable: str, ports: Iterable[int], scratch: Path, within_s: float = _GONE_S) -> list[str]:
    """What a launch has left after so many seconds, each in words.

    Args:
        variable: what all of the launch's processes have in their environment.
        ports: that others listen on.
        scratch: the launch's TMPDIR.
        within_s: how long it may take.
    """
    end = time.monotonic() + within_s
    while (found := _left(variable, set(ports), scratch)) and time.monotonic() < end:
        time.sleep(0.02)
    return found


def _left(variable: str, ports: set[int], scratch: Path) -> list[str]:
    return [
        *(f"process {pid} is left: {command[:100]}" for pid, command in processes(variable).items()),
        *(f"port {port} is left" for port in sorted(listening() - ports)),
        *(f"shared memory is left: {name}" for name in os.listdir("/dev/shm")),  # noqa: PTH208
        *(f"a file is left: {path.name}" for path in scratch.iterdir() if not is_torchs(path)),
    ]


def is_torchs(path: Path) -> bool:
    """Whether torch has made it.

    A folder, when it is imported, for whatever is compiled later by anybody; and empty files, when a DataLoader worker
    dies, to see whether more can be opened (`tempfile` first makes one of its own, to see whether it may): one of them
    stays if just then the next signal comes.
    """
    with suppress(OSError):
        is_trial = re.fullmatch(r"(tmp)?[a-z0-9_]{8}", path.name) is not None and path.is_file()
        return path.name.startswith("torchinductor_") or (is_trial and path.stat().st_size == 0)
    return False
