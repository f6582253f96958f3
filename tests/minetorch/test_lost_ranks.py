"""A rank is killed at each moment of a save: what the others can save is saved, what they cannot is never a half."""

import json
import time

import pytest

MOMENTS = ("staging", "upload", "commit", "between")
ALL = [f"{moment}:{rank}" for rank in (0, 1) for moment in MOMENTS] + ["slow:1"]
SOME = ["upload:0", "upload:1", "commit:0", "commit:1"]


def check(notes, moments, output):
    for attempt, moment in enumerate(moments, 1):
        struck = json.loads((notes / f"{attempt}.struck").read_text())
        start = json.loads((notes / f"{attempt + 1}.start").read_text())
        if moment.endswith(":1"):
            # Rank 0 finishes what is on its way, and what it has come to before it misses the other: the next save, or
            # that and the one that waits for it.
            assert start["step"] in (struck, struck + 2, struck + 4), (moment, output)
            assert start["ended"] == "failed", (moment, output)
        else:
            assert start["step"] == (struck if moment == "between:0" else struck - 2), (moment, output)
            assert start["ended"] == "killed", (moment, output)
        assert 0 <= start["lost"] <= 5, (moment, output)
        assert 0 <= start["down"] < 60
    assert json.loads((notes / f"{len(moments) + 1}.end").read_text()) == list(range(1, len(moments) + 2))
    assert output.count("Resumed from") == len(moments)


def lose(launch, place, notes, moments):
    notes.mkdir()
    began = time.monotonic()
    output = launch(2, "dying.py", place, notes, ",".join(moments), options=["--max-restarts", len(moments)])
    # A survivor that waited for its dead peer would be killed only after 30 s.
    assert time.monotonic() - began < 12 * (len(moments) + 1), output
    check(notes, moments, output)


@pytest.mark.slow
def test_on_a_disk(launch, tmp_path):
    lose(launch, tmp_path / "runs", tmp_path / "notes", ALL)


@pytest.mark.slow
def test_on_s3(launch, tmp_path, bucket, monkeypatch):
    for name, value in bucket.environ.items():
        monkeypatch.setenv(name, value)
    lose(launch, f"{bucket.url}/runs", tmp_path / "notes", SOME)
