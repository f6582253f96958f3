"""What a user of torchrun types, or has in PET_* variables: with its meaning, or refused with a true reason."""

from pathlib import Path

import pytest
import torch.distributed.run

from minetorch_launch import torchrun
from minetorch_launch.arguments import read
from minetorch_launch.devices import HostInfo
from minetorch_launch.errors import UsageError
from minetorch_launch.options import LaunchOptions
from minetorch_launch.plan import make_plan
from minetorch_launch.target import Command, Module, Script
from minetorch_launch.validators import Endpoint

HOST = HostInfo("here", cores=8)
MANY = {"nodes": (2, 2), "rdzv_endpoint": "h:5"}


def options(line, environ=None):
    return read([*line.split(), "t.py"], environ or {}).options


def plan(line, environ=None):
    request = read([*line.split(), "t.py"], environ or {})
    return make_plan(request.target, request.options, HOST, {})


def test_every_option_of_torchrun_is_known():
    actions = torch.distributed.run.get_args_parser()._actions
    names = {name.replace("_", "-") for action in actions for name in action.option_strings if name.startswith("--")}
    assert names - {"--help"} == {*torchrun.FLAGS, *torchrun.VALUED}
    flags = {action.option_strings[-1].replace("_", "-") for action in actions if action.nargs == 0}
    assert flags - {"--help"} == {*torchrun.FLAGS}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--nproc-per-node 2", {"nproc": 2}),
        ("--nproc_per_node=2 --nnodes=1 --node_rank=0", {"nproc": 2, "nodes": (1, 1), "node_rank": 0}),
        ("--nproc_per 2 --stand", {"nproc": 2, "nodes": (1, 1)}),
        ("--nproc-per-node 2 --nproc 3", {"nproc": 3}),
        ("--nproc-per-node gpu", {"device": "cuda"}),
        ("--nproc-per-node xpu", {"device": "xpu"}),
        ("--nproc-per-node cpu", {"device": "cpu", "nproc": "cores"}),
        ("--nproc-per-node auto", {"nproc": "cores"}),
        ("--nproc auto", {}),
        ("--standalone --rdzv-backend=etcd --rdzv-endpoint=h:0 --rdzv-id=3 --node-rank 7", {"nodes": (1, 1)}),
        ("--nnodes 2 --rdzv-backend c10d --rdzv-endpoint h:5 --rdzv-id j", {**MANY, "rdzv_id": "j"}),
        ("--nnodes 2 --rdzv-backend c10d --rdzv-endpoint h:5 --node-rank 1 --master-port 9", MANY),
        ("--nnodes 2 --rdzv-endpoint h:5 --node-rank 1", {**MANY, "node_rank": 1}),
        (
            "--nnodes 2 --rdzv-backend static --rdzv-endpoint h:5 --node-rank 1",
            {**MANY, "node_rank": 1},
        ),
        ("--nnodes 2 --node-rank 0 --master-addr h --master-port 5", {**MANY, "node_rank": 0}),
        ("--nnodes 2 --master-addr h", {**MANY, "rdzv_endpoint": "h:29500"}),
        ("--nnodes 2 --master-addr fe80::1", {**MANY, "rdzv_endpoint": "[fe80::1]:29500"}),
        ("--nnodes 2 --master-port 5", {**MANY, "rdzv_endpoint": "127.0.0.1:5"}),
        ("--nnodes 2 --rdzv-endpoint h:5 --master-addr x --master-port 9", MANY),
        ("--master-addr h", {}),
        (
            "--rdzv-conf join_timeout=5,last_call_timeout=1,is_host=1",
            {"join_timeout": 5.0, "last_call_timeout": 1.0},
        ),
        ("--rdzv-conf timeout=30", {"join_timeout": 30.0}),
        ("--rdzv-backend c10d --rdzv-conf timeout=30,store_type=tcp", {}),
        ("--rdzv-conf timeout=30 --join-timeout 7", {"join_timeout": 7.0}),
        ("--local-addr 10.0.0.1 --role r --max_restarts=3", {"local_addr": "10.0.0.1", "role": "r", "max_restarts": 3}),
        ("--role=", {"role": ""}),
        ("--shutdown-timeout 5", {"grace": 5.0}),
        ("--start-method fork", {}),
        ("--start-method spawn", {"start_method": "spawn"}),
        ("--signals-to-handle SIGTERM,SIGINT,SIGUSR1,SIGUSR2", {"preempt_signals": ("SIGUSR1", "SIGUSR2")}),
        ("--signals-to-handle SIGTERM", {}),
        ("--local_ranks_filter 0,2", {"local_ranks_filter": (0, 2)}),
        ("--numa-binding core-complex", {"numa_binding": "core-complex"}),
        ("--virtual-local-rank", {"virtual_local_rank": True}),
        ("--logs-specs default --event-log-handler null --duplicate-stdout-filters=", {}),
    ],
)
def test_an_option_has_its_meaning(line, expected):
    assert options(line) == LaunchOptions(**expected)


@pytest.mark.parametrize(
    ("line", "target"),
    [
        ("t.py a", Script("t.py", ("a",))),
        ("--run-path --no-python -m t.py", Script("t.py")),
        ("-m --nproc-per-node=2 pkg.run --x", Module("pkg.run", ("--x",))),
        ("--nproc-per-node=2 --module pkg.run", Module("pkg.run")),
        ("-mpkg.run -m", Module("pkg.run", ("-m",))),
        ("--no-python ./run.sh x -- y", Command("./run.sh", ("x", "--", "y"))),
    ],
)
def test_what_is_run(line, target):
    assert read(line.split(), {}).target == target


@pytest.mark.parametrize(
    ("line", "port", "address"),
    [
        ("", None, None),
        ("--rdzv-endpoint localhost:0 --rdzv-backend c10d", None, None),
        ("--rdzv-endpoint localhost:4711 --rdzv-backend c10d", 4711, None),
        ("--rdzv-endpoint 10.0.0.1:4711", 4711, "10.0.0.1"),
        ("--master-port 4711", 4711, None),
        ("--master-addr localhost --master-port 4711 --node-rank 0", 4711, None),
        ("--standalone --master-port 4711", None, None),
    ],
)
def test_on_one_node_the_endpoint_is_that_of_the_workers_store(line, port, address):
    found = plan(line)
    assert (found.many_nodes, found.rdzv_endpoint) == (False, None)
    assert (found.master_port, found.local_addr) == (port, address)


def test_on_many_nodes_the_endpoint_is_where_they_meet():
    found = plan("--nnodes 2 --master-addr h --master-port 5")
    assert (found.many_nodes, found.rdzv_endpoint, found.master_port) == (True, Endpoint("h", 5), None)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("-r 3", ""),
        ("-r 1", "err0 err1"),
        ("-r 0:1,1:2", "err0 out1"),
        ("-r3 -t 1:3", "out1 err1"),
        ("-t3", "out0 err0 out1 err1"),
        ("--redirect=3 --tee=0:1 --local-ranks-filter 1", ""),
        ("--local-ranks-filter 1", "out1 err1"),
        ("--show 0", "out0 err0"),
        ("--show failed", ""),
    ],
)
def test_the_lines_that_appear_on_the_console(line, shown):
    found = plan(f"--nproc-per-node 2 {line}")
    streams = [f"{stream}{rank}" for rank in (0, 1) for stream in ("out", "err") if found.shows(rank, rank, stream)]
    assert " ".join(streams) == shown


def test_streams_that_go_to_a_file_have_one():
    assert plan("-r 3 --log-dir logs").log_file(1).name == "rank_1.log"
    first, second = read(["-t3", "t.py"], {}), read(["-t3", "t.py"], {})
    assert first.options.log_dir != second.options.log_dir
    assert str(first.options.log_dir) in first.notes[0]


@pytest.mark.parametrize(
    ("line", "note"),
    [
        ("--monitor-interval 5", "--monitor-interval has no effect: the launcher sees the end of a worker at once"),
        ("--event-log-handler console", "--event-log-handler has no effect"),
        ("--rdzv-conf is_host=1", "--rdzv-conf is_host has no effect: the node that the endpoint names hosts"),
        ("--rdzv-conf read_timeout=3", "--rdzv-conf read_timeout has no effect"),
        ("--rdzv-backend c10d --node-rank 1", "--node-rank has no effect with --rdzv-backend c10d"),
        ("--rdzv-backend c10d --master-addr h", "--master-addr and --master-port have no effect"),
    ],
)
def test_what_has_no_effect_is_left_out_with_a_line(line, note):
    request = read([*line.split(), "t.py"], {})
    assert request.options == LaunchOptions()
    (said,) = request.notes
    assert said.startswith(note)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--rdzv-backend etcd-v2", "--rdzv-backend 'etcd-v2': the nodes meet at one of them here"),
        ("--standalone --nnodes 2", "--standalone is for one node, and --nnodes is '2'"),
        ("--nnodes 2", "--nodes 2 needs a rendezvous: type --rdzv-endpoint HOST[:PORT]"),
        ("--nnodes 2 --rdzv-endpoint h:0", "2 nodes cannot know a free port"),
        ("--nnodes 2:20:30", "--nodes '2:20:30' is not a number of nodes"),
        ("--nproc_per_nod=two", "--nproc 'two' is not a whole number"),
        ("--nproc-per-node gpu", "--device cuda needs a GPU of that kind"),
        ("--duplicate-stderr-filters x", "--duplicate-stderr-filters writes some lines to a second file"),
        ("--logs-specs mine", "--logs-specs names a class"),
        ("--rdzv-conf store_type=file", "the nodes meet over TCP here"),
        ("--rdzv-conf tiemout=3", "--rdzv-conf 'tiemout' is unknown: the keys are join_timeout, last_call_timeout,"),
        ("--rdzv-conf timeout", "--rdzv-conf 'timeout' has no value"),
        ("--signals-to-handle SIGKILL", "--preempt-signals 'SIGKILL' is unknown"),
        ("--tee 4", "--tee '4' is unknown: type 0 (none), 1 (stdout), 2 (stderr) or 3 (both)"),
        ("--local-ranks-filter x", "--local-ranks-filter 'x' is not a whole number"),
        ("--numa-binding all", "--numa-binding 'all' is unknown: type --numa-binding node|socket|exclusive"),
        ("--rdzv", "--rdzv can mean --rdzv-backend, --rdzv-endpoint, --rdzv-id, --rdzv-conf: type one of them"),
        ("--use-env", "unknown option --use-env"),
        ("-m --no-python", "-m is for a Python module, and --no-python for a program that is not Python"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_reason(line, said):
    with pytest.raises(UsageError) as refused:
        plan(line)
    assert said in str(refused.value)


ENVIRON = {
    "PET_NNODES": "2",
    "PET_NPROC_PER_NODE": "4",
    "PET_NODE_RANK": "1",
    "PET_MASTER_ADDR": "job-master-0",
    "PET_MASTER_PORT": "23456",
    "PET_MAX_RESTARTS": "3",
    "PET_VIRTUAL_LOCAL_RANK": "1",
    "PET_STANDALONE": "0",
    "PET_SHUTDOWN_TIMEOUT": "",
}


def test_variables_have_the_meaning_of_their_options():
    assert options("", ENVIRON) == LaunchOptions(
        nodes=(2, 2),
        nproc=4,
        node_rank=1,
        rdzv_endpoint="job-master-0:23456",
        max_restarts=3,
        virtual_local_rank=True,
    )
    assert read(["x.sh"], {"PET_NO_PYTHON": "1"}).target == Command("x.sh")
    assert read(["x", "y"], {"PET_MODULE": "1"}).target == Module("x", ("y",))
    assert options("", {"PET_NPROC_PER_NODE": "auto"}) == LaunchOptions(nproc="cores")


@pytest.mark.parametrize(
    "own", ["--nproc 2 --nodes 1", "--nproc-per-node=2 --nnodes=1", "--nproc_per_node 2 --nodes 1"]
)
def test_an_option_on_the_command_line_wins_over_its_variable(own):
    found = plan(own, {"PET_NPROC_PER_NODE": "4", "PET_NNODES": "2"})
    assert (len(found.workers), found.nodes) == (2, (1, 1))


def test_two_nodes_without_a_rendezvous_are_refused_with_the_variables_name():
    with pytest.raises(UsageError, match="needs a rendezvous"):
        plan("", {"PET_NNODES": "2"})
    with pytest.raises(UsageError, match=r"--nodes 'x' is not .* \(PET_NNODES is set\)"):
        options("", {"PET_NNODES": "x"})
    with pytest.raises(UsageError, match="PET_MODULE='yes' is neither 0 nor 1"):
        options("", {"PET_MODULE": "yes"})


def test_each_variable_of_torchruns_is_read(monkeypatch):
    """The names that torchrun itself reads, found by asking it with all of them set."""
    names = {"PET_" + name[2:].replace("-", "_").upper(): name for name in (*torchrun.FLAGS, *torchrun.VALUED)}
    for variable in names:
        monkeypatch.setenv(variable, "1")
    parser = torch.distributed.run.get_args_parser()
    defaults = vars(parser.parse_args(["t.py"]))
    theirs = {name for name in names.values() if defaults[name[2:].replace("-", "_")] in ("1", 1, True, ["1"])}
    assert torchrun.read_environ({}, dict.fromkeys(names, "1")).keys() == theirs


def test_the_docs_list_every_option():
    text = Path(__file__).parents[2].joinpath("docs/torchrun.md").read_text()
    for name in (*torchrun.FLAGS, *torchrun.VALUED):
        assert name in text, name
