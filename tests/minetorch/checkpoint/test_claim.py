"""Who may have a run: pure decisions."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from minetorch.checkpoint.claim import (
    Claim,
    Launch,
    Process,
    after_file,
    claim_file,
    highest_claim,
    is_void,
    limits,
    standing,
    started_at,
)
from minetorch.checkpoint.names import CheckpointName

ME = Process("node1", 100, "555", "boot-a")
SLURM = Launch("slurm-7", (0, 0))


def claim(process: Process = ME, launch: Launch | None = None, **changes: Any) -> Claim:
    return Claim(**{"generation": 3, "process": process, "launch": launch or Launch(), "claimed": 0.0, **changes})


@pytest.mark.parametrize(
    ("found", "started_here", "expected"),
    [
        (claim(Process("node1", 50, "9", "boot-a")), "9", "running"),
        (claim(Process("node1", 50, "9", "boot-a")), None, "gone"),  # killed
        (claim(Process("node1", 50, "9", "boot-a")), "10", "gone"),  # another process of the same number
        (claim(Process("node1", 50, "9", "boot-b")), "9", "unknown"),  # the machine has started anew, or a container
        (claim(Process("node2", 50, "9", "boot-c")), None, "unknown"),
        (claim(Process("node2", 50, "9", "boot-c"), ended=True), None, "gone"),
        (claim(Process("node1", 50, "9", "boot-a"), ended=True), "9", "gone"),
        (claim(ME), "555", "gone"),  # an earlier Trainer of this very process
        (claim(Process("node2", 50, "9", "boot-c"), Launch("slurm-7", (0, 0))), None, "gone"),  # requeued
        (claim(Process("node2", 50, "9", "boot-c"), Launch("slurm-8", (0, 0))), None, "unknown"),
        (claim(Process("node2", 50, "9", "boot-c"), Launch("slurm-7", (1, 0))), None, "unknown"),  # beside it
        (claim(Process("node2", 50, "", "")), None, "unknown"),
    ],
)
def test_standing(found: Claim, started_here: str | None, expected: str) -> None:
    assert standing(found, ME, Launch("slurm-7", (1, 0)), started_here) == expected


@pytest.mark.parametrize(
    ("environ", "launch"),
    [
        ({}, Launch()),
        ({"SLURM_JOB_ID": "7"}, SLURM),
        ({"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "2"}, Launch("slurm-7", (2, 0))),
        (
            {"SLURM_JOB_ID": "7", "TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_RESTART_COUNT": "1"},
            Launch("slurm-7", (0, 1)),
        ),
        ({"TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_RESTART_COUNT": "1"}, Launch("elastic-x", (1,))),
        (
            {"MINETORCH_LAUNCH_ID": "y", "MINETORCH_ATTEMPT": "4"}
            | {"TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_RESTART_COUNT": "1"},
            Launch("launch-y", (4,)),
        ),
        ({"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "1"}, Launch()),
    ],
)
def test_launch(environ: dict[str, str], launch: Launch) -> None:
    assert Launch.from_environ(environ) == launch


def test_a_later_attempt_of_the_same_launch_follows() -> None:
    assert Launch("a", (1, 0)).follows(Launch("a", (0, 5)))
    for other in (Launch("a", (1, 0)), Launch("a", (2, 0)), Launch("b", (0, 0))):
        assert not Launch("a", (1, 0)).follows(other)
    assert not Launch("", (1,)).follows(Launch("", (0,)))


def test_a_claim_survives_its_file() -> None:
    made = claim(launch=SLURM, beat=3, ended=True)
    assert Claim.from_json(made.to_json()) == made
    assert made.file == claim_file(3) == "g0003.json"


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"1", b'{"generation": 1}', b"\xff"])
def test_what_is_no_claim(data: bytes) -> None:
    assert Claim.from_json(data) is None


def test_files() -> None:
    newest = CheckpointName(2, 7, 70, "abcdef")
    files = ["g0001.json", "g0012.json", "g0001.after.nothing", after_file(12, newest), "g0003.txt", "x"]
    assert highest_claim(files) == 12
    assert highest_claim([]) == 0
    assert limits(files) == {1: None, 12: newest}


@pytest.mark.parametrize(
    ("name", "void"),
    [
        (CheckpointName(2, 7, 70, "abcdef"), False),  # seen when start 4 looked
        (CheckpointName(2, 8, 80, "000000"), True),  # came after
        (CheckpointName(1, 9, 90, "000000"), True),  # start 1 came back after start 2 had looked
        (CheckpointName(1, 5, 50, "000000"), False),
        (CheckpointName(3, 1, 71, "000000"), True),
        (CheckpointName(4, 1, 71, "000000"), False),
        (CheckpointName(10000, 1, 71, "000000"), False),
    ],
)
def test_void(name: CheckpointName, void: bool) -> None:
    bounds = {1: None, 2: CheckpointName(1, 5, 50, "000000"), 4: CheckpointName(2, 7, 70, "abcdef")}
    assert is_void(name, bounds) == void


def test_a_start_that_found_nothing_makes_all_of_before_void() -> None:
    assert is_void(CheckpointName(1, 1, 1, "000000"), {2: None})


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells when a process started")
def test_processes_of_this_machine() -> None:
    me = Process.this()
    assert me.pid == os.getpid()
    assert started_at(me.pid) == me.started
    assert me.is_same(Process.this())
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        assert started_at(other.pid) not in (None, "")
        other.kill()
        other.wait()
        assert started_at(other.pid) is None
