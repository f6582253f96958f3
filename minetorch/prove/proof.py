"""The proof itself: runs the script uninterrupted and killed, compares, and looks for the cause where they differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minetorch import ledger
from minetorch.checkpoint.loading import load
from minetorch.errors import ConfigurationError, ProofError
from minetorch.prove.causes import Evidence, cause_of
from minetorch.prove.comparing import Difference, compare, compare_states, greatest_difference, parted
from minetorch.prove.orders import RECORDS, Kill, Orders
from minetorch.prove.plan import draw_kills
from minetorch.prove.records import Recording, read
from minetorch.prove.running import Script, execute
from minetorch.prove.verdict import End, Mended, RunProof, Samples, Verdict, ranks_text

OF_STARTS = frozenset({"history", "logs"})
"""What a checkpoint tells of the run's starts, which are others when it was killed. So do a drawer's marks."""

FIGURES = ("metrics", "lowest_train_loss", "lowest_val_loss", "drawer", "random", "progress.loss_sum")
"""What a checkpoint holds beside the training's own state. Curves may well show the time of day."""


@dataclass(frozen=True)
class Wanted:
    """What is to be proved."""

    script: Script
    nproc: int
    kills: int
    seed: int
    persist_steps: int
    steps: int | None
    then_nproc: int | None

    @property
    def moves(self) -> bool:
        """Whether the killed run goes on with another number of ranks."""
        return self.then_nproc not in (None, self.nproc)


class Proof:
    """One proof, in a folder of its own."""

    def __init__(self, wanted: Wanted, folder: Path, tell: Callable[[str], object]) -> None:
        """Nothing is run yet.

        Args:
            wanted: what is to be proved.
            folder: for the runs; it is there, and empty.
            tell: told each step, in a line.
        """
        self._wanted = wanted
        self._folder = folder
        self._tell = tell
        self._again: Mapping[str, Recording] | None = None

    def run(self) -> Verdict:
        """Run, compare, judge.

        Raises:
            ConfigurationError: the script cannot be proved like this.
            ProofError: it failed by itself, or took too long.
        """
        wanted = self._wanted
        reference = self._orders("uninterrupted", steps=wanted.steps)
        seconds = self._execute(reference, wanted.nproc)
        known = self._recordings(reference)
        steps = {name: recording.last_step for name, recording in known.items()}
        self._tell(f"uninterrupted  {self._size(steps)} on {ranks_text(wanted.nproc)}, {seconds:.1f} s")
        kills = self._draw(known, steps)
        if not kills:
            raise ProofError(
                f"{wanted.script.path} ends after {sum(steps.values())} steps: too few to kill it between two"
            )
        killed = self._orders("killed", steps=wanted.steps, kills=tuple(kills))
        seconds = self._execute(killed, wanted.nproc, wanted.then_nproc)
        self._tell(f"killed         {len(killed.done())} of {wanted.kills} times, {seconds:.1f} s")
        done = [kill for number, kill in enumerate(kills) if number in killed.done()]
        proofs = [
            self._judge(known[name], found, [kill for kill in done if kill.run == name])
            for name, found in self._recordings(killed).items()
            if name in known
        ]
        return Verdict(
            script=wanted.script.path,
            nproc=wanted.nproc,
            then_nproc=wanted.then_nproc,
            seed=wanted.seed,
            kills=len(done),
            asked=wanted.kills,
            runs=proofs,
        )

    def _orders(self, name: str, *, steps: int | None, kills: tuple[Kill, ...] = ()) -> Orders:
        return Orders(self._folder / name, self._wanted.persist_steps, steps, kills)

    def _execute(self, orders: Orders, nproc: int, then_nproc: int | None = None) -> float:
        try:
            return execute(self._wanted.script, orders, nproc, then_nproc)
        except ProofError:
            if (refusal := orders.refusal()) is not None:
                raise ConfigurationError(refusal) from None
            raise

    def _recordings(self, orders: Orders) -> dict[str, Recording]:
        found = read(orders.runs)
        if not found:
            raise ProofError(f"{self._wanted.script.path} ended well, but has no minetorch.Trainer that was trained")
        return found

    def _draw(self, known: Mapping[str, Recording], steps: Mapping[str, int]) -> list[Kill]:
        every = max(start.facts["every_steps"] for recording in known.values() for start in recording.all())
        if self._wanted.moves:
            # With more ranks, of which each has batches of its own, there are fewer steps.
            assert self._wanted.then_nproc is not None
            part = min(1.0, self._wanted.nproc / self._wanted.then_nproc)
            steps = {name: int(count * part) for name, count in steps.items()}
        wanted = self._wanted
        return draw_kills(steps, every, wanted.kills, wanted.seed, ranks=wanted.nproc, moving=wanted.moves)

    def _judge(self, reference: Recording, killed: Recording, kills: Sequence[Kill]) -> RunProof:
        to_the_bit = not self._wanted.moves or _is_exact(reference)
        comparison = compare(reference, killed, every_rank=not self._wanted.moves) if to_the_bit else None
        cause: tuple[str, str] | None = None
        deterministic: bool | None = None
        if comparison is not None and comparison.difference is not None:
            deterministic = self._is_deterministic(reference, comparison.difference)
            cause = cause_of(comparison.difference, _evidence(reference, killed, deterministic))
        return RunProof(
            name=killed.name.partition("/")[2],
            comparison=comparison,
            deterministic=deterministic,
            cause=cause,
            samples=_compare_samples(reference, killed),
            end=_compare_ends(reference, killed),
            to_the_bit=to_the_bit,
            mended=_mended(killed, kills),
        )

    def _is_deterministic(self, reference: Recording, difference: Difference) -> bool:
        """Whether a second uninterrupted run is equal to the first, as far as the step of the difference."""
        if difference.resumed_at is None:
            return False  # the killed run differs before its first kill: it is that second run
        if self._again is None:
            self._tell("               they differ: running uninterrupted once more, to tell chance from loss")
            # One Trainer's end by steps would keep the others of the script from their start.
            alone = len(list((self._folder / "uninterrupted").glob(f"runs/**/{RECORDS}"))) == 1
            orders = self._orders("again", steps=difference.step + 1 if alone else self._wanted.steps)
            self._execute(orders, self._wanted.nproc)
            self._again = self._recordings(orders)
        again = self._again.get(reference.name)
        other = None if again is None else compare(reference, again).difference
        return again is not None and (other is None or other.step > difference.step)

    @staticmethod
    def _size(steps: Mapping[str, int]) -> str:
        total = sum(steps.values())
        return f"{total:,} steps" + (f" of {len(steps)} Trainers" if len(steps) > 1 else "")


def _is_exact(recording: Recording) -> bool:
    """Whether the Trainer promises the same bits on any number of ranks."""
    return any(start.facts["strategy"] == "exact" for start in recording.all())


def _evidence(reference: Recording, killed: Recording, deterministic: bool) -> Evidence:
    starts = [*reference.all(), *killed.all()]
    return Evidence(
        deterministic=deterministic,
        device=starts[0].facts["device"],
        world_size=starts[0].world_size,
        parted=parted(reference),
        unsaved_schedulers=sorted(
            {name for start in starts for name in (start.end or {}).get("unsaved_schedulers", ())}
        ),
        unsaved_buffers=sorted({name for start in starts for name in start.facts["unsaved_buffers"]}),
    )


def _mended(killed: Recording, kills: Sequence[Kill]) -> list[Mended]:
    """Each kill of this run with the start that came after it."""
    starts = [ranks.get(0) or next(iter(ranks.values())) for ranks in killed.starts.values()]
    reached = [max((row.step for row in start.rows), default=start.begun.step) for start in starts]
    return [
        Mended(
            step=kill.step,
            what=kill.what,
            rank=kill.rank,
            reached=end,
            went_on_from=after.begun.step,
            ranks_before=before.world_size,
            ranks_after=after.world_size,
        )
        for kill, end, before, after in zip(kills, reached, starts, starts[1:], strict=False)
    ]


def _compare_samples(reference: Recording, killed: Recording) -> Samples:
    expected, found = (ledger.read(recording.folder) for recording in (reference, killed))
    report = found.check(repeats=not expected.check().is_exact)
    orders = expected.order(), found.order()
    differing = next(
        (epoch for epoch in (*orders[0], *orders[1]) if orders[0].get(epoch) != orders[1].get(epoch)), None
    )
    return Samples(
        epochs=len(orders[0]),
        count=sum(map(len, orders[0].values())),
        problems=report.problems,
        first_other_epoch=differing,
    )


def _compare_ends(reference: Recording, killed: Recording) -> End:
    expected, found = (_without_starts(load(recording.folder, "latest")) for recording in (reference, killed))
    differences = list(compare_states(expected, found))
    figures = [one for one in differences if one.path.startswith(FIGURES)]
    return End(
        tensors=_count_tensors(expected),
        differences=[one for one in differences if one not in figures],
        figures=[one.path for one in figures],
        relative=greatest_difference(expected["state_dict"], found["state_dict"]),
    )


def _without_starts(state: dict[str, Any]) -> dict[str, Any]:
    state = {key: value for key, value in state.items() if key not in OF_STARTS}
    state.get("drawer", {}).pop("marks", None)
    return state


def _count_tensors(state: Any) -> int:
    if isinstance(state, dict):
        return sum(map(_count_tensors, state.values()))
    if isinstance(state, list | tuple):
        return sum(map(_count_tensors, state))
    return int(hasattr(state, "untyped_storage"))
