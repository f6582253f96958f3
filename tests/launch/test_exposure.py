"""What a launch shows to others: no port beyond this machine for a job of one node, no secret, no file too open."""

import json
import os
import stat
from pathlib import Path

import pytest

from minetorch_launch.slurm.sbatch import _write

MEETS = """
    import os, sys, time
    from pathlib import Path
    import torch, torch.distributed as dist

    dist.init_process_group("gloo")
    total = torch.ones(1)
    dist.all_reduce(total)
    open(f"met.{os.environ['RANK']}", "w").close()
    while not os.path.exists("go"):
        time.sleep(0.02)
    dist.destroy_process_group()
"""

FAILS = """
    import os, sys
    secret = os.environ["AWS_SECRET_ACCESS_KEY"]
    if os.environ["RANK"] == "1":
        raise ValueError("no such bucket")
"""


def listening(pids):
    """The addresses, in hexadecimal as the kernel writes them, at which these processes wait for TCP connections."""
    inodes = set()
    for pid in pids:
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            try:
                inodes.add(str(fd.readlink()))
            except OSError:
                continue
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in inodes:
                yield words[1].partition(":")[0]


LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


@pytest.mark.parametrize("method", ["forkserver", pytest.param("spawn", marks=pytest.mark.slow)])
def test_a_job_of_one_node_is_open_to_this_machine_alone(launches, method):
    process = launches.start("--nproc", 2, "--device", "cpu", "--start-method", method, launches.script(MEETS))
    try:
        while not all((launches.folder / f"met.{rank}").exists() for rank in (0, 1)):
            with pytest.raises(Exception, match="timed out"):
                process.wait(timeout=0.05)
        found = list(listening(launches.processes()))
    finally:
        (launches.folder / "go").touch()
    assert process.wait(timeout=100) == 0
    assert len(found) >= 3  # the workers' store, and gloo of each
    assert set(found) <= LOOPBACK


def test_a_failure_tells_no_variable_and_its_files_are_as_open_as_the_umask_says(launches):
    secret = "s3cr3t-of-the-environment"
    done = launches.run(
        *("--nproc", 2, "--device", "cpu", "--log-dir", "logs", launches.script(FAILS)),
        env={"AWS_SECRET_ACCESS_KEY": secret},
        umask=0o027,
    )
    assert done.returncode == 1
    assert "no such bucket" in done.stderr
    files = {path.name: path for path in (launches.folder / "logs").iterdir()}
    assert files.keys() >= {"rank_0.log", "rank_1.log", "failure.json"}
    assert json.loads(files["failure.json"].read_text())["first"]["rank"] == 1
    for text in (done.stdout, done.stderr, *(path.read_text() for path in files.values())):
        assert secret not in text
    assert {stat.S_IMODE(path.stat().st_mode) for path in files.values()} == {0o640}
    assert stat.S_IMODE((launches.folder / "logs").stat().st_mode) == 0o750


@pytest.mark.parametrize(("umask", "rights"), [(0o022, 0o755), (0o027, 0o750), (0o077, 0o700)], ids=oct)
def test_a_batch_script_is_as_open_as_the_umask_says(tmp_path, umask, rights):
    """It holds the whole command, of which an argument may be nobody else's."""
    before = os.umask(umask)
    try:
        _write(tmp_path / "job.sh", "#!/bin/bash\n")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "job.sh").stat().st_mode) == rights
