"""The plan's whole text, every message and every limit of the options: what is shown is what is done."""

import dataclasses
import signal
from pathlib import Path

import pytest

from minetorch_launch.errors import UsageError
from minetorch_launch.plan import LaunchOptions, make_plan
from minetorch_launch.slurm.job import Deadline
from minetorch_launch.target import Script
from minetorch_launch.topology import Device, Node

SCRIPT = Script("train.py", ())
HERE = Node(host="here.lan", cores=9)
GPUS = Node(host="here.lan", cores=9, gpus=(Device(0, "GPU-a"), Device(1, "GPU-b"), Device(2, "GPU-c")))


def test_the_whole_text_on_one_node():
    options = LaunchOptions(nproc=2, device="cpu", preload=("numpy", "my.data"), grace=2.5, notice_signals=())
    assert make_plan(SCRIPT, options, GPUS, {"OMP_NUM_THREADS": "1,2"}, columns=17).text().splitlines() == [
        "command     python train.py",
        "host        here.lan (9 usable cores, 3 visible GPUs)",
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
        "command     python train.py",
        "host        here.lan (9 usable cores, 3 visible GPUs)",
        "workers     3 on cuda, 3 threads each",
        "start       spawn: fresh processes",
        "nodes       2:4, meeting at [fe80::1]:7 as mine; this one is number 3",
        "restarts    at most 5",
        "grace       30 s from being told to stop to being killed",
        "notice      SIGUSR2, SIGTERM",
        "hang after  7.5 s without a step",
        "logs        logs/rank_N.log; shown: failed",
        "every rank  MINETORCH_DEVICE=cuda OMP_NUM_THREADS=3 MINETORCH_CONSOLE_COLUMNS=70",
        "rank *+0    LOCAL_RANK=0 LOCAL_WORLD_SIZE=3 device=cuda:0",
        "rank *+1    LOCAL_RANK=1 LOCAL_WORLD_SIZE=3 device=cuda:1",
        "rank *+2    LOCAL_RANK=2 LOCAL_WORLD_SIZE=3 device=cuda:2",
    ]


def test_a_fixed_number_of_nodes_without_a_place_among_them():
    options = LaunchOptions(nodes=(2, 2), rdzv="gpu01")
    plan = make_plan(SCRIPT, options, HERE, {})
    assert f"nodes       2, meeting at gpu01:29400 as {plan.run_id}\n" in plan.text()
    assert "workers     1 on cpu, 9 threads each\n" in plan.text()


def test_what_was_asked_for_is_in_the_plan():
    options = LaunchOptions(
        nproc=2, max_restarts=3, grace=0.0, show="0", hang_timeout=0.5, join_timeout=0.25, log_dir=Path("x")
    )
    deadline = Deadline(100.0, 10.0)
    plan = make_plan(SCRIPT, options, HERE, {}, deadline=deadline)
    found = {field.name: getattr(plan, field.name) for field in dataclasses.fields(plan)}
    assert found == {
        "target": SCRIPT,
        "node": HERE,
        "device": "cpu",
        "threads": 4,
        "max_restarts": 3,
        "start_method": "forkserver",
        "preload": (),
        "grace": 0.0,
        "notices": (signal.SIGUSR2,),
        "show": "0",
        "hang_timeout": 0.5,
        "nodes": (1, 1),
        "rdzv": None,
        "node_rank": None,
        "run_id": plan.run_id,
        "join_timeout": 0.25,
        "deadline": deadline,
        "log_dir": Path("x"),
        "workers": plan.workers,
        "env": plan.env,
    }
    assert [worker.local_rank for worker in plan.workers] == [0, 1]
    assert plan.run_id.startswith("run-")
    assert len(plan.run_id) == len("run-") + 8


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
def test_every_message_of_an_option(wrong, words):
    with pytest.raises(UsageError) as refused:
        LaunchOptions(**wrong)
    assert str(refused.value) == words


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
            HERE,
            "--nodes 1:2 needs a place to meet: type --rdzv HOST[:PORT], one of the nodes, the same on "
            "each (within SLURM "
            "it is found by itself)",
        ),
        (
            {"device": "cuda"},
            HERE,
            "--device cuda needs a GPU, but this machine shows no NVIDIA GPU: type --device cpu",
        ),
        (
            {"nproc": 4},
            GPUS,
            "--nproc 4 is more than the 3 visible GPUs: type --nproc 3, or --device cpu to do without",
        ),
        (
            {"nproc": 2},
            Node(host="x", cores=1, gpus=GPUS.gpus[:1]),
            "--nproc 2 is more than the 1 visible GPU: type --nproc 1, or --device cpu to do without",
        ),
        (
            {"nproc": 126},
            HERE,
            "--nproc 126 is more than the 125 workers of a fork server: type --start-method spawn as well",
        ),
    ],
)
def test_every_message_of_a_plan(options, node, words):
    with pytest.raises(UsageError) as refused:
        make_plan(SCRIPT, LaunchOptions(**options), node, {})
    assert str(refused.value) == words


def test_as_many_workers_as_a_fork_server_and_the_gpus_allow():
    assert len(make_plan(SCRIPT, LaunchOptions(nproc=125), HERE, {}).workers) == 125
    assert len(make_plan(SCRIPT, LaunchOptions(nproc=3, device="cuda"), GPUS, {}).workers) == 3


@pytest.mark.parametrize(
    ("environ", "threads"),
    [
        ({"OMP_NUM_THREADS": " 2 , 1"}, 2),
        ({"OMP_NUM_THREADS": "0"}, 9),
        ({"OMP_NUM_THREADS": "1"}, 1),
        ({"OMP_NUM_THREADS": ""}, 9),
        ({"OMP_NUM_THREADS": ",3"}, 9),
    ],
)
def test_threads_of_the_users_own(environ, threads):
    plan = make_plan(SCRIPT, LaunchOptions(), HERE, environ)
    assert plan.threads == threads
    own = environ["OMP_NUM_THREADS"] if threads != 9 else "9"
    assert plan.env["OMP_NUM_THREADS"] == own
    asked = make_plan(SCRIPT, LaunchOptions(threads=5), HERE, environ)
    assert (asked.threads, asked.env["OMP_NUM_THREADS"]) == (5, "5")


def test_columns_of_the_last_ranks_line():
    def columns(node=HERE, width=100, **options):
        return make_plan(SCRIPT, LaunchOptions(**options), node, {}, columns=width).env["MINETORCH_CONSOLE_COLUMNS"]

    assert columns(nproc=10) == str(100 - len("[9] "))
    assert columns(nproc=11) == str(100 - len("[10] "))
    assert columns(nproc=5, nodes=(2, 2), rdzv="h") == str(100 - len("[here:9] "))
    assert columns(nproc=5, nodes=(2, 3), rdzv="h") == str(100 - len("[here:14] "))
    assert columns(width=24) == "20"
    assert columns(width=25) == "21"


def test_an_id_of_the_command_and_its_nodes():
    def run_id(target=SCRIPT, **options):
        return make_plan(target, LaunchOptions(**options), HERE, {}).run_id

    assert run_id() == run_id(nproc=2) != run_id(nodes=(1, 1))
    assert run_id(run_id="mine") == "mine"
