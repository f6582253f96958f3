"""The launcher in a SLURM batch script or ``salloc`` shell: starts one launcher per node with ``srun``, and waits.

Signals, as measured on SLURM 22.05:

===================================  =============================================================================
preemption, ``--signal``             SLURM signals the tasks and all they have started; nothing reaches us or srun
requeue, scancel, time limit         SLURM signals the tasks, and all of the batch step as well: us and srun, too
a signal to this process alone       passed on to the step's tasks: SIGUSR1 and SIGUSR2 by srun, others by scancel
===================================  =============================================================================

That is why a job of one node also gets its ``srun``: without a step, a preempted job hears of it when its grace
is over. And that is why nothing is passed on while SLURM is ending the job: the tasks would have it twice.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

from minetorch_launch import launcher
from minetorch_launch.errors import EXIT_STOPPED_EARLY, StartError, StoppedEarlyError
from minetorch_launch.slurm import commands, sbatch
from minetorch_launch.slurm.job import BatchWord, srun_command, srun_environ

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from minetorch_launch.plan import LaunchOptions
    from minetorch_launch.slurm.job import SlurmJob
    from minetorch_launch.target import Module, Script

__all__ = ["command_for", "has_srun", "run", "run_in_job"]

_PASSED_BY_SRUN = frozenset({signal.SIGUSR1, signal.SIGUSR2})
_PASSED_BY_SCANCEL = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
# Its tasks' Python would die of this one, which goes to all processes of a step.
_NOT_PASSED = frozenset({signal.SIGQUIT})
_WAKE_SECONDS = 1.0
_PR_SET_PDEATHSIG = 1


def has_srun() -> bool:
    """Whether launchers can be started on the nodes at all; there may be no SLURM in a container."""
    return shutil.which("srun") is not None


def run_in_job(
    argv: Sequence[str],
    target: Script | Module,
    options: LaunchOptions,
    *,
    dry_run: bool,
    say: Callable[[str], None],
) -> int:
    """Do what the command line ``argv`` asks for, in a SLURM job: start launchers on its nodes, or be one of them.

    Raises:
        LaunchError: as :func:`minetorch_launch.launcher.launch`.
    """
    job = commands.find_job(os.environ)
    if job is not None and job.place != "task":
        command = sbatch.launcher_command(argv)
        if not has_srun():
            say("minetorch-launch: no srun here: this node works alone, and hears of a preemption only at its end")
            job = job.on_this_node()
        elif dry_run:
            sys.stdout.write(f"step        {shlex.join(command_for(job, options, command))}\n")
        else:
            return run(job, options, command, environ=os.environ, say=say)
    if dry_run:
        sys.stdout.write(launcher.plan_launch(target, options, job).text() + "\n")
        return 0
    try:
        launcher.launch(target, options, own_process=True, job=job)
    except StoppedEarlyError:
        if job is not None:
            commands.requeue_own(job, os.environ, say)
        raise
    return 0


def command_for(job: SlurmJob, options: LaunchOptions, agent: Sequence[str]) -> list[str]:
    """What :func:`run` starts.

    Raises:
        UsageError: more nodes are asked for than there are.
    """
    return srun_command(job, options, agent, name=f"minetorch-{os.getpid()}")


def run(
    job: SlurmJob,
    options: LaunchOptions,
    agent: Sequence[str],
    *,
    environ: Mapping[str, str],
    say: Callable[[str], None],
) -> int:
    """Start ``agent`` on each node and see it through; requeue the job if its work was stopped early.

    Args:
        job: seen from the batch script or an interactive shell.
        options: the user's.
        agent: the command of each node's launcher.
        environ: this process's environment.
        say: shows a line to the user.

    Returns:
        The exit code: the highest of all launchers', as srun gives it.

    Raises:
        UsageError: before anything is started.
        StartError: srun cannot be started.
    """
    command = command_for(job, options, agent)
    address = commands.find_address(job.hosts[0]) if len(job.hosts) > 1 and options.rdzv is None else None
    word = BatchWord(workers=job.workers, address=address, times=commands.find_times(job))
    step = _Step(job, command, srun_environ(environ, word), say)
    code = step.see_through()
    if code == EXIT_STOPPED_EARLY and (step.stopped_by is None or commands.is_out_of_time(commands.show_job(job))):
        commands.requeue(job, say)
    return code


class _Step:
    """One ``srun``, from its start to its end.

    Attributes:
        stopped_by: the first stop signal that came to us: whoever sent it does not want the job to go on.
    """

    def __init__(
        self, job: SlurmJob, command: Sequence[str], environ: Mapping[str, str], say: Callable[[str], None]
    ) -> None:
        self._job, self._command, self._environ, self._say = job, command, environ, say
        self.stopped_by: int | None = None

    def see_through(self) -> int:
        """Start it, pass signals on until it has ended, and return its exit code as a shell gives it."""
        ours = [s for s in _PASSED_BY_SRUN | _PASSED_BY_SCANCEL | _NOT_PASSED if _is_wanted(s)]
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [*ours, signal.SIGCHLD])
        try:
            process = self._start(before)
            while process.poll() is None:
                # With a timeout, because a SIGCHLD whose handling somebody has set to "ignore" never comes.
                came = signal.sigtimedwait([*ours, signal.SIGCHLD], _WAKE_SECONDS)
                if came is not None and came.si_signo != signal.SIGCHLD and process.poll() is None:
                    self._pass_on(signal.Signals(came.si_signo), process)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return process.returncode if process.returncode >= 0 else 128 - process.returncode

    def _start(self, mask: set[signal.Signals | int]) -> subprocess.Popen[bytes]:
        libc = ctypes.CDLL(None)

        def prepare() -> None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)  # srun then ends its tasks

        try:
            return subprocess.Popen(
                self._command,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a terminal's Ctrl-C comes to us alone; srun would ask for another one
                preexec_fn=prepare,
            )
        except OSError as error:
            raise StartError(f"cannot start srun ({error.strerror}): is SLURM whole on this node?") from None

    def _pass_on(self, signum: signal.Signals, process: subprocess.Popen[bytes]) -> None:
        if signum in _PASSED_BY_SRUN:
            process.send_signal(signum)
        elif signum in _NOT_PASSED:
            self._say("minetorch-launch: SIGQUIT is for the launcher on a node: send it there for a roll call")
        else:
            self.stopped_by = self.stopped_by or signum
            if commands.show_job(self._job).get("JobState", "RUNNING") == "RUNNING":
                self._cancel(signum, process)

    def _cancel(self, signum: signal.Signals, process: subprocess.Popen[bytes]) -> None:
        """Signal the step's tasks; if that cannot be done, have srun end them."""
        step = self._find_step()
        if step is None or commands.ask("scancel", f"--signal={signum.name[3:]}", step) is None:
            process.terminate()

    def _find_step(self) -> str | None:
        name = next(word.partition("=")[2] for word in self._command if word.startswith("--job-name="))
        shown = commands.ask("squeue", "--noheader", "--steps", f"--jobs={self._job.id}", "--format=%i|%j") or ""
        return next((line.split("|")[0].strip() for line in shown.splitlines() if line.endswith(f"|{name}")), None)


def _is_wanted(signum: signal.Signals) -> bool:
    """Whoever started us with a signal ignored (nohup, a script's "&") wants it ignored, unless it ends nothing."""
    return signum in _NOT_PASSED or signal.getsignal(signum) is not signal.SIG_IGN
