"""The doctor, on machines that are well and on such as are not: the ills are real wherever they can be made."""

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from minetorch_launch.arguments import parse
from minetorch_launch.devices import Driver
from minetorch_launch.doctor import cgroup, init, limits, network, rehearsal, software, storage, trial
from minetorch_launch.doctor.command import parse_doctor
from minetorch_launch.doctor.examination import launch_words, within
from minetorch_launch.doctor.finding import as_json, as_row, failed, is_well, passed, summary, warned
from minetorch_launch.doctor.rehearsal import Link, Node, Passing, Rehearsal, Worker
from minetorch_launch.errors import UsageError
from minetorch_launch.guard import Guard
from minetorch_launch.joining import Endpoint
from minetorch_launch.launcher import plan_launch
from minetorch_launch.plan import LaunchOptions
from minetorch_launch.target import Module

DOCTOR = (sys.executable, "-m", "minetorch_launch.doctor")
GIB = 1 << 30
MIB = 1 << 20


@pytest.fixture
def guard():
    with Guard() as guard:
        yield guard


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "own"
    made.mkdir()
    return made


@pytest.fixture
def examine(launches):
    """Runs the doctor; its findings by check, and that nothing of it is left."""
    temporary = Path(tempfile.mkdtemp(prefix="dr é-"))  # short: the launcher's socket must fit

    def examine(*words, expect, **start):
        env = {"TMPDIR": str(temporary), **start.pop("env", {})}
        result = launches.run("--json", *words, command=DOCTOR, env=env, **start)
        assert result.returncode == expect, result.stdout + result.stderr
        assert launches.gone_within(5)
        assert [*temporary.iterdir(), *launches.folder.iterdir()] == []
        told = json.loads(result.stdout)
        assert told["ok"] is (expect == 0)
        return {finding["check"]: finding for finding in told["findings"]}

    yield examine
    shutil.rmtree(temporary)


def test_a_machine_that_is_well(examine, tmp_path):
    found = examine("--nproc", "2", "--device", "cpu", "--storage", tmp_path / "not" / "yet", expect=0)
    assert {name for name, finding in found.items() if finding["status"] == "fail"} == set()
    assert {"torch", "cores", "open files", "shared memory", "host name", "memory", "process 1"} <= found.keys()
    for check in ("workers", "signals", "all-reduce", "passing on", "storage"):
        assert found[check]["status"] != "fail", found[check]
    assert found["all-reduce"]["figures"]["ranks"] == 2
    assert found["all-reduce"]["figures"]["latency_seconds"] > 0
    bandwidths = found["all-reduce"]["figures"]
    assert bandwidths["bus_bytes_per_second"] == pytest.approx(bandwidths["algorithm_bytes_per_second"])
    assert found["storage"]["figures"]["exclusive"] is True
    assert not (tmp_path / "not").exists()


@pytest.mark.slow
def test_two_nodes(launches, free_port):
    words = ("--json", "--device", "cpu", "--nproc", "1", "--nodes", "2", "--rdzv", f"127.0.0.1:{free_port}")
    doctors = [launches.start(*words, "--node-rank", rank, command=DOCTOR) for rank in (0, 1)]
    for doctor in doctors:
        out, err = doctor.communicate(timeout=150)
        assert doctor.returncode == 0, out + err
        found = {finding["check"]: finding for finding in json.loads(out)["findings"]}
        assert found["all-reduce"]["figures"]["ranks"] == 2
        assert "each of 2 nodes reaches every other" in found["links"]["found"]
        assert found["links"]["found"].count("127.0.0.1 (lo)") == 2
        assert abs(found["clocks"]["figures"]["skew_seconds"]) < 0.01
        assert found["rendezvous"]["status"] == "pass"


@pytest.mark.slow
def test_a_node_that_does_not_come(examine, free_port):
    rdzv = f"127.0.0.1:{free_port}"
    found = examine("--nodes", "2", "--rdzv", rdzv, "--node-rank", "0", "--timeout", "2", expect=1)
    assert found["workers"]["status"] == "fail"
    assert "starting the workers" in found["workers"]["found"]
    assert "all-reduce" not in found
    assert found["passing on"]["status"] == "pass"


def test_the_nodes_of_a_slurm_job(slurm, tmp_path):
    script = f"#!/bin/bash\n{' '.join(DOCTOR)} --timeout 60\n"
    code, output = slurm.finish(slurm.submit(script, "--nodes=2", "--time=10", cwd=tmp_path))
    assert code == "0:0", output
    assert output.count("minetorch-launch doctor on") == 2
    for node in (0, 1):
        assert f"node {node} of 2 (mt-node{node + 1})" in output
    assert output.count("gloo, 2 ranks: ") == 2
    assert output.count("each of 2 nodes reaches every other") == 2


@pytest.mark.slow
def test_signals_that_a_parent_has_blocked_or_ignored(examine):
    def spoil():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    found = examine("--nproc", "1", "--device", "cpu", expect=1, preexec_fn=spoil)
    assert found["signals"]["status"] == "fail"
    assert "SIGTERM is blocked, SIGINT is ignored" in found["signals"]["found"]
    assert found["passing on"]["status"] == "fail"
    assert "did not get SIGTERM" in found["passing on"]["found"]


@pytest.mark.slow
def test_a_group_that_cannot_be_made(examine):
    env = {"GLOO_SOCKET_IFNAME": "nosuch0"}
    found = examine("--nproc", "2", "--device", "cpu", "--timeout", "15", expect=1, env=env)
    assert "while making the process group" in found["workers"]["found"]
    assert "nosuch0" in found["workers"]["found"]
    assert "GLOO_SOCKET_IFNAME" in found["workers"]["advice"]
    assert found["signals"]["status"] == "pass"


def test_a_gpu_that_is_not_there(examine):
    found = examine("--device", "cuda", expect=1, env={"CUDA_VISIBLE_DEVICES": ""})
    assert found["plan"]["status"] == "fail"
    assert "--device cuda needs a GPU" in found["plan"]["found"]
    assert "workers" not in found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_doctor_that_is_stopped_leaves_no_process(launches, signum, code):
    doctor = launches.start("--nproc", "2", "--device", "cpu", command=DOCTOR)
    # Itself, the launcher, a guard each, the fork server, its resource tracker, two workers.
    assert _wait_until(lambda: len(launches.processes()) >= 8)
    doctor.send_signal(signum)
    doctor.communicate(timeout=60)
    assert doctor.returncode == code
    assert launches.gone_within(30)


def test_the_table(launches):
    result = launches.run("--device", "cuda", command=DOCTOR, env={"CUDA_VISIBLE_DEVICES": "", "COLUMNS": "80"})
    assert result.returncode == 1
    assert result.stdout.startswith("minetorch-launch doctor on ")
    assert "  FAIL  plan          --device cuda needs a GPU" in result.stdout
    assert "                      -> change the options as it says" in result.stdout
    assert max(map(len, result.stdout.splitlines()[:-1])) <= 120
    assert "failure" in result.stdout.splitlines()[-1]


def test_the_doctor_itself_imports_no_torch():
    code = "import sys; from minetorch_launch.doctor import main; main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train.py"], "nothing to run here"),
        (["--storage"], "--storage needs a value"),
        (["--timeout", "soon"], "--timeout 'soon' is no number"),
        (["--timeout=0"], "--timeout '0' is no number"),
        (["--nproc", "0"], "--nproc 0 is too small"),
        (["--zork"], "unknown option --zork"),
    ],
)
def test_usage_errors(words, said):
    with pytest.raises(UsageError, match=said):
        parse_doctor(words)


def test_a_launchs_own_options_are_taken_over():
    words = (
        "--nproc 3 --nodes 2:4 --rdzv localhost:1234 --node-rank=1 --threads 2 --storage s3://b/x --timeout=5 --json"
    )
    wanted, own = parse_doctor([*words.split(), "--device", "cpu"])
    assert (wanted.storage, wanted.seconds, "--json" in own) == ("s3://b/x", 5.0, True)
    plan = plan_launch(Module("minetorch_launch.doctor.trial"), wanted.launch)
    options, _ = parse(launch_words(plan, 5.0))
    assert (options.nproc, options.device, options.threads) == (3, "cpu", 2)
    assert (options.nodes, options.rdzv, options.node_rank) == ((2, 4), "localhost:1234", 1)
    assert (options.run_id, options.join_timeout) == (f"doctor-{plan.run_id}", 5.0)
    alone = plan_launch(Module("minetorch_launch.doctor.trial"), LaunchOptions(device="cpu"))
    assert not {"--nodes", "--rdzv", "--node-rank"} & set(launch_words(alone, 5.0))


def test_a_check_that_hangs_or_breaks_is_a_failure():
    release = threading.Event()
    began = time.monotonic()
    (hung,) = within(0.2, "names", lambda: [passed("names", str(release.wait(60)))])
    assert time.monotonic() - began < 10
    release.set()
    assert (hung.check, hung.status) == ("names", "fail")
    assert "no answer within 0.2 s" in hung.found
    (broken,) = within(5, "shm", lambda: [limits.assess_shared_memory(limits.read_capacity(Path("/no/such")), 1)])
    assert (broken.check, broken.status) == ("shm", "fail")
    assert "/no/such" in broken.found


def test_findings_in_words_and_for_programs():
    findings = [
        passed("a", "fine"),
        warned("b", "so so " * 30, "do this " * 20, size_bytes=3),
        failed("c", "bad", "do"),
    ]
    row = as_row(findings[1], 80)
    assert max(map(len, row.splitlines())) <= 80
    assert row.startswith("  warn  b             so so")
    assert "\n                      -> do this" in row
    assert summary(findings) == "3 checks: 1 passed, 1 warning, 1 failure"
    told = json.loads(as_json("host", findings))
    assert told["ok"] is is_well(findings) is False
    assert told["findings"][1]["figures"] == {"size_bytes": 3}
    assert is_well(findings[:2])


# What the machine offers


def test_versions():
    here = software.assess_versions(software.read_versions())
    assert [finding.status for finding in here] == ["pass", "pass", "pass"]
    old = software.assess_versions(software.Versions("3.9.2", "2.1.0+cu121", "0.9"))
    assert [finding.status for finding in old] == ["fail", "fail", "warn"]
    none = software.assess_versions(software.Versions("3.12.0", None, None))
    assert [finding.status for finding in none] == ["pass", "fail", "warn"]
    assert "pip install torch" in none[1].advice


NVIDIA = Driver("550.54", (12, 4), ("NVIDIA H100", "NVIDIA H100", "Tesla T4"))


@pytest.mark.parametrize(
    ("build", "driver", "device", "status", "said"),
    [
        ("12.4", NVIDIA, "auto", "pass", "2 x NVIDIA H100, 1 x Tesla T4; torch is built for CUDA 12.4"),
        ("12.1", NVIDIA, "cuda", "pass", "12.1"),
        ("12.8", NVIDIA, "auto", "warn", "may fail"),
        ("13.0", NVIDIA, "auto", "fail", "cannot run"),
        ("11.8", NVIDIA, "auto", "pass", "11.8"),
        (None, NVIDIA, "auto", "warn", "without CUDA"),
        (None, NVIDIA, "cuda", "fail", "without CUDA"),
        (None, NVIDIA, "cpu", "pass", "not used"),
        ("12.4", None, "cuda", "fail", "none was found"),
        ("12.4", None, "auto", "pass", "CPU"),
        ("", NVIDIA, "auto", "pass", "550.54"),
    ],
)
def test_torch_and_driver(build, driver, device, status, said):
    finding = software.assess_driver(build, driver, device)
    assert finding.status == status
    assert said in finding.found


NVML = """
#include <string.h>
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned n) { strncpy(text, "560.35.03", n); return 0; }
int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = 12060; return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) { *handle = (void *)(long)(index + 1); return 0; }
int nvmlDeviceGetName(void *handle, char *text, unsigned n) { strncpy(text, "NVIDIA X", n); return 0; }
int nvmlDeviceGetUUID(void *handle, char *text, unsigned n)
{ strncpy(text, handle == (void *)1 ? "GPU-a" : "GPU-b", n); return 0; }
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler to stand in for NVIDIA's library")
def test_nvml_is_asked_without_a_context(tmp_path):
    (tmp_path / "nvml.c").write_text(NVML)
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "nvml.c"], check=True)
    code = "from minetorch_launch import devices; print(devices.find_driver(), devices._nvml_uuids())"
    env = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    shown = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    driver = Driver("560.35.03", (12, 6), ("NVIDIA X", "NVIDIA X"))
    assert shown == f"{driver} ['GPU-a', 'GPU-b']\n"


@pytest.mark.parametrize(
    ("soft", "hard", "status", "said"),
    [
        (65536, 65536, "pass", ""),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, "pass", ""),
        (1024, 524288, "warn", "ulimit -n 4096"),
        (64, 1024, "fail", "ulimit -n 1024"),
    ],
)
def test_open_files(soft, hard, status, said):
    finding = limits.assess_open_files(soft, hard)
    assert finding.status == status
    assert said in finding.advice


def test_processes_and_locked_memory():
    assert limits.assess_processes(None, 8).status == "pass"
    assert [limits.assess_processes(left, 4).status for left in (300, 100, 60)] == ["pass", "warn", "fail"]
    assert limits.assess_locked_memory(65536, rdma=False) is None
    assert limits.assess_locked_memory(8 * MIB, rdma=True).status == "fail"
    assert limits.assess_locked_memory(resource.RLIM_INFINITY, rdma=True).status == "pass"
    assert limits.count_threads(os.getuid()) >= threading.active_count()
    assert not limits.has_rdma(Path("/no/such"))


@pytest.mark.parametrize(
    ("mib", "nproc", "status"), [(64, 1, "fail"), (100, 1, "warn"), (1024, 4, "pass"), (512, 8, "fail")]
)
def test_shared_memory(mib, nproc, status):
    finding = limits.assess_shared_memory(limits.Capacity(mib * MIB, mib * MIB), nproc)
    assert finding.status == status
    assert bool(finding.advice) is (status != "pass")
    if status != "pass":
        assert "docker run --shm-size=" in finding.advice


def test_shared_memory_as_small_as_dockers(examine, in_namespace):
    finding = in_namespace(
        "--mount",
        shell="mount -t tmpfs -o size=64m tmpfs /dev/shm",
        code="from pathlib import Path\nfrom minetorch_launch.doctor import limits\n"
        "print(limits.assess_shared_memory(limits.read_capacity(Path('/dev/shm')), 2).found)",
    )
    assert finding.startswith("64 MiB free of 64 in /dev/shm: DataLoader workers of 2 ranks may die")


@pytest.mark.slow
def test_a_temporary_folder_whose_path_is_too_long(examine, tmp_path):
    assert limits.assess_temporary("/tmp", GIB).status == "pass"
    assert limits.assess_temporary("/tmp", MIB).status == "warn"
    long = tmp_path / ("x" * 100)
    long.mkdir()
    found = examine("--device", "cpu", "--nproc", "1", expect=1, env={"TMPDIR": str(long)})
    assert found["temporary"]["status"] == "fail"
    assert "set TMPDIR to a shorter path" in found["temporary"]["advice"]
    assert list(long.iterdir()) == []


def test_memory_and_cores():
    assert limits.assess_memory(8 * GIB, None, 300 * MIB, 4).status == "pass"
    tight = limits.assess_memory(1 * GIB, 2 * GIB, 200 * MIB, 4)
    assert tight.status == "warn"
    assert "of the container's 2.0" in tight.found
    assert "docker run --memory" in tight.advice
    assert limits.assess_memory(GIB // 2, 2 * GIB, 200 * MIB, 4).status == "fail"
    assert limits.available_memory() > 0
    assert limits.available_memory(Path("/no/such")) is None
    assert limits.assess_cores(8, None, 4).status == "pass"
    assert "--threads 1" in limits.assess_cores(64, 4.0, 4).advice
    assert limits.assess_cores(2, None, 4).status == "warn"


CGROUP_2 = "0::/pod/box\n"
MOUNTS_2 = "31 23 0:28 / {root} rw,relatime - cgroup2 cgroup2 rw\n"


@pytest.fixture
def groups(tmp_path):
    """Control groups of version 2, as files."""
    proc, root = tmp_path / "proc", tmp_path / "sys"
    box = root / "pod" / "box"
    box.mkdir(parents=True)
    proc.mkdir()
    (proc / "cgroup").write_text(CGROUP_2)
    (proc / "mountinfo").write_text(MOUNTS_2.format(root=root))
    return proc, root / "pod", box


def test_the_tightest_control_group_counts(groups):
    proc, pod, box = groups
    for group, limit, used in ((pod, 4 * GIB, 3 * GIB), (box, 2 * GIB, GIB // 2)):
        (group / "memory.max").write_text(f"{limit}\n")
        (group / "memory.current").write_text(f"{used}\n")
        (group / "memory.stat").write_text(f"anon 1\ninactive_file {256 * MIB}\n")
    (pod / "cpu.max").write_text("150000 100000\n")
    (box / "cpu.max").write_text("max 100000\n")
    (pod / "pids.max").write_text("100\n")
    (pod / "pids.current").write_text("60\n")
    assert cgroup.read_limits(proc) == cgroup.Limits(
        memory_limit=4 * GIB, memory_left=GIB + 256 * MIB, cores=1.5, processes_left=40
    )


def test_no_control_groups_set_no_limit(groups, tmp_path):
    proc, _, box = groups
    (box / "memory.max").write_text("max\n")
    assert cgroup.read_limits(proc) == cgroup.Limits() == cgroup.read_limits(tmp_path / "none")


def test_a_real_control_group():
    kinds = {"memory": {"memory.limit_in_bytes": GIB}, "cpu": {"cpu.cfs_quota_us": 150000}}
    made = []
    try:
        for kind, settings in kinds.items():
            group = Path("/sys/fs/cgroup") / kind / f"minetorch-test-{os.getpid()}"
            try:
                group.mkdir()
            except OSError as error:
                pytest.skip(f"control groups of version 1 cannot be made here: {error}")
            made.append(group)
            for name, value in settings.items():
                (group / name).write_text(str(value))
        enter = "".join(f"open({str(group / 'cgroup.procs')!r}, 'w').write(str(os.getpid()));" for group in made)
        code = f"import os; {enter} from minetorch_launch.doctor.cgroup import read_limits; print(read_limits())"
        shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    finally:
        for group in made:
            group.rmdir()
    assert f"memory_limit={GIB}" in shown
    assert "cores=1.5" in shown


def test_process_1():
    assert init.assess_init(init.Init("systemd", is_self=False, is_ancestor=True)).status == "pass"
    assert init.assess_init(init.Init("sh", is_self=False, is_ancestor=False)).status == "pass"
    assert init.assess_init(init.Init("bash", is_self=False, is_ancestor=True)).status == "warn"
    assert init.assess_init(init.Init("python", is_self=True, is_ancestor=True)).status == "warn"


def test_process_1_of_a_container(in_namespace):
    code = "from minetorch_launch.doctor.init import read_init\nprint(read_init())"
    assert "is_self=True" in in_namespace("--pid", "--fork", "--mount-proc", code=code, execute=True)
    shown = in_namespace("--pid", "--fork", "--mount-proc", shell="true", code=code)
    assert "name='sh', is_self=False, is_ancestor=True" in shown


# The network


def test_a_taken_port(free_port):
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", free_port))
        taken.listen()
        finding = network.examine_rendezvous(Endpoint("127.0.0.1", free_port), 0, (1, 2))
        assert finding.status == "fail"
        assert f"cannot open port {free_port}" in finding.found
        assert "--rdzv HOST:PORT" in finding.advice
        assert network.examine_rendezvous(Endpoint("127.0.0.1", free_port), None, (1, 2)).status == "warn"
        answered = network.examine_rendezvous(Endpoint("127.0.0.1", free_port), 1, (1, 2))
        assert (answered.status, answered.found) == ("pass", f"127.0.0.1:{free_port} answers")


def test_a_port_that_the_system_gives_away(free_port):
    finding = network.examine_rendezvous(Endpoint("127.0.0.1", free_port), 0, (free_port - 10, free_port + 10))
    assert finding.status == "warn"
    assert "--rdzv 127.0.0.1:" in finding.advice


def test_a_rendezvous_host_that_nobody_knows():
    finding = network.examine_rendezvous(Endpoint("no-such-host.invalid", 1234), 0, (1, 2))
    assert finding.status == "fail"
    assert "no-such-host.invalid" in finding.found
    assert "/etc/hosts" in finding.advice


def test_own_name():
    real = network.read_own_name()
    assert real.host == socket.gethostname()
    trap = network.OwnName("box", ("127.0.1.1",))
    assert network.assess_own_name(trap, many_nodes=False, interface_known=False).status == "pass"
    assert network.assess_own_name(trap, many_nodes=True, interface_known=True).status == "pass"
    caught = network.assess_own_name(trap, many_nodes=True, interface_known=False)
    assert (caught.status, "GLOO_SOCKET_IFNAME" in caught.advice) == ("warn", True)
    unknown = network.assess_own_name(network.OwnName("box", (), "Name or service not known"), True, True)
    assert (unknown.status, "/etc/hosts" in unknown.advice) == ("warn", True)
    assert network.knows_interface(Endpoint("127.0.0.1", 1), {})
    assert network.knows_interface(Endpoint("no-such-host.invalid", 1), {"GLOO_SOCKET_IFNAME": "eth0"})
    assert not network.knows_interface(Endpoint("no-such-host.invalid", 1), {})


def test_local_ports():
    assert network.assess_port_range(network.read_port_range(), 2, 1).figures["count"] > 0
    assert network.assess_port_range((32768, 60999), 8, 16).status == "pass"
    assert network.assess_port_range((50000, 50100), 8, 2).status == "warn"


def test_links_and_clocks():
    """Against a real peer whose clock is half a minute ahead, and one that is not there."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=trial.answer, args=(server, lambda: time.time_ns() + 30 * 10**9), daemon=True)
        thread.start()
        ahead = Link(**trial.connect(1, "127.0.0.1", server.getsockname()[1]))
        broken = Link(**trial.connect(2, "127.0.0.1", nobody.getsockname()[1]))
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)
    assert ahead.offset == pytest.approx(30, abs=0.1)
    assert 0 < ahead.round_trip < 5
    assert "refused" in broken.error
    nodes = (
        Node("a", "10.0.0.1", "eth0", (ahead, broken)),
        Node("b", "10.0.0.2", "eth0", (Link(0, "", 1e-4, -30.0), Link(2, "", 1e-4))),
        Node("c", "10.0.0.3", None, (Link(0, "", 1e-4), Link(1, "", 1e-4))),
    )
    links, clocks = network.assess_links(nodes), network.assess_clocks(nodes)
    assert links.status == "fail"
    assert "a cannot connect to c at 10.0.0.3 (Connection refused)" in links.found
    assert clocks.status == "warn"
    assert clocks.figures["skew_seconds"] == pytest.approx(30, abs=0.1)
    assert network.assess_links((nodes[1],) * 3).status == "pass"
    assert network.assess_clocks((Node("a", "x", None, (Link(0, "gone"),)),)) is None


# What the workers tell


def worker(**changes):
    values = {
        "host": "h",
        "rank": 0,
        "world_size": 2,
        "stage": "done",
        "signals": {"SIGTERM": "ok", "SIGINT": "ok", "SIGUSR2": "ok"},
        "device": {"kind": "cpu", "threads": 4},
        "nodes": (),
        "all_reduce": {"tiny_seconds": 1e-4, "large_seconds": 0.05, "large_bytes": 64 * MIB},
        "private_bytes": 30 * MIB,
    }
    return Worker(**{**values, **changes})


def test_how_far_a_launch_came():
    gpu = {"kind": "cuda", "name": "H100", "capability": [9, 0], "free_bytes": 70 * GIB, "total_bytes": 80 * GIB}
    well = rehearsal.assess_workers(Rehearsal(2, "cuda", 0, "", (worker(device=gpu), worker(device=gpu))))
    assert well.status == "pass"
    assert "2 x H100 (capability 9.0, 70 of 80 GiB free)" in well.found
    hung = (worker(stage="all-reduce"), worker(rank=1, stage="making the process group"))
    slowest = rehearsal.assess_workers(Rehearsal(2, "cuda", None, "not over after 60 s", hung))
    assert "while making the process group: not over after 60 s" in slowest.found
    first = rehearsal.assess_workers(Rehearsal(2, "cuda", 1, "rank 0 …", hung[:1], failed_rank=0))
    assert "while summing over all ranks: rank 0 …" in first.found
    silent = Rehearsal(2, "cpu", 2, "no such thing", (worker(),))
    assert "while starting the workers: no such thing" in rehearsal.assess_workers(silent).found


def test_bandwidths():
    four = worker(world_size=4)
    fast = rehearsal.assess_all_reduce(Rehearsal(4, "cpu", 0, "", (four,)))
    assert fast.status == "pass"
    assert fast.figures["algorithm_bytes_per_second"] == pytest.approx(64 * MIB / 0.05)
    assert fast.figures["bus_bytes_per_second"] == pytest.approx(1.5 * 64 * MIB / 0.05)
    slow = worker(all_reduce={"tiny_seconds": 1e-4, "large_seconds": 2.0, "large_bytes": 64 * MIB})
    assert rehearsal.assess_all_reduce(Rehearsal(2, "cpu", 0, "", (slow,))).status == "warn"
    assert "NCCL_DEBUG" in rehearsal.assess_all_reduce(Rehearsal(2, "cuda", 0, "", (slow,))).advice
    alone = rehearsal.assess_all_reduce(Rehearsal(1, "cpu", 0, "", (worker(world_size=1),)))
    assert "nothing to measure" in alone.found
    assert rehearsal.assess_all_reduce(Rehearsal(1, "cpu", 1, "", (worker(all_reduce={}),))) is None


def test_signals_of_workers():
    background = worker(signals={"SIGTERM": "ok", "SIGINT": "ignored", "SIGUSR2": "ok"})
    assert rehearsal.assess_signals([worker(), background]).status == "warn"
    deaf = worker(signals={"SIGTERM": "ignored", "SIGINT": "ok", "SIGUSR2": "ok"})
    assert rehearsal.assess_signals([worker(), deaf]).status == "fail"
    assert rehearsal.assess_signals([worker(signals={})]) is None
    assert rehearsal.assess_passing(Passing({"SIGUSR2": 0.01, "SIGTERM": 0.1}, ("SIGUSR2", "SIGTERM"))).status == "pass"
    assert rehearsal.assess_passing(Passing({}, (), "no luck")).status == "fail"


# Storage


def test_a_storage_that_cannot_be_written_to(guard, folder):
    finding = storage.probe_storage("/proc/no/such/place", 60, folder, guard)
    assert finding.status == "fail"
    assert "/proc" in finding.found
    assert finding.advice


@pytest.mark.slow
def test_a_storage_that_does_not_answer(guard, folder, monkeypatch):
    """It takes connections and says nothing: the check ends, and so does its process."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
        began = time.monotonic()
        finding = storage.probe_storage("s3://runs/x", 8, folder, guard)
    assert time.monotonic() - began < 60
    assert finding.status == "fail"
    assert "s3://runs/x did not answer within 8 s" in finding.found


def test_what_a_probe_means():
    good = {
        "url": "s3://b/x",
        "seconds": {"write": 0.01, "read": 0.02},
        "error": None,
        "exclusive": True,
        "exclusive_error": None,
        "left_behind": [],
    }
    assert storage.assess_storage("s3://b/x", good).status == "pass"
    twice = storage.assess_storage("s3://b/x", {**good, "exclusive": False})
    assert (twice.status, "two writers" in twice.found) == ("warn", True)
    assert storage.assess_storage("memory://x", {**good, "url": "memory://x"}).status == "warn"
    left = storage.assess_storage("s3://b/x", {**good, "left_behind": ["s3://b/x/probe"]})
    assert (left.status, "s3://b/x/probe" in left.found) == ("fail", True)
    lost = storage.assess_storage("s3://b", {**good, "error": "cannot list s3://b: there is no such bucket"})
    assert (lost.status, "make the bucket" in lost.advice) == ("fail", True)
    assert storage.without_secrets("s3://me:secret@host/b?sig=secret") == "s3://host/b"
    assert storage.without_secrets("/a?b@c") == "/a?b@c"


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


@pytest.fixture
def in_namespace():
    """Runs Python code in namespaces of its own, after a shell command or, with ``execute``, as their first process."""

    def in_namespace(*kinds, code, shell="true", execute=False):
        run = f'{"exec " if execute else ""}{sys.executable} -c "$CODE"'
        result = subprocess.run(
            ["unshare", *kinds, "sh", "-c", f"{shell} && {run}{'' if execute else ' ; exit $?'}"],
            env={**os.environ, "CODE": code},
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode and any(word in result.stderr for word in ("unshare:", "mount:")):
            pytest.skip(f"namespaces cannot be made here: {result.stderr.strip()}")
        assert result.returncode == 0, result.stderr
        return result.stdout

    return in_namespace


def _wait_until(is_so, seconds=60):
    end = time.monotonic() + seconds
    while not is_so() and time.monotonic() < end:
        time.sleep(0.02)
    return is_so()
