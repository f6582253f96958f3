"""The plan is pure: a host, options and an environment in; workers, variables and the text that is shown out."""

from pathlib import Path

import pytest

from minetorch_launch.devices import Gpu, HostInfo
from minetorch_launch.errors import LaunchError, UsageError
from minetorch_launch.numa import Topology
from minetorch_launch.options import LaunchOptions
from minetorch_launch.plan import make_plan
from minetorch_launch.target import Command, Function, Module, Script
from minetorch_launch.validators import Endpoint, check_platform, parse_endpoint

SCRIPT = Script("train.py", ("--lr", "0.1"))
BARE = HostInfo("here.lan", cores=8)
GPUS = HostInfo("here.lan", cores=8, gpus=(Gpu(0, "GPU-a", 1), Gpu(1, "GPU-b", 0)))
INTEL = HostInfo("here.lan", cores=8, gpus=GPUS.gpus, gpu_kind="xpu")


@pytest.mark.parametrize(
    ("options", "host", "device", "nproc"),
    [
        (LaunchOptions(), BARE, "cpu", 1),
        (LaunchOptions(), GPUS, "cuda", 2),
        (LaunchOptions(nproc=1), GPUS, "cuda", 1),
        (LaunchOptions(device="cpu"), GPUS, "cpu", 1),
        (LaunchOptions(device="cpu", nproc=5), GPUS, "cpu", 5),
        (LaunchOptions(device="cuda"), GPUS, "cuda", 2),
        (LaunchOptions(nproc="cores"), GPUS, "cuda", 2),
        (LaunchOptions(nproc="cores"), BARE, "cpu", 8),
        (LaunchOptions(nproc="cores", device="cpu"), GPUS, "cpu", 8),
        (LaunchOptions(), INTEL, "xpu", 2),
        (LaunchOptions(nproc=1000), BARE, "cpu", 1000),
    ],
)
def test_device_and_workers(options, host, device, nproc):
    plan = make_plan(SCRIPT, options, host, {})
    assert (plan.device, len(plan.workers)) == (device, nproc)
    assert plan.env["MINETORCH_DEVICE"] == device
    assert [worker.device for worker in plan.workers] == [
        "cpu" if device == "cpu" else f"{device}:{rank}" for rank in range(nproc)
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
    assert columns(nproc=5, nodes=(2, 3), rdzv_endpoint="h") == str(100 - len("[here:14] "))
    assert columns(nproc=11, prefix="never") == "100"
    assert columns(width=21) == "20"
    assert columns(width=None) is None


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"nproc": 0}, "--nproc 0 is too small: type a number from 1 up, or auto, for one worker per visible GPU"),
        ({"nproc": "auto"}, "--nproc 'auto' is not a whole number"),
        (
            {"threads": 0},
            "--threads 0 is too small: type a number from 1 up, or leave it out to share the usable cores",
        ),
        ({"max_restarts": -1}, "--max-restarts -1 is too small"),
        ({"grace": float("nan")}, "--grace nan is too small: type a number from 0 up, the seconds a worker has to"),
        ({"hang_timeout": 0.0}, "--hang-timeout 0 is too small: type a number above 0, the seconds without a step"),
        ({"device": "tpu"}, "--device 'tpu' is unknown: type --device auto|cpu|cuda|xpu"),
        ({"preempt_signals": ("SIGKILL",)}, "--preempt-signals 'SIGKILL' is unknown: type --preempt-signals SIGUSR1|"),
        ({"nodes": (3, 2)}, "--nodes 3:2 is not a range: type e.g. --nodes 4, or --nodes 2:4 for 2 to 4"),
        ({"nodes": (1, 2), "node_rank": 2}, "--node-rank 2 is not one of 2 nodes: type 0 to 1"),
        ({"nodes": (1, 1), "node_rank": 1}, "--node-rank 1 is not one of 1 nodes: type 0, or --nodes N for more nodes"),
        ({"rdzv_endpoint": "h:x"}, "--rdzv-endpoint 'h:x' is not an endpoint: type HOST or HOST:PORT"),
        ({"redirects": "3"}, "--redirects takes lines off the console: add --log-dir DIR"),
        (
            {"preload": ("numpy",), "start_method": "spawn"},
            "--preload is for the fork server, and --start-method spawn",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_option_says_what_to_type(wrong, words):
    with pytest.raises(UsageError) as refused:
        LaunchOptions(**wrong)
    assert words in str(refused.value)
    assert isinstance(refused.value, ValueError)
    assert isinstance(refused.value, LaunchError)


@pytest.mark.parametrize(
    "allowed",
    [
        {"nproc": 1, "threads": 1, "max_restarts": 0, "grace": 0, "preempt_before": 0, "node_rank": 0},
        {"hang_timeout": 0.001, "join_timeout": 0.001, "last_call_timeout": 0},
        {"nodes": (1, 1), "rdzv_endpoint": "h:0"},
        {"nodes": (1, 2), "rdzv_endpoint": "h", "node_rank": 1},
        {"node_rank": 9},  # of how many is not known yet: SLURM will tell
        {"preempt_signals": ("SIGUSR1", "SIGPWR")},
        {"start_method": "spawn", "show": "0", "device": "cuda", "prefix": "never", "restart_policy": "always"},
    ],
    ids=str,
)
def test_the_smallest_values_that_are_allowed(allowed):
    assert {name: getattr(LaunchOptions(**allowed), name) for name in allowed} == allowed


@pytest.mark.parametrize(
    ("options", "host", "words"),
    [
        ({"nodes": (1, 2)}, BARE, "--nodes 1:2 needs a rendezvous: type --rdzv-endpoint HOST[:PORT], one of the nodes"),
        (
            {"nodes": (2, 2), "rdzv_endpoint": "h:0"},
            BARE,
            "--rdzv-endpoint h:0: 2 nodes cannot know a free port: type its number",
        ),
        (
            {"device": "cuda"},
            HostInfo("here", cores=1, no_gpu_reason="CUDA_VISIBLE_DEVICES='' hides all 2"),
            "--device cuda needs a GPU of that kind, but CUDA_VISIBLE_DEVICES='' hides all 2: type --device cpu",
        ),
        ({"device": "xpu"}, GPUS, "--device xpu needs a GPU of that kind, but this machine has GPUs of kind cuda"),
        (
            {"nproc": 4},
            GPUS,
            "--nproc 4 is more than the 2 visible GPUs: type --nproc 2, or --device cpu for workers without GPUs",
        ),
    ],
)
def test_what_this_node_cannot_do_says_what_to_type(options, host, words):
    with pytest.raises(UsageError) as refused:
        make_plan(SCRIPT, LaunchOptions(**options), host, {})
    assert words in str(refused.value)


def test_modules_are_imported_for_python_only():
    with pytest.raises(UsageError, match="--preload is for Python"):
        make_plan(Command("run.sh"), LaunchOptions(preload=("numpy",)), BARE, {})


def test_logs_lie_in_the_log_folder():
    plan = make_plan(SCRIPT, LaunchOptions(nproc=2, log_dir=Path("logs")), BARE, {})
    assert [plan.log_file(rank) for rank in (0, 11)] == [Path("logs/rank_0.log"), Path("logs/rank_11.log")]
    assert make_plan(SCRIPT, LaunchOptions(), BARE, {}).log_file(0) is None


def test_a_fork_server_imports_once_what_the_target_is_likely_to_import():
    options, likely = LaunchOptions(preload=("numpy",)), ("torch.compiler",)
    assert make_plan(SCRIPT, options, BARE, {}, imports=likely).preload == ("torch.compiler", "numpy")
    assert make_plan(SCRIPT, options, BARE, {}).preload == ("numpy",)
    assert make_plan(SCRIPT, LaunchOptions(start_method="spawn"), BARE, {}, imports=likely).preload == ()


def test_the_whole_text_on_one_node():
    options = LaunchOptions(nproc=2, device="cpu", preload=("numpy", "my.data"), grace=2.5, preempt_signals=())
    assert make_plan(SCRIPT, options, GPUS, {"OMP_NUM_THREADS": "1,2"}, columns=17).text().splitlines() == [
        "command     python train.py --lr 0.1",
        "host        here.lan (8 usable cores, 2 visible GPUs)",
        "workers     2 on cpu, 1 thread each",
        "start       forkserver: a fork server that imports torch, numpy, my.data",
        "nodes       this one",
        "restarts    at most 0",
        "grace       2.5 s from the stop signal to SIGKILL",
        "preemption  no signals",
        "hang after  at least 300 s without a step, more where steps take long",
        "logs        console only; shown: all",
        "every rank  MINETORCH_DEVICE=cpu OMP_NUM_THREADS=1,2 CUDA_VISIBLE_DEVICES='' ACCELERATE_USE_CPU=true "
        "MINETORCH_CONSOLE_COLUMNS=20",
        "rank 0      RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=2 device=cpu",
        "rank 1      RANK=1 WORLD_SIZE=2 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 device=cpu",
    ]


def test_the_whole_text_on_many_nodes():
    options = LaunchOptions(
        nodes=(2, 4),
        rdzv_endpoint="[fe80::1]:7",
        node_rank=3,
        rdzv_id="mine",
        max_restarts=5,
        restart_policy="always",
        start_method="spawn",
        show="failed",
        log_dir=Path("logs"),
        hang_timeout=7.5,
        numa_binding="node",
        virtual_local_rank=True,
    )
    topology = Topology({0: frozenset({0, 1, 2, 6}), 1: frozenset({3, 4})})
    text = make_plan(SCRIPT, options, GPUS, {}, columns=80, in_job=True, topology=topology).text()
    assert text.splitlines() == [
        "command     python train.py --lr 0.1",
        "host        here.lan (8 usable cores, 2 visible GPUs)",
        "workers     2 on cuda, 4 threads each",
        "start       spawn: fresh interpreters",
        "nodes       2:4, rendezvous at [fe80::1]:7 as mine; this one is number 3",
        "restarts    at most 5 (always)",
        "grace       30 s from the stop signal to SIGKILL",
        "preemption  SIGUSR2, SIGTERM",
        "hang after  7.5 s without a step",
        "logs        logs/rank_N.log; shown: failed",
        "every rank  MINETORCH_DEVICE=cuda OMP_NUM_THREADS=4 MINETORCH_CONSOLE_COLUMNS=71",
        "rank *+0    LOCAL_RANK=0 LOCAL_WORLD_SIZE=2 device=cuda:0 cpus=3-4 CUDA_VISIBLE_DEVICES=0",
        "rank *+1    LOCAL_RANK=0 LOCAL_WORLD_SIZE=2 device=cuda:0 cpus=0-2,6 CUDA_VISIBLE_DEVICES=1",
    ]


def test_targets_read_as_the_command_they_stand_for():
    assert str(Script("a b.py", ("x y",))) == "python 'a b.py' 'x y'"
    assert str(Module("pkg.run", ("-v",))) == "python -m pkg.run -v"
    assert str(Function(make_plan)) == "minetorch_launch.plan.make_plan()"
    assert str(Command("./run me", ("-v",))) == "'./run me' -v"


def test_many_nodes():
    options = LaunchOptions(nproc=2, nodes=(1, 3), rdzv_endpoint="gpu01:5", node_rank=2)
    plan = make_plan(SCRIPT, options, BARE, {})
    assert (plan.many_nodes, plan.nodes, plan.options.node_rank) == (True, (1, 3), 2)
    assert plan.rdzv_endpoint == Endpoint("gpu01", 5)
    plan = make_plan(SCRIPT, LaunchOptions(nodes=(2, 2), rdzv_endpoint="gpu01"), BARE, {})
    assert f"nodes       2, rendezvous at gpu01:29400 as {plan.rdzv_id}\n" in plan.text()


def test_the_launchers_of_one_command_come_together_and_no_others():
    def rdzv_id(target=SCRIPT, **options):
        options = LaunchOptions(**{"nodes": (2, 2), "rdzv_endpoint": "h", **options})
        return make_plan(target, options, BARE, {}).rdzv_id

    assert rdzv_id() == rdzv_id(node_rank=1) == rdzv_id(nproc=3)
    assert len({rdzv_id(), rdzv_id(Script("other.py")), rdzv_id(nodes=(1, 2)), rdzv_id(rdzv_id="mine")}) == 4


@pytest.mark.parametrize(
    ("asked", "in_job", "names"),
    [
        (None, False, ["SIGUSR2"]),
        (None, True, ["SIGUSR2", "SIGTERM"]),
        (("SIGUSR1",), True, ["SIGUSR1"]),
        ((), True, []),
    ],
)
def test_signals_of_a_preemption(asked, in_job, names):
    plan = make_plan(SCRIPT, LaunchOptions(preempt_signals=asked), BARE, {}, in_job=in_job)
    assert [signum.name for signum in plan.preempt_signals] == names


@pytest.mark.parametrize(
    ("prefix", "world", "terminal", "there"),
    [
        ("auto", 1, False, False),
        ("auto", 1, True, True),
        ("auto", 2, False, True),
        ("always", 1, False, True),
        ("never", 2, True, False),
    ],
)
def test_the_rank_before_each_line(prefix, world, terminal, there):
    assert make_plan(SCRIPT, LaunchOptions(prefix=prefix), BARE, {}).has_prefix(world, terminal) is there


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("h", Endpoint("h", 29400)),
        ("h:1", Endpoint("h", 1)),
        ("10.0.0.1:0", Endpoint("10.0.0.1", 0)),
        ("[fe80::1]:7", Endpoint("fe80::1", 7)),
        ("fe80::1", Endpoint("fe80::1", 29400)),
        ("[::1]", Endpoint("::1", 29400)),
    ],
)
def test_endpoints(text, endpoint):
    assert parse_endpoint(text) == endpoint
    assert parse_endpoint(str(endpoint)) == endpoint


@pytest.mark.parametrize(("platform", "words"), [("win32", "this is Windows: use WSL 2"), ("darwin", "this is macOS")])
def test_other_systems_are_refused(platform, words):
    check_platform("linux")
    with pytest.raises(LaunchError, match=words):
        check_platform(platform)
