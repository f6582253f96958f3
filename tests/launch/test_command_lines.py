"""The command lines of torch's own tests of torchrun, and the forms that users type: they end well here, too.

torchrun 2.13 ends each of these with 0, but for the two groups at the end.
"""

import json
import os
import py_compile
import shutil
import socket
import sys
import zipapp

import pytest

ENVIRONMENT = """
import os
names = "RANK LOCAL_RANK GROUP_RANK ROLE_RANK ROLE_NAME LOCAL_WORLD_SIZE WORLD_SIZE ROLE_WORLD_SIZE MASTER_ADDR "
names += "MASTER_PORT OMP_NUM_THREADS TORCH_NCCL_ASYNC_ERROR_HANDLING TORCHELASTIC_RESTART_COUNT "
names += "TORCHELASTIC_MAX_RESTARTS TORCHELASTIC_RUN_ID TORCHELASTIC_USE_AGENT_STORE TORCHELASTIC_ERROR_FILE"
assert all(os.environ[name] for name in names.split())
open("touched." + os.environ["RANK"], "w").close()
"""
SHELL = '#!/bin/sh\ntouch "touched.$RANK"\n'
INIT = """
import os, sys, torch, torch.distributed as dist
rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
dist.init_process_group("gloo", init_method=sys.argv[1], rank=rank, world_size=size)
total = torch.ones(1)
dist.all_reduce(total)
assert total.item() == dist.get_world_size()
dist.barrier()
dist.destroy_process_group()
"""
HELLO = """
import os, sys
print("hello", os.environ["RANK"], os.environ["WORLD_SIZE"], sys.argv[1:])
open("touched." + os.environ["RANK"], "w").close()
"""

CORES = len(os.sched_getaffinity(0))
# Workers that must have run, and the line; PORT is a free one. Words of the form PET_X=... are variables.
TORCHS_TESTS = [
    (4, "--nnodes=1 --nproc-per-node=4 --rdzv-id=123 --monitor-interval=1 --start-method=spawn env.py"),
    (4, "--nproc-per-node=4 --start-method=spawn --master-addr=localhost --master-port=PORT --node-rank=0 env.py"),
    (4, "--nnodes=1 --nproc-per-node=4 --monitor-interval=1 --start-method=spawn --rdzv-id=1 --no-python ./touch.sh"),
    (1, "--nnodes=1 --rdzv-id=1 --monitor-interval=1 --start-method=spawn --no-python ./touch.sh"),
    (
        4,
        "PET_NNODES=1 PET_NPROC_PER_NODE=4 PET_MONITOR_INTERVAL=1 PET_NO_PYTHON=1 PET_MODULE=0 ./touch.sh",
    ),
    (4, "PET_NNODES=1 PET_NPROC_PER_NODE=4 PET_RDZV_ID=77 PET_MONITOR_INTERVAL=1 PET_START_METHOD=spawn env.py"),
    (CORES, "--nnodes=1 --nproc-per-node=auto env.py"),
    (CORES, "--nnodes=1 --nproc-per-node=cpu env.py"),
    (4, "--nnodes=1 --nproc-per-node=4 --no-python ./touch.sh"),
    (
        4,
        "--nnodes=1:2 --nproc-per-node=4 --rdzv-backend=c10d --rdzv-endpoint=localhost:PORT --rdzv-id=9 "
        "--rdzv-conf=join_timeout=5,last_call_timeout=1,timeout=5 --start-method=spawn env.py",
    ),
    (4, "--nnodes=1:2 --nproc-per-node=4 --rdzv-backend=c10d --rdzv-endpoint=localhost:PORT --rdzv-id=9 env.py"),
    (4, "--nnodes=1 --nproc-per-node=4 --standalone --monitor-interval=1 --start-method=spawn env.py"),
    (4, "--run-path --nnodes=1 --nproc-per-node=4 --monitor-interval=1 --start-method=spawn env.py"),
    (1, "--run-path --nnodes=1 --nproc-per-node=1 --monitor-interval=1 env.py"),
    (0, "--run-path --nproc-per-node=4 --master-addr=localhost --master-port=PORT init.py tcp://localhost:PORT"),
    (0, "--run-path --nproc-per-node=4 --master-addr=localhost --master-port=PORT init.py env://"),
    (0, "--nnodes=1 --nproc-per-node=4 --rdzv-endpoint=localhost:PORT init.py tcp://localhost:PORT"),
    (0, "--nnodes=1 --nproc-per-node=2 --master-addr=127.0.0.2 --master-port=PORT init.py tcp://127.0.0.2:PORT"),
    (0, "--nnodes=1 --nproc-per-node=2 --master-addr=job-master-0.invalid --master-port=PORT init.py env://"),
    (0, "--nnodes=1 --nproc-per-node=4 init.py env://"),
    (4, "--nnodes=1 --nproc-per-node=4 --rdzv-id=5 --redirect=3 --tee=3 --start-method=spawn --no-python ./touch.sh"),
    (2, "--nnodes=1 --nproc-per-node=2 --virtual-local-rank env.py"),
]
FORMS = [
    (2, "--nproc_per_node=2 --nnodes=1 --node_rank=0 hello.py a --b=1"),
    (2, "--nproc_per_node 2 --nnodes 1 --node_rank 0 hello.py"),
    (2, "--nproc_per 2 --stand hello.py"),
    (2, "--standalone --rdzv-backend=c10d --rdzv-endpoint=localhost:0 --rdzv-id=3 --nproc-per-node=2 hello.py"),
    (2, "--rdzv_backend c10d --rdzv_endpoint localhost:0 --nproc-per-node=2 hello.py"),
    (2, "--nnodes=1 --nproc_per_node=2 --rdzv_id=101 --rdzv_endpoint=localhost:PORT hello.py"),
    (
        2,
        "--nproc_per_node=2 --rdzv_backend c10d --rdzv_endpoint=localhost:0 --local-ranks-filter 0 --role rank --tee 3 "
        "hello.py",
    ),
    (2, "--nproc_per_node 2 --nnodes 1 --node_rank 0 --master_addr localhost --master_port PORT hello.py"),
    (2, "--nproc-per-node=2 --master_port=PORT hello.py"),
    (2, "--rdzv-backend=static --master-addr=127.0.0.1 --master-port=PORT --nproc-per-node=2 hello.py"),
    (2, "--rdzv-backend=static --nproc-per-node=2 hello.py"),
    (2, "--rdzv-conf=timeout=30,is_host=1 --nproc-per-node=2 hello.py"),
    (2, "--local-addr=127.0.0.1 --nproc-per-node=2 hello.py"),
    (2, "-t 3 --nproc-per-node=2 hello.py"),
    (2, "--tee 3 --log-dir l --nproc-per-node=2 hello.py"),
    (2, "-r 3 --log_dir l --nproc-per-node=2 hello.py"),
    (2, "-r 0:1,1:2 -t 1:3 --log-dir l --nproc-per-node=2 hello.py"),
    (2, "--local-ranks-filter=0,1 --nproc-per-node=2 hello.py"),
    (2, "--role trainer --nproc-per-node=2 hello.py"),
    (0, "--no-python --nproc-per-node=2 /bin/echo hi"),
    (2, "--no-python --nproc-per-node=2 @PYTHON hello.py"),
    (0, "--nproc-per-node=2 -m json.tool --help"),
    (2, "--nproc-per-node=2 --module hello a"),
    (2, "-m --nproc-per-node=2 hello a"),
    (2, "--monitor-interval=0.5 --start-method=fork --nproc-per-node=2 hello.py"),
    (2, "--max-restarts=3 --start-method=forkserver --nproc-per-node=2 hello.py"),
    (2, "--signals-to-handle SIGTERM,SIGINT,SIGUSR1 --shutdown-timeout 5 --nproc-per-node=2 hello.py"),
    (2, "--event-log-handler=console --logs-specs default --nproc-per-node=2 hello.py"),
    (2, "--numa-binding node --nproc-per-node=2 hello.py"),
    (2, "--nproc-per-node=2 -- hello.py a --b=1"),
    (2, "--nproc-per-node=2 pkg"),
    (2, "--nproc-per-node=2 app.zip"),
    (2, "--nproc-per-node=2 hello.pyc"),
    (2, "--nproc-per-node=2 pkg/../hello.py"),
]
REFUSED = [
    "--nnodes=1 --nproc-per-node=4 --no-python --module ./touch.sh",
    "--nproc-per-node=gpu --device cuda hello.py",
    "--nproc-per-node=unknown hello.py",
    "--nnodes=2:20:30 hello.py",
    "--logs_specs=DOESNOT_EXIST hello.py",
    "--rdzv-backend=etcd-v2 --rdzv-endpoint=localhost:PORT hello.py",
    "--use-env hello.py",
    "PET_NNODES=2 hello.py",
    "nothere.py",
    # torchrun ends these two with 0.
    "--duplicate-stdout-filters hello --nproc-per-node=2 hello.py",
    "--duplicate-stderr-filters=hello --nproc-per-node=2 hello.py",
]


@pytest.fixture
def folder(launches):
    launches.script(ENVIRONMENT, "env.py")
    launches.script(INIT, "init.py")
    hello = launches.script(HELLO, "hello.py")
    launches.script(SHELL, "touch.sh").chmod(0o755)
    app = launches.folder / "pkg"
    app.mkdir()
    shutil.copy(hello, app / "__main__.py")
    zipapp.create_archive(app, launches.folder / "app.zip")
    py_compile.compile(str(hello), cfile=str(launches.folder / "hello.pyc"))
    return launches.folder


def run(launches, line):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = line.replace("PORT", port).replace("@PYTHON", sys.executable).split()
    env = dict(word.split("=", 1) for word in words if word.startswith("PET_"))
    env |= {"CUDA_VISIBLE_DEVICES": "", "TMPDIR": str(launches.folder)}  # where -r and -t keep lines without --log-dir
    return launches.run(*[word for word in words if not word.startswith("PET_")], env=env)


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "line"), TORCHS_TESTS + FORMS)
def test_a_line_that_torchrun_ends_with_0(launches, folder, workers, line):
    done = run(launches, line)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in folder.glob("touched.*")) == [f"touched.{rank}" for rank in range(workers)]


@pytest.mark.parametrize("line", REFUSED)
def test_a_line_that_is_refused(launches, folder, line):
    done = run(launches, line)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith("minetorch-launch: error: ")
    assert not list(folder.glob("touched.*"))


@pytest.mark.slow
def test_a_script_from_a_pipe_runs_in_every_worker(launches, folder):
    with (folder / "hello.py").open() as text:
        done = launches.run("--nproc-per-node=2", "/dev/stdin", "x", stdin=text)
    assert (done.returncode, sorted(done.stdout.splitlines())) == (0, ["[0] hello 0 2 ['x']", "[1] hello 1 2 ['x']"])


def test_json_of_one_worker_stays_json(launches):
    script = launches.script("import json; print(json.dumps({'ok': True}))")
    assert launches.run("--nproc-per-node=1", script).stdout == '{"ok": true}\n'


@pytest.mark.slow
def test_what_a_script_sets_before_torch_takes_effect_or_is_warned_about(launches):
    script = launches.script("""
        import os
        os.environ["OMP_NUM_THREADS"] = "1"
        os.environ["PYTORCH_JIT"] = "0"
        import torch
        print("threads", torch.get_num_threads())
    """)
    done = launches.run("--nproc", 2, "--threads", 2, script)
    assert done.returncode == 0, done.stderr
    assert launches.by_rank(done.stdout) == {0: ["threads 1"], 1: ["threads 1"]}
    assert done.stderr.count("the script sets PYTORCH_JIT") == 1
    assert "OMP_NUM_THREADS" not in done.stderr
    spawned = launches.run("--nproc", 2, "--threads", 2, "--start-method", "spawn", script)
    assert (launches.by_rank(spawned.stdout), spawned.stderr) == ({0: ["threads 1"], 1: ["threads 1"]}, "")


@pytest.mark.slow
@pytest.mark.skipif(CORES < 2, reason="needs two cores")
@pytest.mark.parametrize("program", [["script.py"], ["--no-python", sys.executable, "script.py"]])
def test_a_binding_is_real(launches, program):
    launches.script("import os; print(sorted(os.sched_getaffinity(0)))")
    done = launches.run("--nproc", 2, "--device", "cpu", "--numa-binding", "exclusive", *program)
    shown = launches.by_rank(done.stdout)
    first, second = (set(json.loads(shown[rank][0])) for rank in (0, 1))
    assert first
    assert second
    assert not first & second
