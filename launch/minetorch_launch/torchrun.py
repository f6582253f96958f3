"""What a user of torchrun types out of habit, put into this launcher's words, or refused with those."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minetorch_launch.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Words", "translate"]

_SAME = {
    "--nproc-per-node": "--nproc",
    "--nnodes": "--nodes",
    "--rdzv-endpoint": "--rdzv",
    "--rdzv-id": "--run-id",
    "--shutdown-timeout": "--grace",
}
"""Torchrun's options that are ours under another name."""

_NEEDLESS = {
    "--standalone": "",  # always so on one node
    "--rdzv-backend": "c10d",
    "--monitor-interval": None,
    "--role": None,
    "--event-log-handler": None,
}
"""What has no effect here, with the one value that asks for what is so anyway: any for None, a flag for ""."""

_SILENT = ("--standalone", "--rdzv-backend")

_INSTEAD = {
    "--tee": "lines always appear, each with its rank; type --log-dir DIR to keep them as well",
    "-t": "lines always appear, each with its rank; type --log-dir DIR to keep them as well",
    "--redirects": "type --log-dir DIR, and --show 0 or --show failed to see less",
    "-r": "type --log-dir DIR, and --show 0 or --show failed to see less",
    "--local-ranks-filter": "type --show 0",
    "--rdzv-conf": "type --join-timeout SECONDS for its join_timeout; the rest is seen to",
    "--no-python": "workers are Python processes: give a script, or -m MODULE",
    "--run-path": "give the script's path; it runs as python runs it",
    "--signals-to-handle": "type --notice-signals SIG,...",
    "--master-addr": "type --rdzv HOST:PORT",
    "--master-port": "type --rdzv HOST:PORT",
    "--local-addr": "the address by which this machine reaches --rdzv is taken",
    "--numa-binding": "start minetorch-launch under numactl to bind its workers",
    "--virtual-local-rank": "each worker sees all GPUs and takes cuda:LOCAL_RANK",
}
"""What is done in another way here."""


@dataclass(frozen=True)
class Words:
    """A command line, parted."""

    own: tuple[str, ...]
    """The launcher's options, in its own words."""

    rest: tuple[str, ...]
    """The target and its arguments, untouched."""

    is_module: bool = False
    ignored: tuple[str, ...] = ()
    """Options that have no effect here, in words for the user."""


def translate(argv: Sequence[str], valued: frozenset[str]) -> Words:
    """Part the launcher's options from the target and its arguments, and put torchrun's into ours.

    By hand, because argparse interprets ``--`` and prefixes of options in what follows the script as well.

    Args:
        argv: the command line.
        valued: the launcher's options that take the next word as their value.

    Raises:
        UsageError: an option of torchrun's that is done in another way here, or ``-m`` without a module.
    """
    own: list[str] = []
    ignored: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        if word == "--":
            return Words(tuple(own), tuple(words), ignored=tuple(ignored))
        if word in ("-m", "--module") or (word.startswith("-m") and not word.startswith("--")):
            module = [word[2:], *words] if word not in ("-m", "--module") else words
            if not module or not module[0]:
                raise UsageError("-m needs a module: type -m MODULE [ARGS]...")
            return Words(tuple(own), tuple(module), is_module=True, ignored=tuple(ignored))
        if not word.startswith("-") or word == "-":
            return Words(tuple(own), (word, *words), ignored=tuple(ignored))
        name, equals, value = word.partition("=")
        name = _ours(name)
        if name in _NEEDLESS:
            ignored += _leave_out(name, value if equals or _NEEDLESS[name] == "" else words.pop(0) if words else "")
            continue
        if name in valued and not equals and words:
            value = words.pop(0)
            equals = "="
        own += ["--nproc=auto", "--device=cuda"] if (name, value) == ("--nproc", "gpu") else [name + equals + value]
    return Words(tuple(own), (), ignored=tuple(ignored))


def _ours(name: str) -> str:
    """Our name of an option; torchrun takes ``_`` for ``-`` as well."""
    dashed = "--" + name[2:].replace("_", "-") if name.startswith("--") else name
    if dashed in _INSTEAD:
        raise UsageError(f"{name} is torchrun's: {_INSTEAD[dashed]}")
    return _SAME.get(dashed, dashed)


def _leave_out(name: str, value: str) -> list[str]:
    only = _NEEDLESS[name]
    if only is not None and value != only:
        raise UsageError(f"{name} {value} is torchrun's: there is {name} {only} only, which needs no option")
    return [] if name in _SILENT else [f"{name} has no effect here"]
