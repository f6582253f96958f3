"""Whatever goes wrong on a GPU: the report says it, nothing is left running or holding its memory, nothing is lost."""

import re
import signal
import sys
import time

import pytest
import torch

import minetorch

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

TRAINS = """
    import os, signal, sys, torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset
    from minetorch import Checkpoints, Trainer

    how = sys.argv[1]

    def loss_func(trainer, data):
        inputs, targets = data
        if trainer.progress.step == 12 and trainer.model.training:
            if how == "memory":
                torch.empty(1 << 42, device="cuda", dtype=torch.uint8)
            elif how == "assertion":
                trainer.persist("before")
                targets = targets[torch.full_like(targets, 10**6, dtype=torch.long)]
            elif how == "hang":
                torch.cuda._sleep(10**11)
                torch.cuda.synchronize()
            elif how == "illegal":
                os.kill(os.getpid(), signal.SIGSEGV)
        return nn.functional.mse_loss(trainer.model(inputs).squeeze(1), targets)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(512, 4096), nn.ReLU(), nn.Linear(4096, 1))
    data = TensorDataset(torch.randn(320, 512), torch.randn(320))
    Trainer(sys.argv[2], model, torch.optim.AdamW(model.parameters()), DataLoader(data, batch_size=32, shuffle=True),
            loss_func, max_epochs=3, drawer=None, checkpoints=Checkpoints(every_steps=5)).train()
"""


FAULTS = {
    # What the report says, and the exit code.
    "memory": (r"OutOfMemoryError[\s\S]*GPU memory ran out: lower batch_size", 1),
    "assertion": (r"device-side assert", 1),
    "hang": (r"(?i)hang|without a step", 124),
    "illegal": (r"killed by SIGSEGV", 139),
}


@pytest.mark.parametrize("how", FAULTS)
def test_a_fault_and_what_comes_after(how, launch, script, tmp_path, users_of_gpus):
    said, expected = FAULTS[how]
    path = script(TRAINS)
    began = time.monotonic()
    code, output = launch("--hang-timeout", "5", "--grace", "3", path, how, "runs")
    assert (code, bool(re.search(said, output))) == (expected, True), output
    assert time.monotonic() - began < 60
    assert users_of_gpus() == {}
    assert minetorch.load(tmp_path / "runs/default", "latest")["state_dict"]
    for folder in ("runs", "whole"):
        code, output = launch(path, "", folder)
        assert code == 0, output
    resumed, whole = (minetorch.load(tmp_path / folder / "default", "latest") for folder in ("runs", "whole"))
    assert all(torch.equal(tensor, whole["state_dict"][name]) for name, tensor in resumed["state_dict"].items())
    assert re.search(r"Resumed from .*step \d", (tmp_path / "runs/default/log.txt").read_text())


def test_only_the_worker_opens_the_gpu(start, script, tmp_path, users_of_gpus):
    """A context in the launcher or in the fork server would take memory of the GPU, and break the workers' own."""
    path = script("""
        import pathlib, time, torch
        torch.ones(1, device="cuda")
        pathlib.Path("ready").touch()
        time.sleep(60)
    """)
    launcher = start(sys.executable, "-m", "minetorch_launch", path)
    deadline = time.monotonic() + 60
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < deadline
        assert launcher.poll() is None, launcher.communicate()[0]
        time.sleep(0.05)
    users = users_of_gpus()
    assert len(users) == 1, users
    assert launcher.pid not in users
    launcher.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while users_of_gpus():
        assert time.monotonic() < deadline, "the worker has outlived its launcher"
        time.sleep(0.05)


def test_one_worker_for_each_gpu_unless_asked_otherwise(launch, script):
    path = script("""
        import os, torch
        print(os.environ["WORLD_SIZE"], os.environ["MINETORCH_DEVICE"], torch.cuda.is_available())
    """)
    count = torch.cuda.device_count()
    assert f"{count} cuda True" in launch(path)[1]
    assert "2 cpu False" in launch("--device", "cpu", "--nproc", "2", path)[1]
    code, output = launch("--nproc", count + 1, path)
    assert code == 2
    assert f"--nproc {count + 1} is more than the {count} visible GPU" in output
    code, output = launch("--device", "cuda", path, CUDA_VISIBLE_DEVICES="")
    assert code == 2
    assert "CUDA_VISIBLE_DEVICES='' hides all" in output


def test_the_doctor_finds_the_gpu_fit(launch):
    code, output = launch("doctor", "--device", "cuda")
    assert code == 0, output
    assert torch.cuda.get_device_name(0) in output
