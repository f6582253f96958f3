"""The doctor, on machines that are well and on machines that are not: faults are real wherever they can be made."""

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from minetorch_doctor import command, machine, network, selftest, selftest_worker, software, storage
from minetorch_doctor.checks import DoctorOptions, run_checks
from minetorch_doctor.result import Result, all_ok, as_json, as_row, summary
from minetorch_launch.devices import Driver
from minetorch_launch.options import LaunchOptions
from minetorch_launch.validators import Endpoint

DOCTOR = (sys.executable, "-m", "minetorch_doctor")
GIB = 1 << 30
MIB = 1 << 20


@pytest.fixture
def examine(launches):
    """Runs the doctor; returns its results by check, and makes sure that it leaves nothing."""
    temporary = Path(tempfile.mkdtemp(prefix="dr é-"))

    def examine(*words, expect, **start):
        env = {"TMPDIR": str(temporary), **start.pop("env", {})}
        done = launches.run("--json", *words, command=DOCTOR, env=env, **start)
        assert done.returncode == expect, done.stdout + done.stderr
        assert launches.gone_within(5)
        assert [*temporary.iterdir(), *launches.folder.iterdir()] == []
        told = json.loads(done.stdout)
        assert told["ok"] is (expect == 0)
        return {result["check"]: result for result in told["results"]}

    yield examine
    shutil.rmtree(temporary)


def test_a_machine_that_is_well(examine, tmp_path):
    found = examine("--nproc", "2", "--device", "cpu", "--storage", tmp_path / "not" / "yet", expect=0)
    assert found.keys() == {
        *("versions", "GPU driver", "open files", "shared memory", "memory", "workers", "all-reduce", "storage")
    }
    assert "gloo, 2 ranks: " in found["all-reduce"]["found"]
    assert not (tmp_path / "not").exists()


@pytest.mark.slow
def test_a_long_tmpdir_is_no_failure(launches):
    long = launches.folder / ("x" * 100)
    long.mkdir()
    done = launches.run("--device", "cpu", "--nproc", "1", command=DOCTOR, env={"TMPDIR": str(long)})
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_two_nodes(launches, free_port):
    words = ("--json", "--device", "cpu", "--nproc", "1", "--nodes", "2", "--rdzv-endpoint", f"127.0.0.1:{free_port}")
    doctors = [launches.start(*words, "--node-rank", rank, command=DOCTOR) for rank in (0, 1)]
    for doctor in doctors:
        out, err = doctor.communicate(timeout=150)
        assert doctor.returncode == 0, out + err
        found = {result["check"]: result["found"] for result in json.loads(out)["results"]}
        assert "gloo, 2 ranks: " in found["all-reduce"]
        assert "each of 2 nodes reaches every other" in found["links"]
        assert found["links"].count("127.0.0.1") == 2


@pytest.mark.slow
def test_a_node_that_does_not_come(examine, free_port):
    endpoint = f"127.0.0.1:{free_port}"
    found = examine("--nodes", "2", "--rdzv-endpoint", endpoint, "--node-rank", "0", "--timeout", "2", expect=1)
    assert "starting the workers" in found["workers"]["found"]
    assert found["rendezvous"]["status"] == "pass"
    assert "all-reduce" not in found


def test_the_nodes_of_a_slurm_job(slurm, tmp_path):
    script = f"#!/bin/bash\n{' '.join(DOCTOR)} --timeout 60\n"
    code, output = slurm.finish(slurm.submit(script, "--nodes=2", "--time=10", cwd=tmp_path))
    assert code == "0:0", output
    assert output.count("minetorch-doctor on") == 2
    assert output.count("gloo, 2 ranks: ") == 2
    assert output.count("each of 2 nodes reaches every other") == 2


@pytest.mark.slow
def test_a_network_interface_that_does_not_exist(examine):
    env = {"GLOO_SOCKET_IFNAME": "nosuch0"}
    found = examine("--nproc", "2", "--device", "cpu", "--timeout", "15", expect=1, env=env)
    assert "while creating the process group" in found["workers"]["found"]
    assert "nosuch0" in found["workers"]["found"]
    assert "GLOO_SOCKET_IFNAME" in found["workers"]["advice"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_doctor_that_is_stopped_leaves_no_process(launches, signum, code):
    doctor = launches.start("--nproc", "2", "--device", "cpu", command=DOCTOR, env={"TMPDIR": str(launches.folder)})
    end = time.monotonic() + 60
    while len(launches.processes()) < 3 and time.monotonic() < end:
        time.sleep(0.01)
    doctor.send_signal(signum)
    doctor.communicate(timeout=60)
    assert doctor.returncode == code
    assert launches.gone_within(30)


def test_the_table_of_minetorch_launch_doctor(launches):
    """Also where a folder of that name lies in the working directory."""
    (launches.folder / "doctor").mkdir()
    done = launches.run("doctor", "--device", "cuda", env={"CUDA_VISIBLE_DEVICES": "", "COLUMNS": "80"})
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("minetorch-doctor on ")
    assert "  FAIL  workers       the job failed while starting the workers" in done.stdout
    assert "--device cuda needs a GPU" in done.stdout.replace("\n" + " " * 22, " ")
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "failed" in done.stdout.splitlines()[-1]


def test_the_doctor_itself_imports_no_torch():
    code = "import sys; from minetorch_doctor import command; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train.py"], "leave out .*train.py"),
        (["--storage"], "--storage: expected one argument"),
        (["--storage="], "--storage needs a value"),
        *((["--timeout", text], "--timeout") for text in ("soon", "0", "nan", "inf", "9" * 5000)),
        (["--json=1"], "--json"),
        (["--nproc", "0"], "--nproc 0"),
        (["--sbatch"], "leave out --sbatch"),
        (["--zork"], "--zork"),
    ],
)
def test_usage_errors(words, said, capsys):
    assert command.main(words) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("minetorch-doctor: error: ")
    assert len(err) < 2000
    with pytest.raises(ValueError, match=said):
        command.parse(words)


def test_options_of_the_launcher_are_passed_on():
    words = "--nproc 3 --storage s3://b/x --threads=2 --timeout=5 --json --device cpu"
    options, print_json = command.parse(words.split())
    assert (options.storage, options.timeout, print_json) == ("s3://b/x", 5.0, True)
    assert options.words == ("--nproc=3", "--threads=2", "--device=cpu")
    assert (options.launch.nproc, options.launch.threads) == (3, 2)


def test_a_check_that_breaks_is_a_failure_and_the_others_go_on(monkeypatch):
    def broken(*_):
        raise OSError("no such luck")

    monkeypatch.setattr(machine, "check_open_files", broken)
    monkeypatch.setattr(selftest, "run_selftest", lambda *_: selftest.SelfTest(1, 2, "not today", ()))
    shown = []
    results = run_checks(DoctorOptions(LaunchOptions(device="cpu")), shown.append)
    assert shown == results
    assert [(result.check, result.status) for result in results[-2:]] == [("machine", "fail"), ("workers", "fail")]
    assert "no such luck" in results[-2].found


def test_results_for_people_and_for_programs():
    results = [Result("a", "pass", "fine"), Result("b", "warn", "so so " * 30, "do this " * 20)]
    assert all_ok(results)
    results.append(Result("c", "fail", "bad", "do"))
    assert not all_ok(results)
    row = as_row(results[1], 80)
    assert max(map(len, row.splitlines())) <= 80
    assert row.startswith("  warn  b             so so")
    assert "\n                      -> do this" in row
    assert summary(results) == "3 checks: 1 passed, 1 warned, 1 failed"
    told = json.loads(as_json("host", results))
    assert (told["host"], told["ok"], told["results"][2]["advice"]) == ("host", False, "do")


def test_versions():
    assert software.check_versions(software.read_versions()).status == "pass"
    old = software.check_versions({"torch": "2.1.0+cu121", "accelerate": "1.10.2"})
    assert (old.status, "'torch>=2.9'" in old.advice) == ("fail", True)
    none = software.check_versions({"torch": "2.13.0"})
    assert (none.status, none.advice) == ("warn", "type pip install 'accelerate>=1.10'")


NVIDIA = Driver("550.54", (12, 4), ("NVIDIA H100", "NVIDIA H100", "Tesla T4"))


@pytest.mark.parametrize(
    ("build", "driver", "device", "status", "said"),
    [
        ("12.4", NVIDIA, "auto", "pass", "2 x NVIDIA H100, 1 x Tesla T4; torch is built for CUDA 12.4"),
        ("12.8", NVIDIA, "auto", "warn", "may fail"),
        ("13.0", NVIDIA, "auto", "fail", "cannot run"),
        ("11.8", NVIDIA, "auto", "pass", "11.8"),
        (None, NVIDIA, "auto", "warn", "without CUDA"),
        (None, NVIDIA, "cuda", "fail", "without CUDA"),
        (None, NVIDIA, "cpu", "pass", "does not use it"),
        ("12.4", None, "cuda", "fail", "there is none"),
        ("12.4", None, "auto", "pass", "CPU"),
        ("", NVIDIA, "auto", "pass", "550.54"),
    ],
)
def test_torch_and_driver(build, driver, device, status, said):
    result = software.check_driver(build, driver, device)
    assert result.status == status
    assert said in result.found
    assert bool(result.advice) is (status != "pass")


@pytest.mark.parametrize(
    ("soft", "hard", "status"),
    [
        (65536, 65536, "pass"),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, "pass"),
        (1024, 1024, "warn"),
        (64, 128, "fail"),
    ],
)
def test_open_files(soft, hard, status):
    assert machine.check_open_files(soft, hard).status == status
    assert "ulimit -n 4096" in machine.check_open_files(1024, 524288).advice


@pytest.mark.parametrize(
    ("mib", "nproc", "status"), [(64, 1, "fail"), (100, 1, "warn"), (1024, 4, "pass"), (512, 8, "fail")]
)
def test_shared_memory(mib, nproc, status):
    result = machine.check_shared_memory(mib * MIB, mib * MIB, nproc)
    assert result.status == status
    assert ("docker run --shm-size=" in result.advice) is (status != "pass")


def test_memory():
    assert machine.check_memory(8 * GIB, None, 4, has_gpus=False).status == "pass"
    tight = machine.check_memory(20 * GIB, (6 * GIB, 16 * GIB), 4, has_gpus=True)
    assert (tight.status, "of the container's 16.0" in tight.found) == ("warn", True)
    assert "docker run --memory" in tight.advice
    assert machine.check_memory(2 * GIB, (6 * GIB, 16 * GIB), 4, has_gpus=True).status == "fail"
    assert machine.read_memory() > 0
    assert machine.read_memory(Path("/no/such")) is None


def test_the_tightest_control_group_counts(tmp_path):
    box = tmp_path / "pod" / "box"
    box.mkdir(parents=True)
    own = tmp_path / "cgroup"
    own.write_text("0::/pod/box\n")
    assert machine.read_container_memory(own, tmp_path) is None
    for group, limit, used in ((box.parent, 4 * GIB, 3 * GIB), (box, 2 * GIB, GIB // 2)):
        (group / "memory.max").write_text(f"{limit}\n")
        (group / "memory.current").write_text(f"{used}\n")
        (group / "memory.stat").write_text(f"anon 1\ninactive_file {256 * MIB}\n")
    assert machine.read_container_memory(own, tmp_path) == (GIB + 256 * MIB, 4 * GIB)
    (box.parent / "memory.max").write_text("max\n")
    assert machine.read_container_memory(own, tmp_path) == (GIB + 768 * MIB, 2 * GIB)
    assert machine.read_container_memory(tmp_path / "none", tmp_path) is None


def test_the_rendezvous_of_this_machine(free_port):
    endpoint = Endpoint("127.0.0.1", free_port)
    assert "its port is free" in network.check_rendezvous(endpoint, 0).found
    with socket.create_server(("127.0.0.1", free_port)):
        assert [network.check_rendezvous(endpoint, rank).status for rank in (0, None, 1)] == ["fail", "warn", "pass"]
    assert "no process listens there yet" in network.check_rendezvous(endpoint, 1).found


def test_a_rendezvous_host_without_an_address():
    result = network.check_rendezvous(Endpoint("no-such-host.invalid", 1234), 0)
    assert (result.status, "no-such-host.invalid" in result.found) == ("fail", True)


def test_links():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        assert selftest_worker.try_link("b", *server.getsockname()) is None
        problem = selftest_worker.try_link("c", *nobody.getsockname())
    assert problem.endswith("cannot connect to c at 127.0.0.1 (Connection refused)")
    broken = report(nodes=["a 10.0.0.1", "c 127.0.0.1"], broken_links=[problem])
    assert network.check_links(broken).status == "fail"
    assert problem in network.check_links(broken).found


def report(**changes):
    return selftest.WorkerReport(
        **{"local_rank": 0, "rank": 0, "world_size": 2, "latency": 1e-4, "large_seconds": 0.05, **changes}
    )


@pytest.mark.parametrize(
    ("code", "workers", "said"),
    [
        (None, [("running all-reduce", 0), ("creating the process group", 1)], "while creating the process group"),
        (1, [("running all-reduce", 0)], "while starting the workers"),
    ],
)
def test_how_far_a_job_came(code, workers, said):
    reports = tuple(report(stage=stage, rank=rank) for stage, rank in workers)
    assert said in selftest.check_workers(selftest.SelfTest(2, code, "it broke", reports)).found


def test_bandwidths():
    fast = selftest.check_all_reduce(report(world_size=4))
    assert fast.status == "pass"
    assert "1.34 GB/s for 64 MiB (algorithm bandwidth; bus bandwidth 2.01 GB/s)" in fast.found
    slow = {
        backend: selftest.check_all_reduce(report(large_seconds=2.0, backend=backend)) for backend in ("gloo", "nccl")
    }
    assert [result.status for result in slow.values()] == ["warn", "warn"]
    assert "NCCL_DEBUG" in slow["nccl"].advice
    assert "nothing to measure" in selftest.check_all_reduce(report(world_size=1)).found


def test_a_storage_that_cannot_be_written_to(tmp_path):
    result = storage.check_storage("/proc/no/such/place", 60, tmp_path)
    assert result.status == "fail"
    assert "/proc" in result.found


@pytest.mark.slow
def test_a_storage_that_does_not_answer(tmp_path, monkeypatch):
    """It accepts connections and says nothing: the check ends, and so does its process."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
        began = time.monotonic()
        result = storage.check_storage("s3://runs/x", 8, tmp_path)
    assert time.monotonic() - began < 60
    assert (result.status, result.found) == ("fail", "it did not answer within 8 s")


def test_what_a_probe_means():
    good = {"url": "s3://b/x", "seconds": {"write": 0.01}, "error": None, "exclusive": True, "left_behind": []}
    assert storage.read_probe(good).status == "pass"
    assert storage.read_probe({**good, "exclusive": False}).status == "warn"
    assert storage.read_probe({**good, "url": "memory://x"}).status == "warn"
    assert "s3://b/x/probe" in storage.read_probe({**good, "left_behind": ["s3://b/x/probe"]}).found
    assert storage.read_probe({**good, "error": "there is no such bucket"}).status == "fail"


@pytest.fixture
def free_port():
    """A port of 127.0.0.1 that was free a moment ago, and that the system gives to nobody by itself."""
    for port in range(29000 + os.getpid() % 500, 32000):
        with socket.socket() as tried:
            try:
                tried.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise AssertionError("no port is free")
