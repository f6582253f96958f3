"""Each thing that the same bits cannot be promised for is an error that says why."""

import re

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from minetorch import ConfigurationError, Exact
from minetorch.distributed.world import World
from minetorch.strategies.exact.refusals import check_exact


@pytest.fixture
def make_exact(make_trainer):
    def make(batch_size=8, **changes):
        data = TensorDataset(torch.randn(16, 4), torch.randn(16, 1))
        changes.setdefault("train_dataloader", DataLoader(data, batch_size=batch_size))
        return make_trainer(**{"val_dataloader": None, "split_batches": True, "strategy": "exact", **changes})

    return make


def check(model=None, optimizer=None, **world):
    model = nn.Linear(4, 1) if model is None else model
    optimizer = optimizer or torch.optim.SGD(model.parameters())
    check_exact(Exact(), World(**world), model, optimizer, split_batches=True)


def refused(reason):
    return pytest.raises(ConfigurationError, match=re.escape(reason))


def test_batches_of_each_worker(make_exact):
    with refused("pass split_batches=True, too"):
        make_exact(split_batches=False)


@pytest.mark.parametrize("strategy", [True, "Exact", None, Exact])
def test_another_kind_of_strategy(make_exact, strategy):
    with refused("strategy must be 'ddp' or 'exact', or a DDP(…) or an Exact(…)"):
        make_exact(strategy=strategy)


def test_more_workers_than_shards(make_exact, monkeypatch, tmp_path):
    check(size=8)
    variables = {"RANK": "8", "WORLD_SIZE": "9", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with refused("virtual_shards=8 can be spread over 8 workers at most, and there are 9"):
        make_exact()
    assert not list(tmp_path.iterdir())
    with refused("virtual_shards=8 can be spread over 8 workers at most, and there are 9"):
        check(size=9)


@pytest.mark.parametrize("loader", ["train_dataloader", "val_dataloader"])
def test_batches_smaller_than_the_shards(make_exact, loader):
    small = DataLoader(TensorDataset(torch.randn(16, 4), torch.randn(16, 1)), batch_size=7)
    with refused("splits each batch into virtual_shards=8, but batch_size=7"):
        make_exact(**{loader: small})
    with refused("has batch_size=None"):
        make_exact(**{loader: DataLoader(small.dataset, batch_size=None)})


def test_a_gpu_without_deterministic_kernels(monkeypatch):
    world = {"device": torch.device("cuda", 0)}
    with refused("torch.use_deterministic_algorithms(True)"):
        check(**world)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    check(**world)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    with refused("torch.backends.cudnn.benchmark = False"):
        check(**world)
    with refused("not on 'mps'"):
        check(device=torch.device("mps"))


def test_statistics_over_all_ranks():
    with refused("1 (SyncBatchNorm) takes its statistics over all ranks"):
        check(nn.Sequential(nn.Linear(4, 4), nn.SyncBatchNorm(4)))


def test_a_compiled_model():
    with refused("compiled by torch.compile"):
        check(torch.compile(nn.Linear(4, 1), backend="eager"))
    model = nn.Sequential(nn.Linear(4, 1))
    model[0].compile(backend="eager")
    with refused("0 (Linear) is compiled by torch.compile"):
        check(model)


def test_parameters_that_are_not_the_models():
    model, other = nn.Linear(4, 1), nn.Linear(4, 1)
    with refused("the optimizer has parameters that are not the model's"):
        check(model, torch.optim.SGD([*model.parameters(), *other.parameters()]))


def test_a_hook_for_a_gradient_that_is_a_shards_alone():
    model = nn.Linear(4, 1)
    model.bias.register_post_accumulate_grad_hook(lambda parameter: None)
    with refused("bias has a hook for its accumulated gradient"):
        check(model)


def test_a_parameter_without_a_gradient(make_exact):
    model = nn.ModuleDict({"used": nn.Linear(4, 1), "spare": nn.Linear(4, 1)})
    trainer = make_exact(model=model, loss_func=lambda trainer, data: trainer.unwrapped_model["used"](data[0]).mean())
    with refused("does not depend on these parameters: spare.weight, spare.bias."):
        trainer.train()


def test_sparse_gradients(make_exact):
    model = nn.EmbeddingBag(5, 1, sparse=True)
    trainer = make_exact(
        model=model, loss_func=lambda trainer, data: trainer.model(torch.zeros(len(data[0]), 1, dtype=torch.long)).sum()
    )
    with refused("sparse gradients: weight."):
        trainer.train()


class Counts(nn.Linear):
    def __init__(self):
        super().__init__(4, 1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, inputs):
        self.calls += 1
        return super().forward(inputs)


class Replaces(Counts):
    def forward(self, inputs):
        self.calls = self.calls + 1
        return nn.functional.linear(inputs, self.weight, self.bias)


class OwnStatistics(nn.Linear):
    """Torch does not count what this does to its buffers as a new version of them."""

    def __init__(self):
        super().__init__(4, 1)
        self.register_buffer("calls", torch.zeros(4))
        self.register_buffer("spread", torch.ones(4))

    def forward(self, inputs):
        return super().forward(nn.functional.batch_norm(inputs, self.calls, self.spread, training=True))


@pytest.mark.parametrize("kind", [Counts, Replaces, OwnStatistics])
def test_a_forward_that_changes_a_buffer(make_exact, kind):
    trainer = make_exact(16, model=nn.Sequential(kind()))
    with refused(f"the forward of {kind.__name__} changes its buffer '0.calls'"):
        trainer.train()


def test_a_hook_may_change_a_buffer(make_exact):
    class Anneals(nn.Linear):
        def __init__(self):
            super().__init__(4, 1)
            self.register_buffer("temperature", torch.ones(()))

        def forward(self, inputs):
            return super().forward(inputs) * self.temperature

    def cool(trainer):
        trainer.unwrapped_model.temperature *= 0.9

    trainer = make_exact(model=Anneals(), hooks={"before_train_iteration_start": cool})
    trainer.train()
    assert trainer.unwrapped_model.temperature == pytest.approx(0.9**4)
