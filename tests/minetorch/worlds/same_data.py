"""Data that is not the same on two ranks, in many ways. Each rank writes what it raised, or the samples that it saw."""

import json
import os
import random
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, random_split

from minetorch import Trainer
from minetorch.data import comparison

OUT, RANK = Path(sys.argv[1]), int(os.environ["RANK"])


class Numbers(Dataset):
    def __init__(self, length=20):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return torch.tensor([float(index)])


class Stream(IterableDataset):
    def __init__(self, numbers):
        self.numbers = numbers

    def __iter__(self):
        return (torch.tensor([float(number)]) for number in self.numbers)


class Augmented(Stream):
    """Its noise comes from a generator of its own, which no one seeds."""

    def __iter__(self):
        noise = random.SystemRandom()
        for number in self.numbers:
            yield torch.tensor([number + 0.1 + 0.8 * noise.random()])


class Labelled(Stream):
    def __iter__(self):
        noise = random.SystemRandom()
        for number in self.numbers:
            yield {"input": torch.tensor([number + 0.1 + 0.8 * noise.random()]), "label": number}


class Failing:
    def __iter__(self):
        if RANK == 1:
            raise ValueError("no keys here")
        return iter(range(20))

    def __len__(self):
        return 20


def loader(data=None, **options):
    return DataLoader(data or Numbers(), **{"batch_size": 4} | options)


def stream(numbers, **options):
    return loader(Stream(numbers), **options)


def outcome(code, train, val=None, **options):
    """The error of this rank, or the samples that it has trained on."""
    numbers, model = [], nn.Linear(1, 1)

    def loss_func(trainer, data):
        if trainer.model.training:
            numbers.extend(int(number) for number in data.flatten())
        return trainer.model(data / 20).mean()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    try:
        options = {"code": code, "max_epochs": 1, "drawer": None} | options
        Trainer(OUT / "runs", model, optimizer, train, loss_func, val, **options).train()
    except Exception as error:
        return [type(error).__name__, str(error)]
    return ["fine", sorted(numbers)]


def split_by_chance():
    torch.manual_seed(RANK)
    return random_split(Numbers(40), [20, 20])[0]


part = range(RANK, 40, 2)
CASES = {
    "same": lambda: (loader(shuffle=True), loader()),
    "same stream": lambda: (stream(range(20)), stream(range(9))),
    "same stream of workers": lambda: (stream(range(5), num_workers=2),),
    "lengths": lambda: (loader(Numbers(20 - 8 * RANK)),),
    "val lengths": lambda: (loader(), loader(Numbers(20 - 8 * RANK))),
    "val on one rank": lambda: (loader(), loader() if RANK == 0 else None),
    "batch size": lambda: (loader(batch_size=4 + RANK),),
    "sampler": lambda: (loader(Numbers(40), sampler=part),),
    "batches": lambda: (DataLoader(Numbers(40), batch_sampler=[[key] for key in part]),),
    "random split": lambda: (loader(split_by_chance()),),
    "val sampler": lambda: (loader(), loader(Numbers(40), sampler=part)),
    "failing sampler": lambda: (loader(sampler=Failing()),),
    "augmented stream": lambda: (loader(Augmented(range(20))), loader(Augmented(range(9)))),
    "augmented stream of workers": lambda: (loader(Augmented(range(5)), num_workers=2),),
    "shuffled stream": lambda: (loader(Labelled(random.SystemRandom().sample(range(40), 40))),),
    "stream": lambda: (stream(part),),
    "uneven stream": lambda: (stream(range(15) if RANK == 0 else range(15, 20)),),
    "empty stream": lambda: (stream(range(20 * RANK)),),
    "val stream": lambda: (loader(), stream(part)),
    "last batch of a stream": lambda: (stream(range(10 + 2 * RANK)),),
    "end of a val stream": lambda: (loader(), stream(range(10 + 10 * RANK))),
}

found = {case: outcome(case, *make()) for case, make in CASES.items()}
# Last, since rank 1 leaves rank 0 alone in an exchange of gradients.
comparison.STREAM_END_S = 1.0
found["end of a stream"] = outcome("end", stream(range(40 - 32 * RANK)))
(OUT / f"rank_{RANK}.json").write_text(json.dumps(found))
