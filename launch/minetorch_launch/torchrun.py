"""What torchrun's options and its ``PET_*`` variables mean here: pure functions from options to options.

docs/torchrun.md has the table of all of them.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path

from minetorch_launch.errors import UsageError, short_repr

SAME = {
    "--nproc-per-node": "--nproc",
    "--nnodes": "--nodes",
    "--shutdown-timeout": "--grace",
    "--signals-to-handle": "--preempt-signals",
}
"""Torchrun's options that stand for one of ours: the last of the two that is given counts."""

FLAGS = ("--standalone", "--module", "--no-python", "--run-path", "--virtual-local-rank")
VALUED = (
    *SAME,
    *("--rdzv-backend", "--rdzv-endpoint", "--rdzv-id", "--rdzv-conf", "--max-restarts", "--monitor-interval"),
    *("--start-method", "--event-log-handler", "--role", "--log-dir", "--redirects", "--tee", "--local-ranks-filter"),
    *("--duplicate-stdout-filters", "--duplicate-stderr-filters", "--node-rank", "--master-addr", "--master-port"),
    *("--local-addr", "--logs-specs", "--numa-binding"),
)
"""Every option of torchrun 2.13."""

_NOT_IN_ENVIRON = ("--logs-specs", "--numa-binding")
_STATIC_PORT = "29500"

_STOP_SIGNALS = {"SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"}
"""Torchrun's default; the launcher always handles these."""

_OWN_RENDEZVOUS = "it is for torch's own rendezvous, which is not used"
_CONF_WITHOUT_EFFECT = {
    "is_host": "the node that the endpoint names hosts the rendezvous",
    "close_timeout": _OWN_RENDEZVOUS,
    "heartbeat_timeout": _OWN_RENDEZVOUS,
    "keep_alive_interval": _OWN_RENDEZVOUS,
    "keep_alive_max_attempt": _OWN_RENDEZVOUS,
    "read_timeout": _OWN_RENDEZVOUS,
}


def read_environ(given: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """Options that ``PET_*`` variables set and the command line does not, under torchrun's names.

    Raises:
        UsageError: a flag's variable is not a whole number.
    """
    found = {}
    for name in (*FLAGS, *VALUED):
        variable = "PET_" + name[2:].upper().replace("-", "_")
        value = environ.get(variable)
        if not value or name in given or SAME.get(name) in given or name in _NOT_IN_ENVIRON:
            continue
        if name not in FLAGS:
            found[name] = value
        elif not value.strip().isdecimal():
            raise UsageError(f"{variable}={short_repr(value)} is neither 0 nor 1: set it to one of them")
        elif int(value) != 0:
            found[name] = ""
    return found


def translate(given: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Put torchrun's options into ours.

    Args:
        given: value of each option by its long name, ours and torchrun's; "" for a flag.

    Returns:
        Options of ours, and lines for the user about those without effect.

    Raises:
        UsageError: an option of torchrun's that cannot work here, with the reason.
    """
    own = dict(given)
    notes: list[str] = []
    _translate_workers(own)
    _translate_rendezvous(own, notes)
    _translate_output(own, notes)
    _leave_out(own, notes)
    return own, tuple(notes)


def _translate_workers(own: dict[str, str]) -> None:
    nproc = own.pop("--nproc-per-node", None)
    if nproc in ("gpu", "xpu"):
        own["--nproc"] = "auto"
        own.setdefault("--device", "cuda" if nproc == "gpu" else "xpu")
    elif nproc in ("auto", "cpu"):
        own["--nproc"] = "cores"
        own.setdefault("--device", nproc)
    elif nproc is not None:
        own["--nproc"] = nproc
    if "--shutdown-timeout" in own:
        own["--grace"] = own.pop("--shutdown-timeout")
    if own.get("--start-method") == "fork":
        own["--start-method"] = "forkserver"  # workers are forked there, too
    words = own.pop("--signals-to-handle", "").split(",")
    names = ["SIG" + word.strip().upper().removeprefix("SIG") for word in words if word.strip()]
    if others := [name for name in names if name not in _STOP_SIGNALS]:
        own["--preempt-signals"] = ",".join(others)


def _translate_rendezvous(own: dict[str, str], notes: list[str]) -> None:
    if "--nnodes" in own:
        own["--nodes"] = own.pop("--nnodes")
    nodes = own.get("--nodes", "1")
    backend = own.pop("--rdzv-backend", "")
    address, port = own.pop("--master-addr", ""), own.pop("--master-port", "")
    conf = _parse_conf(own.pop("--rdzv-conf", ""))
    if "--standalone" in own:
        del own["--standalone"]
        if nodes.partition(":")[0] != "1":
            raise UsageError(f"--standalone is for one node, and --nnodes is {short_repr(nodes)}: drop one of the two")
        for name in ("--rdzv-endpoint", "--rdzv-id", "--node-rank"):
            own.pop(name, None)
        own["--nodes"] = "1"
        return
    if backend not in ("", "static", "c10d"):
        raise UsageError(
            f"--rdzv-backend {short_repr(backend)}: the nodes meet at one of them here, without another service: "
            "type --rdzv-backend c10d --rdzv-endpoint HOST[:PORT]"
        )
    if backend == "c10d":
        _translate_c10d(own, notes, address or port)
    else:
        _translate_static(own, address, port, many=nodes != "1")
    _translate_conf(own, conf, notes, backend)


def _translate_static(own: dict[str, str], address: str, port: str, *, many: bool) -> None:
    """Torchrun's default: node 0 is at the master's address, and hosts the rendezvous."""
    if "--rdzv-endpoint" not in own and (port or (address and many)):
        host = f"[{address}]" if address.count(":") > 1 and not address.startswith("[") else address or "127.0.0.1"
        own["--rdzv-endpoint"] = f"{host}:{port or _STATIC_PORT}"


def _translate_c10d(own: dict[str, str], notes: list[str], master: str) -> None:
    if master:
        notes.append("--master-addr and --master-port have no effect with --rdzv-backend c10d: it has --rdzv-endpoint")
    if own.pop("--node-rank", "0") != "0":
        notes.append("--node-rank has no effect with --rdzv-backend c10d, which orders the nodes by itself")


def _parse_conf(text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    conf = {key.strip(): value.strip() for key, _, value in pairs}
    for key, value in conf.items():
        if not value:
            raise UsageError(f"--rdzv-conf {short_repr(key)} has no value: type KEY=VALUE,KEY=VALUE")
    return conf


def _translate_conf(own: dict[str, str], conf: dict[str, str], notes: list[str], backend: str) -> None:
    static = conf.pop("timeout", None)
    joining = conf.pop("join_timeout", None) or (static if backend != "c10d" else None)
    for name, seconds in (("--join-timeout", joining), ("--last-call-timeout", conf.pop("last_call_timeout", None))):
        if seconds is not None:
            own.setdefault(name, seconds)
    if conf.pop("store_type", "tcp").lower() != "tcp":
        raise UsageError("--rdzv-conf store_type: the nodes meet over TCP here: leave it out")
    for key in conf:
        if key not in _CONF_WITHOUT_EFFECT:
            known = ", ".join(("join_timeout", "last_call_timeout", "timeout", "store_type", *_CONF_WITHOUT_EFFECT))
            raise UsageError(f"--rdzv-conf {short_repr(key)} is unknown: the keys are {known}")
        notes.append(f"--rdzv-conf {key} has no effect: {_CONF_WITHOUT_EFFECT[key]}")


def _translate_output(own: dict[str, str], notes: list[str]) -> None:
    for name in ("--duplicate-stdout-filters", "--duplicate-stderr-filters"):
        if own.pop(name, ""):
            raise UsageError(
                f"{name} writes some lines to a second file; here every line of a rank is in DIR/rank_N.log: "
                "type --log-dir DIR, and search there"
            )
    if own.pop("--logs-specs", "default") != "default":
        raise UsageError("--logs-specs names a class that plugs into torchrun's own code for logs: type --log-dir DIR")
    if own.keys() & {"--redirects", "--tee"} and "--log-dir" not in own:
        folder = Path(tempfile.gettempdir(), f"minetorch-launch-{uuid.uuid4().hex[:12]}")  # as torchrun does
        own["--log-dir"] = str(folder)
        notes.append(f"the log files are in {folder}; --log-dir DIR chooses another folder")


def _leave_out(own: dict[str, str], notes: list[str]) -> None:
    if own.pop("--monitor-interval", None) is not None:
        notes.append("--monitor-interval has no effect: the launcher sees the end of a worker at once")
    if own.pop("--event-log-handler", "null") != "null":
        notes.append("--event-log-handler has no effect: it is for events of torch's own agent, which is not used")
