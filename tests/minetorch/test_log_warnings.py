"""Warnings of many ranks on one console."""

import io
import logging
import re
import sys
import textwrap
import threading
import warnings
from datetime import timedelta

import pytest
import torch.distributed as dist

from minetorch.log.console import ConsoleHandler
from minetorch.log.shared import MOST, PythonsWarnings, SharedWarnings


class Console(ConsoleHandler):
    """One screen for all ranks."""

    def __init__(self, shown):
        super().__init__(to_stdout=False)
        self.shown = shown

    def write(self, level, line):
        self.shown.append(line)


@pytest.fixture
def world():
    """Makes the loggers of some ranks, which share a real store and a screen."""
    made = []
    master = dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=20))

    def make(size, tally=None, **options):
        shown = []
        for rank in range(size):
            find = tally or master.clone
            handler = SharedWarnings(Console(shown), rank=rank, size=size, tally=find, **options)
            handler.setFormatter(logging.Formatter("%(levelname)s %(created)s %(message)s"))
            made.append(handler)
        loggers = []
        for handler in made[-size:]:
            logger = logging.Logger("rank")
            logger.addHandler(handler)
            loggers.append(logger)
        return loggers, shown, made[-size:]

    yield make
    for handler in made:
        handler.close()


def close(handlers):
    threads = [threading.Thread(target=handler.close) for handler in handlers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)


def words(shown):
    return sorted(re.sub(r" \d+\.\d+ ", " ", line) for line in shown)


def test_the_same_warning_of_eight_ranks_is_shown_once(world):
    loggers, shown, handlers = world(8, settle_s=2.0)
    for logger in loggers:
        logger.warning("slow disk")
    for logger in loggers[2:5]:
        logger.warning("hot GPU")
    loggers[3].warning("only here")
    loggers[0].warning("and there")
    loggers[0].info("no warning")
    close(handlers)
    assert words(shown) == [
        "3 of 8 ranks: WARNING hot GPU",
        "WARNING and there",
        "all 8 ranks: WARNING slow disk",
        "rank 3: WARNING only here",
    ]


def test_a_warning_that_comes_again_is_shown_again(world):
    loggers, shown, handlers = world(2, settle_s=1.0)
    for _ in range(3):
        for logger in loggers:
            logger.warning("again")
    close(handlers)
    assert words(shown) == ["all 2 ranks: WARNING again"] * 3


def test_errors_are_shown_at_once_by_each_rank(world):
    loggers, shown, _ = world(2, settle_s=1000.0)
    for logger in loggers:
        logger.error("lost")
    assert words(shown) == ["ERROR lost", "rank 1: ERROR lost"]


def lost():
    raise OSError("the store is gone")


@pytest.mark.parametrize("tally", [lambda: None, lost])
def test_without_a_store_each_rank_speaks_for_itself(world, tally):
    loggers, shown, handlers = world(2, tally=tally, settle_s=0.0)
    for logger in loggers:
        logger.warning("alone")
    close(handlers)
    assert words(shown) == ["WARNING alone", "rank 1: WARNING alone"]


def test_a_flood_takes_no_more_memory_of_the_store(world):
    loggers, shown, handlers = world(1, settle_s=0.0)
    for number in range(MOST + 5):
        loggers[0].warning("flood %d", number)
    close(handlers)
    assert len(shown) == MOST + 5


def test_pythons_warnings_become_lines_and_are_given_back():
    said = io.StringIO()
    logger = logging.Logger("test")
    logger.addHandler(logging.StreamHandler(said))
    pythons = PythonsWarnings(logger)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = warnings._showwarning_orig
        before = warnings.showwarning
        pythons.take()
        warnings.warn("mind the gap", UserWarning, stacklevel=1)
        pythons.let_go()
        assert warnings.showwarning is before
        warnings.showwarning = mine = lambda *_: None
        pythons.take()  # who has asked for them keeps them
        assert warnings.showwarning is mine
    assert re.fullmatch(r".*test_log_warnings\.py:\d+: UserWarning: mind the gap\n", said.getvalue())


WORLD = """
import os, time, warnings, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from minetorch import Trainer

def loss_func(trainer, data):
    return nn.functional.mse_loss(trainer.model(data[0]), data[1])

def warn(trainer):
    warnings.warn("pins nothing")
    trainer.logger.warning("slow disk")
    if trainer.rank == 1:
        trainer.logger.warning("hot")

model = nn.Linear(1, 1)
inputs = torch.linspace(-1, 1, 16).unsqueeze(1)
Trainer(
    os.environ["RUNS"], model, torch.optim.SGD(model.parameters(), lr=0.1),
    DataLoader(TensorDataset(inputs, inputs), batch_size=4),
    loss_func, max_epochs=1, drawer=None, hooks={"before_epoch_start": warn},
).train()
"""


@pytest.mark.slow
def test_two_real_ranks_warn_once_and_keep_their_own_logs(run_command, tools, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(WORLD))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", script]
    environ = {**tools, "RUNS": str(tmp_path / "runs"), "OMP_NUM_THREADS": "1", "MINETORCH_DEVICE": "cpu"}
    output = run_command(*command, env=environ, cwd=tmp_path)
    assert len(re.findall(r"WARNING slow disk$", output, re.MULTILINE)) == 1
    assert re.search(r"^all 2 ranks: \S+ WARNING slow disk$", output, re.MULTILINE)
    assert re.search(r"^rank 1: \S+ WARNING hot$", output, re.MULTILINE)
    assert output.count("UserWarning: pins nothing") == 1
    logs = [(tmp_path / "runs/default" / name).read_text() for name in ("log.txt", "logs/rank_1.txt")]
    for log in logs:
        assert log.count("slow disk") == log.count("UserWarning: pins nothing") == 1
        assert "Ended at step 2." in log.splitlines()[-1]
    assert [log.count("WARNING") for log in logs] == [2, 3]
    assert "rank_0" not in {path.name for path in (tmp_path / "runs/default/logs").iterdir()}
