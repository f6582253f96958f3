"""What runs in a worker runs as under ``python``: each program is run both ways, and must print the same."""

import os
import py_compile
import subprocess
import sys
import zipapp
from pathlib import Path

import pytest

from minetorch_launch.errors import UsageError
from minetorch_launch.target import Command, Function, Module, Script, check_target, likely_imports
from minetorch_launch.worker.run_target import run_target
from minetorch_launch.worker.task import make_task

# A worker process in short: the launcher's half, a pickle, and the worker's half in a process whose main is another.
WORKER = """
import multiprocessing, pickle, sys
sys.path.insert(0, "")
from minetorch_launch.target import Module, Script
from minetorch_launch.worker.run_target import run_target
from minetorch_launch.worker.task import make_task
kind, name, *args = sys.argv[1:]
target = (Module if kind == "module" else Script)(name, tuple(args))
run_target(pickle.loads(pickle.dumps(make_task(target, own_process=True))))
"""

SHOW = """
import __main__, os, pickle, sys
import beside
class Item:
    pass
print(sys.argv, sys.path[0], __name__, __package__, __file__, __spec__ and __spec__.name, type(__loader__).__name__)
print(vars(__main__) is globals(), sorted(vars(__main__)), beside.VALUE)
print(type(pickle.loads(pickle.dumps(Item()))) is Item)
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """The same program in each form that Python runs."""
    folder = tmp_path / "with space é"
    app = folder / "app"
    app.mkdir(parents=True)
    for place in (app, folder):
        (place / "beside.py").write_text("VALUE = 7")
    (app / "__main__.py").write_text(SHOW)
    (folder / "script.py").write_text(SHOW)
    zipapp.create_archive(app, folder / "app.pyz")
    py_compile.compile(str(folder / "script.py"), cfile=str(folder / "compiled.pyc"))
    monkeypatch.chdir(folder)
    return folder


def run(command, **options):
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=60, **options)


@pytest.mark.parametrize("name", ["script.py", "./app/../script.py", "compiled.pyc", "app.pyz", "app", "./app/"])
def test_a_program_of_each_form(programs, name):
    alone = run([name, "3", "-m", "a b"])
    ours = run(["-c", WORKER, "script", name, "3", "-m", "a b"])
    assert alone.returncode == 3, alone.stderr
    assert (ours.stdout, ours.stderr, ours.returncode) == (alone.stdout, alone.stderr, 3)


def test_a_module(programs):
    alone, ours = run(["-m", "app", "0"]), run(["-c", WORKER, "module", "app", "0"])
    assert (ours.returncode, ours.stdout) == (0, alone.stdout), ours.stderr


@pytest.mark.parametrize("script", ["/dev/stdin", "fifo"])
def test_a_script_from_a_pipe_is_read_once_for_all_workers(programs, script):
    text = "import sys; print('ran', sys.argv)"
    target = Script(script, ("x",))
    code = f"""
        import pickle
        from minetorch_launch.target import Script, check_target, likely_imports
        from minetorch_launch.worker.run_target import run_target
        from minetorch_launch.worker.task import make_task
        target = Script({script!r}, ("x",))
        check_target(target)
        likely_imports(target)
        task = make_task(target, own_process=True)
        for _ in range(2):
            run_target(task)
    """.replace("\n        ", "\n")
    if script == "fifo":
        os.mkfifo(script)
        Path("writer.py").write_text(f"import sys; open('fifo', 'w').write({text!r})")
        writer = subprocess.Popen([sys.executable, "writer.py"])
    done = run(["-c", code], input=text)
    if script == "fifo":
        writer.wait(10)
    assert done.stdout == f"ran {[script, *target.args]}\n" * 2, done.stderr


def test_a_function_of_the_callers_main_program_and_its_arguments(programs):
    Path("caller.py").write_text("""
import pickle, subprocess, sys
from minetorch_launch.target import Function
from minetorch_launch.worker.task import make_task
print("imported as", __name__)
class Point:
    def __init__(self, x): self.x = x
def double(point):
    return Point(2 * point.x)
if __name__ == "__main__":
    task = make_task(Function(double, (Point(4),)), own_process=False)
    worker = "import pickle, sys; from minetorch_launch.worker.run_target import run_target; "
    worker += "result = run_target(pickle.load(sys.stdin.buffer)); sys.stdout.flush(); sys.stdout.buffer.write(result)"
    done = subprocess.run([sys.executable, "-c", worker], input=pickle.dumps(task), stdout=subprocess.PIPE, check=True)
    said, _, result = done.stdout.partition(b"\\n")
    sys.modules["__mp_main__"] = sys.modules["__main__"]
    print(said.decode(), pickle.loads(result).x, type(pickle.loads(result)) is Point)
""")
    for command in (["caller.py"], ["-m", "caller"]):
        done = run(command)
        assert done.stdout.splitlines() == ["imported as __main__", "imported as __mp_main__ 8 True"], done.stderr


def test_a_function_that_cannot_be_sent_is_refused():
    with pytest.raises(UsageError, match="cannot be sent to the workers"):
        make_task(Function(lambda: 0), own_process=False)
    code = "from minetorch_launch.target import Function; from minetorch_launch.worker.task import make_task\n"
    code += "def f(): pass\nmake_task(Function(f), own_process=False)"
    assert "is defined in an interactive session" in run(["-c", code]).stderr


def test_what_a_script_raises_comes_out_with_its_own_frames_last(programs):
    Path("wrong.py").write_text("def f():\n    raise KeyError('here')\nf()\n")
    main = sys.modules["__main__"], sys.modules.get("__mp_main__"), sys.argv, list(sys.path)
    try:
        with pytest.raises(KeyError) as raised:
            run_target(make_task(Script("wrong.py"), own_process=True))
    finally:
        sys.modules["__main__"], sys.argv, sys.path[:] = main[0], main[2], main[3]
        sys.modules["__mp_main__"] = main[1] or main[0]
    assert [Path(str(entry.path)).name for entry in raised.traceback][-2:] == ["wrong.py", "wrong.py"]


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (Script("app/empty"), "is a directory without __main__.py"),
        (Script("none.py"), "there is no script 'none.py' in"),
        (Module("nothing.here"), "no module named 'nothing.here'"),
        (Command("script.py"), "is not executable: type chmod +x for it"),
        (Command("no-such-program"), "is neither a file nor a program in PATH"),
        (Command("\0"), "is neither a file nor a program in PATH"),
        (Command("x" * 5000), "is neither a file nor a program in PATH"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_run_is_refused(programs, target, words):
    Path("app/empty").mkdir()
    with pytest.raises(UsageError) as refused:
        check_target(target)
    assert words in str(refused.value)


def test_what_can_run_is_not_refused(programs):
    Path("run.sh").write_text("#!/bin/sh\n")
    Path("run.sh").chmod(0o755)
    for target in (Script("app"), Script("app.pyz"), Script("compiled.pyc"), Command("./run.sh"), Command("sh")):
        check_target(target)
    assert likely_imports(Command("sh")) == ()


# What a script sets before its own import of torch.

WATCHED = """
import sys
sys.modules["torch"] = torch = __import__("fake_torch")
torch.__name__ = "torch"
from minetorch_launch.target import Script
from minetorch_launch.worker.environ_watch import install
from minetorch_launch.worker.run_target import run_target
from minetorch_launch.worker.task import make_task
task = make_task(Script(sys.argv[1]), own_process=True)
install(task)
run_target(task)
"""


def watched(tmp_path, script, **env):
    """What it prints on stdout and stderr, with a torch that says what is asked of it."""
    (tmp_path / "fake_torch.py").write_text(
        "def set_num_threads(n): print('threads', n)\nclass Tensor: pass\nTensor.__module__ = 'torch'"
    )
    (tmp_path / "library.py").write_text("import os; os.environ['TORCH_LOGS'] = os.environ['OMP_NUM_THREADS'] = '9'")
    (tmp_path / "set_it.py").write_text(script)
    done = run(["-c", WATCHED, "set_it.py"], cwd=tmp_path, env={**os.environ, "RANK": "0", **env})
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr.splitlines()


def test_threads_that_a_script_sets_take_effect_and_the_rest_is_warned_about_once(tmp_path):
    script = """
import os
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("MKL_NUM_THREADS_OTHER", "1")
os.environ.update(TORCHINDUCTOR_MAX_AUTOTUNE="1", PYTORCH_JIT="0", HOME="/")
os.environ["PYTORCH_JIT"] = "1"
os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
os.environ["OMP_NUM_THREADS"] = "many"
"""
    out, err = watched(tmp_path, script)
    assert out == ["threads 1"]
    assert [line.split(",")[0] for line in err] == [
        "minetorch-launch: the script sets TORCHINDUCTOR_MAX_AUTOTUNE",
        "minetorch-launch: the script sets PYTORCH_JIT",
    ]
    assert watched(tmp_path, script, RANK="1") == (out, [])


@pytest.mark.parametrize(
    "script",
    [
        "import torch, os; os.environ['OMP_NUM_THREADS'] = '1'; os.environ['TORCH_LOGS'] = 'x'",
        "import os; from torch import Tensor; os.environ['TORCH_LOGS'] = 'x'",
        "import library",  # a library's setting is not the script's
        "import os; os.environ['PYTORCH_JIT'] = '0'",
        "import os; os.putenv(b'\\xff', b'\\xff')",
    ],
)
def test_nothing_happens_for_what_torch_would_not_see_under_python_either(tmp_path, script):
    assert watched(tmp_path, script, PYTORCH_JIT="0") == ([], [])
