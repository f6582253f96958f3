"""Two workers that exchange by NCCL: what one does, what a resumed run does, and what becomes of a broken one."""

import json
import re
import signal
import time

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

TRAINS = """
    import os, signal, sys, time, torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset
    from minetorch import Checkpoints, Trainer, main_only

    how, rank = sys.argv[1], int(os.environ["RANK"])

    @main_only
    def look_alone(trainer):
        total = sum(len(targets) for _, targets in trainer.val_dataloader)
        print(f"validated on {total}", flush=True)

    def loss_func(trainer, data):
        inputs, targets = data
        at = trainer.progress.step == 12 and trainer.model.training
        if at and how == "kill" and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if at and how == "raise" and rank == 1:
            raise ValueError("a bad batch")
        if at and how == "skip" and rank == 1:
            torch.cuda.synchronize()
            while True:
                time.sleep(1)
        if how == "endless":
            print("step", trainer.progress.step, flush=True)
        return nn.functional.mse_loss(trainer.model(inputs).squeeze(1), targets)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 1))
    data = TensorDataset(torch.randn(164, 32), torch.randn(164))
    trainer = Trainer(
        "runs", model, torch.optim.AdamW(model.parameters()), DataLoader(data, batch_size=8, shuffle=True), loss_func,
        DataLoader(TensorDataset(torch.randn(13, 32), torch.randn(13)), batch_size=4),
        hooks={"after_epoch_end": look_alone}, max_epochs=10**6 if how == "endless" else 2, drawer=None,
        checkpoints=Checkpoints(every_steps=5))
    trainer.train()
"""


def epochs(log):
    return re.findall(r"Epoch \d/\d: train_loss (\S+), val_loss ([^ ,]+)", log.read_text())


def test_the_losses_are_those_of_one_worker(launch, launch_two, examples, tmp_path):
    """The digits share each batch, so that two workers compute what one does."""
    assert launch(examples / "digits.py", "--epochs", "2", "--dir", tmp_path / "one")[0] == 0
    codes, outputs = launch_two(examples / "digits.py", "--epochs", "2", "--dir", tmp_path / "two")
    assert codes == [0, 0], outputs
    alone, together = (epochs(tmp_path / name / "digits/log.txt") for name in ("one", "two"))
    assert len(together) == 2
    for ours, theirs in zip(together, alone, strict=True):
        assert [float(x) for x in ours] == pytest.approx([float(x) for x in theirs], rel=5e-3)


def test_a_stopped_run_ends_in_the_same_bits(launch_two, tmp_path, worlds):
    codes, outputs = launch_two("--hang-timeout", "600", worlds / "exact.py", tmp_path, timeout=175)
    assert codes == [0, 0], outputs
    for rank in range(2):
        found = json.loads((tmp_path / f"found_{rank}.json").read_text())
        assert {case: differences for case, differences in found.items() if differences} == {}
        assert len(found) > 20


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        ("kill", 137, r"rank 1.*killed by SIGKILL"),
        ("raise", 1, r"rank 1.*ValueError: a bad batch"),
        ("skip", 124, r"rank 1"),
    ],
)
def test_the_other_worker_is_not_left_waiting(launch_two, script, tmp_path, users_of_gpus, how, code, said):
    path = script(TRAINS)
    began = time.monotonic()
    codes, outputs = launch_two("--hang-timeout", "8", "--grace", "3", path, how)
    assert codes == [code, code], outputs
    assert re.search(said, outputs[0]), outputs
    assert time.monotonic() - began < 90
    assert users_of_gpus() == {}
    codes, outputs = launch_two(path, "")
    assert codes == [0, 0], outputs
    assert re.search(r"Resumed from .*step \d", (tmp_path / "runs/default/log.txt").read_text())
    assert "validated on 13" in outputs[0]


def test_a_worker_that_is_killed_is_started_again(launch_two, script, tmp_path):
    path = script(TRAINS.replace('how == "kill"', 'how == "kill" and "0" == os.environ["TORCHELASTIC_RESTART_COUNT"]'))
    codes, outputs = launch_two("--max-restarts", "1", path, "kill")
    assert codes == [0, 0], outputs
    assert len(epochs(tmp_path / "runs/default/log.txt")) >= 2


def test_notice_is_obeyed_at_the_same_step(start_two, script, tmp_path):
    nodes = start_two(script(TRAINS), "endless")
    for line in nodes[1].stdout:
        if "step 30" in line:
            break
    nodes[1].send_signal(signal.SIGUSR2)
    outputs = [node.communicate(timeout=60)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [75, 75], outputs
    assert "stopped early, with all work saved" in (tmp_path / "runs/default/log.txt").read_text()
