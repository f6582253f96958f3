"""Uses the Trainer as the original project's MNIST example does, on the digits that scikit-learn brings."""

import torch
import torch.optim as optim
from sklearn.datasets import load_digits
from torch.nn import functional

from minetorch.trainer import Trainer

bunch = load_digits()
pixels = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16
samples = torch.utils.data.TensorDataset(pixels, torch.tensor(bunch.target))
train_loader = torch.utils.data.DataLoader(samples, batch_size=256, shuffle=True)
val_loader = torch.utils.data.DataLoader(samples, batch_size=256, shuffle=True)
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10), torch.nn.LogSoftmax(dim=1))


def compute_loss(trainer, data):
    image, target = data
    return functional.nll_loss(trainer.model(image), target)


def after_epoch_end(trainer):
    trainer.model.eval()
    correct = 0
    with torch.no_grad():
        for data, target in trainer.val_dataloader:
            pred = model(data).max(1, keepdim=True)[1]
            correct += pred.eq(target.view_as(pred)).sum().numpy()
    trainer.drawer.scalar(correct / len(trainer.val_dataloader.dataset), "accuracy")


trainer = Trainer(
    alchemistic_directory="./alchemistic_directory",
    model=model,
    optimizer=optim.SGD(model.parameters(), lr=0.01),
    train_dataloader=train_loader,
    val_dataloader=val_loader,
    loss_func=compute_loss,
    hooks={"after_epoch_end": after_epoch_end},
    drawer="tensorboard",
)
trainer.train()
