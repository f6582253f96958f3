"""Real hangs: who is where, on demand (SIGQUIT to the launcher) and when no Trainer beats any more."""

import re
import signal
import time

import pytest

WAYS_TO_HANG = """
    import ctypes, os, signal, sys, threading, time
    import torch, torch.distributed as dist
    from torch.utils.data import DataLoader, Dataset

    class Stuck(Dataset):
        def __len__(self):
            return 8
        def __getitem__(self, index):
            while True:
                signal.pause()

    def train_step(loss):
        dist.all_reduce(loss)

    def batches():
        it = iter(DataLoader(Stuck(), num_workers=1))
        batch = next(it)

    def hold_the_interpreter():
        read, write = os.pipe()
        ctypes.PyDLL(None).read(read, ctypes.create_string_buffer(1), 1)

    def run_another_program():
        os.execvp("sleep", ["sleep", "1000"])

    def stop():
        os.kill(os.getpid(), signal.SIGSTOP)

    def block_signals():
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        hold_the_interpreter()

    def hold_it_beside():
        threading.Timer(0.5, hold_the_interpreter).start()
        train_step(loss)

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    loss = torch.ones(1)
    print("there", rank, flush=True)
    if rank in (0, 6):
        train_step(loss)
    (None, batches, hold_the_interpreter, run_another_program, stop, block_signals, None, hold_it_beside)[rank]()
"""


def rows_of_a_summary(process):
    """Ask the launcher for a stack summary, and read its rows from stderr."""
    process.send_signal(signal.SIGQUIT)
    for line in process.stderr:
        if re.match(r"minetorch-launch: .*stack summary of \d+ ranks?:$", line):
            break
    rows = []
    for line in process.stderr:
        if not line.startswith("  rank"):
            return rows
        rows.append(line.strip())
    raise AssertionError(f"the launcher ended after {rows}")


def summary_with(process, wanted, seconds=30):
    """Ask until all that is wanted is in it: a rank may still be on its way to where it hangs."""
    end = time.monotonic() + seconds
    while True:
        rows = rows_of_a_summary(process)
        missing = [row for row in wanted if not any(re.fullmatch(row, there) for there in rows)]
        if not missing:
            return rows
        assert time.monotonic() < end, f"missing {missing} in {rows}"
        time.sleep(0.1)


def wait_for_lines(process, number):
    return [process.stdout.readline() for _ in range(number)]


@pytest.mark.slow
def test_each_way_to_hang_is_told_on_demand(launches):
    process = launches.start("--nproc", 8, "--grace", 0.5, launches.script(WAYS_TO_HANG, "train é.py"))
    wait_for_lines(process, 8)
    rows = summary_with(
        process,
        [
            r"ranks 0, 6 +in all_reduce \(torch.distributed\) +at train é.py:\d+ in train_step: dist.all_reduce.*",
            r"rank 1 +in __next__ \(torch.utils.data.dataloader\) +at train é.py:\d+ in batches: batch = next\(it\)",
            # In C code that holds the interpreter; 5 has all signals blocked as well, so another thread takes ours.
            r"ranks 2, 5 +in the script's own code +at train é.py:\d+ in hold_the_interpreter: ctypes.*",
            r"rank 3 +does not answer: cannot be asked: its process runs sleep 1000",
            r"rank 4 +does not answer: stopped \(T\)",
            r"rank 7 +in all_reduce \(torch.distributed\), another thread holds the interpreter +at train é.py:\d+ .*",
        ],
    )
    assert len(rows) == 6
    process.send_signal(signal.SIGTERM)
    err = process.stderr.read()
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert err.count("main thread, most recent call first:") == 4
    for internal in ("minetorch_launch/", "multiprocessing/forkserver", "multiprocessing/process.py"):
        assert internal not in err


def test_a_job_in_the_background_answers_too(launches):
    """A script's shell starts it with SIGINT and SIGQUIT ignored: the first stays so."""

    def ignore():
        for signum in (signal.SIGINT, signal.SIGQUIT):
            signal.signal(signum, signal.SIG_IGN)

    script = launches.script("import time; print('there', flush=True); time.sleep(100)")
    process = launches.start("--grace", 0.5, script, preexec_fn=ignore)
    wait_for_lines(process, 1)
    process.send_signal(signal.SIGINT)
    assert rows_of_a_summary(process)[0].startswith("rank 0  in the script's own code")
    process.send_signal(signal.SIGTERM)
    process.stderr.read()
    assert process.wait(timeout=60) == 128 + signal.SIGTERM


LOOP = """
    import os, pathlib, signal, threading
    import torch, torch.distributed as dist
    from torch.utils.data import DataLoader, Dataset

    class Numbers(Dataset):
        def __len__(self):
            return 64
        def __getitem__(self, index):
            return torch.tensor(float(index))

    def count():
        while True:
            sum(range(50))

    dist.init_process_group("gloo")
    threading.Thread(target=count, daemon=True).start()
    total, epochs, go_on = 0.0, 0, torch.ones(1)
    while go_on > 0:
        for batch in DataLoader(Numbers(), batch_size=8, num_workers=1):
            part = batch.sum()
            dist.all_reduce(part)
            total += part.item()
        epochs += 1
        if epochs == 1:
            print("looping", dist.get_rank(), flush=True)
        go_on = torch.tensor(0.0 if pathlib.Path("enough").exists() else 1.0)
        dist.all_reduce(go_on, op=dist.ReduceOp.MIN)
    print(dist.get_rank(), "right" if total == 2 * 2016 * epochs and epochs > 1 else f"wrong: {total}, {epochs}")
"""


@pytest.mark.slow
def test_twenty_stack_summaries_do_a_running_job_no_harm(launches):
    process = launches.start("--nproc", 2, launches.script(LOOP))
    assert sorted(wait_for_lines(process, 2)) == ["[0] looping 0\n", "[1] looping 1\n"]
    for _ in range(20):
        rows = rows_of_a_summary(process)
        assert not any("does not answer" in row for row in rows)
        assert sum(len(re.findall(r"\d+", row.split("  ")[0])) for row in rows) == 2
    (launches.folder / "enough").touch()
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, sorted(out.splitlines())) == (0, ["[0] 0 right", "[1] 1 right"])


BEATS = """
    import os, struct, sys, time
    import torch, torch.distributed as dist

    heart = int(os.environ["MINETORCH_HEARTBEAT_FD"])

    def beat(**words):
        places = dict(beats=2, at=3, step=4, phase=5, began=6, first=7, epoch=8, checkpoint=9)
        for name, value in (words | {"at": time.monotonic_ns()}).items():
            os.pwrite(heart, struct.pack("=q", value), 8 * places[name])

    def load():
        time.sleep(1000)

    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    beat(beats=1, began=40 * attempt)
    for step in range(1, 6):
        if step == 4 and rank == 1 and attempt < int(sys.argv[1]):
            load()
        loss = torch.ones(1)
        dist.all_reduce(loss)
        beat(beats=1 + step, step=step + 40 * attempt, phase=1, first=time.monotonic_ns(), epoch=2)
    beat(beats=7, phase=5)
    print("done", rank, flush=True)
"""


def test_a_hang_is_named_and_ends_the_launch(launches):
    done = launches.run("--nproc", 3, "--hang-timeout", 1.5, "--grace", 2, launches.script(BEATS), 9)
    assert done.returncode == 124
    assert re.search(
        r"^minetorch-launch: no step for \d+ s \(last: step 3, epoch 2; limit: --hang-timeout 1.5\); "
        r"stack summary of 3 ranks:$",
        done.stderr,
        re.MULTILINE,
    )
    assert re.search(r"^  ranks 0, 2 +in all_reduce \(torch.distributed\) +at script.py:", done.stderr, re.MULTILINE)
    assert re.search(
        r"^  rank 1 +in the script's own code +at script.py:\d+ in load: time.sleep", done.stderr, re.MULTILINE
    )
    assert re.search(
        r"rank 1 of 3 failed first: hung in the script's own code at script.py:\d+ in load, "
        r"while ranks 0, 2 waited in all_reduce \(torch.distributed\) at script.py:\d+",
        done.stderr.rpartition("minetorch-launch: ")[2],
    )


@pytest.mark.slow
def test_a_hang_is_restarted_as_any_failure(launches):
    done = launches.run(
        "--nproc", 2, "--hang-timeout", 1.5, "--max-restarts", 1, "--grace", 2, launches.script(BEATS), 1
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["[0] done 0", "[1] done 1"]
    assert "stack summary of 2 ranks" in done.stderr
    assert "restart 1 of 1" in done.stderr


@pytest.mark.parametrize("start_method", ["forkserver", pytest.param("spawn", marks=pytest.mark.slow)])
def test_a_worker_hands_its_memory_over_and_keeps_it_from_its_children(launches, start_method):
    script = launches.script(
        """
        import os, struct, subprocess, sys, threading
        fd = int(os.environ["MINETORCH_HEARTBEAT_FD"])
        words = struct.unpack("=16q", os.pread(fd, 200, 0))
        print(words[0], words[1] == os.getpid(), words[2:])
        print(os.readlink(f"/proc/self/fd/{fd}"), threading.active_count())
        if os.fork() == 0:
            os._exit(0)
        os.wait()
        listing = "import os; print([os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd')[:-1]])"
        print("minetorch" in subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True).stdout)
        """
    )
    done = launches.run("--start-method", start_method, script)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "1 True (0, 0, 0, 0, -1, 0, 0, -1, 0, 0, 0, 0, 0, 0)",
        "/memfd:minetorch-heartbeat (deleted) 1",
        "False",
    ]


@pytest.mark.slow
def test_a_trainer_that_hangs_in_its_data_is_named(launches):
    script = launches.script(
        """
        import os, time, torch
        from torch.utils.data import DataLoader, Dataset
        import minetorch

        class Data(Dataset):
            def __len__(self):
                return 64
            def __getitem__(self, index):
                if os.environ["RANK"] == "1" and index > 40:
                    time.sleep(1000)
                return torch.ones(4)

        def loss_func(trainer, data):
            return trainer.model(data).mean()

        model = torch.nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        loader = DataLoader(Data(), batch_size=2, num_workers=1)
        trainer = minetorch.Trainer("runs", model, optimizer, loader, loss_func, max_epochs=1, drawer=None)
        trainer.train()
        """
    )
    done = launches.run("--nproc", 2, "--device", "cpu", "--hang-timeout", 4, "--grace", 2, script)
    assert done.returncode == 124
    assert re.search(
        r"rank 1 of 2 failed first: hung in __next__ \(torch.utils.data.dataloader\), Trainer: .* at script.py:\d+, "
        r"while rank 0 (was|waited) in ",
        done.stderr.rpartition("minetorch-launch: ")[2],
    )
    assert "no step for 4 s (last: step " in done.stderr


@pytest.mark.slow
def test_a_plain_script_that_beats_is_watched(launches):
    script = launches.script(
        """
        import time
        from minetorch_launch import beat

        def stand():
            time.sleep(1000)

        for step in range(1, 4):
            beat(step)
        stand()
        """
    )
    done = launches.run("--hang-timeout", 1.5, "--grace", 1, script)
    assert done.returncode == 124
    assert "no step for 2 s (last: step 3; limit: --hang-timeout 1.5); stack summary of 1 rank:" in done.stderr
    assert re.search(
        r"failed first: hung in the script's own code at script.py:\d+ in stand$", done.stderr, re.MULTILINE
    )
