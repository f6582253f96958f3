"""The Trainer, and launches of workers, in a real Jupyter kernel."""

import base64
import os
import queue
import re
import shutil
import time
import uuid
from contextlib import suppress
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient

EXAMPLE = Path(__file__).parents[2] / "examples/train.ipynb"

# Of the kernel's own libraries.
pytestmark = [pytest.mark.notebook, pytest.mark.filterwarnings("default")]

SETUP = """
import os, signal, threading, time, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from minetorch import Trainer
from minetorch.notebook import launch

def train(epochs, **options):
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    inputs = torch.linspace(-1, 1, 20).unsqueeze(1)
    trainer = Trainer(
        "runs",
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        DataLoader(TensorDataset(inputs, 2 * inputs), batch_size=4),
        lambda trainer, data: nn.functional.mse_loss(trainer.model(data[0]), data[1]),
        max_epochs=epochs,
        **options,
    )
    trainer.train()
    return trainer
"""


class Marked:
    """Processes that a kernel has started, told apart by a token in their environment."""

    def __init__(self, token):
        self.entry = f"MINETORCH_TEST={token}".encode()

    def pids(self, *, workers_only=False):
        found = []
        for folder in Path("/proc").iterdir():
            with suppress(OSError):
                if not folder.name.isdecimal() or self.entry not in (folder / "environ").read_bytes():
                    continue
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                command = (folder / "cmdline").read_bytes()
                if state not in "ZX" and not (workers_only and b"ipykernel_launcher" in command):
                    found.append(int(folder.name))
        return found

    def gone_within(self, seconds, **which):
        end = time.monotonic() + seconds
        while self.pids(**which) and time.monotonic() < end:
            time.sleep(0.05)
        return not self.pids(**which)


@pytest.fixture
def marked(monkeypatch):
    token = uuid.uuid4().hex
    monkeypatch.setenv("MINETORCH_TEST", token)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    marked = Marked(token)
    yield marked
    # Multiprocessing's resource tracker ends by itself, a moment after the kernel.
    assert marked.gone_within(20)


def execute(notebook, folder):
    NotebookClient(notebook, timeout=150, resources={"metadata": {"path": str(folder)}}).execute()
    return [cell.get("outputs") for cell in notebook.cells]


def texts(outputs, name="stdout"):
    return "".join(output.text for output in outputs if output.get("name") == name)


def shown(outputs, kind):
    return [output.data[kind] for output in outputs if "data" in output and kind in output.data]


@pytest.fixture
def outputs(tmp_path, marked):
    """Runs cells in one kernel and gives the outputs of each but the first."""

    def run(*cells):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in (SETUP, *cells)])
        nbformat.validate(notebook)
        return execute(notebook, tmp_path)[1:]

    return run


def test_a_cell_trains_shows_its_run_and_may_be_run_again(outputs, tmp_path):
    first, again, long = outputs(
        "train(2, in_notebook=True); print(open('runs/default/log.txt').read())",
        "train(4, in_notebook=True).logger.warning('<mind> the gap')",
        "train(60, in_notebook=True, drawer=['matplotlib', 'tensorboard'], persist_stride=None) and None",
    )
    assert "Epoch 2/2: train_loss" in texts(first)
    (page,) = shown(first, "text/html")
    assert page.count("<tr>") == 3  # the head, and two epochs
    assert "No checkpoint found: training from scratch." in page
    (picture,) = shown(first, "image/png")
    file = (tmp_path / "runs/default/graph/loss.png").read_bytes()
    assert base64.b64decode(picture).startswith(file[:8])
    assert len(shown(first, "application/vnd.jupyter.widget-view+json")) == 1
    assert not texts(again, "stderr")
    assert "Resumed from" in shown(again, "text/html")[0]
    assert "&lt;mind&gt; the gap</pre>" in shown(again, "text/html")[-1]
    # Fifty-six epochs take no more room than two.
    assert len(long) <= 3
    (page,) = shown(long, "text/html")
    assert page.count("<tr>") == 11
    assert "<td>60</td>" in page
    assert len(page) < 10_000


@pytest.mark.slow
def test_what_is_told_at_the_end_of_a_cell_is_shown(outputs):
    """Who runs a notebook as a whole hears nothing of a cell that has ended: the view must not be later."""
    (cell,) = outputs(
        """
from minetorch.notebook import CellView

show = CellView._run
CellView._run = lambda view: (time.sleep(1), show(view))
train(1, in_notebook=True).logger.warning("the last word")
"""
    )
    assert "the last word</pre>" in shown(cell, "text/html")[-1]


@pytest.mark.slow
def test_workers_train_below_the_cell(outputs, tmp_path):
    first, second, values = outputs(
        "launch(lambda: train(3).metrics)",
        # Restarted amid the run, and on another number of workers.
        """
def fails_once():
    def fail(trainer):
        if trainer.current_epoch == 4 and os.environ["MINETORCH_ATTEMPT"] == "1" and trainer.rank == 2:
            raise RuntimeError("a passing fault")
    print("from", os.environ["RANK"])
    return train(5, hooks={"after_epoch_end": fail}).current_epoch

launch(fails_once, nproc=3, max_restarts=1)
""",
        """
class Own:
    def __init__(self, value):
        self.value = value

results = launch(lambda base: Own(base + int(os.environ["RANK"])), 40, nproc=2, returns="all")
[type(result) is Own for result in results], [result.value for result in results]
""",
    )
    assert re.search(r"{'train_loss': 0\.\d+}", shown(first, "text/plain")[-1])
    assert len(shown(first, "image/png")) == len(shown(first, "application/vnd.jupyter.widget-view+json")) == 1
    (page,) = shown(first, "text/html")
    assert page.count("<tr>") == 4
    assert (tmp_path / "runs/default/graph/loss.png").exists()
    assert "a passing fault" in texts(second)
    assert sorted(re.findall(r"^\[[\d,-]+\] from \d", texts(second), re.MULTILINE)) == [
        f"[{rank}] from {rank}" for rank in (0, 0, 1, 1, 2, 2)
    ]
    assert shown(second, "text/plain")[-1] == "5"
    assert shown(values, "text/plain") == ["([True, True], [40, 41])"]


@pytest.mark.slow
def test_what_goes_wrong_is_told(outputs):
    cell = """
from minetorch import ConfigurationError, WorkersFailedError
def fail(nproc=2, **options):
    def bad():
        if os.environ["RANK"] == "1":
            raise ValueError("no good")
        time.sleep(100)
    launch(bad, nproc=nproc, **options)
try:
    fail()
except WorkersFailedError as error:
    print(error)
for wrong in (lambda: fail(nproc=0), lambda: fail(returns="some"), lambda: launch(threading.Lock().acquire),
              lambda: fail(device="abacus")):
    try:
        wrong()
    except ConfigurationError as error:
        print("wrong:", str(error).splitlines()[0])
try:
    launch(threading.Lock, nproc=1)
except WorkersFailedError as error:
    print("unportable:", "cannot be sent back" in str(error))
print("MINETORCH_NOTEBOOK" in os.environ)
"""
    (output,) = outputs(cell)
    text = texts(output)
    assert "rank 1 of 2 failed first: ValueError: no good" in text
    assert 'raise ValueError("no good")' in text  # the cell's own line
    assert "calling.py" not in text.partition("wrong:")[0]
    assert len(re.findall("^wrong: ", text, re.MULTILINE)) == 4
    assert "unportable: True\nFalse\n" in text


@pytest.fixture
def kernel(tmp_path, marked):
    """A kernel, with a client of its own for each message."""
    manager, client = start_new_kernel(cwd=str(tmp_path), env={**os.environ})
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)
    manager.cleanup_resources()


def say(client, code):
    """Start a cell; gives its number."""
    return client.execute(code)


def hear(client, number, until, seconds=120):
    """All that the cell says until something of it matches."""
    heard, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(queue.Empty):
            message = client.get_iopub_msg(timeout=0.2)
            if message["parent_header"].get("msg_id") == number:
                heard.append(message)
                if until(message):
                    return heard
    raise AssertionError(f"not heard: {[message['content'] for message in heard]}")


def is_idle(message):
    return message["content"].get("execution_state") == "idle"


DEAF = """
def deaf():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    print("Epoch")
    time.sleep(1000)
"""


@pytest.mark.slow
def test_the_stop_button_leaves_no_worker_and_a_usable_kernel(kernel, marked):
    manager, client = kernel
    hear(client, say(client, SETUP + DEAF), is_idle)
    for call, grace_s in ("train(10**6)", 30), ("deaf()", 1):
        number = say(client, f"launch(lambda: {call}, grace_s={grace_s})")
        hear(client, number, lambda message: "Epoch" in str(message["content"]))
        assert len(marked.pids(workers_only=True)) >= 3
        manager.interrupt_kernel()
        said = hear(client, number, is_idle)
        errors = [message["content"] for message in said if message["msg_type"] == "error"]
        assert [error["ename"] for error in errors] == ["KeyboardInterrupt"]
        assert len(marked.pids(workers_only=True)) <= 1, "only multiprocessing's resource tracker is left"
    # What the first had saved is whole, and was let go.
    again = say(client, "print('again:', launch(lambda: train(1).current_epoch))")
    heard = hear(client, again, lambda message: "again: " in str(message["content"]))
    assert re.search(r"again: [1-9]", str(heard[-1]["content"]))


@pytest.mark.slow
def test_the_example_is_clean_and_trains_and_resumes(tmp_path, marked):
    notebook = nbformat.read(EXAMPLE, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    shutil.copy(EXAMPLE, tmp_path)
    execute(notebook, tmp_path)
    first, second, last = (cell.outputs for cell in code[2:5])
    for outputs, epochs in (first, 5), (second, 8):
        assert [base64.b64decode(picture)[:4] for picture in shown(outputs, "image/png")] == [b"\x89PNG"]
        assert f"<td>{epochs}</td>" in shown(outputs, "text/html")[0]
        assert "val_loss" in shown(outputs, "text/plain")[-1]
    assert "Resumed from" in shown(second, "text/html")[0]
    assert re.fullmatch(r"epoch 8: (8|9)\d\.\d% of the validation data are right\n", texts(last))
