"""The one record of a run that every view is made of: its points, starts, checkpoints and settings, wherever it is."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from minetorch.checkpoint.curves_file import read_curves
from minetorch.checkpoint.run import Run
from minetorch.checkpoint.schema import WrongKindError, check_state
from minetorch.checkpoint.verification import read_verified
from minetorch.errors import (
    CheckpointCorruptError,
    CheckpointMismatchError,
    ConfigurationError,
    StorageError,
    unknown_name,
)
from minetorch.resumption.history import Ended, Start

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from minetorch.checkpoint.claim import Claim
    from minetorch.checkpoint.manifest import Manifest
    from minetorch.checkpoint.run import Item
    from minetorch.checkpoint.store import Store

    Floats = npt.NDArray[np.float64]

State = Literal["running", "finished", "stopped", "failed", "killed", "unknown"]
"""Stopped: it saved and ended before its last epoch, by a signal, a limit or a hook. Unknown: too old to tell."""

_STATES: dict[str, State] = {
    "finished": "finished",
    "stopped early": "stopped",
    "interrupted": "stopped",
    "failed": "failed",
    "killed": "killed",
}
_LOG_BYTES = 16 << 10
_LOG_LINES = 40


@dataclass(frozen=True)
class Graph:
    """One graph of a run."""

    name: str
    x_name: str
    """What x counts."""
    curves: Mapping[str, Floats]
    """By name, each of shape (2, points): x above y."""
    resumes: Sequence[float]
    """The x at which the run was resumed; none where x counts neither epochs nor steps."""

    @property
    def points(self) -> int:
        """How many there are in all curves."""
        return sum(curve.shape[1] for curve in self.curves.values())


@dataclass(frozen=True)
class Episode:
    """One start of the run, and what became of it."""

    generation: int
    start: Start | None
    """What it went on from and what that had cost; None where nothing tells."""
    began: float | None
    """As Unix time in seconds."""
    last_seen: float | None
    """Its last sign of life or last checkpoint, as Unix time in seconds."""
    last_step: int | None
    """Optimizer steps that it had done by then: at least so many."""
    host: str
    world_size: int | None
    state: State
    how: Ended | None
    """In its own words, or in those of the start after it."""


@dataclass(frozen=True)
class Drawn:
    """What the newest checkpoint whose curves could be read tells."""

    manifest: Manifest | None
    """The checkpoint that it is of."""
    graphs: Mapping[str, Graph] = field(default_factory=dict)
    history: Sequence[Start] = ()
    problem: str = ""
    """Why a newer one could not be read."""


@dataclass(frozen=True)
class Record:
    """A run at one moment. Parts that cost requests are read when they are first asked for."""

    run: Run
    now: float
    """Unix time in seconds."""

    @classmethod
    def open(
        cls, url: str | os.PathLike[str], storage_options: Mapping[str, object] | None = None, *, now: float
    ) -> Record:
        """The record of the run at a path or URL; raises as `Run.open`."""
        return cls(Run.open(url, storage_options), now)

    @property
    def name(self) -> str:
        """The run's directory, relative to where it was looked for."""
        return self.run.name

    @property
    def url(self) -> str:
        """Where it is, without passwords."""
        return self.run.store.url

    @property
    def newest(self) -> Manifest | None:
        """The newest checkpoint."""
        return self.run.catalogue.manifests[-1] if self.run.catalogue.manifests else None

    @property
    def best(self) -> Manifest | None:
        """The checkpoint that is called `best`."""
        return self.run.catalogue.by_name(self.run.catalogue.names().get("best", ""))

    @cached_property
    def is_alive(self) -> bool:
        """Whether a process seems to be at work on it."""
        return self.run.writer is not None and self.run.may_be_running(self.now)

    @cached_property
    def state(self) -> State:
        """What the run is at, or how it ended."""
        newest = self.newest
        if self.run.writer is None and newest is not None and newest.epoch_complete:
            # A copy: it has no claims, but its newest checkpoint may be the last that there was to be.
            return "finished" if newest.epoch == newest.settings.get("max_epochs") else "unknown"
        return state_of(self.run.writer, self.is_alive)

    @cached_property
    def items(self) -> list[Item]:
        """Its checkpoints, oldest first."""
        return self.run.items(self.now)

    @cached_property
    def claims(self) -> Mapping[int, Claim]:
        """Every start of the run that was written down, by generation."""
        return self.run.claims()

    @cached_property
    def drawn(self) -> Drawn:
        """As `newest_drawn` gives it."""
        return newest_drawn(self.run)

    @cached_property
    def episodes(self) -> list[Episode]:
        """Its starts, oldest first."""
        return episodes(self.claims, self.drawn.history, self.run.catalogue.manifests, is_alive=self.is_alive)

    def graph(self, name: str) -> Graph:
        """One graph.

        Raises:
            ConfigurationError: it has none of that name; the message lists those there are.
        """
        graphs = self.drawn.graphs
        if name not in graphs:
            known = (
                unknown_name("graph", name, graphs) if graphs else f"{self.drawn.problem or 'nothing is drawn yet'}."
            )
            raise ConfigurationError(f"{self.url}: {known}")
        return graphs[name]

    def log_tail(self) -> list[str]:
        """The last lines of the log, at most 40; none where there is no log."""
        with suppress(FileNotFoundError, StorageError):
            size = self.run.store.size("log.txt")
            data = self.run.store.read_range("log.txt", max(0, size - _LOG_BYTES), size) if size else b""
            lines = data.decode("utf-8", "replace").splitlines()
            return lines[1 if size > _LOG_BYTES else 0 :][-_LOG_LINES:]
        return []


def state_of(writer: Claim | None, is_alive: bool) -> State:
    """What a run is at, by its newest start."""
    if is_alive:
        return "running"
    if writer is None:
        return "unknown"
    if not writer.ended:
        return "killed"
    return _STATES.get(writer.how, "stopped")


def episodes(
    claims: Mapping[int, Claim], history: Sequence[Start], manifests: Sequence[Manifest], *, is_alive: bool
) -> list[Episode]:
    """The starts of a run, from whoever tells of them: claims, the newest checkpoint's history, manifests.

    Args:
        claims: by generation; a copied run has none.
        history: of the newest checkpoint.
        manifests: of all checkpoints, oldest first.
        is_alive: whether the newest start is at work.
    """
    starts = {start.generation: start for start in history}
    starts |= {g: start for g, claim in claims.items() if (start := Start.from_dict(claim.start or {})) is not None}
    generations = sorted({*claims, *starts, *(manifest.generation for manifest in manifests)})
    found = []
    for generation in generations:
        claim, start = claims.get(generation), starts.get(generation)
        own = [manifest for manifest in manifests if manifest.generation == generation]
        after = next((starts[later] for later in generations if later > generation and later in starts), None)
        is_newest = generation == generations[-1]
        how = _how(claim, after)
        state = "running" if is_newest and is_alive else state_of(claim, False) if is_newest else _STATES.get(how or "")
        seen = [manifest.created for manifest in own] + ([claim.seen] if claim is not None and claim.seen else [])
        steps = [manifest.step for manifest in own] + ([claim.step] if claim is not None and claim.step else [])
        found.append(
            Episode(
                generation,
                start,
                claim.claimed if claim is not None else start.time if start is not None else min(seen, default=None),
                max(seen, default=None),
                max(steps, default=None),
                claim.process.host if claim is not None else start.host if start is not None else own[-1].host,
                start.world_size if start is not None else own[-1].world_size if own else None,
                state or "unknown",
                how,
            )
        )
    return found


def _how(claim: Claim | None, after: Start | None) -> Ended | None:
    """As it says itself, else as the next start found it."""
    if claim is not None and claim.how in _STATES:
        return claim.how  # type: ignore[return-value]  # the keys are what `Ended` may be
    return after.ended if after is not None else None


def newest_drawn(run: Run) -> Drawn:
    """What was drawn up to the newest checkpoint whose curves can be read.

    Raises:
        StorageError: they could not be read.
    """
    problem = ""
    for manifest in reversed(run.catalogue.manifests):
        try:
            return read_drawn(run.models, manifest, problem)
        except CheckpointCorruptError as err:
            problem = problem or str(err)
    return Drawn(None, problem=problem)


def read_drawn(store: Store, manifest: Manifest, problem: str = "") -> Drawn:
    """Fetch a checkpoint's curves and history.

    Raises:
        CheckpointCorruptError: its file of curves, or the payload that has them, is missing or damaged.
        StorageError: it could not be read.
    """
    content = _from_payload(store, manifest) if manifest.curves is None else read_curves(store, manifest.curves)
    x_names = content.get("x_names", {})
    resumes = [mark for mark in content.get("marks", ()) if mark[0] == "resume"]
    found = {}
    for name, curves in content["graphs"].items():
        x_name = x_names.get(name, "epoch")
        at = {"epoch": 1, "step": 2}.get(x_name)
        places = sorted({float(mark[at]) for mark in resumes}) if at is not None else []
        found[name] = Graph(name, x_name, curves, places)
    starts = (Start.from_dict(values) for values in content.get("history", ()))
    return Drawn(manifest, found, [start for start in starts if start is not None], problem)


def _from_payload(store: Store, manifest: Manifest) -> dict[str, Any]:
    """The curves and history of a checkpoint of format 1, as `read_curves` gives them. All of it is read."""
    from minetorch.checkpoint.reader import decode  # imports torch, which newer checkpoints do not need here

    try:
        state = decode(read_verified(store, manifest.state), store.url_of(manifest.payload))
        check_state(state)
    except (CheckpointMismatchError, WrongKindError) as error:
        raise CheckpointCorruptError(
            f"{store.url_of(manifest.payload)} has no curves that can be read: {error}"
        ) from None
    drawer = state.get("drawer", {})
    graphs = {
        graph: {curve: tensor.numpy().astype(np.float64) for curve, tensor in curves.items()}
        for graph, curves in drawer.get("graphs", {}).items()
    }
    return {**drawer, "graphs": graphs, "history": state.get("history", [])}
