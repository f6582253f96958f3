"""Jobs on a real SLURM of two nodes: nothing said on the command line, and no step lost."""

import collections
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts" / "slurm"

# What a user writes. The launcher finds out the rest.
THREE_LINES = """\
#!/bin/bash
#SBATCH --nodes=2
minetorch-launch {}
"""

# Adds up ones over all ranks, and says where it has run.
SUMS = """
    import os, sys
    import torch, torch.distributed as dist

    dist.init_process_group("gloo")
    total = torch.ones(1)
    dist.all_reduce(total)
    print("sum", int(total), "rank", dist.get_rank(), "on", os.environ["SLURMD_NODENAME"], *sys.argv[1:], flush=True)
    if len(sys.argv) > 1 and sys.argv[1] == "fail" and dist.get_rank() == 1:
        sys.exit(7)
    dist.destroy_process_group()
"""

# Trains, and writes down each sample that each rank has seen. The job's first run takes its time.
TRAINS = """
    import os, sys, time
    import torch
    from torch.utils.data import DataLoader, TensorDataset
    from minetorch import Trainer

    folder, run = sys.argv[1], os.environ.get("SLURM_RESTART_COUNT", "0")
    model = torch.nn.Linear(1, 1)

    def note(trainer, data):
        with open(f"{folder}/seen", "a") as seen:
            for number in data[0].tolist():
                seen.write(f"{run} {trainer.current_epoch} {int(number)} {trainer.world_size}\\n")
        time.sleep(0.1 if run == "0" else 0)

    trainer = Trainer(
        f"{folder}/runs",
        model,
        torch.optim.SGD(model.parameters(), lr=1e-3),
        DataLoader(TensorDataset(torch.arange(1200.0)), batch_size=2, shuffle=True),
        lambda trainer, data: trainer.model(data[0].unsqueeze(1) / 1200).mean() ** 2,
        hooks={"after_train_iteration_end": note},
        drawer=None,
        persist_stride=None,
        max_epochs=2,
    )
    trainer.train()
    print("trained to the end", flush=True)
"""

# Deaf to no signal, and never done.
WAITS = """
    import time
    print("ready", flush=True)
    while True:
        time.sleep(0.05)
"""


GPUS = """
    import os
    print("gpus", os.environ["SLURM_GPUS_ON_NODE"])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("with space é")
    for name in "workers", "preempted", "alone", "deadline", "told", "requeued", "stopped", "contained":
        (folder / name).mkdir()
    for name, text in {"sums.py": SUMS, "trains.py": TRAINS, "waits.py": WAITS, "gpus.py": GPUS}.items():
        lines = text.lstrip("\n").splitlines()
        (folder / name).write_text("\n".join(line[4:] for line in lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def jobs(slurm, folder):
    """The jobs that need nothing of one another, all submitted at once."""
    gpus = ("--ntasks-per-node=2", "--gpus-per-task=1", "--cpus-per-task=2")
    late = "#!/bin/bash\nminetorch-launch --preempt-before 25 trains.py deadline"
    return {
        "one node": slurm.submit(SCRIPTS / "one-node.sh", "--ntasks-per-node=2", args=("sums.py",), cwd=folder),
        "two nodes": slurm.submit(THREE_LINES.format("sums.py 'a b' é"), cwd=folder),
        "array": slurm.submit("#!/bin/bash\nminetorch-launch sums.py", "--array=1-2", cwd=folder),
        "own srun": slurm.submit("#!/bin/bash\nsrun minetorch-launch sums.py", "--nodes=2", cwd=folder),
        "failure": slurm.submit(SCRIPTS / "many-nodes.sh", args=("sums.py", "fail"), cwd=folder),
        "gpus": slurm.submit("#!/bin/bash\nminetorch-launch gpus.py", *gpus, cwd=folder),
        "deadline": slurm.submit(late, "--partition=apart", "--time=1", cwd=folder),
    }


@pytest.fixture(scope="module")
def interrupted(slurm, folder, jobs):
    """Jobs that are all interrupted in the middle of their training, each in its own way."""
    for name, job in jobs.items():
        if name not in ("array", "deadline"):
            slurm.finish(job)
    started = {
        "preempted": slurm.submit(THREE_LINES.format("trains.py preempted"), cwd=folder),
        "alone": slurm.submit("#!/bin/bash\nsrun minetorch-launch trains.py alone", cwd=folder),
        "told": slurm.submit(SCRIPTS / "preemptible.sh", args=("trains.py", folder / "told"), cwd=folder),
        "requeued": slurm.submit("#!/bin/bash\nminetorch-launch trains.py requeued", cwd=folder),
        "contained": slurm.submit(contained("trains.py contained"), cwd=folder),
    }
    for name in started:
        wait_for_lines(folder / name / "seen", 10)
    for name in "told", "contained":
        slurm.run("scancel", "--signal=USR2", started[name])  # what sbatch --signal=USR2@120 does
    slurm.run("scontrol", "requeue", started["requeued"])
    for name in "told", "contained", "requeued":
        slurm.wait_for(started[name], "PENDING")
    urgent = slurm.submit("#!/bin/bash\ntrue", "--partition=urgent", "--nodes=2", "--exclusive", cwd=folder)
    slurm.wait_for(urgent, "COMPLETED")
    return started


def contained(command):
    """The documents' script for containers, with a PATH without SLURM's programs in place of one.

    On one node: only those programs know the addresses of this cluster's nodes.
    """
    page = (ROOT / "docs/slurm.md").read_text(encoding="utf-8")
    (script,) = [block for block in re.findall(r"```text\n(.*?)```", page, re.DOTALL) if "apptainer" in block]
    without_slurm = f"env PATH={shlex.quote(str(Path(sys.executable).parent))}"
    for old, new in (
        ("apptainer exec --nv image.sif", without_slurm),
        ("train.py", command),
        ("#SBATCH --gpus-per-node=4\n", ""),
        ("--nodes=2", "--nodes=1"),
    ):
        assert old in script
        script = script.replace(old, new)
    return script


def came_back(slurm, folder, interrupted, name, *, by_itself):
    """See a job to its end, with no step lost and none done twice; what it wrote."""
    code, output = slurm.finish(interrupted[name])
    assert code == "0:0", output
    assert slurm.show(interrupted[name])["Restarts"] == "1"
    assert (f"requeueing job {interrupted[name]}: it continues" in output) is by_itself
    assert every_sample_once(folder / name / "seen") == {"0", "1"}
    return output


def ranks(output):
    """Of each rank: what it summed up, and where it ran."""
    return {
        int(rank): (int(total), node, rest)
        for total, rank, node, rest in re.findall(r"sum (\d) rank (\d) on (\S+) ?(.*)", output)
    }


def wait_for_lines(path, count, seconds=90):
    end = time.monotonic() + seconds
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert time.monotonic() < end, f"{path} has not got {count} lines"
        time.sleep(0.05)


def wait_for_text(path, text, count=1, seconds=90):
    end = time.monotonic() + seconds
    while not path.exists() or path.read_text().count(text) < count:
        assert time.monotonic() < end, path.read_text() if path.exists() else f"no {path}"
        time.sleep(0.05)


def gone(slurm, job, seconds=15):
    end = time.monotonic() + seconds
    while slurm.job_processes(job) and time.monotonic() < end:
        time.sleep(0.05)
    return not slurm.job_processes(job)


def every_sample_once(seen):
    """No sample is lost or repeated in either epoch, and the runs that had a part in it."""
    lines = [line.split() for line in seen.read_text().splitlines()]
    for epoch in ("1", "2"):
        times = collections.Counter(int(number) for _, of, number, _ in lines if of == epoch)
        assert times == dict.fromkeys(range(1200), 1)
    return {run for run, *_ in lines}


def test_one_node_has_a_worker_for_each_task(slurm, jobs):
    code, output = slurm.finish(jobs["one node"])
    assert code == "0:0", output
    assert ranks(output) in ({0: (2, node, ""), 1: (2, node, "")} for node in ("mt-node1", "mt-node2"))


def test_three_lines_are_a_job_on_two_nodes(slurm, jobs):
    code, output = slurm.finish(jobs["two nodes"])
    assert code == "0:0", output
    assert ranks(output) == {0: (2, "mt-node1", "a b é"), 1: (2, "mt-node2", "a b é")}


def test_the_tasks_of_an_array_are_jobs_of_their_own(slurm, jobs):
    for task in "1", "2":
        code, output = slurm.finish(f"{jobs['array']}_{task}")
        assert code == "0:0", output
    assert re.findall(r"sum (\d) rank (\d)", output) == [("1", "0"), ("1", "0")]


def test_launchers_that_the_user_starts_with_srun(slurm, jobs):
    code, output = slurm.finish(jobs["own srun"])
    assert code == "0:0", output
    assert ranks(output) == {0: (2, "mt-node1", ""), 1: (2, "mt-node2", "")}


def test_a_failure_is_the_jobs_exit_code(slurm, jobs):
    code, output = slurm.finish(jobs["failure"])
    assert code == "7:0", output
    assert output.count("failed first: called sys.exit(7)") == 1
    assert slurm.show(jobs["failure"])["Restarts"] == "0"


def test_tasks_that_are_workers_themselves(slurm, folder):
    """Without the launcher: the Trainer takes its rank from SLURM."""
    own = folder / "workers"
    script = "#!/bin/bash\nexport MASTER_ADDR=127.0.0.2\nsrun python trains.py workers\n"
    job = slurm.submit(script, "--nodes=2", "--export=ALL,SLURM_RESTART_COUNT=1", cwd=folder)
    code, output = slurm.finish(job)
    assert code == "0:0", output
    assert {line.split()[3] for line in (own / "seen").read_text().splitlines()} == {"2"}
    every_sample_once(own / "seen")


def test_a_preempted_job_saves_requeues_itself_and_finishes(slurm, folder, interrupted):
    assert "trained to the end" in came_back(slurm, folder, interrupted, "preempted", by_itself=True)


def test_a_job_on_one_node_hears_of_its_preemption_too(slurm, folder, interrupted):
    came_back(slurm, folder, interrupted, "alone", by_itself=True)


def test_a_job_that_slurm_tells_to_save_requeues_itself(slurm, folder, interrupted):
    came_back(slurm, folder, interrupted, "told", by_itself=True)


def test_a_launcher_in_a_container_is_requeued_by_the_batch_script(slurm, folder, interrupted):
    output = came_back(slurm, folder, interrupted, "contained", by_itself=False)
    assert "is not requeued: there is no scontrol here" in output


def test_a_job_that_is_requeued_by_hand_saves_and_goes_on(slurm, folder, interrupted):
    came_back(slurm, folder, interrupted, "requeued", by_itself=False)


def test_a_job_whose_time_runs_out_saves_requeues_itself_and_finishes(slurm, folder, jobs):
    code, output = slurm.finish(jobs["deadline"])
    assert code == "0:0", output
    assert "the job ends in" in output
    assert f"requeueing job {jobs['deadline']}: it continues" in output
    assert slurm.show(jobs["deadline"])["Restarts"] == "1"
    assert every_sample_once(folder / "deadline" / "seen") == {"0", "1"}


def test_scancel_leaves_nothing(slurm, folder):
    job = slurm.submit(THREE_LINES.format("waits.py"), cwd=folder)
    wait_for_text(Path(slurm.show(job)["StdOut"]), "ready", 2)
    slurm.run("scancel", job)
    slurm.wait_for(job, "CANCELLED")
    assert gone(slurm, job), slurm.job_processes(job)
    assert slurm.show(job)["Restarts"] == "0"


def test_a_stop_of_the_batch_launcher_stops_all_and_requeues_nothing(slurm, folder):
    job = slurm.submit("#!/bin/bash\nexec minetorch-launch trains.py stopped", cwd=folder)
    wait_for_lines(folder / "stopped" / "seen", 10)
    batch = [pid for pid, line in slurm.job_processes(job).items() if _is_batch_launcher(pid, line)]
    assert len(batch) == 1, slurm.job_processes(job)
    os.kill(batch[0], signal.SIGTERM)
    code, output = slurm.finish(job)
    assert code == "75:0", output
    assert slurm.show(job)["Restarts"] == "0"
    assert gone(slurm, job), slurm.job_processes(job)


def _is_batch_launcher(pid, line):
    environ = Path(f"/proc/{pid}/environ").read_bytes()
    return "minetorch-launch" in line and b"MINETORCH_SLURM_BATCH=" not in environ


def test_an_interactive_allocation_and_ctrl_c(slurm, folder):
    """As in the shell of an allocation: the terminal's signal comes to the launcher alone."""
    words = ["salloc", "--nodes=2", "minetorch-launch", "waits.py"]
    with subprocess.Popen(
        words, cwd=folder, env=slurm.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        seen = ""
        while seen.count("ready") < 2:
            line = process.stdout.readline()
            assert line, seen
            seen += line
        (launcher,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(launcher), signal.SIGINT)
        seen += process.communicate(timeout=60)[0]
    assert process.returncode == 130, seen
    job = re.search(r"Granted job allocation (\d+)", seen)[1]
    assert "stopped by SIGINT" in seen
    assert gone(slurm, job), slurm.job_processes(job)


def test_all_gpus_of_a_node_are_its_one_launchers(slurm, jobs):
    code, output = slurm.finish(jobs["gpus"])
    assert code == "0:0", output
    assert {*re.findall(r"gpus (\d)", output)} == {"2"}


def test_several_launchers_on_a_node_are_told_how_to_do_it(slurm, folder):
    script = "#!/bin/bash\nsrun --ntasks=2 minetorch-launch sums.py"
    code, output = slurm.finish(slurm.submit(script, "--nodes=1", "--ntasks=2", cwd=folder))
    assert code == "2:0", output
    assert re.search("2 launchers on mt-node[12],", output), output


def test_sbatch_submits_what_is_on_the_command_line(slurm, folder):
    words = [
        "minetorch-launch",
        "--sbatch",
        "--sbatch-options=--comment='a \"b' --time=10",
        "--nproc",
        "2",
        "sums.py",
        "c d",
        "é",
    ]
    said = slurm.run(*words, cwd=folder)
    job = re.fullmatch(r"minetorch-launch: submitted batch job (\d+)\n", said)[1]
    code, output = slurm.finish(job)
    assert code == "0:0", output
    assert [(total, rest) for total, _, rest in ranks(output).values()] == [(2, "c d é")] * 2
    shown = slurm.run("scontrol", "show", "job", job)
    assert "JobName=sums\n" in shown
    assert f"StdOut={folder}/sums-{job}.out" in shown
    assert 'Comment=a "b' in shown
    assert "TimeLimit=00:10:00" in shown


def test_sbatch_writes_a_script_that_can_be_submitted(slurm, folder):
    printed = slurm.run("minetorch-launch", "--sbatch", "--dry-run", "sums.py", cwd=folder)
    slurm.run("minetorch-launch", "--sbatch=job é.sh", "sums.py", cwd=folder)
    assert (folder / "job é.sh").read_text() == printed
    assert "to start at" in slurm.run("sbatch", "--test-only", folder / "job é.sh", cwd="/")


def test_a_batch_script_from_within_a_step_is_no_task(slurm, folder):
    """It inherits the step's variables, as from a shell that came with srun --pty."""
    inner = f"sbatch --parsable --output=inner-%j.txt --wrap {shlex.quote('minetorch-launch --dry-run sums.py')}"
    job = slurm.run("srun", "--nodes=1", "sh", "-c", inner, cwd=folder).strip()
    code, output = slurm.finish(job)
    assert code == "0:0", output
    assert output.startswith("step        srun ")
