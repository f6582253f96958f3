"""One training, written for the Trainer and for each of its peers as that one's own documentation writes it.

    python -m benchmarks.loops NAME    # what `benchmarks.interpreters` starts

Model, samples, batches, optimizer and epochs are the same for all; what each does by default, it does here. Each loop
takes a `Training`, calls its `begin_epoch` where an epoch begins, and returns when the training is over.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler, TensorDataset

BATCH, FEATURES, HIDDEN, CLASSES = 32, 64, 128, 10


@dataclass
class Training:
    """What is to be trained, and when its epochs began."""

    steps: int
    """Of an epoch, on each rank."""
    epochs: int
    directory: Path
    """For what a contender writes."""
    world_size: int = 1
    device: str = "cpu"
    """Or "cuda"."""
    ready: bool = False
    """Whether the dataset is of whole batches, so that a loader has nothing to do but to hand them out."""
    dataset: Dataset[Any] = field(init=False)
    model: nn.Module = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    began: list[float] = field(default_factory=list)
    """Seconds."""

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        samples = self.steps * BATCH * self.world_size
        self.dataset = TensorDataset(torch.randn(samples, FEATURES), torch.randint(CLASSES, (samples,)))
        self.model = nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES)).to(self.device)
        self.optimizer = torch.optim.Adam(self.model.parameters())

    def loader(self, dataset: Dataset[Any] | None = None) -> DataLoader[Any]:
        """As a script for one process has it."""
        if self.ready:
            return DataLoader(list(DataLoader(self.dataset, BATCH)), batch_size=None, shuffle=True)
        return DataLoader(dataset or self.dataset, batch_size=BATCH, shuffle=True)

    def begin_epoch(self) -> None:
        """To be called where an epoch begins."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.began.append(time.perf_counter())

    def step_s(self) -> float:
        """Seconds of a step, with what comes at an epoch's end shared out.

        The first epoch, which warms up, and the end of the last one, which no other follows, are left out.
        """
        return (self.began[-1] - self.began[1]) / (len(self.began) - 2) / self.steps


def bare(training: Training) -> None:
    """PyTorch alone, DDP where there are several workers."""
    model, optimizer, loader = training.model, training.optimizer, training.loader()
    if training.world_size > 1:
        join()
        model = DistributedDataParallel(model)
        sampler = DistributedSampler(training.dataset)
        loader = DataLoader(training.dataset, batch_size=BATCH, sampler=sampler)
    for epoch in range(training.epochs):
        training.begin_epoch()
        if isinstance(loader.sampler, DistributedSampler):
            loader.sampler.set_epoch(epoch)
        for inputs, targets in loader:
            optimizer.zero_grad()
            if training.device == "cuda":
                inputs, targets = inputs.cuda(), targets.cuda()
            loss = functional.cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()


def floor(training: Training) -> None:
    """The same without a DataLoader: batches lie ready, in one order."""
    model, optimizer = training.model, training.optimizer
    if training.world_size > 1:
        join()
        model = DistributedDataParallel(model)
    batches = [[tensor.to(training.device) for tensor in batch] for batch in training.loader()][: training.steps]
    for _ in range(training.epochs):
        training.begin_epoch()
        for inputs, targets in batches:
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()


def join() -> None:
    """Make the process group, if it is not there from the round before."""
    if not dist.is_initialized():
        dist.init_process_group("gloo")


def minetorch(training: Training) -> None:
    """Everything as it comes: bar, log, curves, a checkpoint an epoch."""
    from minetorch import Trainer

    def loss_func(trainer: Any, data: Any) -> torch.Tensor:
        inputs, targets = data
        return functional.cross_entropy(trainer.model(inputs), targets)

    trainer = Trainer(
        training.directory,
        training.model,
        training.optimizer,
        training.loader(),
        loss_func,
        max_epochs=training.epochs,
        hooks={"before_epoch_start": lambda trainer: training.begin_epoch()},
    )
    trainer.train()


def ignite(training: Training) -> None:
    """https://docs.pytorch.org/ignite: `create_supervised_trainer`, with nothing attached."""
    from ignite.engine import Events, create_supervised_trainer

    engine = create_supervised_trainer(
        training.model, training.optimizer, nn.CrossEntropyLoss(), device=training.device
    )
    engine.add_event_handler(Events.EPOCH_STARTED, training.begin_epoch)
    engine.run(training.loader(), max_epochs=training.epochs)


def fabric(training: Training) -> None:
    """https://lightning.ai/docs/fabric: the loop is the user's."""
    from lightning.fabric import Fabric

    lightning = Fabric(accelerator=training.device, devices=1)
    model, optimizer = lightning.setup(training.model, training.optimizer)
    loader = lightning.setup_dataloaders(training.loader())
    for _ in range(training.epochs):
        training.begin_epoch()
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(inputs), targets)
            lightning.backward(loss)
            optimizer.step()


def accelerate(training: Training) -> None:
    """https://huggingface.co/docs/accelerate: `prepare` of everything; the loop is the user's."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=training.device == "cpu")
    model, optimizer, loader = accelerator.prepare(training.model, training.optimizer, training.loader())
    for _ in range(training.epochs):
        training.begin_epoch()
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(inputs), targets)
            accelerator.backward(loss)
            optimizer.step()


def lightning(training: Training) -> None:
    """https://lightning.ai/docs/pytorch: bar, logger, a checkpoint an epoch."""
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = training.model

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            inputs, targets = batch
            loss = functional.cross_entropy(self.model(inputs), targets)
            self.log("train_loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return training.optimizer

        def on_train_epoch_start(self) -> None:
            training.begin_epoch()

    workers = {"devices": training.world_size, "strategy": "ddp"} if training.world_size > 1 else {"devices": 1}
    trainer = lightning.Trainer(
        accelerator=training.device, max_epochs=training.epochs, default_root_dir=training.directory, **workers
    )
    trainer.fit(Module(), training.loader())


def transformers(training: Training) -> None:
    """https://huggingface.co/docs/transformers: bar, log, a checkpoint every 500 steps, gradients clipped."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = training.model

        def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            logits = self.model(inputs)
            return {"loss": functional.cross_entropy(logits, labels), "logits": logits}

    class Named(Dataset[Any]):
        def __len__(self) -> int:
            return len(training.dataset)  # type: ignore[arg-type]

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            inputs, labels = training.dataset[index]
            return {"inputs": inputs, "labels": labels}

    class Epochs(TrainerCallback):
        def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
            training.begin_epoch()

    options = TrainingArguments(
        output_dir=str(training.directory),
        per_device_train_batch_size=BATCH,
        num_train_epochs=training.epochs,
        use_cpu=training.device == "cpu",
    )
    trainer = Trainer(
        Model(), options, train_dataset=Named(), optimizers=(training.optimizer, None), callbacks=[Epochs()]
    )
    trainer.train()


LOOPS: dict[str, Callable[[Training], None]] = {
    each.__name__: each for each in (bare, floor, minetorch, ignite, fabric, accelerate, lightning, transformers)
}
"""By the name of a contender."""

ENVIRONMENTS = {"ignite": "ignite", "fabric": "lightning", "lightning": "lightning", "transformers": "transformers"}
"""In which of the peers' environments a loop runs; the others run in this one's."""


def serve(name: str) -> None:
    """Run a loop once for each line on stdin, a `Training` as JSON, and answer with seconds a step on a pipe."""
    torch.set_num_threads(1)
    with os.fdopen(int(os.environ["BENCHMARK_PIPE"]), "w", buffering=1) as answers:
        for line in sys.stdin:
            order = json.loads(line)
            training = Training(**order | {"directory": Path(order["directory"])})
            LOOPS[name](training)
            answers.write(f"{training.step_s()}\n")


if __name__ == "__main__":
    serve(sys.argv[1])
