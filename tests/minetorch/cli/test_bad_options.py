"""Every argument of every `minetorch` command with values that cannot work: one line that says so, nothing written."""

import argparse
import os
import sys
from pathlib import Path

import pytest

from minetorch.cli.command import _parser

LONG = "x" * 5000
NOT_COUNTS = ["", "x", "-1", "1.5", "²", "٣", "9" * 5000]
PLACES = ["", " ", "nosuch://x", "~nosuchuser/x"]
COMMON = {
    "--json": ["--json=1"],
    "--storage-option": ["--storage-option=hunter2", "--storage-option==hunter2", "--storage-option=a b=hunter2"],
    "--storage-options-file": [
        "--storage-options-file=nowhere",
        f"--storage-options-file={LONG}",
        "--storage-options-file=.",
    ],
}


def options(name, values):
    return [f"{name}={value}" for value in values]


# Each command with arguments that would do, and by each of its arguments what is put in its place or added.
GOOD = {
    "ls": ["RUN"],
    "show": ["RUN", "latest"],
    "compare": ["RUN", "RUN"],
    "report": ["RUN"],
    "watch": ["RUN"],
    "verify": ["RUN", "latest"],
    "export": ["RUN", "latest", "OUT.pth"],
    "prune": ["RUN", "--keep-last=1"],
    "cp": ["RUN", "COPY"],
    "prove": ["SCRIPT"],
}
NAMES = ["", " ", "a/b", "~x", "nosuch", LONG, "epoch_" + "9" * 5000, "9" * 5000]
KEEP = {
    f"--keep-{kind}": options(f"--keep-{kind}", [*NOT_COUNTS, "0"]) for kind in ("last", "best", "every", "every-steps")
}
BAD = {
    "ls": COMMON | {"url": PLACES, "--depth": options("--depth", NOT_COUNTS)},
    "show": COMMON | {"run_url": PLACES, "name": NAMES},
    "compare": COMMON
    | {
        "run_urls": PLACES,
        "--graph": ["--graph=nosuch", "--graph="],
        "--out": ["--out=x.jpg", "--out=no/such.png", "--out=RUN.png"],
        "--all": ["--all=1"],
    },
    "report": COMMON | {"run_url": PLACES, "--out": ["--out=x.pdf", "--out=no/such.html", f"--out={LONG}.html"]},
    "watch": {name: words for name, words in COMMON.items() if name != "--json"}
    | {
        "url": PLACES,
        "--host": [*options("--host", ["", "0.0.0.0", "nosuch.invalid", LONG, "::"])],
        "--port": options("--port", [*NOT_COUNTS, "65536"]),
        "--allow-others": ["--allow-others=1"],
        "--depth": options("--depth", [*NOT_COUNTS, "101"]),
    },
    "verify": COMMON | {"run_url": PLACES, "name": NAMES},
    "export": COMMON
    | {
        "run_url": PLACES,
        "name": NAMES,
        "out": ["no/such.pth", "SCRIPT", ".", LONG, "~nosuchuser/x.pth"],
        "--all": ["--all=1"],
        "--force": ["--force=1"],
    },
    "prune": COMMON
    | KEEP
    | {
        "run_url": PLACES,
        "--keep-every-steps": options("--keep-every-steps", [*NOT_COUNTS, "0"]),
        "--monitor": [["--keep-best=1", "--monitor=nosuch"]],
        "--mode": options("--mode", ["", "low", "MIN"]),
        "--dry-run": ["--dry-run=1"],
    },
    "cp": COMMON
    | {
        "run_url": PLACES,
        "url": [*PLACES, "RUN", "RUN/copy"],
        "--only": ["--only=nosuch", "--only=a/b", "--only="],
        "--to-storage-option": [word.replace("--", "--to-") for word in COMMON["--storage-option"]],
        "--to-storage-options-file": [word.replace("--", "--to-", 1) for word in COMMON["--storage-options-file"]],
    },
    "prove": {
        "script": ["", "nosuch.py", ".", LONG],
        "arguments": [["SCRIPT", "--nosuch"]],
        "--nproc": options("--nproc", [*NOT_COUNTS, "0"]),
        "--kills": options("--kills", [*NOT_COUNTS, "0"]),
        "--then-nproc": options("--then-nproc", [*NOT_COUNTS, "0"]),
        "--seed": options("--seed", NOT_COUNTS),
        "--persist-steps": options("--persist-steps", [*NOT_COUNTS, "0"]),
        "--steps": options("--steps", [*NOT_COUNTS, "0", "1"]),
        "--device": options("--device", ["", "gpu"]),
        "--timeout": options("--timeout", ["", "x", "0", "-1", "nan", "inf"]),
        "--keep": options("--keep", ["RUN", "SCRIPT", "SCRIPT/new", LONG]),
        "--json": COMMON["--json"],
    },
}  # fmt: skip
CASES = [
    pytest.param(command, name, words, id=f"{command}-{name}-{number}")
    for command, arguments in BAD.items()
    for name, given in arguments.items()
    # The arguments that all commands share are read in one place.
    for number, words in enumerate(given if command == "ls" or name not in COMMON else given[:1])
]


def commands():
    (action,) = (action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction))
    return action.choices


def arguments_of(parser):
    return [action for action in parser._actions if action.dest != "help"]


def test_each_argument_of_each_command_has_a_bad_value_here():
    known = {
        name: {(action.option_strings or [action.dest])[-1] for action in arguments_of(parser)}
        for name, parser in commands().items()
    }
    assert known == {name: set(arguments) for name, arguments in BAD.items()}
    assert all(words for arguments in BAD.values() for words in arguments.values())


def changed(command, name, words):
    """The good command line with one argument that is bad."""
    words = [words] if isinstance(words, str) else words
    if name.startswith("-"):
        return [command, *GOOD[command], *words]
    places = [action.dest for action in arguments_of(commands()[command]) if not action.option_strings]
    at = places.index(name)
    return [command, *GOOD[command][:at], *words, *GOOD[command][at + 1 :]]


@pytest.mark.parametrize(("name", "argument", "words"), CASES)
def test_a_bad_value_is_one_line_and_nothing_is_written(
    command, tmp_path, trained_runs, monkeypatch, name, argument, words
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "SCRIPT").write_text("raise SystemExit('the script has run')")
    (tmp_path / "RUN").symlink_to(trained_runs / "plan-a")
    (tmp_path / "RUN.png").mkdir()
    before = {path: path.stat().st_mtime_ns for path in trained_runs.rglob("*")}
    text = command(*changed(name, argument, words), expect=None)
    assert text.startswith("minetorch: error: ")
    assert text.count("\n") == 1 or LONG in text, text
    assert "hunter2" not in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["RUN", "RUN.png", "SCRIPT"]
    assert {path: path.stat().st_mtime_ns for path in trained_runs.rglob("*")} == before


@pytest.mark.parametrize("words", [[LONG], ["ls", f"--json={LONG}"], ["ls", f"--no\nsuch{LONG}"], ["ls", "x", LONG]])
def test_what_is_not_understood_is_shown_in_one_short_line(command, words):
    text = command(*words, expect=None)
    assert text.startswith("minetorch: error: ")
    assert text.count("\n") == 1
    assert len(text) < 1000


def test_a_run_whose_name_is_no_text(run_command, trained_runs, tmp_path):
    run = tmp_path / os.fsdecode(b"run \xff")
    run.symlink_to(trained_runs / "plan-a")
    program = Path(sys.executable).with_name("minetorch")
    for words in (["show"], ["show", "--json"]):
        assert "run \\udcff" in run_command(program, words[0], run, *words[1:])
