"""Signals that ask a run to make way: where they are taken, and that not one step is lost."""

import faulthandler
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from minetorch import StoppedEarly
from minetorch.distributed.signals import NOTICES, SIGNALS, Notices, describe

WORLDS = Path(__file__).parent / "worlds"
NAMES = [signum.name for signum in SIGNALS]


@pytest.fixture(autouse=True)
def defaults():
    """Each test begins and ends with the signals as a script has them, and without a notice."""
    before = {signum: signal.signal(signum, signal.SIG_DFL) for signum in SIGNALS}
    yield
    for signum, handler in before.items():
        assert signal.getsignal(signum) is signal.SIG_DFL
        signal.signal(signum, handler)
    NOTICES.answered()


def at(point, signum, **where):
    """A hook that sends this process a signal at its point, once, where the trainer and the payload are as `where`."""
    sent = []

    def hook(trainer, **payload):
        values = {"epoch": trainer.current_epoch, **payload}
        if not sent and all(values[name] == value for name, value in where.items()):
            sent.append(signum)
            signal.raise_signal(signum)

    return {point: hook}


def stopped(make_trainer, **changes):
    with pytest.raises(StoppedEarly) as caught:
        make_trainer(**changes).train()
    assert caught.value.code == 75
    assert NOTICES.signum == 0


def same_end(first, second):
    return all(torch.equal(first.weights[name], second.weights[name]) for name in first.weights) and (
        (first.metrics, vars(first.progress)) == (second.metrics, vars(second.progress))
    )


class TestHandlers:
    @pytest.mark.parametrize("signum", SIGNALS, ids=NAMES)
    def test_a_signal_is_noted_and_the_handler_goes_again(self, signum):
        notices = Notices()
        with notices.noted():
            signal.raise_signal(signum)
            signal.raise_signal(signum)
        assert notices.signum == signum
        assert signal.getsignal(signum) is signal.SIG_DFL

    @pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda signum, frame: None], ids=["ignored", "handled"])
    def test_what_the_script_has_set_stays(self, handler):
        signal.signal(signal.SIGTERM, handler)
        with NOTICES.noted():
            assert signal.getsignal(signal.SIGTERM) is handler
            signal.raise_signal(signal.SIGTERM)
        assert signal.signal(signal.SIGTERM, signal.SIG_DFL) is handler
        assert not NOTICES.signum

    def test_so_does_a_handler_that_python_does_not_see(self, tmp_path):
        with (tmp_path / "stacks").open("w+") as file:
            faulthandler.register(signal.SIGUSR2, file)
            try:
                with NOTICES.noted():
                    signal.raise_signal(signal.SIGUSR2)
            finally:
                faulthandler.unregister(signal.SIGUSR2)
            file.seek(0)
            assert "raise_signal" in file.read() or file.tell()
        assert not NOTICES.signum

    def test_a_handler_that_the_script_sets_meanwhile_stays(self):
        def own(signum, frame):
            pass

        with NOTICES.noted():
            signal.signal(signal.SIGTERM, own)
        assert signal.signal(signal.SIGTERM, signal.SIG_DFL) is own

    def test_an_inner_context_leaves_the_outer_one_its_handlers(self):
        with NOTICES.noted():
            with NOTICES.noted():
                pass
            signal.raise_signal(signal.SIGTERM)
        assert NOTICES.signum == signal.SIGTERM

    def test_elsewhere_than_in_the_main_thread_nothing_is_set(self):
        found = []

        def look():
            with NOTICES.noted():
                found.append(signal.getsignal(signal.SIGTERM))

        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        assert found == [signal.SIG_DFL]

    def test_a_forked_child_dies_of_them_as_ever(self):
        """Else multiprocessing.Pool.terminate(), and with it the pool's `with`, would wait for ever."""
        with NOTICES.noted():
            child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,))
            child.start()
            child.terminate()
            child.join(20)
            code = child.exitcode
            child.kill()
        assert code == -signal.SIGTERM


def test_which_signal_came_where_in_words():
    term, usr2 = int(signal.SIGTERM), int(signal.SIGUSR2)
    assert describe([0, term]) == "SIGTERM on rank 1"
    assert describe([usr2, term, usr2]) == "SIGUSR2 on ranks 0, 2 and SIGTERM on rank 1"


class TestOneWorker:
    @pytest.mark.parametrize("signum", SIGNALS, ids=NAMES)
    def test_amid_an_epoch_it_saves_and_goes_on_to_the_same_end(self, make_trainer, trained, tmp_path, signum):
        whole = trained(alchemistic_directory=tmp_path / "whole")
        quits = []
        hooks = at("after_train_iteration_end", signum, epoch=2, index=2)
        stopped(make_trainer, hooks={**hooks, "before_quit": lambda trainer: quits.append(trainer.progress.step)})
        assert quits == [8]
        log = (tmp_path / "runs/default/log.txt").read_text()
        assert f"{signum.name} on rank 0: stopped early, with all work saved up to step 8. Run the same" in log
        assert same_end(trained(), whole)

    @pytest.mark.parametrize("point", ["before_train_iteration_start", "before_epoch_start", "after_epoch_end"])
    def test_wherever_it_comes(self, make_trainer, trained, tmp_path, point):
        whole = trained(alchemistic_directory=tmp_path / "whole")
        stopped(make_trainer, hooks=at(point, signal.SIGTERM, epoch=1))
        assert same_end(trained(), whole)

    def test_a_validation_is_cut_short_and_done_anew(self, make_trainer, trained, parts, tmp_path):
        def noisy(trainer, data):
            noise = torch.rand_like(data[0])  # draws in validation, too
            return ((trainer.model(data[0] + noise) - data[1]) ** 2).mean()

        def validated(trainer, index):
            seen.append(index)

        whole = trained(loss_func=noisy, alchemistic_directory=tmp_path / "whole")
        seen = []
        hook = at("before_val_iteration_start", signal.SIGTERM, epoch=1, index=0)
        stopped(make_trainer, loss_func=noisy, hooks={**hook, "after_val_iteration_end": validated})
        assert seen == [0]
        resumed = trained(loss_func=noisy, hooks={"after_val_iteration_end": validated})
        assert seen == [0, 0, 1, 0, 1]
        assert same_end(resumed, whole)

    def test_a_validation_under_trival_is_not_preceded_by_more_training(self, make_trainer, trained, tmp_path):
        many = {"train_dataloader": torch.utils.data.DataLoader(parts_of_a_line(60), batch_size=2), "trival": True}
        stopped(make_trainer, hooks=at("before_val_iteration_start", signal.SIGTERM, epoch=1), **many)
        assert trained(max_epochs=1, **many).progress.step == 10

    def test_while_it_starts(self, make_trainer, trained, tmp_path):
        with pytest.raises(StoppedEarly):
            make_trainer(hooks=at("after_init", signal.SIGUSR2))
        assert not list((tmp_path / "runs/default").rglob("*.pth.tar"))
        assert trained().progress.step == 10

    def test_a_run_that_ends_anyway_ends_well_and_leaves_the_notice_to_the_next(self, trained, make_trainer):
        run = trained(hooks=at("after_epoch_end", signal.SIGTERM, epoch=2))
        assert run.progress.epoch == 2
        with pytest.raises(StoppedEarly):
            make_trainer(max_epochs=3)
        assert trained(max_epochs=3).progress.epoch == 3

    def test_a_stop_that_a_hook_asks_for_returns(self, trained):
        assert trained(hooks={"after_train_iteration_end": lambda trainer: trainer.save_and_stop()}).progress.step == 1

    def test_more_signals_while_it_saves_change_nothing(self, make_trainer, trained, tmp_path):
        def again(trainer):
            signal.raise_signal(signal.SIGTERM)

        whole = trained(alchemistic_directory=tmp_path / "whole")
        hooks = at("after_train_iteration_end", signal.SIGUSR2, epoch=1, index=1)
        points = ("before_checkpoint_persisted", "after_checkpoint_persisted")
        stopped(make_trainer, hooks={**hooks, **dict.fromkeys(points, again)})
        assert same_end(trained(), whole)


def parts_of_a_line(length):
    inputs = torch.linspace(-1, 1, length).unsqueeze(1)
    return torch.utils.data.TensorDataset(inputs, 2 * inputs + 1)


class Runs:
    """Runs of `worlds/noticed.py` in real processes, each in a process group of its own."""

    def __init__(self, folder, tools):
        self.folder, self.environment = folder, {**tools, "OMP_NUM_THREADS": "1"}

    def run(self, command, code, moment=0, strike=None):
        """Run to the end; after `moment` iterations call `strike(process, pids by rank)`. Returns code and output."""
        go = self.folder / f"{code}.go"
        if strike is None:
            go.touch()
        count, pids, output = 0, {}, []
        with subprocess.Popen(
            [*command, WORLDS / "noticed.py", self.folder / code, go],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env=self.environment,
        ) as process:
            try:
                for line in process.stdout:
                    output.append(line)
                    if said := re.search(r"(trained|validated) (\d) (\d+)$", line):
                        pids[int(said[2])] = int(said[3])
                        count += 1
                        if strike is not None and count == moment:
                            strike(process, pids)
                            go.touch()
                process.wait(60)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        return process.returncode, "".join(output)

    def end(self, code):
        """The numbers of a run's end in a row: weights, optimizer, counters, metrics, generators."""
        state = torch.load(self.folder / code / "default/models/latest.pth.tar", weights_only=True)
        keys = ("state_dict", "optimizer", "progress", "metrics", "random")
        return torch.cat([number.double().flatten() for number in numbers([state[key] for key in keys])])


def numbers(value):
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from numbers(inner)
    elif isinstance(value, torch.Tensor | int | float):
        yield torch.as_tensor(value)


@pytest.mark.slow
def test_signals_to_the_whole_group_cost_not_a_step(tmp_path, tools):
    """As a terminal, `timeout` and batch systems send them: the loaders' workers get them, too, and go on."""
    runs, draw = Runs(tmp_path, tools), random.Random(7)
    assert runs.run([sys.executable], "whole")[0] == 0
    for signum in SIGNALS:

        def strike(process, pids, signum=signum):
            with suppress(ProcessLookupError):
                for _ in range(2):
                    os.killpg(process.pid, signum)

        code, output = runs.run([sys.executable], "struck", draw.randrange(1, 24), strike)
        if signum is SIGNALS[0] or code:
            assert code == 75, output
            assert f"{signum.name} on rank 0: stopped early" in output
            assert "returned" not in output
        assert "Traceback" not in output
    code, output = runs.run([sys.executable], "struck")
    assert code == 0, output
    assert torch.equal(runs.end("struck"), runs.end("whole"))


LAUNCHERS = {
    "minetorch-launch": (["minetorch-launch", "--nproc", "2", "--device", "cpu"], 75),
    "torchrun": (["torchrun", "--nproc-per-node", "2"], 1),
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, tools):
    """Runs of two workers, of which one has ended without a signal."""
    runs = Runs(tmp_path_factory.mktemp("pairs"), tools)
    code, output = runs.run([sys.executable, "-m", "minetorch_launch", *LAUNCHERS["minetorch-launch"][0][1:]], "whole")
    assert code == 0, output
    return runs


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rank", "moment"), [("minetorch-launch", 1, 31), ("torchrun", 0, 12)])
def test_a_signal_to_one_rank_stops_all_at_one_step(pairs, name, rank, moment):
    words, expected = LAUNCHERS[name]
    command = [Path(sys.executable).parent / words[0], *words[1:]]

    def strike(process, pids):
        os.kill(pids.get(rank, next(iter(pids.values()))), signal.SIGTERM)

    code, output = pairs.run(command, name, moment, strike)
    assert code == expected, output
    assert len(re.findall(r"SIGTERM on rank [01]: stopped early", output)) == 1, output
    code, output = pairs.run(command, name)
    assert code == 0, output
    assert torch.equal(pairs.end(name), pairs.end("whole"))
