"""A checkpoint holds the values of one moment, whatever the loss function and hooks do to tensors after it."""

import json

import torch
from torch import nn
from torch.utils.data import DataLoader

import minetorch
from tests.minetorch.conftest import line_data

LARGE = 2 << 20
"""Numbers in a tensor that takes milliseconds to copy."""


class Net(nn.Module):
    """A model with the kinds of state that are changed outside of the optimizer's step."""

    def __init__(self):
        super().__init__()
        self.student = nn.Linear(1, 1)
        self.teacher = nn.Parameter(torch.zeros(LARGE), requires_grad=False)
        self.trained = nn.Parameter(torch.zeros(LARGE))
        self.register_buffer("average", torch.zeros(LARGE))

    def forward(self, inputs):
        return self.student(inputs) + 0 * self.trained[0]


class Bank:
    """Features that a loss function remembers."""

    def __init__(self):
        self.features = torch.zeros(LARGE)

    def state_dict(self):
        return {"features": self.features}

    def load_state_dict(self, state):
        self.features.copy_(state["features"])


def values_at(run):
    """All values of each kind in every checkpoint, by the number of steps."""
    found = {}
    for file in sorted((run / "models").glob("g0*.json")):
        manifest = json.loads(file.read_bytes())
        state = minetorch.load(run, manifest["payload"])
        tensors = {name: state["state_dict"][name] for name in ("teacher", "trained", "average")}
        tensors["features"] = state["statable"]["bank"]["features"]
        tensors["momentum"] = state["optimizer"]["state"][0]["momentum_buffer"]
        found[manifest["step"]] = {name: tensor.unique().tolist() for name, tensor in tensors.items()}
    return found


def test_what_a_loss_function_changes_by_data_is_saved_as_it_was(tmp_path, make_trainer):
    """As the teachers of DINO and BYOL are updated, which raises no tensor's version."""
    model, bank = Net(), Bank()
    optimizer = torch.optim.SGD([model.trained, *model.student.parameters()], lr=1e-3, momentum=0.9)

    def set_all(value):
        momentum = optimizer.state[model.trained].get("momentum_buffer")
        for tensor in (momentum, model.average, bank.features, model.trained, model.teacher):
            if tensor is not None:
                tensor.data.fill_(value)

    def loss_func(trainer, data):
        set_all(-1.0)
        inputs, targets = data
        return nn.functional.mse_loss(trainer.model(inputs), targets)

    trainer = make_trainer(
        alchemistic_directory=tmp_path,
        model=model,
        optimizer=optimizer,
        train_dataloader=DataLoader(line_data(16), batch_size=4),
        val_dataloader=None,
        loss_func=loss_func,
        statable={"bank": bank},
        hooks={"after_train_iteration_end": lambda trainer: set_all(float(trainer.progress.step))},
        max_epochs=1,
        checkpoints=minetorch.Checkpoints(every_steps=1),
    )
    trainer.train()
    found = values_at(tmp_path / "default")
    assert list(found) == [1, 2, 3, 4]
    assert found == {step: {key: [float(step)] for key in values} for step, values in found.items()}
