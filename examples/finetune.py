"""Learns the digits 0 to 6, then freezes most of the network and learns 7, 8 and 9 from forty images of each.

    python examples/finetune.py
    minetorch-launch --nproc 2 examples/finetune.py

The second run, `finetune/new-head`, starts from the best checkpoint of the first, `finetune/base`.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import minetorch
from minetorch import Checkpoints, Trainer


def datasets(classes: range, per_class: int | None = None) -> tuple[TensorDataset, TensorDataset]:
    """Images of 1 x 8 x 8, with labels from 0.

    For training, `per_class` of each class, or three in four; for validation, the rest.
    """
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    train, val = [], []
    for digit in classes:
        of_digit = (labels == digit).nonzero().flatten()
        count = per_class or len(of_digit) * 3 // 4
        train.append(of_digit[:count])
        val.append(of_digit[count:])
    return tuple(TensorDataset(images[rows], labels[rows] - classes.start) for rows in map(torch.cat, (train, val)))


class Network(nn.Module):
    """Features of an image, and a head that tells classes apart by them."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 64),
            nn.ReLU(),
        )
        self.head = nn.Linear(64, classes)

    def forward(self, images):
        return self.head(self.features(images))


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
    trainer.metrics["accuracy"] = trainer.reduce(correct, "sum") / trainer.reduce(total, "sum")
    trainer.drawer.scalar(trainer.metrics["accuracy"], "accuracy")


def train(
    directory: str, code: str, model: nn.Module, data: tuple[TensorDataset, TensorDataset], lr: float, epochs: int
):
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    trainer = Trainer(
        alchemistic_directory=directory,
        code=code,
        model=model,
        optimizer=torch.optim.Adam(trainable, lr=lr),
        train_dataloader=DataLoader(data[0], batch_size=32, shuffle=True),
        val_dataloader=DataLoader(data[1], batch_size=128),
        loss_func=loss_func,
        hooks={"after_epoch_end": draw_accuracy},
        checkpoints=Checkpoints(monitor="accuracy", mode="max"),
        max_epochs=epochs,
        split_batches=True,
    )
    trainer.train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10, help="of each of the two runs")
    parser.add_argument("--images", type=int, default=40, help="of each new digit to learn from")
    parser.add_argument("--dir", default="./alchemistic_directory", help="a path or a URL such as s3://bucket/runs")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    train(arguments.dir, "finetune/base", Network(7), datasets(range(0, 7)), 2e-3, arguments.epochs)

    model = Network(7)
    model.load_state_dict(minetorch.load(f"{arguments.dir}/finetune/base", "best")["state_dict"])
    model.features.requires_grad_(False)
    model.head = nn.Linear(64, 3)
    train(arguments.dir, "finetune/new-head", model, datasets(range(7, 10), arguments.images), 1e-2, arguments.epochs)


if __name__ == "__main__":
    main()
