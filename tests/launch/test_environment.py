"""The variables of a worker: the plan and the round in, a dictionary out."""

import json
import re
import subprocess
import sys

import pytest

from minetorch_launch.devices import Gpu, HostInfo
from minetorch_launch.environment import worker_environment
from minetorch_launch.options import LaunchOptions
from minetorch_launch.plan import make_plan
from minetorch_launch.rendezvous.participant import Participant
from minetorch_launch.rendezvous.round import Round
from minetorch_launch.target import Script

GPUS = HostInfo("here", 8, tuple(Gpu(index, f"GPU-{index}") for index in range(4)))
NODES = tuple(
    Participant("", f"n{node}", f"10.0.0.{node}", 1, 4, 0, 4711, failures=2, launch_id="abc") for node in (1, 2, 3)
)
ROUND = Round(5, NODES, 1, leads=False)


def environment(local_rank=0, environ=None, host=GPUS, last=None, **options):
    plan = make_plan(Script("t.py"), LaunchOptions(**options), host, environ or {})
    return worker_environment(plan, ROUND, local_rank, "/tmp/e.json", last)


def test_every_variable():
    assert environment(3, rdzv_id="mine", role="trainer", max_restarts=7, threads=2) == {
        "RANK": "7",
        "LOCAL_RANK": "3",
        "WORLD_SIZE": "12",
        "LOCAL_WORLD_SIZE": "4",
        "GROUP_RANK": "1",
        "GROUP_WORLD_SIZE": "3",
        "ROLE_RANK": "7",
        "ROLE_NAME": "trainer",
        "ROLE_WORLD_SIZE": "12",
        "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": "4711",
        "TORCHELASTIC_RESTART_COUNT": "2",
        "TORCHELASTIC_MAX_RESTARTS": "7",
        "TORCHELASTIC_RUN_ID": "mine",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_ERROR_FILE": "/tmp/e.json",
        "TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
        "OMP_NUM_THREADS": "2",
        "MINETORCH_DEVICE": "cuda",
        "MINETORCH_LAUNCH_ID": "abc",
        "MINETORCH_ATTEMPT": "5",
    }


def test_after_a_failure_the_step_that_was_reached():
    assert environment(last=(12, 99.5)).items() >= {("MINETORCH_LAST_STEP", "12"), ("MINETORCH_LAST_TIME", "99.5")}
    assert "MINETORCH_LAST_STEP" not in environment()


def test_what_the_user_has_set_stays():
    own = {"OMP_NUM_THREADS": "3", "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0", "CUDA_VISIBLE_DEVICES": "1,0,2,3"}
    env = environment(environ=own)
    assert env.items() >= {("OMP_NUM_THREADS", "3"), ("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")}
    assert "CUDA_VISIBLE_DEVICES" not in env


@pytest.mark.parametrize(
    ("host", "environ", "seen"),
    [
        (GPUS, {}, ("CUDA_VISIBLE_DEVICES", "2")),
        (GPUS, {"CUDA_VISIBLE_DEVICES": "3, 5,GPU-7 ,1"}, ("CUDA_VISIBLE_DEVICES", "GPU-7")),
        (HostInfo("h", 8, GPUS.gpus, "xpu"), {"ZE_AFFINITY_MASK": "4,5,6,7"}, ("ZE_AFFINITY_MASK", "6")),
        (HostInfo("h", 8), {}, ("CUDA_VISIBLE_DEVICES", "")),
    ],
)
def test_a_virtual_local_rank_sees_one_gpu(host, environ, seen):
    env = environment(2, environ, host, nproc=4, virtual_local_rank=True)
    assert (env["LOCAL_RANK"], env["RANK"]) == ("0", "6")
    assert seen in env.items()


@pytest.mark.slow
def test_no_variable_of_torchruns_is_missing(tmp_path):
    script = tmp_path / "show.py"
    script.write_text("import json, os; print(json.dumps(dict(os.environ)))")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", str(script)]
    clean = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=clean)
    assert done.returncode == 0, done.stderr
    theirs = set(json.loads(done.stdout)) - clean.keys()
    ours = environment(host=HostInfo("h", 1))
    # Only what torchrun sets itself, and not what a library has left there.
    elastic = {name for name in theirs if re.search(r"^(TORCH|MASTER|GROUP|ROLE)|RANK$|WORLD_SIZE$", name)}
    assert len(elastic) > 10
    assert elastic <= ours.keys()
