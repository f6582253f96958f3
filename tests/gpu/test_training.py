"""Training on a GPU: as on a CPU, as under any launcher, to the same bits after a stop, and without waiting for it."""

import importlib.util
import json
import math
import re
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import minetorch
from minetorch import Checkpoints, Trainer
from minetorch.plugins import Profile, Throughput

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

WAYS = {
    "python": [sys.executable],
    "launcher": [sys.executable, "-m", "minetorch_launch"],
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1"],
}


def run_digits(start, tmp_path, examples, way, *words, **variables):
    process = start(*WAYS[way], examples / "digits.py", "--dir", tmp_path / way, *words, **variables)
    output, _ = process.communicate(timeout=150)
    assert process.returncode == 0, output
    log = (tmp_path / way / "digits/log.txt").read_text()
    return [[float(word) for word in found] for found in re.findall(r"train_loss (\S+), val_loss ([^ ,]+)", log)], log


@pytest.mark.parametrize("way", WAYS)
def test_the_losses_are_those_of_a_cpu(start, tmp_path, examples, way):
    on_gpu, log = run_digits(start, tmp_path / "gpu", examples, way, "--epochs", "2", MINETORCH_DEVICE="cuda")
    assert f" on {torch.cuda.get_device_name(0)}: " in log
    on_cpu, _ = run_digits(start, tmp_path / "cpu", examples, "python", "--epochs", "2", MINETORCH_DEVICE="cpu")
    assert len(on_gpu) == 2
    for ours, theirs in zip(on_gpu, on_cpu, strict=True):
        assert ours == pytest.approx(theirs, rel=5e-3)


def test_a_run_may_change_its_device(start, tmp_path, examples):
    """What a GPU has saved, a machine without one goes on with, and the other way round."""
    run_digits(start, tmp_path, examples, "python", "--epochs", "1")
    run_digits(start, tmp_path, examples, "python", "--epochs", "2", CUDA_VISIBLE_DEVICES="")
    losses, log = run_digits(start, tmp_path, examples, "python", "--epochs", "3")
    assert len(re.findall("Resumed from", log)) == 2
    assert len(losses) == 3
    assert losses[0] > losses[1] > losses[2]
    loaded = minetorch.load(tmp_path / "python/digits")
    assert {tensor.device.type for tensor in loaded["state_dict"].values()} == {"cpu"}
    loaded = minetorch.load(tmp_path / "python/digits", map_location="cuda")
    assert {tensor.device.type for tensor in loaded["state_dict"].values()} == {"cuda"}


def load_world(worlds, name):
    spec = importlib.util.spec_from_file_location(f"world_{name}", worlds / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_stopped_run_ends_in_the_same_bits(launch, tmp_path, worlds):
    code, output = launch("--device", "cuda", worlds / "exact.py", tmp_path, timeout=170)
    assert code == 0, output
    found = json.loads((tmp_path / "found_0.json").read_text())
    assert {case: differences for case, differences in found.items() if differences} == {}
    cases = load_world(worlds, "exact").cases(1, "cuda")
    assert found.keys() == {str(case) for case in cases}


@pytest.fixture
def prove(start):
    def run(script, **variables):
        command = [sys.executable, "-m", "minetorch", "prove", "--kills", "1", "--device", "cuda", script]
        process = start(*command, "--", "--epochs", "3", **variables)
        output, _ = process.communicate(timeout=170)
        return process.returncode, output

    return run


def test_the_proof_names_kernels_that_are_not_deterministic(prove, examples):
    """cuDNN's convolutions add up in an order that changes, unless they are told not to."""
    code, output = prove(examples / "digits.py")
    assert code == 1, output
    assert "Likely cause: a non-deterministic kernel" in output


def test_the_proof_with_deterministic_kernels(prove, examples, script):
    path = script(f"""
        import runpy, torch
        torch.use_deterministic_algorithms(True)
        runpy.run_path({str(examples / "digits.py")!r}, run_name="__main__")
    """)
    code, output = prove(path, CUBLAS_WORKSPACE_CONFIG=":4096:8")
    assert code == 0, output
    assert "EXACT" in output


def problem(length=640):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(length, 32, generator=generator)
    return TensorDataset(inputs, inputs.sum(dim=1, keepdim=True))


def squared_error(trainer, data):
    inputs, targets = data
    return nn.functional.mse_loss(trainer.model(inputs).float(), targets)


@pytest.fixture
def make_trainer(tmp_path):
    made = []

    def make(**changes):
        torch.manual_seed(0)
        model = changes.pop("model", None) or nn.Sequential(nn.Linear(32, 64), nn.Dropout(0.1), nn.Linear(64, 1))
        arguments = {
            "alchemistic_directory": tmp_path / "runs",
            "model": model,
            "optimizer": torch.optim.AdamW(model.parameters(), lr=0.01),
            "train_dataloader": DataLoader(problem(), batch_size=16, shuffle=True, pin_memory=True),
            "val_dataloader": DataLoader(problem(64), batch_size=16, pin_memory=True),
            "loss_func": squared_error,
            "max_epochs": 2,
            "drawer": None,
        }
        made.append(Trainer(**arguments | changes))
        return made[-1]

    yield make
    for trainer in made:
        trainer.close()


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("changes", [{}, {"amp": "bf16"}, {"clip_grad_norm": 1.0}, {"accumulated_iter": 3}], ids=str)
def test_no_step_waits_for_the_gpu(make_trainer, changes):
    """torch raises an error at whatever would wait, from the third iteration of an epoch to its last but one.

    The loss is looked at for the progress alone: for a file, every ten seconds.
    """

    def watch(trainer, index):
        torch.cuda.set_sync_debug_mode("error" if 2 <= index < 38 else "default")

    try:
        trainer = make_trainer(hooks={"after_train_iteration_end": watch}, **changes)
        trainer.train()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.progress.iteration == 40


def test_an_overflow_is_skipped_and_survives_a_resumption(make_trainer):
    """fp16: a loss too large for a half makes the scaler leave out the step, and lower its scale."""
    scales = []

    def note(trainer, index):
        scales.append(trainer.strategy.accelerator.scaler.get_scale())

    def huge(trainer, data):
        return squared_error(trainer, data) * (1e30 if trainer.progress.step == 3 else 1.0)

    trainer = make_trainer(amp="fp16", loss_func=huge, hooks={"after_train_iteration_end": note}, max_epochs=1)
    trainer.train()
    assert scales[3] == scales[2] / 2
    again = make_trainer(amp="fp16")
    assert again.strategy.accelerator.scaler.get_scale() == scales[-1]
    assert all(torch.isfinite(value).all() for value in again.unwrapped_model.state_dict().values())


def test_batches_of_any_make_come_to_the_gpu(make_trainer):
    def loss_func(trainer, data):
        assert {data["x"].device.type, data["y"][0].device.type} == {"cuda"}
        assert data["name"] == ["a"] * len(data["x"])
        return nn.functional.mse_loss(trainer.model(data["x"]), data["y"][0])

    rows = [{"x": x, "y": [y], "name": "a"} for x, y in problem(64)]
    loaders = [DataLoader(rows, batch_size=16, num_workers=n, pin_memory=pin) for n, pin in [(0, False), (2, True)]]
    for loader in loaders:
        make_trainer(train_dataloader=loader, val_dataloader=None, loss_func=loss_func, resume=False).train()


def test_a_loss_on_the_wrong_device(make_trainer):
    def loss_func(trainer, data):
        return squared_error(trainer, data).cpu()

    with pytest.raises(minetorch.ConfigurationError, match=r"cpu.*cuda|cuda.*cpu"):
        make_trainer(loss_func=loss_func).train()


def test_the_plugins_that_measure_a_gpu(make_trainer, tmp_path):
    def loss_func(trainer, data):
        torch.cuda._sleep(10_000_000)  # about 5 ms that only the GPU knows of
        return squared_error(trainer, data)

    trainer = make_trainer(
        loss_func=loss_func, plugins=[Throughput(), Profile(wait=1, warmup=1, active=3)], max_epochs=1
    )
    trainer.train()
    log = (tmp_path / "runs/default/log.txt").read_text()
    backward = float(re.search(r"Step time in ms: .*forward\+backward ([0-9.]+)", log)[1])
    assert 3 < backward < 30, log
    assert trainer.metrics["samples_per_s"] > 0
    assert math.isfinite(trainer.metrics["train_loss"])


def test_the_generator_of_the_gpu_goes_on(make_trainer):
    """Dropout and whatever a hook draws there are those of the run that was not stopped."""
    drawn = []

    def draw(trainer, index):
        drawn.append(torch.rand(1, device="cuda").item())

    def stop(trainer, index):
        draw(trainer, index)
        if trainer.progress.step == 10:
            raise KeyboardInterrupt

    make_trainer(hooks={"after_train_iteration_end": draw}, max_epochs=1).train()
    whole = drawn.copy()
    drawn.clear()
    with pytest.raises(KeyboardInterrupt):
        make_trainer(
            resume=False, code="b", checkpoints=Checkpoints(every_steps=5), hooks={"after_train_iteration_end": stop}
        ).train()
    trainer = make_trainer(code="b", hooks={"after_train_iteration_end": draw}, max_epochs=1)
    step = trainer.progress.step
    assert step in (5, 10)
    trainer.train()
    assert drawn[:10] + drawn[10 + 10 - step :] == whole


def test_exact_elasticity_needs_deterministic_kernels(start, script):
    path = script("""
        import sys, torch
        from torch import nn
        from torch.utils.data import DataLoader, TensorDataset
        from minetorch import Trainer

        if "ready" in sys.argv:
            torch.use_deterministic_algorithms(True)
        torch.manual_seed(0)
        model = nn.Linear(4, 1)
        data = TensorDataset(torch.randn(64, 4), torch.randn(64, 1))
        Trainer("runs", model, torch.optim.SGD(model.parameters(), lr=0.1), DataLoader(data, batch_size=8),
                lambda trainer, data: (trainer.model(data[0]) - data[1]).square().mean(),
                strategy="exact", split_batches=True, max_epochs=1, drawer=None).train()
    """)
    refused = start(sys.executable, path)
    output, _ = refused.communicate(timeout=100)
    assert refused.returncode == 1
    assert "torch.use_deterministic_algorithms(True)" in output
    ready = start(sys.executable, path, "ready", CUBLAS_WORKSPACE_CONFIG=":4096:8")
    output, _ = ready.communicate(timeout=100)
    assert ready.returncode == 0, output
