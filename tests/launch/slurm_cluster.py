"""A real SLURM on this machine: its own ports, key, sockets and folder, and gone afterwards.

Partition "main" has two nodes, "urgent" has the same and preempts it, and "apart" has a third for itself.

The nodes have names that nothing resolves and addresses of their own on the loopback interface, as on a
cluster whose SLURM knows its nodes better than its name servers do.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from contextlib import suppress
from pathlib import Path

COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue")
NODES = ("mt-node1", "mt-node2", "mt-node3")
CPUS = 4

CONF = """
ClusterName=minetorch
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
# launchers meet where their job's number says, and clusters of other test sessions have the same addresses
FirstJobId={first_job}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# cred_expire is also how long a requeued job waits: 120 s if left out
AuthInfo=socket={folder}/munge.sock,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmctldDebug=debug
SlurmdDebug=debug
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
GresTypes=gpu
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
InactiveLimit=0
KillWait=10
MinJobAge=600
GetEnvTimeout=5
# a root without CAP_SYS_RESOURCE may not raise limits
PropagateResourceLimits=NONE
# a job of "urgent" preempts one of "main": SIGCONT and SIGTERM, and GraceTime later SIGKILL and a requeue
PartitionName=main Nodes={nodes[0]},{nodes[1]} Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=urgent Nodes={nodes[0]},{nodes[1]} PriorityTier=10 PreemptMode=OFF
PartitionName=apart Nodes={nodes[2]} PriorityTier=1 PreemptMode=OFF
"""


def missing() -> str | None:
    """Why no cluster can be had here, None if one can."""
    if os.geteuid() != 0:
        return "a SLURM cluster of one's own needs root"
    absent = [command for command in COMMANDS if _which(command) is None]
    return f"no {', '.join(absent)}: install slurm-wlm and munge (scripts/setup-slurm)" if absent else None


class Cluster:
    """Nodes that run the jobs of this test session.

    Attributes:
        environ: in which SLURM's commands find it.
        folder: its files; nothing of it is elsewhere.
    """

    def __init__(self, environ: dict[str, str]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mt-slurm-"))
        name, value = "MINETORCH_TEST_CLUSTER", uuid.uuid4().hex
        self.environ = {**environ, "SLURM_CONF": str(self.folder / "slurm.conf"), name: value}
        self._token = f"{name}={value}"
        self._daemons: list[subprocess.Popen[bytes]] = []

    @classmethod
    def start(cls, environ: dict[str, str]) -> "Cluster":
        """Bring one up; the commands of its jobs find ``environ``."""
        cluster = cls(environ)
        try:
            cluster._write_files()
            cluster._start_daemons()
        except BaseException:
            cluster.close()
            raise
        return cluster

    def run(self, *command: object, check: bool = True, timeout: float = 60, **options: object) -> str:
        """Output of one of SLURM's commands, or of any other that is to find this cluster."""
        done = subprocess.run(
            [*map(str, command)],
            env=self.environ,
            stdin=None if "input" in options else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            **options,
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}"
        return done.stdout

    def submit(self, script: str | Path, *options: object, args: tuple[object, ...] = (), cwd: Path) -> str:
        """Give a batch script, or the file of one with arguments, to SLURM; returns the job's id.

        Its output goes to ``out-JOBID.txt`` in ``cwd``.
        """
        words = ("sbatch", "--parsable", f"--output={cwd}/out-%A.txt", "--open-mode=append", *options)
        if isinstance(script, Path):
            return self.run(*words, script, *args, cwd=cwd).strip()
        return self.run(*words, cwd=cwd, input=script).strip()

    def show(self, job: str) -> dict[str, str]:
        """What ``scontrol show job`` says of one job."""
        text = self.run("scontrol", "--oneliner", "show", "job", job)
        return dict(re.findall(r"(\S+?)=(.*?)(?= +[\w:/]+=|\s*$)", text, re.MULTILINE))

    def wait_for(self, job: str, *states: str, timeout: float = 120) -> dict[str, str]:
        """Wait until ``job`` is in one of ``states``."""
        end = time.monotonic() + timeout
        while (shown := self.show(job))["JobState"] not in states:
            assert time.monotonic() < end, f"{shown['JobState']} after {timeout} s, not {states}: {self.explain(job)}"
            time.sleep(0.1)
        return shown

    def finish(self, job: str) -> tuple[str, str]:
        """Wait for the end of ``job``: its exit code, as ``CODE:SIGNAL``, and what it wrote."""
        shown = self.wait_for(job, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        return shown["ExitCode"], Path(shown["StdOut"]).read_text()

    def explain(self, job: str) -> str:
        """What there is to see of a job that does not behave."""
        output = Path(self.show(job).get("StdOut", "none"))
        return f"{output.read_text() if output.exists() else 'no output'}\n{self.logs()}"

    def processes(self, mark: str | None = None) -> dict[int, str]:
        """Command lines of all that live and came from this cluster, or of those with ``mark`` in their environment."""
        found = {}
        for entry in Path("/proc").iterdir():
            with suppress(OSError, IndexError):
                environ = (entry / "environ").read_bytes().split(b"\0") if entry.name.isdecimal() else []
                if not {self._token.encode(), (mark or self._token).encode()} <= {*environ}:
                    continue
                if (entry / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                    found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
        return found

    def job_processes(self, job: str) -> dict[int, str]:
        """The same for what one job has started, SLURM's own left out."""
        return {pid: line for pid, line in self.processes(f"SLURM_JOB_ID={job}").items() if "slurmstepd" not in line}

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        return "\n".join(f"{path.name}:\n{path.read_text()[-2000:]}" for path in self.folder.glob("*.log"))

    def close(self) -> None:
        """End all jobs and daemons, and remove the folder."""
        if self._daemons:
            self.run("scancel", "--signal=KILL", "--full", "--user=root", check=False)
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for daemon in self._daemons:
            daemon.wait(timeout=10)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write_files(self) -> None:
        host = socket.gethostname().split(".")[0]
        ports = _free_ports(1 + len(NODES))
        conf = CONF.format(folder=self.folder, host=host, port=ports[0], first_job=100 * ports[0], nodes=NODES)
        for number, (node, port) in enumerate(zip(NODES, ports[1:], strict=True), start=2):
            conf += (
                f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.{number} Port={port} "
                f"CPUs={CPUS} Gres=gpu:2 RealMemory=2000\n"
            )
        (self.folder / "slurm.conf").write_text(conf)
        # slurmd does not start without a cgroup plugin that loads, though none is used
        (self.folder / "cgroup.conf").write_text(f"CgroupPlugin=cgroup/v1\nCgroupMountpoint={self.folder}/cgroup\n")
        # GPUs that SLURM hands out and shows in variables; the devices are others
        (self.folder / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
        (self.folder / "state").mkdir()
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))

    def _start_daemons(self) -> None:
        files = {"key-file": "munge.key", "socket": "munge.sock", "pid-file": "munged.pid", "log-file": "munged.log"}
        paths = [f"--{option}={self.folder / name}" for option, name in {**files, "seed-file": "munge.seed"}.items()]
        self._daemon("munged", "--foreground", "--force", *paths)
        _wait_until(lambda: (self.folder / "munge.sock").exists(), 10, self.logs)
        self._daemon("slurmctld", "-D", "-c")
        for node in NODES:
            self._daemon("slurmd", "-D", "-N", node)
        idle = ("sinfo", "--noheader", "--Node", "--partition=main,apart", "--format=%T")
        _wait_until(lambda: self.run(*idle, check=False).split() == ["idle"] * len(NODES), 30, self.logs)

    def _daemon(self, *command: str) -> None:
        with open(self.folder / "daemons.log", "ab") as log:
            process = subprocess.Popen(
                # a killed test run takes them along
                ["setpriv", "--pdeathsig", "KILL", _which(command[0]) or command[0], *command[1:]],
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._daemons.append(process)


def _which(command: str) -> str | None:
    return shutil.which(command, path=os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"]))


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [server.getsockname()[1] for server in sockets]
    finally:
        for server in sockets:
            server.close()


def _wait_until(is_so, seconds: float, explain) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, explain()
        time.sleep(0.05)
