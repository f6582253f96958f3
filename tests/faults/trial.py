"""Runs one cell in a sealed room: launches, has the fault come, sees to the recovery, and judges all of it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.faults import room
from tests.faults.cells import GRACE_S, HANG_S, SAVING, SIGNALS, Cell, Expected, Outcome, expected
from tests.faults.launches import HERE, ROOT, Launch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.fakes.flaky_s3 import Proxy

_REACHED_S = 90.0
_END_S = 120.0
_BLACK_OUT_S = 6.0
_OUTAGE_S = 100.0
_DISK = "16m"
_ADDRESSES = "10.254.254.1", "10.254.254.2"
_PORT = 29400
_GROUPS = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
_GROUP_BYTES = 1 << 28


@dataclass
class Verdict:
    """What came of a cell."""

    cell: str
    problems: list[str] = field(default_factory=list)
    """What was not as it must be; none if it has passed."""

    outcome: str = ""
    noticed_s: float | None = None
    """From the fault to the launcher's words about it, or to its end."""

    took_s: float = 0.0
    """The whole trial."""

    text: str = ""
    """What the launches said, if there are problems."""

    result: dict[str, str] = field(default_factory=dict)
    """Digests of all that the finished run holds."""


def run_sealed(cell: Cell | None, baseline: Mapping[str, str] | None, timeout: float = 1200.0) -> Verdict:
    """Run a cell, or without one an uninterrupted training, in a room of its own.

    Args:
        cell: what is to happen; None: nothing.
        baseline: the result of the uninterrupted training; None to compare with nothing.
        timeout: seconds after which it counts as failed, with everything in the room gone.
    """
    name, began = str(cell or "no fault"), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fault é ") as folder:
        words = [sys.executable, "-m", "tests.faults.trial", name, folder, json.dumps(dict(baseline or {}))]
        with subprocess.Popen(
            room.sealed(words), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                out, err = process.communicate()
                err += f"\nnot over after {timeout:g} s"
        try:
            verdict = Verdict(**json.loads(out.splitlines()[-1]))
        except (ValueError, IndexError, TypeError):
            verdict = Verdict(name, [f"the trial itself failed: {err.strip()[-2000:]}"], text=out[-4000:])
    verdict.took_s = time.monotonic() - began
    return verdict


class Trial:
    """One cell, from within its room."""

    epochs = 3

    def __init__(self, cell: Cell | None, folder: Path, baseline: Mapping[str, str]) -> None:
        self.cell, self.folder, self.baseline = cell, folder, baseline
        self.expected = expected(cell) if cell is not None else Expected(("goes on",))
        self.verdict = Verdict(str(cell or "no fault"))
        self.slack = slack()
        self.notes, self.scratch, self.runs = folder / "notes", folder / "tmp", folder / "runs"
        for made in (self.notes, self.scratch, self.runs):
            made.mkdir()
        self.place: str = str(self.runs)
        self.ports: set[int] = set()
        self.launches: list[Launch] = []
        self.group = self.folder
        self._variable = f"FAULT_TRIAL={uuid.uuid4().hex}"
        self._proxy: Proxy | None = None
        self._more: dict[str, str] = {}

    def run(self) -> Verdict:
        """Do all of it."""
        room.furnish()
        with ExitStack() as stack:
            stack.callback(lambda: [launch.close() for launch in self.launches])
            self._prepare(stack)
            if self.cell is not None and self.cell.nodes == 2:
                Machines(self).run()
            else:
                self._run_on_one()
            self._compare()
        if self.verdict.problems:
            self.verdict.text = self.told()
        return self.verdict

    def _prepare(self, stack: ExitStack) -> None:
        cell = self.cell
        if cell is None:
            return
        if cell.storage == "disk":
            room.run("mount", "-t", "tmpfs", "-o", f"size={_DISK}", "none", str(self.runs))
        if cell.storage == "s3":
            self._proxy = stack.enter_context(self._s3())
        if cell.fault == "out of memory":
            self.group = stack.enter_context(small_group())
        if cell.fault == "clock set back":
            self._more["PYTHONPATH"] = str(HERE / "clock")
            if cell.victim == "launcher":
                self._more["FAULT_CLOCK"] = str(self.notes / "clock")

    @contextmanager
    def _s3(self) -> Iterator[Proxy]:
        from tests.fakes.flaky_s3 import Proxy
        from tests.fakes.s3_server import serving

        (self.folder / "s3").mkdir()
        with serving(self.folder / "s3") as server, Proxy(server.url) as proxy:
            client = server.client()
            client.create_bucket(Bucket="runs")
            client.close()
            self._more = {**server.environ, "AWS_ENDPOINT_URL": proxy.url}
            self.place = "s3://runs/here"
            self.ports = room.listening()
            thread = threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True)
            thread.start()
            yield proxy
            proxy.shutdown()
            thread.join()

    # One machine.

    def _run_on_one(self) -> None:
        launch = self.start(["--nproc", 2, "--max-restarts", self.cell.max_restarts if self.cell else 2])
        struck = self.await_strike(launch)
        code = launch.end(_END_S * self.slack)
        ended = time.monotonic()
        self.check_left()
        if struck is None:
            self.blame(f"the fault did not come; the launch ended with {code}")
        elif code is None:
            self.blame("the launch did not end")
            launch.close()
        else:
            self._judge(launch, code, struck, ended)
        if not (self.notes / "result.json").exists():
            self._recover()

    def _judge(self, launch: Launch, code: int, struck: float, ended: float) -> None:
        want, verdict = self.expected, self.verdict
        verdict.outcome = _outcome(code, "restart 1 of" in launch.text)
        if verdict.outcome not in want.outcomes:
            self.blame(f"it {verdict.outcome} with {code}, and must be: {' or '.join(want.outcomes)}")
            return
        if verdict.outcome in ("ends", "stops", "dies") and want.exit_code and code != want.exit_code:
            self.blame(f"the exit code is {code}, and must be {want.exit_code}")
        noticed = launch.find(r"rank \d+( of \d+)? failed", after=struck) if verdict.outcome != "stops" else None
        if verdict.outcome == "goes on":
            if noticed is not None:
                self.blame(f"a failure was reported: {noticed[1]}")
            return
        verdict.noticed_s = (noticed[0] if noticed else ended) - struck
        if verdict.noticed_s > want.within_s * self.slack:
            self.blame(f"noticed after {verdict.noticed_s:.1f} s, and must be within {want.within_s * self.slack:g} s")
        if verdict.outcome in ("restarts", "ends"):
            who = r"\d+" if want.rank is None else str(want.rank)
            pattern = rf"rank {who}( of \d+)? failed( first)?: .*{want.says}"
            if noticed is None or not re.search(pattern, noticed[1]):
                self.blame(f"wrong blame, not {pattern!r}: {noticed and noticed[1]}")

    def _recover(self) -> None:
        """The same command again, as a user or a batch system gives it, must finish the run."""
        self.relieve()
        newest = self._newest()
        launch = self.start(["--nproc", 2, "--max-restarts", 0])
        code = launch.end(_END_S * self.slack)
        if code != 0:
            self.blame(f"the next launch ended with {code}")
            launch.close()
        if newest and f"{newest}.pth.tar" not in (launch.find("Resumed from") or (0, ""))[1]:
            self.blame(f"the next launch did not go on from {newest}")
        self.check_left()

    def _newest(self) -> str:
        """The newest committed checkpoint in a folder."""
        return max((path.stem for path in self.runs.glob("default/models/g*.json")), default="")

    # What both kinds of trial need.

    def start(self, options: list[object], inside: tuple[str, ...] = (), token: str = "") -> Launch:
        """Start a launcher."""
        cell = self.cell
        fault = {
            "fault": cell.fault if cell else "",
            "victim": cell.victim if cell else "",
            "phase": cell.phase if cell else "",
            "witness": _witness(cell) if cell else 0,
            "inside": _is_inside(cell) if cell else False,
            "notes": str(self.notes),
            "group": str(self.group),
            "epochs": self.epochs,
        }
        name, _, value = self._variable.partition("=")
        environ = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "MINETORCH_"))}
        environ.update(self._more, FAULT=json.dumps(fault), TMPDIR=str(self.scratch), OMP_NUM_THREADS="1")
        environ[name] = value
        common = [
            "--device",
            "cpu",
            "--grace",
            GRACE_S,
            "--hang-timeout",
            self._hang_s(),
            "--preload",
            "minetorch.trainer",
        ]
        if self.cell is not None and self.cell.victim == "launcher":
            common += ["--log-dir", self.folder / "logs"]
        words = [*options, *common, HERE / "training.py", self.place]
        launch = Launch(words, environ, self.folder, inside, token or self._variable)
        self.launches.append(launch)
        return launch

    def _hang_s(self) -> float:
        """A storage that is away is asked again for a minute, in which the training may wait for it."""
        outage = _OUTAGE_S if self.cell is not None and self.cell.storage != "folder" else 0.0
        return max(HANG_S * min(self.slack, 3.0), outage)

    def await_strike(self, *launches: Launch) -> float | None:
        """Wait until the fault has come, and do it where it comes from outside. When it came; None: it did not."""
        if self.cell is None:
            return time.monotonic()
        end = time.monotonic() + _REACHED_S * self.slack
        while time.monotonic() < end and any(launch.process.poll() is None for launch in launches):
            if (self.notes / "moment").exists() and not _is_inside(self.cell) and not (self.notes / "struck").exists():
                self.strike(launches[0])
            if (self.notes / "struck").exists():
                break
            time.sleep(0.005)
        if not (self.notes / "struck").exists():
            return None
        if self.cell.fault == "SIGTERM ignored":
            self._wait_for(self.notes / "deaf")
            launches[0].process.terminate()
            return time.monotonic()
        return self.struck_at()

    def struck_at(self) -> float:
        """When the fault came."""
        return float((self.notes / "struck").read_text() or time.monotonic())

    def _wait_for(self, path: Path) -> None:
        end = time.monotonic() + 30
        while not path.exists() and time.monotonic() < end:
            time.sleep(0.005)

    def strike(self, launch: Launch) -> None:
        """The fault, from outside, on one machine."""
        assert self.cell is not None
        fault, victim = self.cell.fault, self.cell.victim
        struck = self.notes / "struck"
        if fault in SIGNALS:
            pid = launch.process.pid if victim == "launcher" else launch.fork_servers()[0]
            _mark(struck)
            os.kill(pid, signal.Signals[fault])
            if fault == "SIGSTOP":
                threading.Thread(target=self._wake, args=(pid,), daemon=True).start()
            return
        if fault == "clock set back":
            (self.notes / "clock").touch()
        elif fault == "full disk":
            _fill(self.runs / "filler")
            threading.Thread(target=self._free, args=(launch,), daemon=True).start()
        elif fault == "read-only disk":
            room.run("mount", "--bind", str(self.runs), str(self.runs))
            room.run("mount", "-o", "remount,bind,ro", str(self.runs))
        else:
            self._spoil(fault)
        _mark(struck)

    def _wake(self, pid: int) -> None:
        """A stopped process goes on, once the training is over or some time has passed."""
        end = time.monotonic() + 3 * HANG_S * self.slack
        while not (self.notes / "result.json").exists() and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(1)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    def _free(self, launch: Launch) -> None:
        launch.wait_for("Trying again", _REACHED_S, count=2)
        (self.runs / "filler").unlink()

    def _spoil(self, fault: str) -> None:
        from tests.fakes.flaky_s3 import Rule

        assert self._proxy is not None
        if fault == "S3 black-out":
            self._proxy.dark_until = time.monotonic() + _BLACK_OUT_S
        elif fault == "S3 truncated":
            self._proxy.rules = [Rule("truncate", "^PUT .*(pth.tar|json)", count=2)]
        else:
            count = 8 if fault == "S3 slow" else 6
            self._proxy.rules = [Rule(fault.removeprefix("S3 "), ".", count=count, seconds=2.0)]

    def relieve(self) -> None:
        """A disk is good again."""
        if self.cell is not None and self.cell.fault == "read-only disk":
            room.run("umount", str(self.runs), check=False)

    def check_left(self) -> None:
        """Of what has ended nothing may be left."""
        self.verdict.problems += room.left_over(variable=self._variable, ports=self.ports, scratch=self.scratch)

    def _compare(self) -> None:
        path = self.notes / "result.json"
        if not path.exists():
            self.blame("the run was not finished")
            return
        self.verdict.result = json.loads(path.read_text())
        for name, value in self.baseline.items():
            if self.verdict.result[name] != value:
                self.blame(f"{name} is not that of an uninterrupted run")
        for launch in self.launches:
            if found := launch.find("is damaged|digest does not match|not used:"):
                self.blame(f"a checkpoint is not whole: {found[1]}")

    def told(self) -> str:
        """What the launches have said and when, and when the fault came."""
        struck = self.notes / "struck"
        parts = [f"struck at {self.struck_at():.2f}" if struck.exists() else "not struck"]
        for launch in self.launches:
            parts += [f"===== {launch.process.args}", *(f"{at:.2f} {line}" for at, line in launch.lines)]
            parts.append(f"===== exit code {launch.process.returncode}")
        return "\n".join(parts)[-20000:]

    def blame(self, problem: str) -> None:
        """Note what is not as it must be."""
        self.verdict.problems.append(problem)


class Machines:
    """A trial on two machines, each with its memory, with a link between them: the first keeps the rendezvous."""

    def __init__(self, trial: Trial) -> None:
        assert trial.cell is not None
        self.trial, self.cell = trial, trial.cell
        self.names = ["a", "b"]
        self.victim = 0 if self.cell.victim == "rendezvous host" else 1
        for name in self.names:
            room.run("ip", "netns", "add", name)
        a, b = self.names
        room.run("ip", "-n", a, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", b)
        for address, name in zip(_ADDRESSES, self.names, strict=True):
            room.run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            room.run("ip", "-n", name, "link", "set", "lo", "up")
        self._set_link("up")

    def _set_link(self, state: str) -> None:
        for name in self.names:
            room.run("ip", "-n", name, "link", "set", "eth0", state)

    def _start(self, node: int, rdzv: str = f"{_ADDRESSES[0]}:{_PORT}") -> Launch:
        words = ["--nodes", 2, "--nproc", 1, "--rdzv-endpoint", rdzv, "--node-rank", node, "--join-timeout", 90]
        memory = ("sh", "-c", 'mount -t tmpfs none /dev/shm && mount -t tmpfs none "$TMPDIR" && exec "$@"', "sh")
        inside = ("ip", "netns", "exec", self.names[node], *memory)
        return self.trial.start([*words, "--max-restarts", 2], inside, f"FAULT_NODE={node}")

    def run(self) -> None:
        """Lose a machine or its link, and have it back."""
        trial = self.trial
        if self.cell.phase == "rendezvous":
            self._lose_while_meeting()
        else:
            nodes = [self._start(node) for node in (0, 1)]
            if self._await_strike(nodes) is None:
                trial.blame("the fault did not come")
            self._come_back(nodes)
        trial.check_left()

    def _lose_while_meeting(self) -> None:
        """The machine goes while it waits for the other; then both start."""
        trial, lost = self.trial, self._start(self.victim)
        if self.victim == 0:
            self._wait_until_it_listens()
        else:
            time.sleep(2)  # it tries to connect, of which nothing tells
        _mark(trial.notes / "struck")
        struck = time.monotonic()
        self._lose(lost)
        code = lost.end(20)
        self._set_link("up")
        trial.verdict.outcome = "dies"
        trial.verdict.noticed_s = time.monotonic() - struck
        if code != trial.expected.exit_code:
            trial.blame(f"the launcher ended with {code}, and must with {trial.expected.exit_code}")
        trial.check_left()
        self._finish([self._start(node) for node in (0, 1)])

    def _wait_until_it_listens(self) -> None:
        end = time.monotonic() + 30
        while time.monotonic() < end:
            if f":{_PORT}" in room.run("ip", "netns", "exec", self.names[0], "ss", "-ltn"):
                return
            time.sleep(0.05)
        self.trial.blame("the rendezvous host does not listen")

    def _await_strike(self, nodes: list[Launch]) -> float | None:
        trial = self.trial
        end = time.monotonic() + _REACHED_S * trial.slack
        while not (trial.notes / "moment").exists():
            if time.monotonic() > end or all(node.process.poll() is not None for node in nodes):
                return None
            time.sleep(0.005)
        self._lose(nodes[self.victim])
        _mark(trial.notes / "struck")
        return trial.struck_at()

    def _lose(self, node: Launch) -> None:
        """What befalls the machine."""
        fault = self.cell.fault
        if fault == "cut link":
            self._set_link("down")
        elif fault == "SIGSTOP":
            node.signal_all(signal.SIGSTOP)
        elif fault == "SIGKILL":  # all at once, and without a farewell over the network
            self._set_link("down")
            node.signal_all(signal.SIGKILL)
        else:
            pids = [pid for pid, text in node.processes().items() if "minetorch_launch --nodes" in text]
            os.kill(min(pids), signal.Signals[fault])

    def _come_back(self, nodes: list[Launch]) -> None:
        trial, struck = self.trial, time.monotonic()
        lost, other = nodes[self.victim], nodes[1 - self.victim]
        noticed = self._wait_for_notice(other, struck)
        if noticed is not None:
            trial.verdict.noticed_s = noticed - struck
        elif other.process.poll() is None:
            trial.blame(f"the other machine noticed nothing within {trial.expected.within_s:g} s")
        if self.cell.fault in ("SIGKILL", "cut link"):
            self._set_link("up")
        if self.cell.fault == "SIGSTOP":
            lost.signal_all(signal.SIGCONT)
        if self.cell.fault not in ("SIGSTOP", "cut link"):
            if lost.end(20) is None:
                trial.blame("the lost machine's launcher did not end")
            nodes[self.victim] = self._start(self.victim, **self._where(other))
        self._finish(nodes)
        trial.verdict.outcome = "rejoins"

    def _wait_for_notice(self, other: Launch, struck: float) -> float | None:
        pattern = r"minetorch-launch: .*(is lost|failed|received SIG|restart together)"
        end = struck + self.trial.expected.within_s * self.trial.slack
        while time.monotonic() < end and other.process.poll() is None:
            if found := other.find(pattern, after=struck):
                return found[0]
            time.sleep(0.02)
        return (other.find(pattern, after=struck) or (None, ""))[0]

    def _where(self, other: Launch) -> dict[str, Any]:
        """Where a machine that comes back finds the others."""
        if self.victim == 0 and other.wait_for(r"hosts the rendezvous now", 30):
            found = other.find("hosts the rendezvous now")
            assert found is not None
            return {"rdzv": found[1].split("--rdzv-endpoint ")[1].split()[0]}
        return {}

    def _finish(self, nodes: list[Launch]) -> None:
        """Wait for the end; a job that has ended as a whole is started anew, as a batch system does."""
        trial = self.trial
        codes = [node.end(_END_S * trial.slack) for node in nodes]
        if (trial.notes / "result.json").exists():
            if any(codes):
                trial.blame(f"the launchers ended with {codes}")
            return
        trial.blame(f"the job was not finished: the launchers ended with {codes}")
        for node in nodes:
            node.close()
        again = [self._start(node) for node in (0, 1)]
        if any(codes := [node.end(_END_S * trial.slack) for node in again]):
            trial.blame(f"nor when it was started anew: {codes}")


def slack() -> float:
    """By how much longer everything may take, where others keep this machine's cores busy: 1 to 6 times."""
    return min(max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)), 6.0)


def _outcome(code: int, has_restarted: bool) -> Outcome:
    if code == 0:
        return "restarts" if has_restarted else "goes on"
    return "dies" if code < 0 else "stops" if code == 143 else "ends"


def _witness(cell: Cell) -> int:
    """The rank at whose phase it strikes: rank 0 alone saves."""
    return 0 if cell.phase in SAVING else cell.rank


def _is_inside(cell: Cell) -> bool:
    """Whether a process of the script's strikes itself, or its own."""
    is_own_storage = cell.storage == "folder"
    return is_own_storage and cell.victim in ("rank 0", "rank 1", "loader worker")


def _mark(path: Path) -> None:
    path.with_suffix(".tmp").write_text(repr(time.monotonic()))
    path.with_suffix(".tmp").replace(path)


def _fill(path: Path) -> None:
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


@contextmanager
def small_group() -> Iterator[Path]:
    """A control group with little memory, in which the kernel kills."""
    own = next(group for group in _GROUPS if group.exists())
    group = own / f"minetorch-fault-{uuid.uuid4().hex[:8]}"
    group.mkdir()
    try:
        limit = next(group / name for name in ("memory.limit_in_bytes", "memory.max") if (group / name).exists())
        limit.write_text(str(_GROUP_BYTES))
        yield group
    finally:
        end = time.monotonic() + 10
        while group.exists() and time.monotonic() < end:
            with suppress(OSError):  # the last process is still on its way out
                group.rmdir()
            time.sleep(0.02)


def main() -> None:
    """From within the room: cell, folder, baseline."""
    name, folder, baseline = sys.argv[1:]
    cell = None if name == "no fault" else Cell.parse(name)
    socket.setdefaulttimeout(60)
    verdict = Trial(cell, Path(folder), json.loads(baseline)).run()
    print(json.dumps(asdict(verdict)), flush=True)


if __name__ == "__main__":
    main()
