"""Trains a small CNN on 1,797 real handwritten digits, on as many workers as it is started with.

    python examples/digits.py
    minetorch-launch --nproc 2 examples/digits.py

Start it again, and it goes on from its last checkpoint.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from minetorch import Trainer


def datasets() -> tuple[TensorDataset, TensorDataset]:
    """Images of 1 x 8 x 8 from 0 to 1, with labels: 1,437 for training and 360 for validation."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, val = order[:1437], order[1437:]
    return TensorDataset(images[train], labels[train]), TensorDataset(images[val], labels[val])


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def loss_func(trainer, data):
    images, labels = data
    return nn.functional.cross_entropy(trainer.model(images), labels)


@torch.no_grad()
def draw_accuracy(trainer):
    """Each rank counts on its own share of the validation data, and `reduce` adds the counts up."""
    correct = total = 0
    for images, labels in trainer.val_dataloader:
        correct += int((trainer.model(images).argmax(dim=1) == labels).sum())
        total += len(labels)
    accuracy = trainer.reduce(correct, "sum") / trainer.reduce(total, "sum")
    trainer.metrics["accuracy"] = accuracy
    trainer.drawer.scalar(accuracy, "accuracy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--dir", default="./alchemistic_directory", help="a path or a URL such as s3://bucket/runs")
    parser.add_argument("--code", default="digits")
    parser.add_argument("--drawer", default="matplotlib", choices=["matplotlib", "tensorboard"])
    arguments = parser.parse_args()

    torch.manual_seed(0)
    model = network()
    train_data, val_data = datasets()
    trainer = Trainer(
        alchemistic_directory=arguments.dir,
        code=arguments.code,
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=2e-3),
        train_dataloader=DataLoader(train_data, batch_size=64, shuffle=True),
        val_dataloader=DataLoader(val_data, batch_size=128),
        loss_func=loss_func,
        hooks={"after_epoch_end": draw_accuracy},
        drawer=arguments.drawer,
        max_epochs=arguments.epochs,
        # The same training on any number of workers: they share each batch of 64.
        split_batches=True,
    )
    trainer.train()


if __name__ == "__main__":
    main()
