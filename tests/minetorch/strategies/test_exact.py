"""Training by virtual shards in one process: what it computes, and what hooks see of it."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from minetorch import CheckpointMismatchError, Exact

DOCUMENT = Path(__file__).parents[3] / "docs/elastic.md"


def loss_func(trainer, data):
    return nn.functional.mse_loss(trainer.model(data[0]), data[1])


def small_cnn():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 1)
    )


def some_data(length):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(length, 6, generator=generator)
    return TensorDataset(inputs, inputs.sum(dim=1, keepdim=True))


@pytest.fixture
def run(trained):
    """Trains a small CNN, on batches of 16 of 40 samples unless told otherwise."""

    def train(**changes):
        model = changes.pop("model", None) or small_cnn()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        loader = DataLoader(some_data(changes.pop("samples", 40)), batch_size=16, shuffle=True)
        validation = DataLoader(some_data(20), batch_size=16)
        options = {"train_dataloader": loader, "loss_func": loss_func, "val_dataloader": validation, "drawer": None}
        return trained(**{**options, "model": model, "optimizer": optimizer, "split_batches": True, **changes})

    return train


@pytest.fixture
def one_thread():
    """What a worker of this mode computes with."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("accumulated", [1, 2])
def test_with_one_shard_it_is_the_default_to_the_bit(run, accumulated):
    options = {"clip_grad_norm": 0.5, "accumulated_iter": accumulated}
    plain = run(code="plain", **options)
    exact = run(code="exact", strategy=Exact(virtual_shards=1), **options)
    assert all(torch.equal(value, plain.weights[name]) for name, value in exact.weights.items())
    assert exact.metrics["val_loss"] == plain.metrics["val_loss"]
    assert exact.metrics["train_loss"] == pytest.approx(plain.metrics["train_loss"], rel=1e-6)


def test_without_batch_statistics_any_number_of_shards_gives_the_default_up_to_rounding(run):
    def model():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))

    plain = run(code="plain", model=model())
    for shards in (3, 8, 16):
        exact = run(code=f"exact-{shards}", model=model(), strategy=Exact(virtual_shards=shards))
        for name, value in exact.weights.items():
            torch.testing.assert_close(value, plain.weights[name])
        assert exact.metrics == pytest.approx(plain.metrics, rel=1e-5)


class Uses(nn.Module):
    """Three BatchNorms: one used twice in a forward, one frozen, one never used."""

    def __init__(self):
        super().__init__()
        self.twice, self.frozen, self.spare = (nn.BatchNorm1d(6) for _ in range(3))
        self.spare.requires_grad_(False)
        self.last = nn.Linear(6, 1)
        with torch.no_grad():
            for layer in (self.frozen, self.spare):
                layer.running_mean.uniform_(-1, 1)
                layer.running_var.uniform_(0.3, 3)

    def train(self, mode=True):
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, inputs):
        return self.last(self.frozen(self.twice(self.twice(inputs))))


def test_statistics_are_the_mean_of_the_shards_and_move_where_they_are_used_alone(run):
    torch.manual_seed(0)
    model = Uses()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    after = run(model=model, strategy=Exact(virtual_shards=4), samples=48, max_epochs=1).weights
    assert after["twice.num_batches_tracked"] == 6
    assert not torch.equal(after["twice.running_var"], before["twice.running_var"])
    for layer in ("frozen", "spare"):
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            assert torch.equal(after[f"{layer}.{name}"], before[f"{layer}.{name}"])


def test_a_running_mean_is_that_of_all_samples(run):
    model = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 1))
    after = run(model=model, strategy=Exact(virtual_shards=8), samples=16, max_epochs=1).weights
    inputs = some_data(16).tensors[0]
    torch.testing.assert_close(after["0.running_mean"], 0.1 * inputs.mean(dim=0))
    assert after["0.num_batches_tracked"] == 1


def test_a_hook_sees_the_batches_of_the_shards_and_the_loss_of_all(run):
    seen = []

    def look(trainer, data, loss):
        seen.append(([len(inputs) for inputs, _ in data], float(loss), torch.get_num_threads()))

    threads = torch.get_num_threads()
    done = run(strategy="exact", max_epochs=1, hooks={"after_train_iteration_end": look})
    assert [sizes for sizes, _, _ in seen] == [[2] * 8, [2] * 8, [1] * 8]
    weighted = sum(sum(sizes) * loss for sizes, loss, _ in seen) / 40
    assert done.metrics["train_loss"] == pytest.approx(weighted, rel=1e-6)
    assert {threads for _, _, threads in seen} == {1}
    assert torch.get_num_threads() == threads


def test_a_save_between_counts_no_loss_twice(run, make_trainer):
    def stop(trainer, index):
        if trainer.current_epoch == 2 and index == 1:
            trainer.save_and_stop()

    def save(trainer):
        trainer.persist("mine")

    whole = run(code="whole", strategy="exact", drawer=None)
    run(code="begun", strategy="exact", hooks={"after_train_iteration_end": stop})
    gone_on = run(code="begun", strategy="exact", hooks={"after_init": save, "before_train_iteration_start": save})
    assert gone_on.metrics == whole.metrics
    assert all(torch.equal(value, whole.weights[name]) for name, value in gone_on.weights.items())


def test_a_run_keeps_its_number_of_shards(run):
    run(strategy="exact", max_epochs=1)
    with pytest.raises(CheckpointMismatchError, match="made with virtual_shards=8; virtual_shards=4 was given"):
        run(strategy=Exact(virtual_shards=4))
    run(max_epochs=2)


def test_a_run_that_was_begun_without_is_told_so(run, caplog, capsys):
    run(max_epochs=1)
    run(strategy="exact", max_epochs=2)
    assert 'made without strategy="exact": only from here on' in capsys.readouterr().err + caplog.text


def test_the_script_of_the_document_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (script,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(script, str(DOCUMENT), "exec"), {})
    state = torch.load(tmp_path / "alchemistic_directory/exact/models/latest.pth.tar", weights_only=True)
    assert state["epoch"] == 3
    assert state["virtual_shards"] == 8
