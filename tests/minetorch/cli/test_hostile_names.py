"""Names and texts in a run that somebody sent: no command passes on what a terminal would follow."""

import dataclasses
import json
import os
import shutil

import pytest

from minetorch import RunInUseError
from minetorch.checkpoint.claim import Process, started_at
from minetorch.checkpoint.run import Run
from minetorch.cli import main
from minetorch.errors import MinetorchError, visible

ESCAPES = "\x1b]0;OWNED\x07\x1b[2J\x9b31mred\r\u202egpj\u2066\x7f"
FORBIDDEN = {*"\x1b\x07\x9b\r\x7f\u202e\u2066"}


@pytest.fixture
def hostile(trained, tmp_path):
    """A run of one epoch with such texts wherever a text is kept, and its folder's name."""
    trained(code="plan", max_epochs=1)
    folder = (tmp_path / "runs/plan").rename(tmp_path / f"runs/plan{ESCAPES}")
    manifest = Run.open(folder).catalogue.manifests[-1]
    forged = dataclasses.replace(
        manifest,
        metrics={**manifest.metrics, f"acc{ESCAPES}": 1.0},
        monitor=f"acc{ESCAPES}",
        mode="max",
        **{name: {f"x{ESCAPES}": f"v{ESCAPES}"} for name in ("code", "versions", "settings")},
        host=f"host{ESCAPES}",
    )
    (folder / "models" / manifest.key.manifest).write_bytes(forged.to_json())
    claim = folder / "models/writers/g0001.json"
    values = json.loads(claim.read_text())
    values["process"] |= {"host": f"host{ESCAPES}", "machine": "elsewhere"}
    values["start"] |= {"host": f"host{ESCAPES}"}
    claim.write_text(json.dumps({**values, "how": f"{ESCAPES}"}))
    return folder


COMMANDS = {
    "ls above": lambda run: ("ls", run.parent),
    "ls": lambda run: ("ls", run),
    "show": lambda run: ("show", run),
    "show a checkpoint": lambda run: ("show", run, "latest"),
    "show none": lambda run: ("show", run, "nosuch"),
    "verify": lambda run: ("verify", run),
    "prune": lambda run: ("prune", run, "--keep-last", 1, "--dry-run"),
    "compare": lambda run: ("compare", run, run, "--all"),
    "report": lambda run: ("report", run, "-o", run.parent / f"{ESCAPES}.html"),
    "export": lambda run: ("export", run, "latest", run.parent / f"{ESCAPES}.pth"),
    "cp": lambda run: ("cp", run, run.parent / f"copy{ESCAPES}"),
    "a wrong option": lambda run: ("prune", run, "--keep-last", 1, "--monitor", ESCAPES, "--keep-best", 1),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_in_a_run_reaches_the_terminal_as_a_control_character(hostile, command, name):
    printed = command(*COMMANDS[name](hostile), expect=None if name in ("show none", "a wrong option") else 0)
    assert printed.strip()
    assert not FORBIDDEN & {*printed}


@pytest.mark.parametrize("words", [("ls",), ("show",), ("show", "latest"), ("verify",), ("compare", "compare")])
def test_json_has_them_as_escapes(hostile, capsys, words):
    arguments = [words[0], *[str(hostile)] * max(1, words.count("compare")), *(["latest"] if "latest" in words else [])]
    assert main([*arguments, "--json"]) == 0
    printed = capsys.readouterr().out
    assert not FORBIDDEN & {*printed}
    assert {"\\u001b", "\\u009b", "\\u202e"} <= {printed[at : at + 6] for at in range(len(printed))}
    json.loads(printed)


def test_a_cell_stays_in_its_row(hostile, command):
    folder = hostile.rename(hostile.parent / "two\nlines")
    assert len(command("ls", folder.parent).splitlines()) == 2


def test_a_run_in_use_is_reported_without_them(hostile, make_trainer, capfd):
    claim = hostile / "models/writers/g0001.json"
    values = json.loads(claim.read_text())
    parent = os.getppid()
    alive = {"pid": parent, "started": started_at(parent), "machine": Process.this().machine}
    claim.write_text(json.dumps({**values, "process": values["process"] | alive, "ended": False}))
    shutil.move(hostile, hostile.parent / "taken")
    with pytest.raises(RunInUseError) as error:
        make_trainer(code="taken")
    assert "host\\u001b]0;OWNED" in str(error.value)
    assert not FORBIDDEN & {*str(error.value), *"".join(capfd.readouterr())}


def test_other_letters_stay():
    text = "modèle 模型 🙂\u200d\N{FAMILY}\ttab\nline"
    assert visible(text) == text
    assert str(MinetorchError("a\x1b[2Jb")) == "a\\u001b[2Jb"
