"""What the launcher reads off a SLURM job, and what it makes of it: no SLURM is needed for that."""

import dataclasses
import os
import shlex
import signal
import subprocess
import sys
import time
from unittest import mock

import pytest

from minetorch_launch import arguments
from minetorch_launch.errors import JoinError, StoppedEarlyError, UsageError
from minetorch_launch.options import LaunchOptions
from minetorch_launch.slurm import cli_tools, srun
from minetorch_launch.slurm.environment import (
    BATCH_VARIABLE,
    BatchHandoff,
    JobTimes,
    SlurmJob,
    expand_counts,
    expand_hosts,
    parse_duration,
)
from minetorch_launch.slurm.options import fill_in, make_deadline
from minetorch_launch.slurm.sbatch import batch_script, run
from minetorch_launch.slurm.srun import srun_command, srun_environ

BATCH = {
    "SLURM_JOB_ID": "77",
    "SLURM_JOB_NODELIST": "gpu[07-08]",
    "SLURMD_NODENAME": "gpu07",
    "SLURM_NODEID": "0",
    "SLURM_JOB_CPUS_PER_NODE": "8,6",
    "SLURM_CPUS_ON_NODE": "8",
    "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_CPUS_PER_TASK": "2",
}
TASK = {
    "SLURM_JOB_ID": "77",
    "SLURM_JOB_NODELIST": "gpu[07-08]",
    "SLURM_STEP_ID": "3",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    "SLURMD_NODENAME": "gpu08",
    "SLURM_NODEID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_GPUS_ON_NODE": "2",
    "SLURM_CPUS_PER_TASK": "6",
    "SLURM_CPUS_ON_NODE": "8",
    "SLURM_RESTART_COUNT": "1",
}
INTERACTIVE = {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "gpu[07-08]"}
ARRAY_TASK = {
    "SLURM_JOB_ID": "77",
    "SLURM_ARRAY_JOB_ID": "70",
    "SLURM_ARRAY_TASK_ID": "4",
    "SLURM_JOB_NODELIST": "gpu[01-04]",
    "SLURM_STEP_ID": "3",
    "SLURM_STEP_NODELIST": "gpu[02-04]",
    "SLURM_STEP_TASKS_PER_NODE": "1,2,3",
    "SLURMD_NODENAME": "gpu04",
    "SLURM_NODEID": "0",
    "SLURM_LOCALID": "2",
    "SLURM_GPUS_ON_NODE": "2",
    "SLURM_GPUS_PER_TASK": "a100:1",
    "SLURM_CPUS_PER_TASK": "6",
    "SLURM_CPUS_ON_NODE": "8",
    "SLURM_JOB_CPUS_PER_NODE": "8(x3),6",
    "SLURM_RESTART_COUNT": "5",
    "SLURM_NTASKS_PER_NODE": "9",
    "SLURM_JOB_START_TIME": "1000",
    "SLURM_JOB_END_TIME": "1600",
}


def job_of(environ, own_step=None):
    job = SlurmJob.from_env(environ, own_step)
    assert job is not None
    return job


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("node1", ["node1"]),
        ("node1,node2", ["node1", "node2"]),
        ("n[003-005,9],m1", ["n003", "n004", "n005", "n9", "m1"]),
        ("n[098-101]", ["n098", "n099", "n100", "n101"]),
        ("rack[1-2]n[01-02]-ib", ["rack1n01-ib", "rack1n02-ib", "rack2n01-ib", "rack2n02-ib"]),
        ("a-b.c[10],d[1]e", ["a-b.c10", "d1e"]),
    ],
)
def test_node_lists(text, hosts):
    assert list(expand_hosts(text)) == hosts


@pytest.mark.parametrize("text", ["", "(null) x", "n[1-", "n[]", "n[1-x]", "n[7-3]", ",", "a,,b", "n]1["])
def test_odd_node_lists_are_refused(text):
    with pytest.raises(UsageError, match="SLURM's node list"):
        expand_hosts(text)


def test_counts():
    assert expand_counts("2(x3),1") == (2, 2, 2, 1)
    assert expand_counts("") == ()
    with pytest.raises(UsageError, match="must be like"):
        expand_counts("2(y3)")


def test_a_list_that_names_too_many_is_refused_before_it_is_made():
    most = 2**17
    assert len(expand_hosts(f"n[0-{most - 3}],a,b")) == len(expand_counts(f"1(x{most - 2}),2,3")) == most
    for text in (f"n[0-{10**17}]", f"n[0-{most - 2}],a,b", "n[1-9]" * 9):
        with pytest.raises(UsageError, match=f"is not valid: it has more than {most} hosts"):
            expand_hosts(text)
    with pytest.raises(UsageError, match=r"it must be like 2\(x3\),1"):
        expand_counts(f"1(x{10**17})")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1-02:03:04", 93784),
        ("2:03:04", 7384),
        ("3:04", 184),
        ("0:58", 58),
        ("30", 1800),
        ("2-12", 216000),
        ("1-00:30", 88200),
        ("UNLIMITED", None),
        ("INVALID", None),
        ("NOT_SET", None),
        ("N/A", None),
        ("", None),
        ("1:1:1:1", None),
        ("-1", None),
        ("9" * 19, None),
    ],
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


def test_outside_of_a_job():
    assert SlurmJob.from_env({}) is None
    assert SlurmJob.from_env({"SLURM_CONF": "/etc/slurm.conf", "SLURM_JOB_ID": ""}) is None


def test_the_batch_script():
    job = job_of(BATCH)
    assert (job.kind, job.id, job.step, job.hosts, job.node) == ("batch", "77", None, ("gpu07", "gpu08"), 0)
    assert (job.workers, job.cpus, job.cpus_per_node, job.tasks_here) == (4, 8, (8, 6), 1)


def test_a_task():
    """A task of an array, of a step on three of the job's four nodes."""
    assert job_of(ARRAY_TASK) == SlurmJob(
        id="70_4",
        kind="task",
        hosts=("gpu02", "gpu03", "gpu04"),
        step=3,
        node=2,
        tasks_here=3,
        restarts=5,
        gpus=2,
        gpus_per_task="a100:1",
        cpus=6,
        cpus_per_node=(8, 8, 8, 6),
        workers=1,
        times=JobTimes(1600, 600),
        batch=None,
    )


def test_a_step_on_some_of_the_nodes():
    job = job_of(TASK | {"SLURM_STEP_NODELIST": "gpu08", "SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_NODEID": "0"})
    assert (job.hosts, job.node) == (("gpu08",), 0)


def test_an_interactive_shell():
    assert job_of(INTERACTIVE).kind == "interactive"
    own_node = INTERACTIVE | {"SLURMD_NODENAME": "gpu07", "SLURM_STEP_ID": str(0xFFFFFFFA)}
    assert job_of(own_node).kind == "interactive"


@pytest.mark.parametrize(
    ("step", "place"),
    [
        (str(0xFFFFFFFB), "batch"),
        (str(0xFFFFFFF9), "task"),
        ("interactive", "interactive"),
        ("extern", "batch"),
        ("", "batch"),
    ],
)
def test_the_place_of_a_step(step, place):
    assert job_of(BATCH | {"SLURM_STEP_ID": step}).kind == place


@pytest.mark.parametrize(
    ("own_step", "place"),
    [
        ("77.batch", "batch"),
        ("77.interactive", "interactive"),
        ("77.4294967290", "interactive"),
        ("77.5", "task"),
        ("5", "task"),
    ],
)
def test_the_own_step_counts_more_than_inherited_variables(own_step, place):
    job = job_of(TASK, own_step)
    assert (job.kind, job.step) == (place, 5 if place == "task" else None)


def test_the_own_step_is_read_off_the_ancestors(tmp_path):
    for pid, parent, title in ((30, 20, "python\0x"), (20, 10, "bash"), (10, 1, "slurmstepd: [25.batch]\0\0")):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a ) b) S {parent} 0")
        (tmp_path / str(pid) / "cmdline").write_text(title)
    assert cli_tools.find_own_step("30", tmp_path) == "25.batch"
    (tmp_path / "10" / "cmdline").write_text("init")
    assert cli_tools.find_own_step("30", tmp_path) is None
    assert cli_tools.find_own_step("31", tmp_path) is None


def test_who_signals_all_of_a_step(tmp_path):
    for pid, name in ((10, "slurmstepd: [7.0]"), (11, "bash")):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "cmdline").write_text(name)
    assert [cli_tools.is_slurmstepd(pid, tmp_path) for pid in (10, 11, 12, 0)] == [True, False, False, True]


def test_an_array_has_its_tasks_id():
    array = {"SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "0"}
    assert job_of(BATCH | array).id == "70_0"
    assert job_of(BATCH | {"SLURM_ARRAY_JOB_ID": "70"}).id == "77"


@pytest.mark.parametrize(
    ("changes", "node"),
    [
        ({"SLURMD_NODENAME": "gpu08"}, 1),
        ({"SLURMD_NODENAME": "elsewhere", "SLURM_NODEID": "1"}, 1),
        ({"SLURMD_NODENAME": "elsewhere", "SLURM_NODEID": "9"}, 1),
        ({"SLURMD_NODENAME": "elsewhere", "SLURM_NODEID": ""}, 0),
    ],
)
def test_which_node_this_is(changes, node):
    assert job_of(BATCH | changes).node == node


@pytest.mark.parametrize(("per_node", "tasks", "workers"), [("3", "8", 3), ("", "8", 4), ("", "3", 1), ("0", "8", 4)])
def test_workers_of_a_node(per_node, tasks, workers):
    assert job_of(BATCH | {"SLURM_NTASKS_PER_NODE": per_node, "SLURM_NTASKS": tasks}).workers == workers


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SLURM_JOB_ID", "x"),
        ("SLURM_JOB_NODELIST", ""),
        ("SLURM_NTASKS_PER_NODE", "-4"),
        ("SLURM_RESTART_COUNT", "once"),
        ("SLURM_JOB_CPUS_PER_NODE", "8(2)"),
    ],
)
def test_senseless_variables_are_refused(name, value):
    with pytest.raises(UsageError, match="must be") as refused:
        SlurmJob.from_env(BATCH | {name: value})
    assert repr(value) in str(refused.value)


def test_run_and_port_are_one_steps_of_one_run():
    jobs = [
        job_of(TASK),
        job_of(TASK | {"SLURM_STEP_ID": "4"}),
        job_of(TASK | {"SLURM_RESTART_COUNT": "2"}),
        job_of(TASK | {"SLURM_JOB_ID": "78"}),
    ]
    assert len({job.rdzv_id for job in jobs}) == len({job.port for job in jobs}) == 4
    assert all(15000 <= job.port < 30000 for job in jobs)
    other_node = job_of(TASK | {"SLURMD_NODENAME": "gpu07", "SLURM_NODEID": "0"})
    assert (other_node.rdzv_id, other_node.port) == (jobs[0].rdzv_id, jobs[0].port)


def test_the_id_and_port_of_a_run():
    """The nodes of a job meet there, some with an older version of the launcher. Never change these."""
    job = job_of(ARRAY_TASK)
    assert (job.rdzv_id, job.port) == ("slurm-70_4-5-3", 15821)
    assert job_of(BATCH).rdzv_id == "slurm-77-0-0"


def test_cores_are_the_jobs_share_of_what_is_usable():
    assert job_of(TASK).cores(64) == 6
    assert job_of(TASK).cores(4) == 4
    assert job_of(INTERACTIVE).cores(64) == 64


def test_fill_in_brings_the_nodes_together():
    options = fill_in(LaunchOptions(), job_of(TASK), has_gpus=True, find_address=lambda host: f"{host}.lan")
    job = job_of(TASK)
    assert options == LaunchOptions(
        nodes=(2, 2), rdzv_endpoint=f"gpu07.lan:{job.port}", node_rank=1, rdzv_id="slurm-77-1-3", nproc=None
    )


def test_fill_in_uses_the_handoff_of_the_batch_step():
    handoff = BatchHandoff(workers=3, address="2001:db8::7", times=JobTimes(end=5, limit=2))
    job = job_of(TASK | {BATCH_VARIABLE: handoff.text()})
    assert (job.batch, job.times) == (handoff, JobTimes(5, 2))

    def nobody_to_ask(host):
        raise AssertionError(host)

    options = fill_in(LaunchOptions(), job, has_gpus=False, find_address=nobody_to_ask)
    assert (options.nproc, options.rdzv_endpoint) == (3, f"[2001:db8::7]:{job.port}")


def test_launchers_that_one_srun_starts_wait_a_minute_for_one_another():
    started_by_us = job_of(TASK | {BATCH_VARIABLE: BatchHandoff(address="gpu07").text()})
    own = LaunchOptions(join_timeout=300)
    waits = [
        fill_in(options, job, has_gpus=True, find_address=str).join_timeout
        for options, job in ((LaunchOptions(), started_by_us), (own, started_by_us), (LaunchOptions(), job_of(TASK)))
    ]
    assert waits == [60, 300, None]


def test_fill_in_leaves_what_the_user_says():
    own = LaunchOptions(nproc=5, nodes=(1, 2), rdzv_endpoint="here:1234", rdzv_id="mine")
    options = fill_in(own, job_of(TASK), has_gpus=False, find_address=str)
    assert options == dataclasses.replace(own, node_rank=1)


def test_one_node_needs_no_meeting():
    alone = job_of(BATCH | {"SLURM_JOB_NODELIST": "gpu07"})
    assert fill_in(LaunchOptions(), alone, has_gpus=False, find_address=str) == LaunchOptions(nproc=4)
    assert job_of(TASK).on_this_node().hosts == ("gpu08",)


def test_several_launchers_on_a_node_are_refused():
    job = job_of(TASK | {"SLURM_STEP_TASKS_PER_NODE": "4(x2)"})
    with pytest.raises(UsageError, match=r"started 4 launchers on gpu08, .* type srun --ntasks-per-node=1"):
        fill_in(LaunchOptions(), job, has_gpus=False, find_address=str)


def test_more_nodes_than_there_are():
    options = LaunchOptions(nodes=(3, 4), rdzv_endpoint="x")
    with pytest.raises(UsageError, match="--nodes 3 is more than the 2 of this job"):
        fill_in(options, job_of(TASK), has_gpus=False, find_address=str)
    with pytest.raises(UsageError, match="--nodes 3 is more than the 2 of this job"):
        srun_command(job_of(BATCH), options, ["x"])


def test_srun_starts_one_launcher_on_each_node_with_all_that_the_job_has_there():
    command = srun_command(job_of(BATCH), LaunchOptions(), ["python", "a b"])
    assert command[0] == "srun"
    assert command[-2:] == ["python", "a b"]
    assert {
        "--nodes=2",
        "--ntasks=2",
        "--ntasks-per-node=1",
        "--cpus-per-task=6",
        f"--job-name=minetorch-{os.getpid()}",
    } < {*command}
    assert "--cpu-bind=none" in command
    alike = srun_command(job_of(BATCH | {"SLURM_JOB_CPUS_PER_NODE": "8(x2)"}), LaunchOptions(), ["x"])
    assert "--cpus-per-task=8" in alike
    assert "--cpu-bind=none" not in alike
    assert "--nodes=1" in srun_command(job_of(BATCH), LaunchOptions(nodes=(1, 1)), ["x"])
    assert "--nodes=2" in srun_command(job_of(BATCH), LaunchOptions(nodes=(1, 4), rdzv_endpoint="x"), ["x"])


@pytest.mark.parametrize(("per_task", "asked"), [("1", "--gpus-per-node=4"), ("a100:2", "--gpus-per-node=a100:4")])
def test_gpus_that_were_asked_for_by_the_task(per_task, asked):
    gpus = BATCH | {"SLURM_GPUS_ON_NODE": "4"}
    assert asked in srun_command(job_of(gpus | {"SLURM_GPUS_PER_TASK": per_task}), LaunchOptions(), ["x"])
    assert "--gpus" not in " ".join(srun_command(job_of(gpus), LaunchOptions(), ["x"]))


def test_srun_does_not_get_the_jobs_wishes_for_its_tasks():
    gone = [
        *("NTASKS", "NTASKS_PER_NODE", "NPROCS", "TASKS_PER_NODE", "CPUS_PER_TASK", "CPUS_PER_GPU", "GPUS_PER_TASK"),
        *("GPU_BIND", "GPU_FREQ", "TRES_PER_TASK", "TRES_BIND", "CPU_BIND_TYPE", "MEM_BIND", "DISTRIBUTION", "EXACT"),
        *("EXCLUSIVE", "WHOLE", "OVERLAP", "KILL_BAD_EXIT", "WAIT", "LABELIO", "STDOUTMODE", "UNBUFFEREDIO"),
        *("MULTI_PROG", "NNODES", "JOB_NUM_NODES", "STEP_ID", "PROCID", "LOCALID", "NODEID", "GTIDS", "SRUN_COMM_HOST"),
        *("LAUNCH_NODE_IPADDR", "TASK_PID"),
    ]
    kept = {"PATH": "/bin", "SLURM_CONF": "x", "SLURM_JOB_ID": "1", "SLURM_MEM_PER_NODE": "100", "MY_SLURM_NTASKS": "1"}
    environ = {**kept, **{f"SLURM_{name}": "1" for name in gone}, "SRUN_CPUS_PER_TASK": "1"}
    assert srun_environ(environ, BatchHandoff()) == {**kept, BATCH_VARIABLE: BatchHandoff().text()}


@pytest.mark.parametrize("text", ["", "4", "{}", "0,,,", "1,a b,,", "1,x,-5,", "1,x,inf,", BatchHandoff().text() + ","])
def test_a_handoff_that_no_launcher_gave(text):
    with pytest.raises(UsageError, match=f"{BATCH_VARIABLE}=.*unset it"):
        job_of(TASK | {BATCH_VARIABLE: text})


def test_the_warning_comes_two_minutes_before_the_end_or_a_tenth_of_a_short_job():
    assert make_deadline(JobTimes(), None, now=0) is None
    long = make_deadline(JobTimes(end=100_000, limit=86_400), None, now=50_000)
    assert (long.at, long.margin, long.warning_at) == (100_000, 120, 99_880)
    assert make_deadline(JobTimes(end=1_000, limit=600), None, now=500).margin == 60
    assert make_deadline(JobTimes(end=1_000), None, now=400).margin == 60
    assert make_deadline(JobTimes(end=1_000, limit=600), 300, now=500).warning_at == 700
    assert make_deadline(JobTimes(end=1_000), None, now=1_100).margin == 0


def test_a_warning_before_the_job_begins_is_refused():
    with pytest.raises(UsageError, match="--preempt-before 600 leaves no time in a job of 600 s"):
        make_deadline(JobTimes(end=1_000, limit=600), 600, now=500)


@pytest.fixture
def answers(tmp_path, monkeypatch):
    """Stands in for SLURM's commands: what each prints, and the record of how they were called."""
    record = tmp_path / "calls"

    def install(**outputs):
        for name, output in outputs.items():
            command = tmp_path / name
            command.write_text(f'#!/bin/sh\necho {name} "$@" >> "{record}"\ncat <<"END"\n{output}\nEND\n')
            command.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin" if outputs else str(tmp_path / "none"))
        return record

    return install


def test_times_come_from_the_environment_first(answers):
    answers(squeue="1:00|2:00")
    job = job_of(BATCH | {"SLURM_JOB_START_TIME": "1000", "SLURM_JOB_END_TIME": "1600"})
    assert cli_tools.find_times(job, now=1100) == JobTimes(1600, 600)


@pytest.mark.parametrize(
    ("left", "times"),
    [
        ("1:00|1-0:00:00", JobTimes(1060, 86400)),
        ("UNLIMITED|UNLIMITED", JobTimes()),
        ("N/A|10:00", JobTimes(None, 600)),
    ],
)
def test_times_from_squeue(answers, left, times):
    record = answers(squeue=left)
    assert cli_tools.find_times(job_of(BATCH), now=1000) == times
    assert record.read_text() == "squeue --noheader --jobs=77 --format=%L|%l\n"


def test_no_times_without_slurms_commands(answers):
    answers()
    assert cli_tools.find_times(job_of(BATCH), now=1000) == JobTimes()
    assert cli_tools.find_deadline(job_of(BATCH), None) is None


def test_an_address_by_name_else_by_what_slurm_knows(answers):
    answers(scontrol="NodeName=no-such-host NodeAddr=127.0.0.9 NodeHostName=no-such-host")
    assert cli_tools.find_address("localhost") == "localhost"
    assert cli_tools.find_address("no-such-host.invalid") == "127.0.0.9"
    answers()
    with pytest.raises(UsageError, match=r"cannot find the address of no-such-host.invalid.*--rdzv-endpoint"):
        cli_tools.find_address("no-such-host.invalid")


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        ("JobState=RUNNING Requeue=1 BatchFlag=1 Reason=None", "requeueing job 70_4"),
        ("JobState=COMPLETING Requeue=1 BatchFlag=1 Reason=TimeLimit", "requeueing job 70_4"),
        ("JobState=RUNNING Requeue=0 BatchFlag=1", "submitted with --no-requeue"),
        ("JobState=RUNNING Requeue=1 BatchFlag=0", "it is interactive"),
        ("JobState=CANCELLED Requeue=1 BatchFlag=1 Reason=None", "it is CANCELLED"),
    ],
)
def test_requeue(answers, shown, said):
    record = answers(scontrol=shown)
    lines = []
    job = job_of(BATCH | {"SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "4"})
    cli_tools.requeue(job, lines.append)
    assert said in lines[0]
    assert ("scontrol requeue 70_4\n" in record.read_text()) is ("requeueing" in said)


def test_no_requeue_without_scontrol(answers):
    answers()
    lines = []
    cli_tools.requeue(job_of(BATCH), lines.append)
    assert "no scontrol here; where there is one, type `scontrol requeue 77`" in lines[0]


FIRST = {"SLURMD_NODENAME": "gpu07", "SLURM_NODEID": "0"}
HANDOFF = {BATCH_VARIABLE: BatchHandoff(address="gpu07").text()}


@pytest.fixture
def launch_in_a_task(answers, monkeypatch):
    """Runs a launcher that is a task of a job, with a launch that fails; returns the end and the calls of scontrol."""

    def launch_in_a_task(environ, error, state="RUNNING"):
        record = answers(scontrol=f"JobState={state} Requeue=1 BatchFlag=1")
        for name, value in (TASK | environ).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(srun, "_FIRST_NODE_SECONDS", 0.01)

        def launch(job):
            raise error

        lines = []
        try:
            end = srun.run_in_job(["x.py"], LaunchOptions(), launch, dry_run=False, say=lines.append)
        except (StoppedEarlyError, JoinError) as raised:
            end = type(raised)
        requeued = record.exists() and "scontrol requeue 77" in record.read_text()
        return end, requeued, "\n".join(lines)

    return launch_in_a_task


@pytest.mark.parametrize(
    ("environ", "requeued"),
    [(FIRST, True), ({}, False), (FIRST | HANDOFF, False)],
    ids=["first node", "other node", "the batch step does it"],
)
def test_one_launcher_requeues_a_job_that_was_stopped_early(launch_in_a_task, environ, requeued):
    assert launch_in_a_task(environ, StoppedEarlyError()) == (StoppedEarlyError, requeued, mock.ANY)


@pytest.mark.parametrize(
    ("environ", "state", "requeued"),
    [
        (FIRST | HANDOFF, "RUNNING", True),
        (HANDOFF, "RUNNING", True),
        (HANDOFF, "COMPLETING", False),
        (FIRST | {"SLURM_RESTART_COUNT": "9"}, "RUNNING", True),
    ],
    ids=["first node", "the first node is missing", "the first node has done it", "without a batch step"],
)
def test_a_job_whose_nodes_do_not_meet_is_requeued(launch_in_a_task, environ, state, requeued):
    """Not by the batch step alone: SLURM may have killed a launcher without telling srun, which then never ends."""
    end, done, said = launch_in_a_task(environ, JoinError("1 of 2 nodes", job_can_be_requeued=True), state)
    assert (end, done) == (75, requeued)
    assert said.startswith("minetorch-launch: 1 of 2 nodes")


@pytest.mark.parametrize(
    ("restarts", "can_be_requeued"), [("10", True), ("0", False)], ids=["too often", "it would fail again"]
)
def test_a_job_whose_nodes_never_meet_ends(launch_in_a_task, restarts, can_be_requeued):
    error = JoinError("1 of 2 nodes", job_can_be_requeued=can_be_requeued)
    assert launch_in_a_task(FIRST | {"SLURM_RESTART_COUNT": restarts}, error) == (JoinError, False, "")


def test_in_a_container_the_launcher_works_alone(answers, monkeypatch):
    answers()
    for name, value in BATCH.items():
        monkeypatch.setenv(name, value)
    lines = []
    code = srun.run_in_job(["x.py"], LaunchOptions(), lambda job: len(job.hosts), dry_run=False, say=lines.append)
    assert (code, "no srun here" in lines[0]) == (1, True)


RUN = """
import os, sys
from minetorch_launch.slurm import srun
from minetorch_launch.slurm.environment import SlurmJob
from minetorch_launch.options import LaunchOptions
job = SlurmJob.from_env(os.environ)
sys.exit(srun.run_on_nodes(job, LaunchOptions(), ["agent"], environ=os.environ, say=print))
"""


@pytest.mark.parametrize(
    ("srun", "state", "reason", "code", "requeued", "passed_on"),
    [
        ("exit 0", "RUNNING", "None", 0, False, False),
        ("exit 3", "RUNNING", "None", 3, False, False),
        ("exit 75", "RUNNING", "None", 75, True, False),
        ("kill -KILL $$", "RUNNING", "None", 137, False, False),
        ("kill -TERM $PPID; sleep 1; exit 75", "RUNNING", "None", 75, False, True),
        ("kill -TERM $PPID; sleep 1; exit 75", "COMPLETING", "None", 75, False, False),
        ("kill -TERM $PPID; sleep 1; exit 75", "COMPLETING", "TimeLimit", 75, True, False),
        ("trap 'exit 12' USR2; kill -USR2 $PPID; while :; do sleep 0.1; done", "RUNNING", "None", 12, False, False),
        ("kill -QUIT $PPID; sleep 0.5; exit 0", "RUNNING", "None", 0, False, False),
    ],
)
def test_the_batch_steps_part(tmp_path, srun, state, reason, code, requeued, passed_on):
    commands = {
        "srun": srun,
        "scontrol": f"echo JobState={state} Reason={reason} Requeue=1 BatchFlag=1",
        "squeue": "echo '77.0|minetorch-'$PPID",
        "scancel": "",
    }
    for name, does in commands.items():
        command = tmp_path / name
        command.write_text(f'#!/bin/sh\necho {name} "$@" >> "{tmp_path}/calls"\n{does}\n')
        command.chmod(0o755)
    environ = {**os.environ, **BATCH, "SLURM_JOB_NODELIST": "gpu07", "PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", RUN], env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    assert ("scontrol requeue 77" in calls) is requeued
    assert ("scancel --signal=TERM 77.0" in calls) is passed_on
    assert ("send SIGQUIT to the launcher on one of the nodes" in done.stdout) is ("QUIT" in srun)


UGLY = ["--note", 'é "$HOME" `x` \\ #', "it's"]


def test_a_batch_script_says_what_the_job_needs(tmp_path):
    text = batch_script(
        LaunchOptions(nproc=4, threads=2, device="cuda", nodes=(2, 3), rdzv_endpoint="x"),
        ["launch", *UGLY],
        name="träin it",
        sbatch_options=["--partition=gpu", "-c", "16", "--comment", "a b"],
        folder="/data/a b",
    )
    lines = text.splitlines()
    assert lines[0] == "#!/bin/bash"
    assert lines[1:-1] == [
        "#SBATCH " + option
        for option in (
            '"--job-name=träin it"',
            '"--chdir=/data/a b"',
            "--nodes=2-3",
            "--ntasks-per-node=1",
            "--gpus-per-node=4",
            "--requeue",
            "--open-mode=append",
            "--output=%x-%j.out",
            "--partition=gpu",
            "-c 16",
            '--comment "a b"',
        )
    ]
    # the shell gives the launcher the very words
    script = tmp_path / "script"
    script.write_text(text.replace("exec launch", f"exec {sys.executable} -c 'import sys; print(sys.argv[1:])'"))
    done = subprocess.run(["bash", script], capture_output=True, text=True, timeout=60)
    assert done.stdout == f"{UGLY}\n"


def test_a_batch_script_leaves_out_what_is_not_known():
    text = batch_script(LaunchOptions(), ["x"], name="pkg.run", sbatch_options=["--array=1-3", "-N2"], folder="/")
    assert "cpus-per-task" not in text
    assert "gpus-per-node" not in text
    assert "--nodes" not in text
    assert "#SBATCH --job-name=pkg.run\n" in text
    assert "#SBATCH --output=%x-%A_%a.out\n" in text


def test_a_line_break_is_refused():
    with pytest.raises(UsageError, match="line break"):
        batch_script(LaunchOptions(), ["x", "a\nb"], name="x", sbatch_options=[], folder="/")


@pytest.mark.parametrize(
    ("words", "name", "command"),
    [
        (
            ["--nproc", "2", "runs/träin it.py", "a b"],
            '"--job-name=träin it"',
            ["--nproc=2", "runs/träin it.py", "a b"],
        ),
        (["-m", "pkg.run", "x"], "--job-name=pkg.run", ["-m", "pkg.run", "x"]),
        (["--", "-odd.py"], "--job-name=-odd", ["--", "-odd.py"]),
        (["-m", "pkg.run", "--", "--", "x"], "--job-name=pkg.run", ["-m", "pkg.run", "--", "--", "x"]),
    ],
)
def test_a_command_line_becomes_a_batch_script(tmp_path, words, name, command):
    file = tmp_path / "job.sh"
    request = arguments.read([f"--sbatch={file}", "--sbatch-options", "--time=1:00 --mem 1G", *words], {})
    assert run(request, say=print) == 0
    lines = file.read_text().splitlines()
    assert lines[1] == f"#SBATCH {name}"
    assert lines[-3:] == ["#SBATCH --time=1:00", "#SBATCH --mem 1G", f"exec {shlex.join([*srun.LAUNCHER, *command])}"]
    assert os.access(file, os.X_OK)


def test_reading_a_job_needs_no_torch():
    probe = "import sys; from minetorch_launch.slurm import srun, sbatch; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", probe], check=True, timeout=60, env={**os.environ, **BATCH})


# Starts the command once for each node in ALIVE, as srun does, and ends with the highest exit code; a node of the job
# that is not alive never ends, and srun with it.
FAKE_SRUN = """\
while [[ $1 == --* ]]; do shift; done
export SLURM_STEP_ID=0 SLURM_STEP_NODELIST=$SLURM_JOB_NODELIST SLURM_STEP_TASKS_PER_NODE='1(x2)'
code=0
for node in $ALIVE; do
    SLURMD_NODENAME=gpu0$((7 + node)) SLURM_NODEID=$node "$@" &
done
for task in $(jobs -p); do wait $task || code=$(($? > code ? $? : code)); done
[[ $ALIVE == "0 1" ]] || exec sleep 1000
exit $code
"""


@pytest.fixture
def start_job(launches, tmp_path):
    """Starts the launcher as a batch script of two nodes would; the commands of SLURM are stand-ins."""
    record = tmp_path / "calls"
    state = "JobState=RUNNING Requeue=1 BatchFlag=1 NodeAddr=127.0.0.1"
    for name, does in {"srun": FAKE_SRUN, "scontrol": f"echo {state}", "squeue": "", "scancel": ""}.items():
        command = tmp_path / name
        command.write_text(f'#!/bin/bash\necho {name} "$@" >> "{record}"\n{does}\n')
        command.chmod(0o755)

    def start_job(*words, alive):
        path = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "ALIVE": alive}
        job = BATCH | {"SLURM_NTASKS_PER_NODE": "1", "SLURM_JOB_ID": str(os.getpid())}
        return launches.start("--device", "cpu", *words, env=job | path), record

    return start_job


@pytest.mark.slow
def test_a_batch_script_starts_a_launcher_on_each_node(start_job, launches):
    script = launches.script("import os; print('rank', os.environ['RANK'], 'of', os.environ['WORLD_SIZE'])")
    process, _ = start_job(script, alive="0 1")
    out, err = process.communicate(timeout=90)
    assert process.returncode == 0, err
    assert {line.partition("] ")[2] for line in out.splitlines()} == {"rank 0 of 2", "rank 1 of 2"}


@pytest.mark.slow
@pytest.mark.parametrize("alive", ["0", "1"])
def test_a_job_is_requeued_though_srun_waits_for_a_launcher_that_was_killed(start_job, launches, alive):
    process, record = start_job("--join-timeout", "2", launches.script("print('never')"), alive=alive)
    end = time.monotonic() + 60
    while f"scontrol requeue {os.getpid()}" not in (record.read_text() if record.exists() else ""):
        assert time.monotonic() < end, record.read_text()
        time.sleep(0.1)
    process.terminate()  # as SLURM does
    out, err = process.communicate(timeout=60)
    assert "requeueing job" in err
    assert "never" not in out
    assert process.returncode == 128 + signal.SIGTERM
    launches.gone_within(10)
