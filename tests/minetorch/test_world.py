"""Reading a worker's place from the environment, without any worker."""

import socket
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from minetorch.distributed.world import World, first_host
from minetorch.errors import ConfigurationError

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "29400",
}
SLURM = {
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}


def test_alone_without_any_variable():
    world = World.from_environ({})
    assert (world.rank, world.size, world.is_main) == (0, 1, True)
    assert World(device=torch.device("cpu")).device_name == "cpu"


@pytest.mark.parametrize("environ", [TORCHRUN, SLURM], ids=["torchrun", "slurm"])
def test_the_place_among_others(environ):
    world = World.from_environ(environ | {"MINETORCH_DEVICE": "cpu"})
    assert (world.rank, world.size, world.local_rank, world.local_size) == (3, 4, 1, 2)
    assert not world.is_main
    assert world.device == torch.device("cpu")


def test_torchrun_needs_nothing_added_and_slurm_gets_a_rendezvous():
    assert World.from_environ(TORCHRUN).rendezvous == {}
    added = World.from_environ(SLURM).rendezvous
    assert added["MASTER_ADDR"] == "gpu07"
    assert 15000 <= int(added["MASTER_PORT"]) < 30000
    other_step = World.from_environ(SLURM | {"SLURM_STEP_ID": "1"}).rendezvous
    assert other_step["MASTER_PORT"] != added["MASTER_PORT"]


def test_launchers_variables_count_more_than_slurms():
    assert World.from_environ(SLURM | TORCHRUN | {"RANK": "2"}).rank == 2


def test_a_script_may_set_the_size_and_leave_the_rank_to_the_step():
    world = World.from_environ(SLURM | {"WORLD_SIZE": "4", "MASTER_ADDR": "here", "MASTER_PORT": "29555"})
    assert (world.rank, world.size, world.local_rank) == (3, 4, 1)
    assert world.rendezvous.keys() == {"RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"}
    assert World.from_environ(SLURM | {"SLURM_STEP_NUM_TASKS": "1", "WORLD_SIZE": "1"}).size == 1


@pytest.mark.parametrize(
    ("environ", "source"),
    [
        (SLURM, "SLURM_STEP_NUM_TASKS=4 of the step 1234.0. If this is an interactive shell, unset SLURM_STEP_ID"),
        (TORCHRUN, "WORLD_SIZE=4. If nothing starts the others, use `minetorch-launch`, or unset RANK and WORLD_SIZE"),
        (SLURM | TORCHRUN | {"TORCHELASTIC_RUN_ID": "x"}, "WORLD_SIZE=4, which the launcher sets"),
    ],
    ids=["slurm", "by hand", "launcher"],
)
def test_a_rank_that_waits_says_so_and_where_the_number_comes_from(environ, source, monkeypatch):
    monkeypatch.setattr("minetorch.distributed.world.LATE_S", 0.1)
    with socket.create_server(("localhost", 0)) as server:
        port = str(server.getsockname()[1])
    place = {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
    first = {"RANK": "0", "SLURM_PROCID": "0", "LOCAL_RANK": "0", "SLURM_LOCALID": "0"}
    environ = environ | place | {name: value for name, value in first.items() if name in environ}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    lines = []
    world = World.from_environ(environ | {"MINETORCH_DEVICE": "cpu"})
    for name, value in world.rendezvous.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(dist.DistError):
        world.connect(timedelta(seconds=1), say=lines.append)
    (line,) = lines
    assert line.startswith(f"Rank 0 of 4 waits for other ranks at localhost:{port}. ")
    assert source in line


@pytest.mark.parametrize(
    "environ",
    [
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"},
        SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
    ],
    ids=["batch script", "step of one task"],
)
def test_one_process_of_a_slurm_job_is_alone(environ):
    assert World.from_environ(environ).size == 1


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("n[003-007,9],m1", "n003"),
        ("rack[1-2]-node", "rack1-node"),
        ("a-b.c[10]", "a-b.c10"),
    ],
)
def test_the_first_host_of_a_node_list(nodelist, host):
    assert first_host(nodelist) == host


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (
            {"RANK": "1"},
            "The environment has RANK, but not WORLD_SIZE, MASTER_ADDR, MASTER_PORT. To run one worker, unset RANK. ",
        ),
        ({"WORLD_SIZE": "2"}, "To run several, start the script with `minetorch-launch`"),
        (TORCHRUN | {"RANK": "4"}, "RANK must be 0 to 3"),
        (TORCHRUN | {"RANK": "one"}, "RANK='one' must be a whole number"),
        (TORCHRUN | {"WORLD_SIZE": "-2"}, "WORLD_SIZE='-2' must be a whole number"),
        (SLURM | {"SLURM_STEP_NODELIST": ""}, "names no host: ''. Set MASTER_ADDR"),
        (
            SLURM | {"WORLD_SIZE": "8", "MASTER_ADDR": "here"},
            "The environment has WORLD_SIZE, MASTER_ADDR, but not RANK, MASTER_PORT; this SLURM step has 4 tasks. "
            "Unset WORLD_SIZE, ",
        ),
        ({"MINETORCH_DEVICE": "tpu"}, "MINETORCH_DEVICE='tpu' must be 'auto', 'cpu' or 'cuda'"),
    ],
)
def test_senseless_variables_are_refused(environ, message):
    with pytest.raises(ConfigurationError, match=message):
        World.from_environ(environ)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(ConfigurationError, match="torch sees no GPU"):
        World.from_environ({"MINETORCH_DEVICE": "cuda"})


def test_alone_every_collective_is_the_value_itself():
    world = World()
    assert world.reduce(3.0) == world.reduce(3, "sum") == 3.0
    value = torch.ones(2)
    reduced = world.reduce(value, "max")
    assert torch.equal(reduced, value)
    assert reduced is not value
    assert world.broadcast("x") == "x"
    assert world.gather(1) == [1]
    assert world.on_main(lambda: 5) == 5
    world.barrier()


@pytest.fixture
def group():
    """Makes a process group of two of which this process is the first; nothing waits for the second."""

    def make(**backends):
        config = []
        for device, name in backends.items():
            if name not in dist.Backend.backend_list:
                dist.Backend.register_backend(name, lambda *_: None, devices=[device])
            config.append(f"{device}:{name}")
        dist.init_process_group(",".join(config), store=dist.HashStore(), rank=0, world_size=2)

    yield make
    dist.destroy_process_group()


def test_a_group_of_the_script_without_a_backend_for_the_cpu_is_refused(group):
    group(cuda="only_cuda")
    with pytest.raises(ConfigurationError, match=r"group \(cuda:only_cuda\) has no backend for cpu, and the Trainer"):
        World(rank=0, size=2).connect()


def test_a_group_of_the_script_of_another_size_is_refused(group):
    group(cuda="only_cuda")
    with pytest.raises(ConfigurationError, match="The process group has 2 members, but WORLD_SIZE=3"):
        World(rank=0, size=3).connect()


def test_a_group_of_the_script_with_a_backend_for_every_device_is_used(group):
    group(cpu="only_cpu", cuda="only_cuda")
    World(rank=0, size=2).connect()
    assert dist.get_world_size() == 2


def test_an_unknown_reduction_is_refused():
    with pytest.raises(ConfigurationError, match="reduce knows 'mean', 'sum', 'min', 'max'; 'median' was given"):
        World().reduce(1.0, "median")
