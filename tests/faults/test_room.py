"""What counts as left behind in a room."""

import os
import tempfile

import pytest

from tests.faults.room import is_torchs


@pytest.mark.parametrize("known", [True, False], ids=["the folder is known", "the folder is tried first"])
def test_a_trial_of_torchs_that_a_signal_cut_short(tmp_path, monkeypatch, known):
    opened = os.open

    def cut_short(*given, **named):
        os.close(opened(*given, **named))
        raise RuntimeError("a worker is dead")

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path) if known else None)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", cut_short)
        with pytest.raises(RuntimeError, match="a worker is dead"), tempfile.NamedTemporaryFile():
            pass
    (left,) = tmp_path.iterdir()
    assert left.name.startswith("tmp") == known
    assert is_torchs(left)
    left.write_bytes(b"a user's")
    assert not is_torchs(left)


def test_what_is_not_torchs(tmp_path):
    for name in ("sitecustomize.py", "tmpabc", "pymp-8n6_8d9e"):
        (tmp_path / name).touch()
    (tmp_path / "8f1noioa").mkdir()
    assert not any(is_torchs(path) for path in tmp_path.iterdir())
