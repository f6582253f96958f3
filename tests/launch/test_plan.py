from pathlib import Path

import pytest

from minetorch_launch.errors import LaunchError, UsageError
from minetorch_launch.joining import Endpoint
from minetorch_launch.plan import LaunchOptions, make_plan
from minetorch_launch.target import Function, Module, Script
from minetorch_launch.topology import Device, Node

SCRIPT = Script("train.py", ("--lr", "0.1"))
BARE = Node(host="here", cores=8)
GPUS = Node(host="here", cores=8, gpus=(Device(0, "GPU-a"), Device(1, "GPU-b")))


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
        (7, {"OMP_NUM_THREADS": "5"}, 3, 7, "7"),
    ],
)
def test_threads(asked, environ, nproc, threads, variable):
    plan = make_plan(SCRIPT, LaunchOptions(nproc=nproc, threads=asked), BARE, environ)
    assert plan.threads == threads
    assert plan.env["OMP_NUM_THREADS"] == variable


def test_columns_leave_room_for_the_prefix_and_are_unset_without_a_terminal():
    assert "MINETORCH_CONSOLE_COLUMNS" not in make_plan(SCRIPT, LaunchOptions(), BARE, {}).env
    plan = make_plan(SCRIPT, LaunchOptions(nproc=11), BARE, {}, columns=80)
    assert plan.env["MINETORCH_CONSOLE_COLUMNS"] == "75"


@pytest.mark.parametrize("device", ["cuda", "auto"])
def test_more_workers_than_gpus_says_what_to_type(device):
    with pytest.raises(UsageError, match=r"--nproc 3 is more than the 2 visible GPUs: type --nproc 2, or --device cpu"):
        make_plan(SCRIPT, LaunchOptions(nproc=3, device=device), GPUS, {})


def test_more_workers_than_a_fork_server_can_start():
    with pytest.raises(UsageError, match="more than the 125 workers of a fork server: type --start-method spawn"):
        make_plan(SCRIPT, LaunchOptions(nproc=126), BARE, {})
    assert len(make_plan(SCRIPT, LaunchOptions(nproc=126, start_method="spawn"), BARE, {}).workers) == 126


def test_cuda_without_a_gpu_says_why():
    node = Node(host="here", cores=1, no_gpu_because="CUDA_VISIBLE_DEVICES='' hides all 2")
    with pytest.raises(UsageError, match=r"needs a GPU, but CUDA_VISIBLE_DEVICES='' hides all 2: type --device cpu"):
        make_plan(SCRIPT, LaunchOptions(device="cuda"), node, {})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"nproc": 0}, "--nproc 0 .* from 1 up"),
        ({"threads": 0}, "--threads 0"),
        ({"max_restarts": -1}, "--max-restarts -1"),
        ({"grace": -1.0}, "--grace -1"),
        ({"grace": float("nan")}, "--grace nan"),
        ({"device": "tpu"}, r"--device tpu is unknown: type --device auto\|cpu\|cuda"),
        ({"start_method": "fork"}, r"type --start-method forkserver\|spawn"),
        ({"preload": ("numpy",), "start_method": "spawn"}, "--preload is for the fork server"),
    ],
)
def test_options_are_checked_at_construction(wrong, said):
    with pytest.raises(UsageError, match=said) as caught:
        LaunchOptions(**wrong)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, LaunchError)
    assert "\n" not in str(caught.value)


def test_logs_lie_in_the_log_folder():
    plan = make_plan(SCRIPT, LaunchOptions(nproc=2, log_dir=Path("logs")), BARE, {})
    assert [plan.log_file(rank) for rank in (0, 11)] == [Path("logs/rank_0.log"), Path("logs/rank_11.log")]
    assert make_plan(SCRIPT, LaunchOptions(), BARE, {}).log_file(0) is None


def test_a_fork_server_imports_once_what_the_target_is_likely_to_import():
    options, likely = LaunchOptions(preload=("numpy",)), ("torch._dynamo",)
    assert make_plan(SCRIPT, options, BARE, {}, imports=likely).preload == ("torch._dynamo", "numpy")
    assert make_plan(SCRIPT, options, BARE, {}).preload == ("numpy",)
    assert make_plan(SCRIPT, LaunchOptions(start_method="spawn"), BARE, {}, imports=likely).preload == ()


def test_the_text_names_every_rank_and_the_command():
    text = make_plan(SCRIPT, LaunchOptions(nproc=2, max_restarts=3), GPUS, {}).text()
    assert "python train.py --lr 0.1" in text
    assert "RANK=1 LOCAL_RANK=1 WORLD_SIZE=2 LOCAL_WORLD_SIZE=2 device=cuda:1" in text
    assert "at most 3" in text


def test_targets_read_as_the_command_they_stand_for():
    assert str(Script("a b.py", ("x y",))) == "python 'a b.py' 'x y'"
    assert str(Module("pkg.run", ("-v",))) == "python -m pkg.run -v"
    assert str(Function(make_plan)) == "minetorch_launch.plan.make_plan()"


def test_many_nodes():
    options = LaunchOptions(nproc=2, nodes=(1, 3), rdzv="gpu01:5", node_rank=2)
    plan = make_plan(SCRIPT, options, BARE, {}, columns=80)
    assert (plan.many_nodes, plan.nodes, plan.rdzv, plan.node_rank) == (True, (1, 3), Endpoint("gpu01", 5), 2)
    assert "nodes       1:3, meeting at gpu01:5 as run-" in plan.text()
    assert plan.env["MINETORCH_CONSOLE_COLUMNS"] == str(80 - len("[here:5] "))


def test_the_launchers_of_one_command_come_together_and_no_others():
    def run_id(target=SCRIPT, **options):
        return make_plan(target, LaunchOptions(**{"nodes": (2, 2), "rdzv": "h", **options}), BARE, {}).run_id

    assert run_id() == run_id(node_rank=1) == run_id(nproc=3)
    assert len({run_id(), run_id(Script("other.py")), run_id(nodes=(1, 2)), run_id(run_id="mine")}) == 4


def test_many_nodes_need_a_place_to_meet():
    with pytest.raises(UsageError, match=r"--nodes 2:4 needs a place to meet: type --rdzv HOST"):
        make_plan(SCRIPT, LaunchOptions(nodes=(2, 4)), BARE, {})


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
