"""The resume report: how far the previous start came, how it ended, and what was lost. It stores nothing."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast, get_args

from minetorch.checkpoint.claim import Claim
from minetorch.checkpoint.manifest import Manifest
from minetorch.data import Epoch
from minetorch.progress import Progress
from minetorch.resumption.history import Ended, Start, duration

STEP_VARIABLE = "MINETORCH_LAST_STEP"
"""The last step of the previous attempt, as the launcher saw it."""

TIME_VARIABLE = "MINETORCH_LAST_TIME"
"""The time when that attempt failed, as Unix time in seconds."""


@dataclass(frozen=True)
class Past:
    """What is known about the previous start."""

    step: int | None = None
    """The number of its steps, at least."""
    is_exact: bool = False
    """Whether `step` is the exact number."""
    seen: float | None = None
    """Its last sign of life, as Unix time in seconds."""
    ended: Ended | None = None

    def steps_lost(self, step: int) -> int | None:
        """The number of steps done after `step`; None if no step is known, but there may have been some."""
        lost = max(0, self.step - step) if self.step is not None else 0
        return lost if lost or self.is_exact else None


def look_back(claims: Sequence[Claim], manifests: Sequence[Manifest], environ: Mapping[str, str]) -> Past:
    """Find out about the previous start, from claims, checkpoints and the launcher.

    Args:
        claims: the claims of earlier starts of the run, oldest first.
        manifests: the manifests of the run's checkpoints.
        environ: the environment variables. A launcher that has restarted all workers knows most.
    """
    told = _told(environ)
    if not claims:
        newest = max(manifests, key=lambda manifest: manifest.key, default=None)
        steps, seen = [] if newest is None else [newest.step], [] if newest is None else [newest.created]
        return Past(max(steps, default=None), False, max(seen, default=None))
    last = claims[-1]
    own = [manifest for manifest in manifests if manifest.generation == last.generation]
    # A start that died before its first step has lost the same steps as the start before it.
    known = next((claim for claim in reversed(claims) if claim.step is not None), None)
    steps = [manifest.step for manifest in own] + ([known.step] if known and known.step is not None else [])
    times = [last.seen or last.claimed, *(manifest.created for manifest in own)]
    if told is not None:
        return Past(max(told[0], *steps, 0), True, max(told[1], *times), _ended(last) or "killed")
    has_lived = bool(own) or (last.step is not None and last.step > _began(last))
    ended = _ended(last) if last.ended else "killed" if has_lived else None
    return Past(max(steps, default=None), known is not None and known.ended, max(times), ended)


def describe(start: Start, past: Past) -> str:
    """The resume report in words, for the end of a line."""
    parts = [_lost(start, past)]
    if past.ended is not None:
        parts.append(f"the previous start {_PAST[past.ended]}")
    if start.down_s is not None and past.ended != "finished":
        parts.append(f"down for {duration(start.down_s)}")
    if start.checkpoint is not None:
        parts.append(f"loaded in {start.load_s:.2f} s")
    return ", ".join(parts)


def log_data(
    logger: logging.Logger, progress: Progress, epoch: Epoch, differences: Sequence[str], *, is_recorded: bool
) -> None:
    """Log what a resumption in the middle of an epoch means for the epoch's samples.

    Args:
        logger: the run's logger.
        progress: the run's counters.
        epoch: the rest of the epoch.
        differences: each difference between the epoch's data and the checkpoint's, in words.
        is_recorded: whether the checkpoint records its data.
    """
    data, seen = epoch.data, f"{progress.samples_in_epoch:,}"
    if differences:
        logger.warning(
            "Resuming in the middle of epoch %d with %s: the epoch has already trained on %s samples and ends here; it "
            "may have left some samples out. Later epochs use all of the new data."
            if epoch.iterations == 0
            else "Resuming in the middle of epoch %d with %s: the epoch continues after %s samples, and may repeat "
            "some samples and leave others out. Later epochs use all of the new data.",
            progress.epoch,
            ", ".join(differences),
            seen,
        )
    elif data.unit == "stream":
        logger.info(
            "Epoch %d continues after %s samples; what the stream gives was not compared.", progress.epoch, seen
        )
    elif not is_recorded:
        logger.info(
            "Epoch %d continues after %s samples; the checkpoint does not record their order, so it was not compared.",
            progress.epoch,
            seen,
        )
    else:
        logger.info(
            "Epoch %d continues after %s samples in the same order: no sample is repeated or left out.",
            progress.epoch,
            seen,
        )


_PAST: dict[Ended, str] = {
    "finished": "had finished",
    "stopped early": "had stopped early",
    "interrupted": "was interrupted",
    "failed": "had failed",
    "killed": "was killed",
}


def _lost(start: Start, past: Past) -> str:
    lost = start.steps_lost
    if lost is None:
        return "steps lost: unknown"
    if lost == 0:
        return "no step lost"
    return f"{'' if past.is_exact else 'at least '}{lost:,} {'step' if lost == 1 else 'steps'} lost"


def _ended(claim: Claim) -> Ended | None:
    return cast("Ended", claim.how) if claim.how in get_args(Ended) else None


def _began(claim: Claim) -> int:
    start = Start.from_dict(claim.start or {})
    return start.step if start is not None else 0


def _told(environ: Mapping[str, str]) -> tuple[int, float] | None:
    try:
        return int(environ[STEP_VARIABLE]), float(environ[TIME_VARIABLE])
    except (KeyError, ValueError):
        return None
