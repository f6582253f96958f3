import fcntl
import importlib.util
import io
import logging
import os
import re
import struct
import sys
import termios
import time
from types import SimpleNamespace

import pytest
import torch
from tqdm import tqdm

from minetorch.hooks import HOOK_POINTS, Hooks
from minetorch.plugins.progress_bar import Bar, Figures, Lines, ProgressBar, clock_time, make_progress_bar


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class Loss:
    """A loss that knows how often it was fetched from its device."""

    fetched = 0

    def item(self):
        self.fetched += 1
        return 0.125


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self):
        return True

    def last(self):
        return self.getvalue().rstrip("\r").rsplit("\r", 1)[-1].rstrip()


class Run:
    """What a Trainer does to its progress bar: 4 ranks of 8 samples each, an iteration in half a second."""

    def __init__(self, bar, clock, *, total=100, val_total=20):
        self.bar, self.clock, self.loss = bar, clock, Loss()
        self.said = io.StringIO()
        logger = logging.Logger("test")
        logger.addHandler(logging.StreamHandler(self.said))
        self.trainer = SimpleNamespace(
            is_main=True,
            world_size=4,
            current_epoch=3,
            max_epochs=10,
            train_iterations=total,
            val_iterations=val_total,
            progress=SimpleNamespace(samples_in_epoch=0),
            logger=logger,
        )

    def train(self, indices, seconds=0.5):
        for index in indices:
            self.clock.now += seconds
            self.trainer.progress.samples_in_epoch = (index + 1) * 32
            self.bar.after_train_iteration_end(self.trainer, index=index, loss=self.loss)

    def validate(self, indices, seconds=0.5):
        for index in indices:
            self.clock.now += seconds
            self.bar.after_val_iteration_end(self.trainer, index=index, loss=self.loss)


@pytest.fixture
def clock():
    return Clock()


def text_bar(clock, stream, environ=None):
    bar = make_progress_bar(environ or {}, stream=stream)
    assert isinstance(bar._display, Bar)
    bar._clock = clock
    return bar


@pytest.fixture
def screen(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    return Screen()


def test_a_bar_on_a_terminal_through_an_epoch(clock, screen):
    run = Run(text_bar(clock, screen), clock)
    run.bar.before_epoch_start(run.trainer)
    run.train(range(1))
    assert re.fullmatch(r"Epoch 3/10\s+1%\|.*\| 1/100, loss 0\.125", screen.last())
    run.train(range(1, 50))
    assert re.fullmatch(r"Epoch 3/10\s+50%\|.*\| 50/100, loss 0\.125, 64 samples/s, 0:25 left", screen.last())
    run.validate(range(5))
    assert re.fullmatch(
        r"Epoch 3/10 validation\s+25%\|.*\| 5/20, loss 0\.125, 2\.0 batches/s, 0:08 left", screen.last()
    )
    run.bar.after_epoch_end(run.trainer)
    assert screen.last() == ""
    assert not tqdm._instances
    assert run.said.getvalue() == ""
    run.bar.before_epoch_start(run.trainer)
    run.train(range(1))
    assert " 1/100, loss 0.125" in screen.last()
    run.bar.before_quit(run.trainer)
    assert screen.last() == ""


def test_a_bar_on_the_launchers_terminal_has_its_width(clock):
    pipe = io.StringIO()
    run = Run(text_bar(clock, pipe, {"MINETORCH_CONSOLE_COLUMNS": "76"}), clock)
    run.bar.before_epoch_start(run.trainer)
    run.train(range(50))
    frames = [frame for frame in pipe.getvalue().split("\r") if frame.strip()]
    assert {len(frame) for frame in frames} == {76}
    run.bar.close()


@pytest.mark.parametrize(("rows", "columns", "shown"), [(0, 0, 100), (24, 70, 69)])
def test_a_bar_on_a_real_terminal_even_one_without_a_size(rows, columns, shown, clock):
    outer, inner = os.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    with open(inner, "w") as terminal, open(outer, "rb", buffering=0) as screen:
        run = Run(text_bar(clock, terminal), clock)
        run.bar.before_epoch_start(run.trainer)
        run.train(range(3))
        run.bar.close()
        terminal.write("END")
        terminal.flush()
        shown_so_far = b""
        while not shown_so_far.endswith(b"END"):  # a terminal hands on what it gets in pieces
            shown_so_far += screen.read(4096)
    frames = [frame for frame in shown_so_far.decode().split("\r")[:-1] if frame.strip()]
    assert len(frames) == 3
    assert " 3/100, loss 0.125" in frames[-1]
    assert {len(frame) for frame in frames} == {shown}


@pytest.mark.parametrize("columns", ["", "0", "-3", "wide"])
def test_output_to_a_file_is_lines(columns, clock, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())  # the default
    bar = make_progress_bar({"MINETORCH_CONSOLE_COLUMNS": columns})
    bar._clock = clock
    run = Run(bar, clock)
    run.bar.before_epoch_start(run.trainer)
    run.train(range(50))
    run.validate(range(30))
    run.bar.after_epoch_end(run.trainer)
    run.bar.before_quit(run.trainer)
    assert run.said.getvalue().splitlines() == [
        "Epoch 3/10: batch 21/100 (21%), loss 0.125, 64 samples/s, 0:40 left",
        "Epoch 3/10: batch 41/100 (41%), loss 0.125, 64 samples/s, 0:30 left",
        "Epoch 3/10 validation: batch 21/20 (105%), loss 0.125, 2.0 batches/s, 0:00 left",
    ]
    assert run.loss.fetched == 3


def test_an_epoch_resumed_in_its_middle(clock, screen):
    run = Run(text_bar(clock, screen), clock)
    run.bar.before_epoch_start(run.trainer)
    run.train(range(70, 72))
    assert re.fullmatch(r"Epoch 3/10\s+72%\|.*\| 72/100, loss 0\.125, 64 samples/s, 0:14 left", screen.last())
    run.bar.close()


def test_data_without_a_length_and_a_run_without_an_end(clock, screen):
    run = Run(text_bar(clock, screen), clock, total=None)
    run.trainer.max_epochs = None
    run.bar.before_epoch_start(run.trainer)
    run.train(range(50))
    assert screen.last() == "Epoch 3 50 batches, loss 0.125, 64 samples/s"
    run.bar.close()
    lines = Run(ProgressBar(Lines(), clock), clock, total=None)
    lines.bar.before_epoch_start(lines.trainer)
    lines.train(range(22))
    assert lines.said.getvalue() == "Epoch 3/10: batch 21, loss 0.125, 64 samples/s\n"


def test_the_rate_leaves_out_the_first_iteration_and_follows_the_last_seconds(clock, screen):
    run = Run(text_bar(clock, screen), clock, total=1000)
    run.bar.before_epoch_start(run.trainer)
    run.train(range(1), seconds=60)
    run.train(range(1, 2))
    assert " 64 samples/s" in screen.last()
    run.train(range(2, 50), seconds=1)
    assert " 32 samples/s" in screen.last()
    run.bar.close()


def test_the_loss_is_fetched_at_refreshes_only(clock, screen):
    run = Run(text_bar(clock, screen), clock)
    run.bar.before_epoch_start(run.trainer)
    run.train(range(1000), seconds=0.001)
    assert 4 <= run.loss.fetched <= 5
    run.bar.close()


def test_an_iteration_between_refreshes_costs_next_to_nothing():
    bar = ProgressBar(Lines())
    run = Run(bar, None)
    bar.before_epoch_start(run.trainer)
    bar.after_train_iteration_end(run.trainer, index=0, loss=run.loss)
    hook, trainer, loss = bar.after_train_iteration_end, run.trainer, run.loss
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        for index in range(20_000):
            hook(trainer, index=index, loss=loss)
        best = min(best, (time.perf_counter() - start) / 20_000)
    assert best < 3e-6  # 0.2 µs on an idle machine
    assert loss.fetched == 0


@pytest.mark.parametrize("error", [BrokenPipeError(), ValueError("I/O operation on closed file")])
def test_a_console_that_has_gone_away_stops_nothing(error, clock, screen, monkeypatch):
    run = Run(text_bar(clock, screen), clock)
    run.bar.before_epoch_start(run.trainer)

    def write(text):
        raise error

    monkeypatch.setattr(screen, "write", write)
    run.train(range(10))
    run.validate(range(10))
    run.bar.after_epoch_end(run.trainer)
    run.bar.before_epoch_start(run.trainer)
    run.train(range(10))
    run.bar.before_quit(run.trainer)


def test_a_real_tensor_on_a_real_clock(screen):
    bar = make_progress_bar({}, stream=screen)
    run = Run(bar, Clock())
    run.loss = torch.tensor(0.5)
    bar.before_epoch_start(run.trainer)
    run.train(range(3))
    assert "loss 0.5" in screen.last()
    bar.before_quit(run.trainer)


def test_the_trainer_takes_it_as_a_plugin():
    trainer = SimpleNamespace(is_main=True, world_size=1)
    hooks = Hooks(trainer)
    hooks.add_plugin(make_progress_bar({}))
    called = {point for point in HOOK_POINTS if hooks.any_at(point)}
    assert called == {
        "before_epoch_start",
        "after_train_iteration_end",
        "after_val_iteration_end",
        "after_epoch_end",
        "before_quit",
    }


def test_a_notebook_without_widgets_gets_a_text_bar_on_stdout(clock, monkeypatch, capsys):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ipywidgets" else find_spec(name))
    bar = make_progress_bar({}, in_notebook=True)
    bar._clock = clock
    run = Run(bar, clock)
    bar.before_epoch_start(run.trainer)
    run.train(range(50))
    bar.close()
    out, err = capsys.readouterr()
    assert "50/100, loss 0.125, 64 samples/s, 0:25 left" in out
    assert err == ""


def test_a_notebook_with_widgets_gets_its_own_bar(clock, capsys):
    pytest.importorskip("ipywidgets")
    bar = make_progress_bar({}, in_notebook=True)
    bar._clock = clock
    run = Run(bar, clock)
    bar.before_epoch_start(run.trainer)
    run.train(range(50))
    widget = bar._display._bar
    assert type(widget).__mro__[1].__module__ == "tqdm.notebook"
    assert (widget.n, widget.total) == (50, 100)
    bar.close()


def test_figures_in_words():
    figures = Figures("Epoch 1", 1, 2, float("nan"), 12345.6, "samples", 3661)
    assert figures.details() == "loss nan, 12,346 samples/s, 1:01:01 left"
    assert Figures("Epoch 1", 1, None, 1e-9, None, "samples", None).details() == "loss 1e-09"
    assert [clock_time(s) for s in (0, 59.6, 754, 36000)] == ["0:00", "1:00", "12:34", "10:00:00"]
