import dataclasses
import fcntl
import importlib.util
import io
import logging
import mmap
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

from minetorch.checkpoint import Store
from minetorch.console.bars import Bar, Lines, NotebookBar, make_display
from minetorch.console.figures import Figures, clock_time
from minetorch.console.progress_bar import ProgressBar, memory_in_use
from minetorch.hooks import HOOK_POINTS, Hooks
from minetorch.log import RunLog


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
            device=torch.device("cpu"),
            progress=SimpleNamespace(samples_in_epoch=0, iteration=0),
            logger=logger,
        )

    def train(self, indices, seconds=0.5):
        for index in indices:
            self.clock.now += seconds
            self.trainer.progress.samples_in_epoch = (index + 1) * 32
            self.bar.trained(self.trainer, index=index, loss=self.loss)

    def validate(self, indices, seconds=0.5):
        for index in indices:
            self.clock.now += seconds
            self.bar.validated(self.trainer, index=index, loss=self.loss)


@pytest.fixture
def clock():
    return Clock()


def nothing_known(device):
    return None


def text_bar(clock, stream, environ=None, memory=nothing_known):
    display = make_display(environ or {}, stream=stream)
    assert isinstance(display, Bar)
    return ProgressBar(display, clock, memory)


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
    assert re.fullmatch(
        r"Epoch 3/10\s+50%\|.*\| 50/100, loss 0\.125, 64 samples/s, data wait 0%, 0:25 left, run 6:15", screen.last()
    )
    run.validate(range(5))
    assert re.fullmatch(
        r"Epoch 3/10 validation\s+25%\|.*\| 5/20, loss 0\.125, 2\.0 batches/s, data wait 0%, 0:08 left", screen.last()
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
    assert {len(frame) for frame in frames} == {75}
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
    run = Run(ProgressBar(make_display({"MINETORCH_CONSOLE_COLUMNS": columns}), clock, nothing_known), clock)
    run.bar.before_epoch_start(run.trainer)
    run.train(range(50))
    run.validate(range(30))
    run.bar.after_epoch_end(run.trainer)
    run.bar.before_quit(run.trainer)
    assert run.said.getvalue().splitlines() == [
        "Epoch 3/10: batch 21/100 (21%), loss 0.125, 64 samples/s, data wait 0%, 0:40 left, run 6:30",
        "Epoch 3/10: batch 41/100 (41%), loss 0.125, 64 samples/s, data wait 0%, 0:30 left, run 6:20",
        "Epoch 3/10 validation: batch 21/20 (105%), loss 0.125, 2.0 batches/s, data wait 0%, 0:00 left",
    ]
    assert run.loss.fetched == 3


def test_an_epoch_resumed_in_its_middle(clock, screen):
    run = Run(text_bar(clock, screen), clock)
    run.bar.before_epoch_start(run.trainer)
    run.train(range(70, 72))
    assert re.fullmatch(
        r"Epoch 3/10\s+72%\|.*\| 72/100, loss 0\.125, 64 samples/s, data wait 0%, 0:14 left, run 6:04", screen.last()
    )
    run.bar.close()


def test_data_without_a_length_and_a_run_without_an_end(clock, screen):
    run = Run(text_bar(clock, screen), clock, total=None)
    run.trainer.max_epochs = None
    run.bar.before_epoch_start(run.trainer)
    run.train(range(50))
    assert screen.last() == "Epoch 3 50 batches, loss 0.125, 64 samples/s, data wait 0%"
    run.bar.close()
    lines = Run(ProgressBar(Lines(), clock, nothing_known), clock, total=None)
    lines.bar.before_epoch_start(lines.trainer)
    lines.train(range(22))
    assert lines.said.getvalue() == "Epoch 3/10: batch 21, loss 0.125, 64 samples/s, data wait 0%\n"


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
    bar.trained(run.trainer, index=0, loss=run.loss)
    trained, trainer, loss = bar.trained, run.trainer, run.loss
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        for index in range(20_000):
            trained(trainer, index=index, loss=loss)
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
    bar = ProgressBar(make_display({}, stream=screen))
    run = Run(bar, Clock())
    run.loss = torch.tensor(0.5)
    bar.before_epoch_start(run.trainer)
    run.train(range(3))
    assert "loss 0.5" in screen.last()
    bar.before_quit(run.trainer)


def test_the_trainer_takes_it_as_a_plugin():
    trainer = SimpleNamespace(is_main=True, world_size=1)
    hooks = Hooks(trainer)
    hooks.add_plugin(ProgressBar(make_display({})))
    called = {point for point in HOOK_POINTS if hooks.any_at(point)}
    assert called == {
        "before_epoch_start",
        "after_epoch_end",
        "before_quit",
    }


def test_a_notebook_without_widgets_gets_a_text_bar_on_stdout(clock, monkeypatch, capsys):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ipywidgets" else find_spec(name))
    bar = ProgressBar(make_display({}, in_notebook=True), clock, nothing_known)
    run = Run(bar, clock)
    bar.before_epoch_start(run.trainer)
    run.train(range(50))
    bar.close()
    out, err = capsys.readouterr()
    assert "50/100, loss 0.125, 64 samples/s, data wait 0%, 0:25 left, run 6:15" in out
    assert err == ""


def test_a_notebook_has_one_widget_for_all_passes(capsys):
    pytest.importorskip("ipywidgets")
    bar = NotebookBar()
    bar.show(Figures("Epoch 1/2", 1, 100, loss=0.5))
    widget = bar._bar
    assert type(widget).__mro__[1].__module__ == "tqdm.notebook"
    bar.show(Figures("Epoch 1/2", 50, 100, loss=0.25, rate=64.0, left_s=25))
    assert "loss 0.25, 64 samples/s, 0:25 left" in str(widget.container.children[2].value).replace("\u2007", " ")
    bar.show(Figures("Epoch 2/2", 3, 20, loss=0.125))
    assert bar._bar is widget
    assert (widget.n, widget.total, widget.container.children[1].max) == (3, 20, 20)
    bar.show(Figures("Epoch 2/2 validation", 3, None, loss=0.125))
    bar.end()
    assert not tqdm._instances


def test_figures_in_words():
    figures = Figures("Epoch 1", 1, 2, float("nan"), 12345.6, "samples", left_s=3661)
    assert figures.details() == "loss nan, 12,346 samples/s, 1:01:01 left"
    assert Figures("Epoch 1", 1, None, 1e-9).details() == "loss 1e-09"
    assert [clock_time(s) for s in (0, 59.6, 754, 36000, 300_000)] == ["0:00", "1:00", "12:34", "10:00:00", "3d 11h"]


FULL = Figures("Epoch 3/10", 500, 1000, 0.1254, 12345.6, "samples", 0.031, 3 * 2**30, 25, 3905)


@pytest.mark.parametrize(
    ("columns", "details"),
    [
        (200, "loss 0.1254, 12,346 samples/s, data wait 3%, 3.0 GiB, 0:25 left, run 1:05:05"),
        (76, "loss 0.1254, 12,346 samples/s, data wait 3%, 3.0 GiB, 0:25 left, run 1:05:05"),
        (75, "loss 0.1254 12,346/s data 3% 3.0G 0:25/1:05:05 left"),
        (51, "loss 0.1254 12,346/s data 3% 3.0G 0:25/1:05:05 left"),
        (50, "loss 0.1254 12,346/s data 3% 0:25/1:05:05 left"),
        (40, "loss 0.1254 12,346/s data 3% 0:25 left"),
        (30, "loss 0.1254 12,346/s 0:25 left"),
        (29, "loss 0.1254 0:25 left"),
        (11, "loss 0.1254"),
        (10, ""),
        (-5, ""),
    ],
)
def test_the_least_wanted_figures_go_where_columns_are_few(columns, details):
    assert FULL.details_within(columns) == details


def test_the_share_of_time_that_is_spent_waiting_for_data(clock, screen):
    run = Run(text_bar(clock, screen, memory=lambda device: 5 * 2**30), clock)

    def batches():
        for index in range(40):
            clock.now += 0.1  # the loader's part
            yield index

    run.bar.before_epoch_start(run.trainer)
    for index in run.bar.watch(batches()):
        run.train([index], seconds=0.3)
    assert " data 25% 5.0G " in screen.last()
    run.bar.close()


def test_the_rest_of_the_run_counts_whole_epochs_once_one_is_known(clock, screen):
    run = Run(text_bar(clock, screen), clock, total=10)
    run.bar.before_epoch_start(run.trainer)
    run.train(range(10))
    run.validate(range(20))
    clock.now += 85  # an epoch of 100 s
    run.trainer.current_epoch = 4
    run.bar.before_epoch_start(run.trainer)
    run.train(range(5))
    assert "0:02 left, run 10:02" in screen.last()
    run.trainer.current_epoch = 10
    run.bar.before_epoch_start(run.trainer)
    run.train(range(5))
    assert "run" not in screen.last()
    run.bar.close()


def test_the_batches_that_are_watched_are_those_that_come():
    bar = ProgressBar(Lines())
    assert list(bar.watch(range(1000))) == list(range(1000))
    assert list(bar.watch([])) == []


def test_watching_costs_next_to_nothing():
    bar = ProgressBar(Lines())
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        for _batch in bar.watch(range(20_000)):
            pass
        best = min(best, (time.perf_counter() - start) / 20_000)
    assert best < 3e-6  # 0.2 µs on an idle machine


def test_memory_is_that_of_this_process():
    before = memory_in_use(torch.device("cpu"))
    size = 128 << 20
    with mmap.mmap(-1, size) as held:  # not what the process has already, and a tensor might be given
        held[:: mmap.PAGESIZE] = bytes(size // mmap.PAGESIZE)
        grown = memory_in_use(torch.device("cpu")) - before
    assert size * 0.9 < grown < size * 2


def test_a_line_of_the_log_has_all_figures_in_the_file_and_those_that_fit_on_the_console(tmp_path, capsys):
    log = RunLog(Store.open(tmp_path))
    Lines().show(dataclasses.replace(FULL, title="Epoch 300/1000", done=500_000, total=1_000_000), log.logger)
    log.close()
    place = "Epoch 300/1000: batch 500000/1000000 (50%), "
    assert (tmp_path / "log.txt").read_text().endswith(f"{place}{FULL.details()}\n")
    shown = capsys.readouterr().err.rstrip("\n")
    assert len(f"[0] {shown}") <= 110
    assert shown[9:] == f"{place}loss 0.1254 12,346/s data 3% 3.0G 0:25/1:05:05 left"
