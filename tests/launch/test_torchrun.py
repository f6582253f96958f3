"""What a user of torchrun types out of habit."""

import pytest

from minetorch_launch.arguments import parse, read
from minetorch_launch.errors import UsageError
from minetorch_launch.plan import LaunchOptions
from minetorch_launch.target import Module, Script


@pytest.mark.parametrize(
    ("line", "options", "target"),
    [
        ("--nproc-per-node 2 t.py --nproc_per_node 9", {"nproc": 2}, Script("t.py", ("--nproc_per_node", "9"))),
        ("--nproc_per_node=2 t.py", {"nproc": 2}, Script("t.py")),
        ("--nproc-per-node gpu t.py", {"device": "cuda"}, Script("t.py")),
        ("--nproc_per_node=auto t.py", {}, Script("t.py")),
        (
            "--nnodes=2:4 --rdzv_endpoint h:5 --rdzv-id=j --node_rank 1 t.py",
            {"nodes": (2, 4), "rdzv": "h:5", "run_id": "j", "node_rank": 1},
            Script("t.py"),
        ),
        ("--standalone --rdzv-backend=c10d --max_restarts=3 t.py", {"max_restarts": 3}, Script("t.py")),
        ("--rdzv_backend c10d --module pkg.run --x", {}, Module("pkg.run", ("--x",))),
        ("--shutdown-timeout 5 -m pkg.run", {"grace": 5.0}, Module("pkg.run")),
    ],
)
def test_the_same_by_another_name(line, options, target):
    assert parse(line.split()) == (LaunchOptions(**options), target)


def test_what_has_no_effect_is_left_out_with_a_word():
    request = read(["--monitor-interval", "5", "--role=trainer", "--standalone", "t.py"])
    assert request.options == LaunchOptions()
    assert request.ignored == ("--monitor-interval has no effect here", "--role has no effect here")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--rdzv-backend etcd t.py", "--rdzv-backend etcd is torchrun's: there is --rdzv-backend c10d only"),
        ("--tee 3 t.py", "--tee is torchrun's: lines always appear, each with its rank"),
        ("-r 3 t.py", "-r is torchrun's: type --log-dir DIR"),
        ("--local_ranks_filter 0 t.py", "--local_ranks_filter is torchrun's: type --show 0"),
        ("--master_addr h --master_port 5 t.py", "--master_addr is torchrun's: type --rdzv HOST:PORT"),
        ("--no-python t.sh", "--no-python is torchrun's: workers are Python processes"),
        ("--start-method fork t.py", "--start-method 'fork' is unknown: type --start-method forkserver|spawn"),
        ("--nproc_per_nod 2 t.py", "unknown option --nproc-per-nod"),
        ("--module", "-m needs a module"),
    ],
)
def test_what_is_done_in_another_way_here(line, said):
    with pytest.raises(UsageError) as refused:
        parse(line.split())
    assert said in str(refused.value)
