"""A script behaves under the launcher as under ``python``: checked by running it under both."""

import json
import sys

import pytest

EVERYTHING = """
    import __main__, atexit, gc, multiprocessing as mp, os, pickle, subprocess, sys, threading, time

    class Noisy:
        def __del__(self):
            os.write(1, b"deleted\\n")

    class Item:
        def __init__(self, number):
            self.number = number
        def __repr__(self):
            return f"Item {self.number}"

    class Numbers:
        def __len__(self):
            return 4
        def __getitem__(self, index):
            return Item(index)

    def square(number):
        return Item(number * number)

    def as_list(items):
        return items

    def late():
        time.sleep(0.2)
        print("thread ended")

    if __name__ == "__main__":
        print(gc.isenabled(), gc.get_threshold())
        print(sys.argv[0] == sys.argv[1], sys.argv[3:], __file__, sys.path[0])
        print(__name__, __spec__, __package__, type(__loader__).__name__, sorted(vars(__main__)))
        print(vars(__main__) is globals(), sys.stdin.read() == "", sys.stdout.isatty())
        print(mp.current_process().name, mp.parent_process(), mp.get_start_method(allow_none=True))
        mp.set_start_method("spawn")
        print(pickle.loads(pickle.dumps(Item(3))))
        for method in "fork", "spawn", "forkserver":
            with mp.get_context(method).Pool(1) as pool:
                print(method, pool.map(square, range(3)))
        from torch.utils.data import DataLoader
        for method in "fork", "spawn":
            loader = DataLoader(Numbers(), 2, num_workers=1, collate_fn=as_list, multiprocessing_context=method)
            print(method, list(loader))
        child = mp.Process(target=print, args=("from a child",))
        child.start()
        child.join()
        print(child.name, child.exitcode)
        forked = os.fork()
        if forked == 0:
            sys.exit(0)
        print(os.waitpid(forked, 0)[1])
        print(subprocess.run([sys.executable, "-c", "print('sub')"], capture_output=True, text=True).stdout)
        sys.stdout.flush()
        os.system("echo from a shell")
        noisy = Noisy()
        left_open = open(sys.argv[2], "w")
        left_open.write("written")
        atexit.register(print, "at exit")
        threading.Thread(target=late).start()
        print("end", end="")
"""


@pytest.mark.slow
@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
def test_script(launches, start_method):
    script = launches.script(EVERYTHING, "dir ü/my script.py")
    script = f"./{script.parent.name}/../{script.parent.name}/{script.name}"
    alone = launches.run(script, script, "alone.txt", "-m", "a b", "--", "", command=(sys.executable,))
    ours = launches.run("--start-method", start_method, script, script, "ours.txt", "-m", "a b", "--", "")
    assert alone.returncode == 0, alone.stderr
    assert ours.stdout == alone.stdout
    assert (ours.returncode, ours.stderr) == (0, "")
    assert (launches.folder / "ours.txt").read_text() == (launches.folder / "alone.txt").read_text() == "written"


@pytest.mark.slow
def test_module(launches):
    launches.script("", "pkg/__init__.py")
    launches.script(
        """
        import multiprocessing as mp, sys
        class Item:
            pass
        def make(_):
            return Item()
        if __name__ == "__main__":
            print(sys.argv, sys.path[0], __file__, __spec__.name, __package__)
            with mp.get_context("spawn").Pool(1) as pool:
                print(type(pool.map(make, [0])[0]) is Item)
            if len(sys.argv) > 2:
                raise ValueError("as told")
        """,
        "pkg/run.py",
    )
    alone = launches.run("-m", "pkg.run", "-x", command=(sys.executable,))
    ours = launches.run("-m", "pkg.run", "-x")
    assert ours.stdout == alone.stdout
    assert (ours.returncode, ours.stderr) == (0, "")
    failed = launches.run("-m", "pkg.run", "-x", "fail")
    assert failed.returncode == 1
    assert "runpy" not in failed.stderr
    assert failed.stderr.endswith("ValueError: as told\n")


def test_environment(launches):
    script = launches.script(
        """
        import json, os, random, sys
        import numpy.random
        print(json.dumps([dict(os.environ), sys.path[:2], random.random(), float(numpy.random.random())]))
        """
    )
    launches.script("", "beside.py")
    env = {"PYTHONPATH": "/no/such/place", "TORCH_MP_PARALLEL_START": "0"}
    done = launches.run("--nproc", 2, "--device", "cpu", "--preload", "beside", script, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    found = [json.loads(line[4:]) for line in sorted(done.stdout.splitlines())]
    for rank, (variables, path, *_) in enumerate(found):
        assert variables.items() >= {
            ("RANK", str(rank)),
            ("LOCAL_RANK", str(rank)),
            ("WORLD_SIZE", "2"),
            ("LOCAL_WORLD_SIZE", "2"),
            ("GROUP_RANK", "0"),
            ("MASTER_ADDR", "127.0.0.1"),
            ("TORCHELASTIC_RESTART_COUNT", "0"),
            ("MINETORCH_DEVICE", "cpu"),
            ("CUDA_VISIBLE_DEVICES", ""),
            ("ACCELERATE_USE_CPU", "true"),
            *env.items(),
        }
        assert int(variables["MASTER_PORT"]) > 0
        assert variables["OMP_NUM_THREADS"].isdecimal()
        assert not {"MINETORCH_CONSOLE_COLUMNS", "PYTORCH_NVML_BASED_CUDA_CHECK", "PYTHONWARNINGS"} & set(variables)
        assert path == [str(launches.folder), "/no/such/place"]
    # Forked from one process, the ranks must still draw different unseeded numbers.
    assert found[0][2] != found[1][2]
    assert found[0][3] != found[1][3]


def test_function(launches):
    program = launches.script(
        """
        import os
        from minetorch_launch import Function, LaunchOptions, WorkerFailedError, launch

        def add(a, b):
            if b is None:
                raise ValueError("nothing to add")
            return os.environ["RANK"], a + b

        if __name__ == "__main__":
            before = dict(os.environ)
            print(launch(Function(add, (1,), {"b": 2}), LaunchOptions(nproc=2)).returned)
            try:
                launch(Function(add, (1, None)))
            except WorkerFailedError as error:
                print(error.exit_code, error.report.first.cause)
            print(dict(os.environ) == before)
        """
    )
    done = launches.run("-W", "error", program, command=(sys.executable,))
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["(('0', 3), ('1', 3))", "1 ValueError: nothing to add", "True"]


@pytest.mark.slow
def test_a_temporary_folder_with_a_long_path(launches):
    """The fork server's socket has at most 107 bytes for its path."""
    folder = launches.folder / ("long" * 25)
    folder.mkdir()
    script = launches.script("import tempfile; print(tempfile.gettempdir())")
    done = launches.run("--nproc", 2, script, env={"TMPDIR": str(folder)})
    assert (done.returncode, done.stderr) == (0, "")
    assert launches.by_rank(done.stdout) == {0: [str(folder)], 1: [str(folder)]}
    assert not list(folder.iterdir())
