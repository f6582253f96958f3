"""A step of training beside the bare loop's, with everything that is on by default.

    python -m benchmarks.step [--rounds 5] [--steps 2000] [--only bare,minetorch] [--quick] [--json FILE]

A tiny model, so that what is around it shows: in a step of a tenth of a second nobody's overhead does. What comes once
an epoch (a checkpoint, the curves, a line in the log) is shared out over its steps; an epoch here takes less than a
second, and that takes no longer where an epoch is an hour. Bars are drawn, on a terminal. It takes some 5 minutes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

from benchmarks import peers
from benchmarks.harness import OURS, Options, Row, Target, interleave, main, make_parser, progress
from benchmarks.interpreters import Loop
from benchmarks.loops import ENVIRONMENTS

__all__ = ["measure", "measured"]

EPOCHS = 3
BARE, FLOOR = "bare", "floor"
ALONE = ("ignite", "fabric", "accelerate", "lightning", "transformers")
NOTE = (
    "floor: the bare loop with batches that lie ready, without a DataLoader. The samples lie in tensors, of which "
    "the Trainer takes a batch at once: that is how a step can be shorter than the bare loop's"
)
TOGETHER = ("accelerate", "lightning")


def measure(options: Options) -> Iterator[Row]:
    """A row for one process, and one for two."""
    only = options.arguments.only
    for world_size, share, what, others, at_most, ready in (
        (1, 1, "a step of a tiny MLP, one process", ALONE, 1.08, False),
        (1, 1, "the same with batches that lie ready", (), 1.08, True),
        (2, 4, "the same under DDP, two workers on gloo", TOGETHER, 1.03, False),
    ):
        if options.quick and others:
            others = ("accelerate",)  # the others' imports take longer than all else
        names = [name for name in (BARE, OURS, FLOOR, *others) if not only or name in only.split(",")]
        steps = 20 if options.quick else options.arguments.steps // share
        values = measured(names, options.rounds, steps, world_size, ready=ready)
        if OURS not in values or BARE not in values:
            continue
        floor = values.pop(FLOOR, None)
        yield Row.of(
            "step",
            what,
            "s",
            values,
            target=Target(BARE, at_most),
            floor=min(floor) if floor else None,
            note=NOTE,
        )


def measured(
    names: list[str], rounds: int, steps: int, world_size: int, *, ready: bool = False, device: str = "cpu"
) -> dict[str, list[float]]:
    """Seconds of a step by loop and round; a loop whose environment is not there is left out."""
    found = peers.find(*sorted({ENVIRONMENTS[name] for name in names if name in ENVIRONMENTS}))
    with ExitStack() as stack:
        loops = {
            name: stack.enter_context(
                Loop(name, found.get(ENVIRONMENTS.get(name, "")), world_size=world_size, device=device)
            )
            for name in names
            if name not in ENVIRONMENTS or ENVIRONMENTS[name] in found
        }
        values = interleave(
            {name: partial(loop.run, steps, EPOCHS, ready=ready) for name, loop in loops.items()}, rounds
        )
        for name, loop in loops.items():
            if any(value != value for value in values[name]):
                progress(f"{name} failed:\n{loop.said}")
    return values


if __name__ == "__main__":
    parser = make_parser(__doc__, rounds=5)
    parser.add_argument("--steps", type=int, default=2000, help="of an epoch (default %(default)s)")
    parser.add_argument("--only", default="", help="loops, with commas between them")
    main(measure, parser)
