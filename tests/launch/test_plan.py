"""The plan is pure: a node, options and an environment in; workers, variables and the text that is shown out."""

from pathlib import Path

import pytest

from minetorch_launch.errors import LaunchError, UsageError
from minetorch_launch.joining import Endpoint
from minetorch_launch.plan import LaunchOptions, make_plan
from minetorch_launch.target import Function, Module, Script
from minetorch_launch.topology import Device, Node

SCRIPT = Script("train.py", ("--lr", "0.1"))
BARE = Node(host="here.lan", cores=8)
GPUS = Node(host="here.lan", cores=8, gpus=(Device(0, "GPU-a"), Device(1, "GPU-b")))


@pytest.mark.parametrize(
    ("options", "node", "device", "nproc"),
    [
        (LaunchOptions(), BARE, "cpu", 1),
        (LaunchOptions(), GPUS, "cuda", 2),
        (LaunchOptions(nproc=1), GPUS, "cuda", 1),
        (LaunchOptions(device="cpu"), GPUS, "cpu", 1),
        (LaunchOptions(device="cpu", nproc=5), GPUS, "cpu", 5),
        (LaunchOptions(device="cuda"), GPUS, "cuda", 2),
    ],
)
def test_device_and_workers(options, node, device, nproc):
    plan = make_plan(SCRIPT, options, node, {})
    assert (plan.device, len(plan.workers)) == (device, nproc)
    assert plan.env["MINETORCH_DEVICE"] == device
    assert [worker.device for worker in plan.workers] == [
        f"cuda:{rank}" if device == "cuda" else "cpu" for rank in range(nproc)
    ]


def test_only_cpu_workers_are_kept_off_the_gpus():
    assert make_plan(SCRIPT, LaunchOptions(device="cpu"), GPUS, {}).env.items() >= {
        ("CUDA_VISIBLE_DEVICES", ""),
        ("ACCELERATE_USE_CPU", "true"),
    }
    assert not {"CUDA_VISIBLE_DEVICES", "ACCELERATE_USE_CPU"} & set(make_plan(SCRIPT, LaunchOptions(), GPUS, {}).env)


@pytest.mark.parametrize(
    ("asked", "environ", "nproc", "threads", "variable"),
    [
        (None, {}, 3, 2, "2"),
        (None, {}, 20, 1, "1"),
        (None, {"OMP_NUM_THREADS": "5"}, 3, 5, "5"),
        (None, {"OMP_NUM_THREADS": "4,2"}, 3, 4, "4,2"),
        (None, {"OMP_NUM_THREADS": "many"}, 2, 4, "4"),
        (None, {"OMP_NUM_THREADS": " 2 , 1"}, 3, 2, " 2 , 1"),
        (None, {"OMP_NUM_THREADS": "0"}, 2, 4, "4"),
        (7, {"OMP_NUM_THREADS": "5"}, 3, 7, "7"),
    ],
)
def test_threads(asked, environ, nproc, threads, variable):
    plan = make_plan(SCRIPT, LaunchOptions(nproc=nproc, threads=asked), BARE, environ)
    assert plan.threads == threads
    assert plan.env["OMP_NUM_THREADS"] == variable


def test_columns_leave_room_for_the_last_ranks_prefix():
    def columns(width=100, **options):
        return make_plan(SCRIPT, LaunchOptions(**options), BARE, {}, columns=width).env.get("MINETORCH_CONSOLE_COLUMNS")

    assert columns(nproc=10) == str(100 - len("[9] "))
    assert columns(nproc=11) == str(100 - len("[10] "))
    assert columns(nproc=5, nodes=(2, 3), rdzv="h") == str(100 - len("[here:14] "))
    assert columns(width=21) == "20"
    assert columns(width=None) is None


ALL_NOTICES = "SIGUSR1|SIGUSR2|SIGTERM|SIGHUP|SIGINT|SIGCONT|SIGALRM|SIGXCPU|SIGPWR"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"nproc": 0}, "--nproc 0 is too small: type a number from 1 up, or auto, for one worker per visible GPU"),
        (
            {"threads": 0},
            "--threads 0 is too small: type a number from 1 up, or leave it out to share the usable cores out",
        ),
        (
            {"max_restarts": -1},
            "--max-restarts -1 is too small: type a number from 0 up, 0 ends the launch at the first failure",
        ),
        (
            {"grace": -0.5},
            "--grace -0.5 is too small: type a number from 0 up, the seconds a worker has to end by itself",
        ),
        (
            {"hang_timeout": 0.0},
            "--hang-timeout 0 is too small: type a number above 0, the seconds without a step that make a hang",
        ),
        (
            {"join_timeout": 0.0},
            "--join-timeout 0 is too small: type a number above 0, the seconds to wait for the other nodes",
        ),
        (
            {"notice_before": -1.0},
            "--notice-before -1.0 is too small: type a number from 0 up, the seconds before the end of the job",
        ),
        (
            {"node_rank": -1},
            "--node-rank -1 is too small: type a number from 0 up, this node's place in the order of ranks",
        ),
        (
            {"grace": float("nan")},
            "--grace nan is too small: type a number from 0 up, the seconds a worker has to end by itself",
        ),
        ({"device": "tpu"}, "--device 'tpu' is unknown: type --device auto|cpu|cuda"),
        ({"start_method": "fork"}, "--start-method 'fork' is unknown: type --start-method forkserver|spawn"),
        ({"show": "1"}, "--show '1' is unknown: type --show all|0|failed"),
        (
            {"notice_signals": ("SIGKILL",)},
            f"--notice-signals 'SIGKILL' is unknown: type --notice-signals {ALL_NOTICES}",
        ),
        ({"nodes": (0, 1)}, "--nodes 0:1 is no range: type e.g. --nodes 4, or --nodes 2:4 for 2 to 4"),
        ({"nodes": (3, 2)}, "--nodes 3:2 is no range: type e.g. --nodes 4, or --nodes 2:4 for 2 to 4"),
        ({"nodes": (1, 1), "rdzv": "h"}, "--rdzv h is for many nodes: type --nodes N as well, or drop it"),
        ({"nodes": (1, 2), "rdzv": "h", "node_rank": 2}, "--node-rank 2 with 1:2 nodes: type 0 to 1"),
        ({"nodes": (4, 4), "rdzv": "h", "node_rank": 4}, "--node-rank 4 with 4 nodes: type 0 to 3"),
        (
            {"nodes": (2, 2), "rdzv": "h:0"},
            "--rdzv 'h:0' is no place to meet: type HOST or HOST:PORT (port 1 to 65535)",
        ),
        (
            {"preload": ("numpy",), "start_method": "spawn"},
            "--preload is for the fork server, which --start-method spawn does without: drop one",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_option_says_what_to_type(wrong, words):
    with pytest.raises(UsageError) as refused:
        LaunchOptions(**wrong)
    assert str(refused.value) == words
    assert isinstance(refused.value, ValueError)
    assert isinstance(refused.value, LaunchError)


@pytest.mark.parametrize(
    "allowed",
    [
        {"nproc": 1, "threads": 1, "max_restarts": 0, "grace": 0, "notice_before": 0, "node_rank": 0},
        {"hang_timeout": 0.001, "join_timeout": 0.001},
        {"nodes": (1, 1)},
        {"nodes": (1, 2), "rdzv": "h", "node_rank": 1},
        {"node_rank": 9},  # of how many is not known yet: SLURM will tell
        {"rdzv": "h"},
        {"notice_signals": tuple(ALL_NOTICES.split("|"))},
        {"start_method": "spawn", "show": "0", "device": "cuda"},
    ],
    ids=str,
)
def test_the_least_that_is_allowed(allowed):
    assert {name: getattr(LaunchOptions(**allowed), name) for name in allowed} == allowed


@pytest.mark.parametrize(
    ("options", "node", "words"),
    [
        (
            {"nodes": (1, 2)},
            BARE,
            "--nodes 1:2 needs a place to meet: type --rdzv HOST[:PORT], one of the nodes, the same on "
            "each (within SLURM "
            "it is found by itself)",
        ),
        (
            {"device": "cuda"},
            BARE,
            "--device cuda needs a GPU, but this machine shows no NVIDIA GPU: type --device cpu",
        ),
        (
            {"device": "cuda"},
            Node(host="here", cores=1, no_gpu_because="CUDA_VISIBLE_DEVICES='' hides all 2"),
            "--device cuda needs a GPU, but CUDA_VISIBLE_DEVICES='' hides all 2: type --device cpu",
        ),
        (
            {"nproc": 4},
            GPUS,
            "--nproc 4 is more than the 2 visible GPUs: type --nproc 2, or --device cpu to do without",
        ),
        (
            {"nproc": 2},
            Node(host="x", cores=1, gpus=GPUS.gpus[:1]),
            "--nproc 2 is more than the 1 visible GPU: type --nproc 1, or --device cpu to do without",
        ),
        (
            {"nproc": 126},
            BARE,
            "--nproc 126 is more than the 125 workers of a fork server: type --start-method spawn as well",
        ),
    ],
)
def test_what_this_node_cannot_do_says_what_to_type(options, node, words):
    with pytest.raises(UsageError) as refused:
        make_plan(SCRIPT, LaunchOptions(**options), node, {})
    assert str(refused.value) == words


def test_as_many_workers_as_a_fork_server_and_the_gpus_allow():
    assert len(make_plan(SCRIPT, LaunchOptions(nproc=125), BARE, {}).workers) == 125
    assert len(make_plan(SCRIPT, LaunchOptions(nproc=126, start_method="spawn"), BARE, {}).workers) == 126
    assert len(make_plan(SCRIPT, LaunchOptions(nproc=2, device="cuda"), GPUS, {}).workers) == 2


def test_logs_lie_in_the_log_folder():
    plan = make_plan(SCRIPT, LaunchOptions(nproc=2, log_dir=Path("logs")), BARE, {})
    assert [plan.log_file(rank) for rank in (0, 11)] == [Path("logs/rank_0.log"), Path("logs/rank_11.log")]
    assert make_plan(SCRIPT, LaunchOptions(), BARE, {}).log_file(0) is None


def test_a_fork_server_imports_once_what_the_target_is_likely_to_import():
    options, likely = LaunchOptions(preload=("numpy",)), ("torch._dynamo",)
    assert make_plan(SCRIPT, options, BARE, {}, imports=likely).preload == ("torch._dynamo", "numpy")
    assert make_plan(SCRIPT, options, BARE, {}).preload == ("numpy",)
    assert make_plan(SCRIPT, LaunchOptions(start_method="spawn"), BARE, {}, imports=likely).preload == ()


def test_the_whole_text_on_one_node():
    options = LaunchOptions(nproc=2, device="cpu", preload=("numpy", "my.data"), grace=2.5, notice_signals=())
    assert make_plan(SCRIPT, options, GPUS, {"OMP_NUM_THREADS": "1,2"}, columns=17).text().splitlines() == [
        "command     python train.py --lr 0.1",
        "host        here.lan (8 usable cores, 2 visible GPUs)",
        "workers     2 on cpu, 1 thread each",
        "start       forkserver: a fork server that imports torch, numpy, my.data",
        "nodes       this one",
        "restarts    at most 0",
        "grace       2.5 s from being told to stop to being killed",
        "notice      none",
        "hang after  at least 300 s without a step, more where steps take long",
        "logs        console only; shown: all",
        "every rank  MINETORCH_DEVICE=cpu OMP_NUM_THREADS=1,2 CUDA_VISIBLE_DEVICES='' ACCELERATE_USE_CPU=true "
        "MINETORCH_CONSOLE_COLUMNS=20",
        "rank 0      RANK=0 LOCAL_RANK=0 WORLD_SIZE=2 LOCAL_WORLD_SIZE=2 device=cpu",
        "rank 1      RANK=1 LOCAL_RANK=1 WORLD_SIZE=2 LOCAL_WORLD_SIZE=2 device=cpu",
    ]


def test_the_whole_text_on_many_nodes():
    options = LaunchOptions(
        nodes=(2, 4),
        rdzv="[fe80::1]:7",
        node_rank=3,
        run_id="mine",
        max_restarts=5,
        start_method="spawn",
        show="failed",
        log_dir=Path("logs"),
        hang_timeout=7.5,
    )
    assert make_plan(SCRIPT, options, GPUS, {}, columns=80, in_job=True).text().splitlines() == [
        "command     python train.py --lr 0.1",
        "host        here.lan (8 usable cores, 2 visible GPUs)",
        "workers     2 on cuda, 4 threads each",
        "start       spawn: fresh processes",
        "nodes       2:4, meeting at [fe80::1]:7 as mine; this one is number 3",
        "restarts    at most 5",
        "grace       30 s from being told to stop to being killed",
        "notice      SIGUSR2, SIGTERM",
        "hang after  7.5 s without a step",
        "logs        logs/rank_N.log; shown: failed",
        "every rank  MINETORCH_DEVICE=cuda OMP_NUM_THREADS=4 MINETORCH_CONSOLE_COLUMNS=71",
        "rank *+0    LOCAL_RANK=0 LOCAL_WORLD_SIZE=2 device=cuda:0",
        "rank *+1    LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 device=cuda:1",
    ]


def test_targets_read_as_the_command_they_stand_for():
    assert str(Script("a b.py", ("x y",))) == "python 'a b.py' 'x y'"
    assert str(Module("pkg.run", ("-v",))) == "python -m pkg.run -v"
    assert str(Function(make_plan)) == "minetorch_launch.plan.make_plan()"


def test_many_nodes():
    options = LaunchOptions(nproc=2, nodes=(1, 3), rdzv="gpu01:5", node_rank=2)
    plan = make_plan(SCRIPT, options, BARE, {})
    assert (plan.many_nodes, plan.nodes, plan.rdzv, plan.node_rank) == (True, (1, 3), Endpoint("gpu01", 5), 2)
    plan = make_plan(SCRIPT, LaunchOptions(nodes=(2, 2), rdzv="gpu01"), BARE, {})
    assert f"nodes       2, meeting at gpu01:29400 as {plan.run_id}\n" in plan.text()


def test_the_launchers_of_one_command_come_together_and_no_others():
    def run_id(target=SCRIPT, **options):
        return make_plan(target, LaunchOptions(**{"nodes": (2, 2), "rdzv": "h", **options}), BARE, {}).run_id

    assert run_id() == run_id(node_rank=1) == run_id(nproc=3)
    assert len({run_id(), run_id(Script("other.py")), run_id(nodes=(1, 2)), run_id(run_id="mine")}) == 4


@pytest.mark.parametrize(
    ("asked", "in_job", "names"),
    [
        (None, False, ["SIGUSR2"]),
        (None, True, ["SIGUSR2", "SIGTERM"]),
        (("SIGUSR1",), True, ["SIGUSR1"]),
        ((), True, []),
    ],
)
def test_notices(asked, in_job, names):
    plan = make_plan(SCRIPT, LaunchOptions(notice_signals=asked), BARE, {}, in_job=in_job)
    assert [signum.name for signum in plan.notices] == names
