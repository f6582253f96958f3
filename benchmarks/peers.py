"""What a user would pick instead, each at a pinned version in a virtual environment of its own.

    python -m benchmarks.peers [NAME...]    # makes them, and says where they are

An environment stands in a cache folder (MINETORCH_BENCHMARKS, else `minetorch-benchmarks` in the user's cache folder)
and sees the torch that is installed, and whatever is installed beside it where that fits; the versions are those of
the folder `constraints`.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PEERS", "Peer", "PeerMissingError", "find", "python"]

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "constraints/{}.{}.txt".format(*sys.version_info)


class PeerMissingError(Exception):
    """A peer's environment is not there, and could not or should not be made; the message says why."""


@dataclass(frozen=True)
class Peer:
    """What is installed, and what shows that it works."""

    name: str
    packages: tuple[str, ...]
    module: str


PEERS = {
    peer.name: peer
    for peer in (
        Peer("lightning", ("lightning", "s3fs"), "lightning"),
        Peer("ignite", ("pytorch-ignite",), "ignite"),
        Peer("transformers", ("transformers", "accelerate"), "transformers"),
        Peer("accelerate", ("accelerate",), "accelerate"),
    )
}


def python(name: str, *, make: bool = True) -> Path:
    """The interpreter that imports a peer, whose environment is made if it is not there.

    Raises:
        PeerMissingError: it is not there, and ``make`` is off or pip failed.
    """
    peer = PEERS[name]
    home = _cache() / f"{name}-{_fingerprint(peer)}"
    interpreter = home / "bin" / "python"
    with _locked(home):
        stamp = home / "complete"
        if not stamp.exists():
            if not make:
                raise PeerMissingError(f"{name} is not installed; python -m benchmarks.peers {name} does it")
            _make(peer, home)
            stamp.touch()
    return interpreter


def find(*names: str, make: bool = True) -> dict[str, Path]:
    """Interpreters by peer; one that cannot be had is left out, with a word on stderr."""
    found = {}
    for name in names:
        try:
            found[name] = python(name, make=make)
        except PeerMissingError as error:
            sys.stderr.write(f"left out: {error}\n")
    return found


def _make(peer: Peer, home: Path) -> None:
    sys.stderr.write(f"installing {peer.name} into {home} ...\n")
    shutil.rmtree(home, ignore_errors=True)
    venv.create(home, symlinks=True, with_pip=False)
    site = next(home.glob("lib/python3*/site-packages"))
    # A plain line: packages are seen, but no .pth file beside them is run, such as that of an editable install.
    (site / "shared.pth").write_text(f"{_shared()}\n")
    try:
        _run(sys.executable, "-m", "pip", "--python", home / "bin/python", *_install(peer))
        _run(home / "bin/python", "-c", f"import torch, {peer.module}")
    except subprocess.CalledProcessError as error:
        raise PeerMissingError(f"{peer.name} could not be installed:\n{error.stdout[-2000:]}") from None


def _install(peer: Peer) -> tuple[str | Path, ...]:
    return ("install", "--quiet", "--disable-pip-version-check", "-c", CONSTRAINTS, *peer.packages)


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def _shared() -> Path:
    """Where torch is installed."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise PeerMissingError("torch is not installed")
    return Path(spec.origin).parents[1]


def _fingerprint(peer: Peer) -> str:
    """Of everything that makes an environment another one."""
    parts = (*peer.packages, CONSTRAINTS.read_text(), str(_shared()), sys.version)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def _cache() -> Path:
    if chosen := os.environ.get("MINETORCH_BENCHMARKS"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minetorch-benchmarks"


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Two runs at once make an environment once."""
    home.parent.mkdir(parents=True, exist_ok=True)
    with open(home.with_suffix(".lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main() -> None:
    """Make the environments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*PEERS, []], metavar="NAME", help=", ".join(PEERS))
    for name, path in find(*(parser.parse_args().names or PEERS)).items():
        print(f"{name}: {path}")


if __name__ == "__main__":
    main()
