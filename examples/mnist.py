"""Trains a CNN on MNIST, after PyTorch's own example; needs torchvision, which downloads the images.

    python examples/mnist.py --code plan-a
    python examples/mnist.py --code plan-b --loss squared-error

The two runs differ in their loss function: `plan-a` takes the cross entropy of the network's output, `plan-b` the mean
squared error to one-hot labels. Their curves are in `alchemistic_directory/plan-a/graph` and `plan-b/graph`.

Without torchvision, `--data digits` takes the 8 x 8 images of scikit-learn, scaled up to MNIST's 28 x 28.
"""

import argparse
import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from minetorch import Trainer


def mnist(folder: str) -> tuple[Dataset, Dataset]:
    try:
        from torchvision import datasets, transforms
    except ImportError:
        sys.exit("This example needs torchvision: pip install torchvision, or take --data digits instead.")
    to_tensor = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    return tuple(datasets.MNIST(folder, train=train, download=True, transform=to_tensor) for train in (True, False))


def digits() -> tuple[Dataset, Dataset]:
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1) / 16
    images = nn.functional.interpolate(images, size=28, mode="bilinear")
    data = TensorDataset((images - 0.1307) / 0.3081, torch.tensor(found.target))
    return tuple(torch.utils.data.random_split(data, [1437, 360], torch.Generator().manual_seed(0)))


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 20, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(20, 50, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(50 * 4 * 4, 500),
        nn.ReLU(),
        nn.Linear(500, 10),
    )


def cross_entropy(trainer, data):
    images, labels = data
    return nn.functional.cross_entropy(trainer.model(images), labels)


def squared_error(trainer, data):
    images, labels = data
    return nn.functional.mse_loss(trainer.model(images).softmax(dim=1), nn.functional.one_hot(labels, 10).float())


LOSSES = {"cross-entropy": cross_entropy, "squared-error": squared_error}


@torch.no_grad()
def draw_accuracy(trainer):
    """Each rank counts on its own share of the validation data, and `reduce` adds the counts up."""
    correct = total = 0
    for images, labels in trainer.val_dataloader:
        correct += int((trainer.model(images).argmax(dim=1) == labels).sum())
        total += len(labels)
    trainer.metrics["accuracy"] = trainer.reduce(correct, "sum") / trainer.reduce(total, "sum")
    trainer.drawer.scalar(trainer.metrics["accuracy"], "accuracy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--code", default="plan-a", help="name of the run; another one for each attempt")
    parser.add_argument("--loss", choices=LOSSES, default="cross-entropy")
    parser.add_argument("--data", choices=["mnist", "digits"], default="mnist")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--workers", type=int, default=0, help="processes that load the data, for each rank")
    parser.add_argument("--dir", default="./alchemistic_directory", help="a path or a URL such as s3://bucket/runs")
    parser.add_argument("--download-to", default="./data", help="where MNIST's files are kept")
    arguments = parser.parse_args()

    train_data, val_data = mnist(arguments.download_to) if arguments.data == "mnist" else digits()
    torch.manual_seed(0)
    model = network()
    trainer = Trainer(
        alchemistic_directory=arguments.dir,
        code=arguments.code,
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
        train_dataloader=DataLoader(train_data, batch_size=64, shuffle=True, num_workers=arguments.workers),
        val_dataloader=DataLoader(val_data, batch_size=500),
        loss_func=LOSSES[arguments.loss],
        hooks={"after_epoch_end": draw_accuracy},
        max_epochs=arguments.epochs,
        split_batches=True,
    )
    trainer.train()


if __name__ == "__main__":
    main()
