"""The command, run in this process on real scripts in processes of their own."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from minetorch.cli import main
from minetorch.prove.running import _processes

SCRIPT = Path(__file__).parent / "scripts/train.py"


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
        assert not list(_processes(f"MINETORCH_PROVE={scratch}"))
        facts = json.loads(printed.out) if "--json" in options and code < 2 else {}
        runs = {run["name"]: run for run in facts.get("runs", ())}
        return SimpleNamespace(out=printed.out, err=printed.err, facts=facts, runs=runs)

    return prove
