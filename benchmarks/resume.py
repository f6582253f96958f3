"""From the command to the first new step of all ranks of a training that goes on from its checkpoint.

    python -m benchmarks.resume [--ranks 1,2,4] [--megabytes 96] [--rounds 3] [--s3 URL] [--quick] [--json FILE]

Each framework is started as its users start it: Minetorch by minetorch-launch, accelerate by accelerate launch, and
Lightning by itself; one rank of each is a plain `python`. Each round goes on from a new copy of a checkpoint that the
framework has written at the same number of ranks. The floor is a training written by hand that reads a local file in
one process. Without --s3 a server is started on this machine.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import peers, s3
from benchmarks.harness import FAILED, OURS, Figure, Options, Row, Target, interleave, main, make_parser, progress
from benchmarks.launch import commands
from benchmarks.processes import DiedError, Tree, environment

__all__ = ["measure"]

SCRIPTS = Path(__file__).parent / "scripts"
AT_MOST = 0.6
LONGEST = 180.0
BY_HAND = "by hand"
FLOOR = "floor: a training written by hand, which reads a local file in one process"

Command = Callable[[int, object], list[object]]
"""From a number of ranks and a place, what trains there; a file's name after it makes it go on and report there."""


def contenders(megabytes: int, *, make: bool) -> dict[str, Command]:
    """What is there of those that resume."""
    launchers = commands("cpu", make=make)
    pythons = {OURS: Path(sys.executable), BY_HAND: Path(sys.executable)} | peers.find(
        "lightning", "accelerate", make=make
    )

    def start(name: str, script: str, launcher: str | None, ranks: int, place: object) -> list[object]:
        own = [] if launcher else [ranks] if name == "lightning" else []
        before = launchers[launcher](ranks) if launcher is not None and ranks > 1 else [pythons[name]]
        return [*before, SCRIPTS / f"resume_{script}.py", megabytes, place, *own]

    found: dict[str, Command] = {
        BY_HAND: partial(start, BY_HAND, "plain", None),
        OURS: partial(start, OURS, "minetorch", OURS),
    }
    if "lightning" in pythons:
        found["lightning"] = partial(start, "lightning", "lightning", None)
    if "accelerate" in pythons:
        found["accelerate"] = partial(start, "accelerate", "accelerate", "accelerate launch")
    return found


@dataclass(frozen=True)
class Places:
    """Where checkpoints are: written once into a folder, copied for each round."""

    folder: Path
    url: str | None
    """Of a bucket or a folder in one; None: a local disk."""

    variables: Mapping[str, str]

    def written(self, name: str, ranks: int) -> Path:
        """Of one framework, in the folder."""
        return self.folder / f"{name}-{ranks}"

    def copy(self, written: Path) -> str:
        """A new copy of a checkpoint where it is to be read."""
        if self.url is None:
            place = self.folder / uuid.uuid4().hex
            shutil.copytree(written, place)
            return str(place)
        import boto3

        url = f"{self.url}/{uuid.uuid4().hex}"
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        client = boto3.client("s3")
        for file in written.rglob("*"):
            if file.is_file():
                client.upload_file(str(file), bucket, f"{prefix}/{file.relative_to(written)}")
        return url

    def remove(self, place: str) -> None:
        """Make room for the next round; what is on S3 goes with its server."""
        if self.url is None:
            shutil.rmtree(place)


def resumed(name: str, command: Command, ranks: int, places: Places) -> float:
    """Seconds from the command to the step."""
    place = places.copy(places.written(name, ranks))
    report = places.folder / f"report-{uuid.uuid4().hex}"
    report.touch()
    expected = 1 if name == BY_HAND else ranks
    try:
        with Tree([*command(ranks, place), report], environment(**places.variables), places.folder) as tree:
            tree.wait_for(lambda: len(report.read_text().splitlines()) == expected, LONGEST)
            return max(map(float, report.read_text().splitlines())) - tree.started_at
    except DiedError as error:
        progress(f"{name} with {ranks} ranks failed: {error}")
        return FAILED
    finally:
        places.remove(place)


def write(name: str, command: Command, ranks: int, places: Places) -> bool:
    """Train the first epoch; whether that went well."""
    try:
        with Tree(command(ranks, places.written(name, ranks)), environment(), places.folder) as tree:
            tree.finish(LONGEST)
    except DiedError as error:
        progress(f"{name} with {ranks} ranks failed: {error}")
        return False
    return True


def measure(options: Options) -> Iterator[Row]:
    """A row for each number of ranks, from a local disk and from S3."""
    megabytes = 8 if options.quick else options.arguments.megabytes
    all_of_them = contenders(megabytes, make=not options.quick)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="minetorch-benchmark-")))
        sources = {"a local disk": Places(folder, None, {})}
        if not options.quick:
            chosen = options.arguments.s3
            sources["S3"] = Places(folder, *((chosen, {}) if chosen else stack.enter_context(s3.bucket())))
        for ranks in [1] if options.quick else map(int, options.arguments.ranks.split(",")):
            written = [
                name for name, command in all_of_them.items() if write(name, command, ranks, sources["a local disk"])
            ]
            for source, places in sources.items():
                # By hand and with accelerate, what is on S3 has to be fetched by other means.
                able = [name for name in written if places.url is None or name not in (BY_HAND, "accelerate")]
                values = interleave(
                    {name: partial(resumed, name, all_of_them[name], ranks, places) for name in able},
                    options.rounds if ranks == 1 else options.at_most(2).rounds,
                    warm_up=False,
                )
                if places.url is None:
                    floor = Figure.of(values.pop(BY_HAND)).median
                yield Row.of(
                    "resume",
                    f"{ranks} {'rank' if ranks == 1 else 'ranks'}, {megabytes} MB from {source}: command to first step",
                    "s",
                    values,
                    target=Target("lightning", AT_MOST),
                    floor=floor,
                    note=FLOOR,
                )


if __name__ == "__main__":
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("--ranks", default="1,2,4", help="numbers of ranks (default %(default)s)")
    parser.add_argument("--megabytes", type=int, default=96, help="of weights and momentum (default %(default)s)")
    parser.add_argument("--s3", metavar="URL", help="a folder on a server of your own, such as s3://bucket/folder")
    main(measure, parser)
