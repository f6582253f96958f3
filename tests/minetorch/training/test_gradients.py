"""Which gradients a step takes, clips and clears, and steps that a gradient scaler leaves out."""

import math

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from minetorch import ConfigurationError, Exact
from minetorch.plugins import EMA, GradNorm, LRSchedule, NaNGuard


class Net(nn.Module):
    """A body and a head, of which the tests optimize the head alone."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(1, 8), nn.Linear(8, 1)

    def forward(self, inputs):
        return self.head(torch.tanh(self.body(inputs)))


@pytest.fixture
def scaled(monkeypatch):
    """Gives Trainers a gradient scaler on the CPU, where `amp="fp16"` is not to be had."""

    class Scaling(Accelerator):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=10**6)

    monkeypatch.setattr("minetorch.strategies.accelerated.Accelerator", Scaling)


def head_only(frozen, **options):
    model = Net()
    model.body.requires_grad_(not frozen)
    return {"model": model, "optimizer": torch.optim.SGD(model.head.parameters(), lr=0.1)} | options


@pytest.fixture(params=[False, True], ids=["plain", "scaler"])
def maybe_scaled(request):
    if request.param:
        request.getfixturevalue("scaled")


def test_parameters_outside_of_the_optimizer_do_not_count(trained, maybe_scaled):
    options = {"clip_grad_norm": 0.1, "plugins": [GradNorm()], "accumulated_iter": 2, "max_epochs": 3}
    frozen = trained(**head_only(True), **options, code="frozen")
    loose = trained(**head_only(False), **options | {"plugins": [GradNorm()]}, code="loose")
    assert loose.metrics == frozen.metrics
    assert all(torch.equal(value, frozen.weights[name]) for name, value in loose.weights.items())


@pytest.mark.parametrize(
    "strategy", [{}, {"strategy": Exact(virtual_shards=2), "split_batches": True}], ids=["plain", "exact"]
)
def test_gradients_outside_of_the_optimizer_are_those_of_one_step(trained, strategy):
    """They are there for a hook, as long as another optimizer needs them, and do not pile up."""
    norms = []

    def look(trainer):
        norms.append(float(trainer.unwrapped_model.body.weight.grad.norm()))

    one_batch = DataLoader(TensorDataset(torch.ones(4, 1), torch.ones(4, 1)), batch_size=4)
    options = head_only(False) | strategy
    options["optimizer"].param_groups[0]["lr"] = 0.0
    trained(
        **options,
        train_dataloader=one_batch,
        hooks={"after_train_iteration_end": look},
        max_epochs=3,
    )
    assert norms[0] > 0
    assert norms == [norms[0]] * 3


def test_a_group_that_a_hook_adds_counts_from_then_on(trained):
    seen = []

    def thaw(trainer):
        if trainer.current_epoch == 2:
            trainer.optimizer.add_param_group({"params": list(trainer.unwrapped_model.body.parameters())})

    def norm(optimizer, *_):
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        seen.append((len(gradients), float(nn.utils.get_total_norm(gradients))))

    options = head_only(False)
    options["optimizer"].register_step_pre_hook(norm)
    trained(**options, hooks={"before_epoch_start": thaw}, clip_grad_norm=1e-3)
    assert [count for count, _ in seen] == [2] * 5 + [4] * 5
    assert [value for _, value in seen] == pytest.approx([1e-3] * 10, rel=1e-2)


def embedding(**options):
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.out = nn.Embedding(20, 4, sparse=True), nn.Linear(4, 1)

        def forward(self, inputs):
            return self.out(self.words(inputs.long().squeeze(1)))

    model = Words()
    data = TensorDataset(torch.arange(20.0).unsqueeze(1), torch.ones(20, 1))
    return {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "train_dataloader": DataLoader(data, batch_size=4),
        "val_dataloader": None,
        "max_epochs": 1,
    } | options


def test_sparse_gradients_cannot_be_clipped_and_the_error_says_so(make_trainer):
    with pytest.raises(ConfigurationError, match=r"clip_grad_norm=1.0 cannot limit sparse gradients"):
        make_trainer(**embedding(clip_grad_norm=1.0)).train()


def test_sparse_gradients_have_a_norm(trained):
    def norm(optimizer, *_):
        gradients = [p.grad.to_dense() for p in optimizer.param_groups[0]["params"]]
        norms.append(float(nn.utils.get_total_norm(gradients)))

    norms = []
    options = embedding(plugins=[GradNorm(), NaNGuard()])
    options["optimizer"].register_step_pre_hook(norm)
    assert trained(**options).metrics["grad_norm"] == pytest.approx(sum(norms) / 5)


class Overflowing:
    """A loss function whose gradients are too large at some steps, but only when they are scaled."""

    def __init__(self, at):
        self.at = at

    def __call__(self, trainer, data):
        factor = 1e36 if trainer.progress.step in self.at else 1.0
        return nn.functional.mse_loss(trainer.model(data[0]), data[1]) * factor


@pytest.mark.parametrize("fused", [False, True], ids=["", "fused"])
@pytest.mark.usefixtures("scaled")
def test_a_step_that_the_scaler_leaves_out_counts_for_no_plugin(trained, fused):
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    ema = EMA()
    run = trained(
        model=model,
        optimizer=optimizer,
        loss_func=Overflowing({0, 2}),
        plugins=[LRSchedule(scheduler, per="step"), ema, GradNorm(every=2), NaNGuard()],
        max_epochs=1,
        val_dataloader=None,
    )
    assert run.progress.step == 5
    assert scheduler.last_epoch == ema.updates == 3
    assert math.isfinite(run.metrics["grad_norm"])


@pytest.mark.usefixtures("scaled")
def test_the_norm_is_that_of_the_unscaled_gradients(trained):
    options = {"plugins": [GradNorm()], "clip_grad_norm": 1.0, "max_epochs": 1}
    assert trained(**options).metrics["grad_norm"] < 100
