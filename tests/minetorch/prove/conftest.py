"""The command, run in this process on real scripts in processes of their own."""

import json
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from minetorch.cli import main

SCRIPT = Path(__file__).parent / "scripts/train.py"


def living_below(folder):
    """Command lines of the processes that were started for a proof in this folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"MINETORCH_PROVE={folder}/".encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_text())
    return found


@pytest.fixture
def living():
    return living_below


@pytest.fixture
def prove(tmp_path, capsys, monkeypatch):
    """Proves the script with these faults; nothing may be left of it, and nothing be in the user's own folder."""
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))

    def prove(faults, *options, behind=(), expect=0):
        capsys.readouterr()
        words = [
            "prove",
            str(SCRIPT),
            faults,
            str(tmp_path / "own runs"),
            "--device",
            "cpu",
            *map(str, options),
            "--",
            *behind,
        ]
        code = main(words)
        printed = capsys.readouterr()
        assert code == expect, printed
        assert not list(scratch.iterdir())
        assert not (tmp_path / "own runs").exists()
        assert not living_below(tmp_path)
        facts = json.loads(printed.out) if "--json" in options and code < 2 else {}
        runs = {run["name"]: run for run in facts.get("runs", ())}
        return SimpleNamespace(out=printed.out, err=printed.err, facts=facts, runs=runs)

    return prove
