"""The progress bar as a terminal shows it."""

import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import pyte
import pytest

TRAIN = """
import os, time, torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from minetorch import Trainer

class Slow(Dataset):
    def __len__(self):
        return 40_000

    def __getitem__(self, index):
        time.sleep(0.004)
        return torch.zeros(1), torch.full((1,), float(index % 2))

def stop(trainer):
    if os.path.exists("stop"):
        trainer.save_and_stop()
    if os.path.exists("speak"):
        trainer.logger.warning("a word")
        if trainer.is_main:
            os.remove("speak")

model = nn.Linear(1, 1)
trainer = Trainer(
    "runs", model, torch.optim.SGD(model.parameters(), lr=0.1), DataLoader(Slow(), batch_size=8),
    lambda trainer, data: nn.functional.mse_loss(trainer.model(data[0]), data[1]),
    max_epochs=2, drawer=None, hooks={"after_train_iteration_end": stop}, logging_format="%(levelname)s %(message)s",
)
trainer.train()
"""

BAR = re.compile(r"Epoch \d/\d +\d+%\|")
FULL = re.compile(
    r"Epoch 1/2 +\d+%\|[█▏▎▍▌▋▊▉ ]{4,}\| \d+/\d+, loss \S+ [\d,.]+/s data \d+%( \d\.\dG)? [\d:]+/[\d:]+ left$"
)


class Terminal:
    """A terminal with a command in it."""

    def __init__(self, command, folder, environ, columns=80):
        self.outer, inner = os.openpty()
        self._screen = pyte.Screen(columns, 24)
        self._stream = pyte.ByteStream(self._screen)
        self._set_size(columns)
        self.process = subprocess.Popen(
            command, stdin=inner, stdout=inner, stderr=inner, cwd=folder, env=environ, start_new_session=True
        )
        os.close(inner)

    def _set_size(self, columns):
        fcntl.ioctl(self.outer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def resize(self, columns):
        self._screen.resize(24, columns)
        self._set_size(columns)

    def lines(self):
        return [line.rstrip() for line in self._screen.display if line.strip()]

    def until(self, found, seconds=75, bars=1):
        """Take in what is written until the screen shows something; at most so many bars may be there at any time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if select.select([self.outer], [], [], 0.1)[0]:
                try:
                    self._stream.feed(os.read(self.outer, 65536))
                except OSError:  # the last process has closed it
                    return self.lines()
            assert sum(bool(BAR.search(line)) for line in self.lines()) <= bars, self.lines()
            if found(self.lines()):
                return self.lines()
        raise AssertionError("\n".join(self.lines()))

    def close(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(20)
        os.close(self.outer)


@pytest.fixture
def terminal(tmp_path, tools):
    (tmp_path / "train.py").write_text(TRAIN)
    opened = []

    def open_terminal(*command):
        environ = {**tools, "OMP_NUM_THREADS": "1", "TERM": "xterm", "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}
        opened.append(Terminal(command, tmp_path, environ))
        return opened[-1]

    yield open_terminal
    for each in opened:
        each.close()


def last(lines):
    return lines[-1] if lines else ""


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_the_bar_on_eighty_columns_and_on_fewer(workers, terminal, tmp_path):
    launcher = ("-m", "minetorch_launch", "--nproc", str(workers), "--device", "cpu") if workers else ()
    screen = terminal(sys.executable, *launcher, "train.py")
    label = "[0] " if workers else ""
    lines = screen.until(lambda lines: FULL.search(last(lines)))
    bar = last(lines)
    assert bar.startswith(f"{label}Epoch 1/2 ")
    assert len(bar) <= 79
    assert lines[0] == f"{label}INFO No checkpoint found: training from scratch."

    # A line stands above the bar, and the same of all ranks once.
    (tmp_path / "speak").touch()
    lines = screen.until(lambda lines: "a word" in "".join(lines) and BAR.search(last(lines)))
    if not workers:
        assert lines[-2] == "WARNING a word"

    screen.resize(60)
    # A bar for eighty columns may be on its way to the terminal, and sixty columns cannot take it back.
    late = 1
    narrow = re.compile(r"^(\[0\] )?Epoch 1/2 .*loss ")
    screen.until(lambda lines: narrow.search(last(lines)) and len(last(lines)) < 60, bars=1 + late)
    (tmp_path / "stop").touch()
    lines = screen.until(lambda lines: screen.process.poll() is not None, bars=1 + late)
    assert screen.process.wait(60) == 0
    assert len([line for line in lines if BAR.search(line)]) <= late
    assert any(re.match(rf"{re.escape(label)}INFO Ended at step \d+\. Time: ", line) for line in lines)
