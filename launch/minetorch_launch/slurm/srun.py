"""The launcher in a SLURM batch script or ``salloc`` shell: starts one launcher per node with ``srun``, and waits.

Signals, as measured on SLURM 22.05:

===================================  =============================================================================
preemption, ``--signal``             SLURM signals the tasks and all that they started; not us, and not srun
requeue, scancel, time limit         SLURM signals the tasks, and all of the batch step as well: us and srun, too
a signal to this process alone       passed on to the step's tasks: SIGUSR1 and SIGUSR2 by srun, others by scancel
===================================  =============================================================================

So a job of one node also gets an ``srun``: without a step, it hears of a preemption only when its grace time is
over. And nothing is passed on while SLURM ends the job: the tasks would get it twice.
"""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from minetorch_launch.errors import JoinError, StartError, StoppedEarlyError
from minetorch_launch.exit_codes import EXIT_STOPPED_EARLY, shell_code
from minetorch_launch.options import LaunchOptions
from minetorch_launch.slurm import cli_tools
from minetorch_launch.slurm.environment import BATCH_VARIABLE, BatchHandoff, SlurmJob
from minetorch_launch.slurm.options import choose_nodes

LAUNCHER = (sys.executable, "-m", "minetorch_launch")
"""The command of a launcher: this one's Python needs nothing from PATH."""

MAX_JOIN_REQUEUES = 10
"""A job that SLURM has restarted so often is not requeued because its nodes do not meet."""

_PASSED_BY_SRUN = frozenset({signal.SIGUSR1, signal.SIGUSR2})
_PASSED_BY_SCANCEL = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
_NOT_PASSED = frozenset({signal.SIGQUIT})  # it goes to all processes of a step, and most would die of it
_WAKE_SECONDS = 1.0
_FIRST_NODE_SECONDS = 5.0
_PR_SET_PDEATHSIG = 1

# Describe the tasks that the user asked for, or those of another step; our step has one task per node.
_NOT_FOR_SRUN = (
    r"SLURM_(NTASKS|NPROCS|TASKS|CPUS_PER_(TASK|GPU)|GPUS_PER_TASK|GPU_BIND|GPU_FREQ|TRES_(PER_TASK|BIND)"
    r"|CPU_BIND|MEM_BIND|DISTRIBUTION|EXACT|EXCLUSIVE|WHOLE|OVERLAP|KILL_BAD_EXIT|WAIT|LABELIO|STD\w+MODE|UNBUFFEREDIO"
    r"|MULTI_PROG|NNODES|JOB_NUM_NODES|STEP|PROCID|LOCALID|NODEID|GTIDS|SRUN|LAUNCH_NODE|TASK_PID)\w*|SRUN_CPUS_PER_TASK"
)


def has_srun() -> bool:
    """Whether launchers can be started on the nodes; a container may lack SLURM's commands."""
    return shutil.which("srun") is not None


def run_in_job(
    argv: Sequence[str],
    options: LaunchOptions,
    launch: Callable[[SlurmJob | None], int],
    *,
    dry_run: bool,
    say: Callable[[str], None],
) -> int:
    """Do what the command line ``argv`` asks for in a SLURM job: start launchers on its nodes, or be one of them.

    ``launch`` launches in this process, as part of the given job, and returns the exit code; with ``dry_run`` it only
    prints the plan.

    Raises:
        LaunchError: as ``launch``, or before anything is started.
    """
    job = cli_tools.find_job(os.environ)
    if job is not None and job.kind != "task":
        if not has_srun():
            say("minetorch-launch: there is no srun here: this node works alone, and gets no preemption warning")
            job = job.on_this_node()
        elif not dry_run:
            return run_on_nodes(job, options, [*LAUNCHER, *argv], environ=os.environ, say=say)
        else:
            sys.stdout.write(f"step        {shlex.join(srun_command(job, options, [*LAUNCHER, *argv]))}\n")
    if job is None or dry_run:
        return launch(job)
    try:
        return launch(job)
    except StoppedEarlyError:
        if job.batch is None and job.node == 0:  # the launcher in the batch step requeues for those that it started
            cli_tools.requeue(job, say)
        raise
    except JoinError as error:
        if not error.job_can_be_requeued or job.restarts >= MAX_JOIN_REQUEUES:
            raise
        say(f"minetorch-launch: {error}")
        _requeue_incomplete(job, say)
        return EXIT_STOPPED_EARLY


def run_on_nodes(
    job: SlurmJob,
    options: LaunchOptions,
    command: Sequence[str],
    *,
    environ: Mapping[str, str],
    say: Callable[[str], None],
) -> int:
    """Start ``command`` on each node, wait for its end, and requeue the job if its work was stopped early.

    Returns:
        The exit code: the highest of all launchers, as srun gives it.

    Raises:
        UsageError: before anything is started.
        StartError: srun cannot be started.
    """
    words = srun_command(job, options, command)
    is_local = choose_nodes(options, len(job.hosts))[1] == 1 or options.rdzv_endpoint is not None
    address = "" if is_local else cli_tools.find_address(job.hosts[0])
    handoff = BatchHandoff(job.workers, address, cli_tools.find_times(job, time.time()))
    code, stopped_by = _run_step(job, words, srun_environ(environ, handoff), say)
    # A stop signal to this process means that the user does not want the job any more, or that its time is up.
    is_wanted = stopped_by is None or cli_tools.is_out_of_time(cli_tools.show_job(job))
    if code == EXIT_STOPPED_EARLY and is_wanted:
        cli_tools.requeue(job, say)
    return code


def srun_command(job: SlurmJob, options: LaunchOptions, command: Sequence[str]) -> list[str]:
    """The command that starts one launcher per node.

    Raises:
        UsageError: the user asks for more nodes than the job has.
    """
    nodes = choose_nodes(options, len(job.hosts))[1]
    words = ["srun", f"--job-name={_step_name()}", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
    if job.cpus_per_node:  # srun does not take it from sbatch since 22.05; one number stands for all nodes
        words.append(f"--cpus-per-task={min(job.cpus_per_node)}")
    if len(set(job.cpus_per_node)) != 1:  # binding would leave cores of the larger nodes unused
        words.append("--cpu-bind=none")
    if job.gpus and job.gpus_per_task:  # the step would get those of one task; else it gets all GPUs of the job
        kind, colon, _ = job.gpus_per_task.rpartition(":")
        words.append(f"--gpus-per-node={kind}{colon}{job.gpus}")
    # The other launchers learn from one another how one of them ended: srun must not kill them for it.
    return [*words, "--export=ALL", "--kill-on-bad-exit=0", "--wait=0", *command]


def srun_environ(environ: Mapping[str, str], handoff: BatchHandoff) -> dict[str, str]:
    """The environment for srun: without what the user asked for its tasks, with the handoff to the launchers."""
    kept = {name: value for name, value in environ.items() if not re.fullmatch(_NOT_FOR_SRUN, name)}
    return {**kept, BATCH_VARIABLE: handoff.text()}


def _requeue_incomplete(job: SlurmJob, say: Callable[[str], None]) -> None:
    """Requeue a job whose nodes did not meet, from one of its tasks.

    After a cut link, SLURM may kill a launcher of the next run without telling srun, which then never ends: so
    this cannot wait for the batch step. The first node requeues; another one only if the first is missing.
    """
    if job.node > 0:
        time.sleep(_FIRST_NODE_SECONDS)
        if cli_tools.show_job(job).get("JobState") != "RUNNING":
            return
    cli_tools.requeue(job, say)


def _run_step(
    job: SlurmJob, command: Sequence[str], environ: Mapping[str, str], say: Callable[[str], None]
) -> tuple[int, signal.Signals | None]:
    """Run srun, and pass signals on until it ends.

    Returns:
        Its exit code as a shell gives it, and the first stop signal that came to this process.
    """
    stopped_by: signal.Signals | None = None
    taken = [signum for signum in _PASSED_BY_SRUN | _PASSED_BY_SCANCEL | _NOT_PASSED if _is_taken(signum)]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [*taken, signal.SIGCHLD])
    try:
        process = _start_srun(command, environ, before)
        while process.poll() is None:
            # With a timeout, since SIGCHLD never comes where a parent has set it to "ignore".
            came = signal.sigtimedwait([*taken, signal.SIGCHLD], _WAKE_SECONDS)
            if came is None or came.si_signo == signal.SIGCHLD or process.poll() is not None:
                continue
            signum = signal.Signals(came.si_signo)
            if signum in _PASSED_BY_SRUN:
                process.send_signal(signum)
            elif signum in _NOT_PASSED:
                say("minetorch-launch: for a stack summary, send SIGQUIT to the launcher on one of the nodes")
            else:
                stopped_by = stopped_by or signum
                if cli_tools.show_job(job).get("JobState", "RUNNING") == "RUNNING":
                    _signal_tasks(job, signum, process)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return shell_code(process.returncode), stopped_by


def _start_srun(
    command: Sequence[str], environ: Mapping[str, str], mask: set[signal.Signals | int]
) -> subprocess.Popen[bytes]:
    libc = ctypes.CDLL(None)

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)  # srun then ends its tasks

    try:
        # In a session of its own: a terminal's Ctrl-C comes to this process alone; srun would ask for a second one.
        return subprocess.Popen(
            command, env=environ, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=prepare
        )
    except OSError as error:
        raise StartError(f"cannot start srun ({error.strerror}): check SLURM's installation on this node") from None


def _signal_tasks(job: SlurmJob, signum: signal.Signals, process: subprocess.Popen[bytes]) -> None:
    """Signal the step's tasks; if that is not possible, have srun end them."""
    steps = cli_tools.ask("squeue", "--noheader", "--steps", f"--jobs={job.id}", "--format=%i|%j") or ""
    ours = [line.split("|")[0].strip() for line in steps.splitlines() if line.endswith(f"|{_step_name()}")]
    if not ours or cli_tools.ask("scancel", f"--signal={signum.name[3:]}", ours[0]) is None:
        process.terminate()


def _step_name() -> str:
    return f"minetorch-{os.getpid()}"


def _is_taken(signum: signal.Signals) -> bool:
    """A parent that ignores a signal (nohup, "&" in a script) wants it ignored here; SIGQUIT ends nothing anyway."""
    return signum in _NOT_PASSED or signal.getsignal(signum) is not signal.SIG_IGN
