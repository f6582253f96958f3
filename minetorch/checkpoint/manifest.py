"""A checkpoint's manifest: the small JSON file that, written last, commits it. Pure."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from typing import Any

from minetorch.checkpoint.names import BEST, LATEST, CheckpointName, alias_problem
from minetorch.errors import CheckpointCorruptError, CheckpointMismatchError, in_brief

FORMAT = 2
"""The format that this version writes and the newest that it reads. In format 1 the curves are in the payload."""

_SINCE_FIRST = frozenset({"monitor", "mode", "settings", "curves"})
"""Fields that older manifests lack."""

_DIGEST = re.compile(r"crc32:[0-9a-f]{8}")
_SEAL = "seal"


@dataclass(frozen=True)
class StoredFile:
    """A file of a checkpoint, as its manifest commits it."""

    name: str
    """In the manifest's folder."""
    size: int
    """Bytes."""
    digest: str
    """`crc32:` and 8 hexadecimal digits; `digest.Digest` says why this one."""


@dataclass(frozen=True)
class Manifest:
    """What is known of a committed checkpoint without opening it."""

    name: str
    """Its own name, as in `names.CheckpointName`."""
    generation: int
    """Which start of the run wrote it, from 1."""
    sequence: int
    """Which save of that generation it is, from 1."""
    step: int
    """Optimizer steps taken."""
    epoch: int
    """The current epoch, from 1."""
    epoch_complete: bool
    """Whether that epoch was over."""
    position: int
    """Iterations of that epoch done."""
    world_size: int
    """Ranks that trained."""
    payload: str
    """Name of the file beside the manifest that holds the state."""
    size: int
    """The payload's bytes."""
    digest: str
    """The payload's checksum, as `crc32:` and 8 hexadecimal digits; `digest.Digest` says why this one."""
    metrics: dict[str, float]
    """Figures at this point; NaN and infinities allowed."""
    aliases: dict[str, str]
    """The run's table of names as of this commit: to which checkpoint `latest`, `best` and a user's names point."""
    created: float
    """Unix time in seconds."""
    host: str = ""
    """The machine that wrote it."""
    versions: dict[str, str] = field(default_factory=dict)
    """Of minetorch, torch and python, and of CUDA where it is there."""
    code: dict[str, str] = field(default_factory=dict)
    """What tells the script that trained: its name, the digest of its file, the commit of its repository."""
    dropped: list[str] = field(default_factory=list)
    """Checkpoints that expired by this commit or before and may still be there: they are as good as deleted."""
    monitor: str = ""
    """The metric by which the run calls a checkpoint `best`; "" where the manifest is of before this was kept."""
    mode: str = ""
    """Whether a low ("min") or high ("max") value of it is good; "" as above."""
    settings: dict[str, str | int | float | bool | None] = field(default_factory=dict)
    """What the run was configured with, as `facts.facts_of` gives it; empty where the manifest is of before that."""
    curves: StoredFile | None = None
    """The file that holds the points of the run's curves; None where they are in the payload, or there are none."""
    format: int = FORMAT

    @property
    def state(self) -> StoredFile:
        """The payload as a file."""
        return StoredFile(self.payload, self.size, self.digest)

    @property
    def files(self) -> tuple[StoredFile, ...]:
        """All files that the manifest commits."""
        return (self.state,) if self.curves is None else (self.state, self.curves)

    @property
    def total_size(self) -> int:
        """The bytes of all these files."""
        return sum(file.size for file in self.files)

    @property
    def key(self) -> CheckpointName:
        """Sorts manifests as checkpoints supersede each other: by generation, then by sequence.

        A run started afresh, or from an older epoch, in the same folder is a new generation and thereby newer than
        all before it, whatever its step.
        """
        name = CheckpointName.parse(self.name)
        assert name is not None, self.name
        return name

    def to_json(self) -> bytes:
        """The manifest as strict JSON (NaN and infinities as strings), with a seal over all of it."""
        content = dataclasses.asdict(self)
        content["metrics"] = {key: _to_json_number(value) for key, value in self.metrics.items()}
        content[_SEAL] = _seal(content)
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        # A file's name need not be text: what has no UTF-8 becomes \udcff, as JSON writes it, too.
        return text.encode(errors="backslashreplace")

    @classmethod
    def from_json(cls, data: bytes, origin: str = "the manifest") -> Manifest:
        """The manifest in a file; `origin` names that file in errors. Fields that it does not know are ignored.

        Raises:
            CheckpointMismatchError: a newer Minetorch wrote it.
            CheckpointCorruptError: it is not what a Minetorch wrote.
        """
        content = _parse(data, origin)
        _check_format(content, origin)
        if content.pop(_SEAL, None) != _seal(content):
            raise CheckpointCorruptError(f"{origin} was changed after it was written: its seal does not match")
        names = [field.name for field in dataclasses.fields(cls)]
        known = {name: content[name] for name in names if name in content}
        missing = [name for name in names if name not in content and name not in _SINCE_FIRST]
        problem = f"it lacks {', '.join(missing)}" if missing else _problem(known)
        if problem is not None:
            raise CheckpointCorruptError(f"{origin} is not a manifest: {problem}")
        try:
            known["metrics"] = {key: float(value) for key, value in known["metrics"].items()}
            known["created"] = float(known["created"])
            known["curves"] = None if known.get("curves") is None else StoredFile(**known["curves"])
        except OverflowError as err:
            raise CheckpointCorruptError(f"{origin} is not a manifest: {err}") from None
        return cls(**known)


def _to_json_number(value: float) -> float | str:
    # JSON has no NaN; other readers than Python's choke on it.
    return value if math.isfinite(value) else repr(value)


def _seal(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


def _parse(data: bytes, origin: str) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as err:
        raise CheckpointCorruptError(f"{origin} is not a manifest: it is not JSON ({err})") from None
    if not isinstance(content, dict):
        raise CheckpointCorruptError(f"{origin} is not a manifest: it is not a JSON object")
    return content


def _check_format(content: dict[str, Any], origin: str) -> None:
    version = content.get("format")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise CheckpointCorruptError(f"{origin} is not a manifest: its format is {in_brief(version)}, not a number")
    if version > FORMAT:
        raise CheckpointMismatchError(
            f"{origin} has format {version}, and this Minetorch reads up to {FORMAT}: upgrade Minetorch to use it"
        )


def _is_int(value: Any, minimum: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= minimum


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _problem(content: dict[str, Any]) -> str | None:
    """What is wrong with a manifest's fields, or None."""
    name = CheckpointName.parse(content["name"]) if isinstance(content["name"], str) else None
    if name is None:
        return f"its name is {in_brief(content['name'])}"
    if content["payload"] != name.payload:
        return f"its payload must be {name.payload!r} beside it, not {in_brief(content['payload'])}"
    for key in ("generation", "sequence", "step"):
        if not _is_int(content[key]) or content[key] != getattr(name, key):
            return f"its {key} is {in_brief(content[key])}, which its name {in_brief(content['name'])} contradicts"
    for key, minimum in {"epoch": 0, "position": 0, "world_size": 1, "size": 0}.items():
        if not _is_int(content[key], minimum):
            return f"its {key} is {in_brief(content[key])}"
    if not isinstance(content["epoch_complete"], bool):
        return f"its epoch_complete is {in_brief(content['epoch_complete'])}"
    if not _is_digest(content["digest"]):
        return f"its digest is {in_brief(content['digest'])}"
    if (
        not _is_number(content["created"])
        or not 0 <= content["created"] < math.inf
        or not isinstance(content["host"], str)
    ):
        return "its time or host is not one"
    if not isinstance(content.get("monitor", ""), str) or content.get("mode", "") not in ("", "min", "max"):
        return f"its monitor is {in_brief(content.get('monitor'))}, in mode {in_brief(content.get('mode'))}"
    if not _are_names(content["dropped"]):
        return f"its dropped checkpoints are {in_brief(content['dropped'])}"
    return _curves_problem(content, name) or _metrics_problem(content["metrics"]) or _tables_problem(content)


def _curves_problem(content: dict[str, Any], name: CheckpointName) -> str | None:
    curves = content.get("curves")
    if curves is None:
        return None
    if not isinstance(curves, dict) or curves.keys() != {"name", "size", "digest"}:
        return f"its curves are {in_brief(curves)}, not a name, a size and a digest"
    if curves["name"] != name.curves:
        return f"its curves must be in {name.curves!r}, not in {in_brief(curves['name'])}"
    if not _is_int(curves["size"]) or not _is_digest(curves["digest"]):
        return f"its curves have the size {in_brief(curves['size'])} and the digest {in_brief(curves['digest'])}"
    return None


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def _metrics_problem(metrics: Any) -> str | None:
    if not isinstance(metrics, dict):
        return "its metrics are not a table"
    for key, value in metrics.items():
        if not _is_number(value) and not (isinstance(value, str) and value in ("nan", "inf", "-inf")):
            return f"its metric {in_brief(key)} is {in_brief(value)}"
    return None


def _is_plain(value: Any) -> bool:
    return not isinstance(value, dict | list) and not (isinstance(value, float) and not math.isfinite(value))


def _are_names(names: Any) -> bool:
    return isinstance(names, list) and all(isinstance(name, str) and CheckpointName.parse(name) for name in names)


def _tables_problem(content: dict[str, Any]) -> str | None:
    for key in ("versions", "code"):
        table = content[key]
        if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
            return f"its {key} are not a table"
    settings = content.get("settings", {})
    if not isinstance(settings, dict) or not all(map(_is_plain, settings.values())):
        return "its settings are not a table of plain values"
    aliases = content["aliases"]
    if not isinstance(aliases, dict):
        return "its aliases are not a table"
    for alias, target in aliases.items():
        if alias not in (LATEST, BEST) and alias_problem(alias) is not None:
            return f"it has an alias {in_brief(alias)}"
        if not isinstance(target, str) or CheckpointName.parse(target) is None:
            return f"its alias {in_brief(alias)} points to {in_brief(target)}"
    return None
