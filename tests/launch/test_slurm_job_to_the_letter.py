"""Every field, limit and message of what the launcher reads off a SLURM job."""

import json
import math

import pytest

from minetorch_launch.errors import UsageError, in_brief
from minetorch_launch.plan import LaunchOptions
from minetorch_launch.slurm.job import (
    BATCH_VARIABLE,
    BatchWord,
    Deadline,
    SlurmJob,
    Times,
    expand_counts,
    expand_hosts,
    fill_in,
    make_deadline,
    parse_duration,
    srun_command,
    srun_environ,
)

TASK = {
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
BATCH = {name: value for name, value in TASK.items() if not name.startswith(("SLURM_STEP", "SLURM_ARRAY"))}
EVERYWHERE = {
    "number": 77,
    "restarts": 5,
    "gpus": 2,
    "gpus_per_task": "a100:1",
    "cpus_per_node": (8, 8, 8, 6),
    "times": Times(1600, 600),
    "batch": None,
}


def job_of(environ, own_step=None):
    job = SlurmJob.from_env(environ, own_step)
    assert job is not None
    return job


def message(call, *words, **names):
    with pytest.raises(UsageError) as refused:
        call(*words, **names)
    return str(refused.value)


def test_every_field_of_a_task():
    assert job_of(TASK) == SlurmJob(
        id="70_4",
        place="task",
        hosts=("gpu02", "gpu03", "gpu04"),
        step=3,
        node=2,
        tasks_here=3,
        local_id=2,
        cpus=6,
        workers=1,
        **EVERYWHERE,
    )


def test_every_field_of_a_batch_script():
    assert job_of(BATCH) == SlurmJob(
        id="77",
        place="batch",
        hosts=("gpu01", "gpu02", "gpu03", "gpu04"),
        step=None,
        node=3,
        tasks_here=1,
        local_id=0,
        cpus=8,
        workers=9,
        **EVERYWHERE,
    )


def test_every_field_of_a_job_that_says_the_least():
    assert job_of({"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "n1"}) == SlurmJob(
        id="1", number=1, place="interactive", hosts=("n1",)
    )
    task = job_of({"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "n1", "SLURM_STEP_ID": "0"})
    assert task == SlurmJob(id="1", number=1, place="task", hosts=("n1",), step=0)


def test_a_job_without_a_list_of_nodes():
    assert message(job_of, {"SLURM_JOB_ID": "1"}) == "SLURM's node list '' is none: it must be like n[003-007,9],m1"


def test_a_batch_script_does_not_look_at_a_steps_variables():
    assert job_of(BATCH | {"SLURM_STEP_TASKS_PER_NODE": "x"}).tasks_here == 1


def test_half_an_array_is_none():
    assert job_of({**BATCH, "SLURM_ARRAY_JOB_ID": "70"}).id == "77"
    assert job_of({**BATCH, "SLURM_ARRAY_TASK_ID": "4"}).id == "77"


def test_a_tasks_word_from_the_batch_step_counts_and_a_batch_scripts_does_not():
    word = BatchWord(workers=2, address="a", times=Times(5.0, None))
    told = {BATCH_VARIABLE: word.text()}
    job = job_of(TASK | told)
    assert (job.workers, job.times, job.batch) == (2, Times(5.0, None), word)
    assert job_of(BATCH | told).batch is None


@pytest.mark.parametrize(
    ("changes", "own_step", "place"),
    [
        ({"SLURM_STEP_ID": "4294967291"}, None, (None, "batch")),
        ({"SLURM_STEP_ID": "4294967290"}, None, (None, "interactive")),
        ({"SLURM_STEP_ID": "4294967289"}, None, (4294967289, "task")),
        ({"SLURM_STEP_ID": "0"}, None, (0, "task")),
        ({"SLURM_STEP_ID": "interactive"}, None, (None, "interactive")),
        ({"SLURM_STEP_ID": "extern"}, None, (None, "batch")),
        ({"SLURM_STEP_ID": ""}, None, (None, "batch")),
        ({"SLURM_STEP_ID": "0"}, "77.batch", (None, "batch")),
        ({"SLURM_STEP_ID": "0"}, "77.8", (8, "task")),
        ({}, "8", (8, "task")),
    ],
)
def test_every_place(changes, own_step, place):
    job = job_of(BATCH | changes, own_step)
    assert (job.step, job.place) == place


@pytest.mark.parametrize(
    ("changes", "node"),
    [
        ({"SLURMD_NODENAME": "gpu01"}, 0),
        ({"SLURMD_NODENAME": "elsewhere", "SLURM_NODEID": "2"}, 2),
        ({"SLURMD_NODENAME": "elsewhere", "SLURM_NODEID": "3"}, 3),
        ({"SLURMD_NODENAME": "elsewhere", "SLURM_NODEID": "9"}, 3),
        ({"SLURMD_NODENAME": "elsewhere", "SLURM_NODEID": ""}, 0),
    ],
)
def test_which_node_this_is(changes, node):
    assert job_of(BATCH | changes).node == node
    assert job_of(BATCH | changes).on_this_node() == job_of(
        BATCH | changes | {"SLURM_JOB_NODELIST": f"gpu0{node + 1}", "SLURM_NODEID": "0"}
    )


@pytest.mark.parametrize(
    ("per_node", "tasks", "workers"),
    [("3", "8", 3), ("", "8", 2), ("", "4", 1), ("", "6", 1), ("", "", 1), ("0", "8", 2), ("", "2", 1)],
)
def test_workers_of_a_node(per_node, tasks, workers):
    job = job_of(BATCH | {"SLURM_NTASKS_PER_NODE": per_node, "SLURM_NTASKS": tasks})
    assert (job.workers, type(job.workers)) == (workers, int)


@pytest.mark.parametrize(
    ("start", "end", "times"),
    [("1000", "1600", Times(1600, 600)), ("", "1600", Times(1600)), ("1000", "", Times()), ("", "", Times())],
)
def test_times(start, end, times):
    assert job_of(BATCH | {"SLURM_JOB_START_TIME": start, "SLURM_JOB_END_TIME": end}).times == times


def test_the_id_and_port_of_a_run():
    job = job_of(TASK)
    assert job.run_id == "slurm-70_4-5-3"
    assert job_of(BATCH).run_id == "slurm-77-5-0"
    assert job.port == 15821


def test_cores():
    assert [job_of(TASK).cores(usable) for usable in (5, 6, 7)] == [5, 6, 6]


def test_the_deadline():
    assert make_deadline(Times(None, 600), None, now=0) is None
    assert make_deadline(Times(5000, 1200), None, now=0) == Deadline(5000, 120)
    assert make_deadline(Times(5000, 1190), None, now=0) == Deadline(5000, 119)
    assert make_deadline(Times(5000), None, now=4000) == Deadline(5000, 100)
    assert make_deadline(Times(5000), None, now=6000) == Deadline(5000, 0)
    assert make_deadline(Times(5000, 600), 599.0, now=0) == Deadline(5000, 599)
    assert make_deadline(Times(5000, 600), 0.0, now=0) == Deadline(5000, 0)
    assert Deadline(5000, 120).notice_at == 4880
    assert message(make_deadline, Times(5000, 600), 600.0, now=0).startswith(
        "--notice-before 600 is not less than the 600 s"
    )
    assert message(make_deadline, Times(5000, 600), 600.5, now=0) == (
        "--notice-before 600.5 is not less than the 600 s of the job: nothing would get done; type fewer "
        "seconds, or ask "
        "SLURM for more (--time)"
    )


def test_every_word_of_srun():
    assert srun_command(job_of(BATCH), LaunchOptions(), ["python", "x"], name="step") == [
        "srun",
        "--job-name=step",
        "--nodes=4",
        "--ntasks=4",
        "--ntasks-per-node=1",
        "--cpus-per-task=6",
        "--cpu-bind=none",
        "--gpus-per-node=a100:2",
        "--export=ALL",
        "--kill-on-bad-exit=0",
        "--wait=0",
        "python",
        "x",
    ]
    alike = job_of(BATCH | {"SLURM_JOB_CPUS_PER_NODE": "8(x4)", "SLURM_GPUS_PER_TASK": "nvidia:a100:1"})
    words = srun_command(alike, LaunchOptions(), [], name="s")
    assert {"--cpus-per-task=8", "--gpus-per-node=nvidia:a100:2"} < {*words}
    assert "--cpu-bind=none" not in words
    least = job_of({"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "n1", "SLURM_GPUS_PER_TASK": "1"})
    assert [word for word in srun_command(least, LaunchOptions(), [], name="s") if "gpu" in word or "cpu" in word] == [
        "--cpu-bind=none"
    ]


def test_every_variable_that_srun_does_not_get():
    gone = [
        *("NTASKS", "NTASKS_PER_NODE", "NPROCS", "TASKS_PER_NODE", "CPUS_PER_TASK", "CPUS_PER_GPU", "GPUS_PER_TASK"),
        *("GPU_BIND", "GPU_FREQ", "TRES_PER_TASK", "TRES_BIND", "CPU_BIND_TYPE", "MEM_BIND", "DISTRIBUTION", "EXACT"),
        *("EXCLUSIVE", "WHOLE", "OVERLAP", "KILL_BAD_EXIT", "WAIT", "LABELIO", "STDOUTMODE", "UNBUFFEREDIO"),
        *("MULTI_PROG", "NNODES", "JOB_NUM_NODES", "STEP_ID", "PROCID", "LOCALID", "NODEID", "GTIDS", "SRUN_COMM_HOST"),
        *("LAUNCH_NODE_IPADDR", "TASK_PID"),
    ]
    kept = {"PATH": "/bin", "SLURM_CONF": "x", "SLURM_JOB_ID": "1", "SLURM_GPUS_ON_NODE": "2", "MY_SLURM_NTASKS": "1"}
    environ = {**kept, **{f"SLURM_{name}": "1" for name in gone}, "SRUN_CPUS_PER_TASK": "1"}
    assert srun_environ(environ, BatchWord()) == {**kept, BATCH_VARIABLE: BatchWord().text()}


def test_the_word_as_it_is_written():
    word = BatchWord(workers=3, address="h", times=Times(1.0, 2.0))
    assert json.loads(word.text()) == {"workers": 3, "address": "h", "times": {"end": 1.0, "limit": 2.0}}
    assert BatchWord.from_text(word.text()) == word
    for workers in (1, 2**17):
        assert BatchWord.from_text(BatchWord(workers=workers).text()).workers == workers
    for wrong in (
        *(BatchWord(workers=workers) for workers in (0, -1, 2**17 + 1, True, 1.0, "1", None)),  # type: ignore[arg-type]
        *(BatchWord(address=address) for address in (1, False, ["h"])),  # type: ignore[arg-type]
        *(BatchWord(times=Times(*times)) for times in (("1", None), (None, "1"), (math.inf, 1.0), (1.0, math.nan))),
    ):
        assert message(BatchWord.from_text, wrong.text()).endswith("is not what a launcher sets: unset it"), wrong
    assert message(BatchWord.from_text, "x") == f"{BATCH_VARIABLE}='x' is not what a launcher sets: unset it"


def test_fill_in_to_the_last_word():
    def fill(options=None, environ=TASK, **changes):
        job = job_of({**environ, "SLURM_STEP_TASKS_PER_NODE": "1(x3)", **changes})
        return fill_in(options or LaunchOptions(), job, has_gpus=True, find_address=lambda host: f"{host}.lan")

    job = job_of(TASK)
    assert fill() == LaunchOptions(nodes=(3, 3), rdzv=f"gpu02.lan:{job.port}", node_rank=2, run_id=job.run_id)
    assert fill(LaunchOptions(nodes=(2, 9), rdzv="h")).nodes == (2, 3)
    assert fill(LaunchOptions(nodes=(3, 3), rdzv="h")).nodes == (3, 3)
    assert fill(LaunchOptions(nodes=(1, 1))) == LaunchOptions(nodes=(1, 1))
    assert fill(LaunchOptions(rdzv="h:1")).rdzv == "h:1"
    assert message(fill, SLURM_STEP_TASKS_PER_NODE="1,1,2") == (
        "srun has started 2 launchers on gpu04, but one starts all workers of its node: type srun --ntasks-per-node=1 "
        "minetorch-launch --nproc 2 …, or, with the batch script's --ntasks-per-node, no srun at all"
    )
    assert message(fill, LaunchOptions(nodes=(4, 4), rdzv="h")) == (
        "--nodes 4 is more than the 3 of this job: ask SLURM for more (sbatch --nodes)"
    )


def test_fill_in_brings_workers_and_an_address():
    def nobody_to_ask(host):
        raise AssertionError(host)

    alone = job_of(BATCH | {"SLURM_JOB_NODELIST": "gpu04"})
    assert fill_in(LaunchOptions(), alone, has_gpus=False, find_address=nobody_to_ask) == LaunchOptions(nproc=9)
    assert fill_in(LaunchOptions(nproc=2), alone, has_gpus=True, find_address=nobody_to_ask).nproc == 2
    job = job_of(BATCH)
    met = fill_in(LaunchOptions(), job, has_gpus=False, find_address=lambda host: "fe80::1")
    assert (met.nproc, met.rdzv) == (9, f"[fe80::1]:{job.port}")
    assert fill_in(LaunchOptions(rdzv="h"), job, has_gpus=True, find_address=nobody_to_ask).rdzv == "h"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("n[3-1]", "SLURM's node list 'n[3-1]' has the odd range '3-1': it must be like 003-007"),
        ("n[1,x]", "SLURM's node list 'n[1,x]' has the odd range 'x': it must be like 003-007"),
        ("n1,,n2", "SLURM's node list 'n1,,n2' is none: it must be like n[003-007,9],m1"),
    ],
)
def test_every_message_of_a_node_list(text, words):
    assert message(expand_hosts, text) == words


def test_lists():
    assert expand_hosts(" n[3-3],m ") == ("n3", "m")
    assert expand_hosts("n[1-2,5,07-08]") == ("n1", "n2", "n5", "n07", "n08")
    assert expand_counts("3") == (3,)
    most = 2**17
    assert len(expand_hosts(f"n[0-{most - 1}]")) == len(expand_hosts(f"n[0-{most - 3}],a,b")) == most
    assert len(expand_hosts(f"n[0-1,2-{most - 1}]")) == len(expand_hosts(f"n[1-2]m[1-{most // 2}]")) == most
    for text in (
        f"n[0-{most}]",
        f"n[0-{10**17}]",
        f"n[0-{most - 2}],a,b",
        f"n[7,1-{most}]",
        f"n[1-2]m[1-{most // 2 + 1}]",
        "n[1-9]" * 9,
    ):
        assert message(expand_hosts, text) == (
            f"SLURM's node list {in_brief(text)} is none: it names more than {most} hosts"
        )
    assert len(expand_counts(f"1(x{most})")) == len(expand_counts(f"1(x{most - 2}),2,3")) == most
    for text in (f"1(x{most + 1})", f"1(x{most}),2", f"1,2(x{most})"):
        assert message(expand_counts, text).endswith("it must be like 2(x3),1")
    assert expand_counts("1,2(x2)") == (1, 2, 2)
    assert message(expand_counts, "2(x)") == "SLURM's list of numbers '2(x)' is none: it must be like 2(x3),1"
    assert message(job_of, BATCH | {"SLURM_GPUS_ON_NODE": "x"}) == (
        "SLURM_GPUS_ON_NODE='x' must be a whole number, 0 or more: SLURM sets it, so unset or mend it"
    )


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1", 60), ("1:1", 61), ("1:1:1", 3661), ("1-1", 90000), ("1-1:1", 90060), ("1-1:1:1", 90061), (" 5 ", 300),
        ("1:1:1:1", None), ("1-1:1:1:1", None),
        ("9" * 18, 6e19), ("9" * 19, None), ("x-1", None), ("-1", None), ("1-", None), ("1:x", None), ("0", 0),
    ],
)  # fmt: skip
def test_durations_to_the_second(text, seconds):
    assert parse_duration(text) == seconds
