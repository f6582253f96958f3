"""Trains each of many small runs twice: once to its end, and once stopped at some step and gone on with.

Started on several workers, once for all runs. Its arguments: the folder, and `few` for a few of the runs. A stop is an
error that a hook raises on every rank; what goes on is a new Trainer, with a new model. Writes what differed at the
end, by run.
"""

import hashlib
import itertools
import json
import os
import random
import re
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from fsspec.implementations.memory import MemoryFileSystem
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    get_worker_info,
)

import minetorch

EPOCHS = 2
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def sample(index):
    """An input and its target, augmented by draws of every generator."""
    clean = torch.sin(torch.arange(6) * (index + 1.0))
    noise = random.gauss(0, 0.1) + np.random.standard_normal() * 0.1 + torch.randn(6) * 0.1
    return index, clean + noise, clean.sum()


class Augmented(Dataset):
    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return sample(index)


class InBatches(Augmented):
    def __getitems__(self, indices):
        flip = random.random()
        return [(index, inputs * (1 + flip), target) for index, inputs, target in map(sample, indices)]


class EvenFirst:
    """A sampler that draws from the global generators."""

    def __init__(self, length):
        self.length = length

    def __iter__(self):
        even, odd = list(range(0, self.length, 2)), list(range(1, self.length, 2))
        random.shuffle(even)
        return iter(even + [odd[i] for i in torch.randperm(len(odd))])

    def __len__(self):
        return self.length


class Buckets:
    """A batch sampler with batches of unequal size, in an order of its own."""

    def __init__(self, length):
        bounds = [*range(0, length - 5, 5), length]
        self.batches = [list(range(a, b)) for a, b in itertools.pairwise(bounds)]

    def __iter__(self):
        return iter([self.batches[i] for i in np.random.permutation(len(self.batches))])

    def __len__(self):
        return len(self.batches)


def own_part(length):
    info = get_worker_info()
    return range(length) if info is None else range(info.id, length, info.num_workers)


class Shuffling(IterableDataset):
    """A stream with a buffer from which it draws."""

    def __init__(self, length):
        self.length = length

    def __iter__(self):
        held = []
        for index in own_part(self.length):
            held.append(index)
            if len(held) > 7:
                yield sample(held.pop(random.randrange(8)))
        random.shuffle(held)
        yield from map(sample, held)


class Stateful(IterableDataset):
    """A stream whose order depends on all that it has given, and which refuses to be read twice."""

    read: set

    def __init__(self, length):
        self.length = length
        self.left, self.salt, self.read = None, 0, set()

    def set_epoch(self, epoch):
        self.left, self.salt, self.read = None, epoch, set()

    def __iter__(self):
        if self.left is None:
            self.left = list(own_part(self.length))
        while self.left:
            index = self.left.pop(self.salt % len(self.left))
            self.salt = (self.salt * 5 + index) % 2**61
            assert index not in self.read
            self.read.add(index)
            yield sample(index)

    def state_dict(self):
        return {"left": list(self.left), "salt": self.salt, "read": torch.tensor(sorted(self.read))}

    def load_state_dict(self, state):
        self.left, self.salt, self.read = list(state["left"]), state["salt"], set(state["read"].tolist())


class Cursor:
    def __init__(self, part):
        self.part, self.at = list(part), 0

    def __iter__(self):
        return self

    def __next__(self):
        if self.at == len(self.part):
            raise StopIteration
        self.at += 1
        return sample(self.part[self.at - 1])

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


class WithCursor(IterableDataset):
    """A stream whose iterator has the state."""

    def __init__(self, length):
        self.length = length

    def __iter__(self):
        return Cursor(own_part(self.length))


def mixed_up(samples):
    """A collation that draws."""
    index, inputs, targets = torch.utils.data.default_collate(samples)
    share = np.random.beta(1, 1)
    order = torch.randperm(len(index))
    return index, share * inputs + (1 - share) * inputs[order], targets * random.uniform(0.9, 1.1)


KINDS = {
    "tensors": lambda n, **how: DataLoader(tensors(n), batch_size=4, shuffle=True, **how),
    "shuffled": lambda n, **how: DataLoader(Augmented(n), batch_size=4, shuffle=True, **how),
    "in order": lambda n, **how: DataLoader(Augmented(n), batch_size=4, **how),
    "drop_last": lambda n, **how: DataLoader(Augmented(n), batch_size=4, shuffle=True, drop_last=True, **how),
    "sampler": lambda n, **how: DataLoader(Augmented(n), batch_size=4, sampler=EvenFirst(n), **how),
    "weighted": lambda n, **how: DataLoader(
        Augmented(n), batch_size=4, sampler=WeightedRandomSampler([1.0 + i % 3 for i in range(n)], n), **how
    ),
    "batch sampler": lambda n, **how: DataLoader(Augmented(n), batch_sampler=Buckets(n), **how),
    "plain batch sampler": lambda n, **how: DataLoader(
        Augmented(n), batch_sampler=BatchSampler(RandomSampler(range(n)), 4, drop_last=False), **how
    ),
    "in batches": lambda n, **how: DataLoader(InBatches(n), batch_size=4, shuffle=True, **how),
    "collation": lambda n, **how: DataLoader(Augmented(n), batch_size=4, shuffle=True, collate_fn=mixed_up, **how),
    "unbatched": lambda n, **how: DataLoader(Augmented(n // 4), batch_size=None, shuffle=True, **how),
    "stream": lambda n, **how: DataLoader(Shuffling(n), batch_size=4, **how),
    "stream, drop_last": lambda n, **how: DataLoader(Shuffling(n), batch_size=4, drop_last=True, **how),
    "stateful stream": lambda n, **how: DataLoader(Stateful(n), batch_size=4, **how),
    "stateful iterator": lambda n, **how: DataLoader(WithCursor(n), batch_size=4, collate_fn=mixed_up, **how),
}
STREAMS = [kind for kind in KINDS if kind.startswith(("stream", "stateful"))]


def tensors(length):
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    return TensorDataset(*torch.utils.data.default_collate([sample(index) for index in range(length)]))


@dataclass(frozen=True)
class Case:
    """One run, and how it is stopped and gone on with."""

    kind: str = "shuffled"
    workers: tuple = (0, 0)
    """DataLoader workers before and after the stop; the run that is not stopped has the first number."""
    model: str = "dropout"
    accumulate: int = 1
    amp: bool | str = False
    optimizer: str = "AdamW"
    split: bool = False
    persistent: bool = False
    stop: tuple = (2, 4)
    """The epoch and the iteration of it at which an error ends the run."""

    def __str__(self):
        values, plain = asdict(self), asdict(Case())
        said = [f"{name}={value}" for name, value in values.items() if value != plain[name]]
        return " ".join(said).replace("'", "") or "plain"


FEW = [
    Case(workers=(2, 1)),
    Case("stateful stream", stop=(1, 5)),
    Case("batch sampler", accumulate=3, optimizer="SGD"),
    Case("in batches", model="norm", amp="bf16"),
    Case(split=True, stop=(2, 3)),
]


def cases(world, device="cpu"):
    """The runs that are tried with `world` workers on this kind of device."""
    if device == "cuda":
        return cases_on_gpu()
    changes = [(0, 0), (0, 2), (2, 3), (2, 0)] if world == 1 else [(0, 1)] if world == 4 else [(2, 1)]
    found = []
    for number, (kind, change) in enumerate(itertools.product(KINDS, changes)):
        # What a stream gives depends on the number of its workers: only the epoch under way ends as it began.
        stop = (1, 4) if number % 3 and kind not in STREAMS else (2, 4 + number % 2)
        found.append(Case(kind, workers=change, stop=stop))
        if kind in STREAMS:
            found.append(Case(kind, workers=(change[0], change[0]), stop=(1, 5)))
    found += learners(False, "bf16")
    for kind in ["shuffled", "batch sampler", "stream", "in batches"]:
        found.append(Case(kind, split=True, stop=(2, 3)))
        found.append(Case(kind, split=True, accumulate=2, optimizer="SGD", stop=(1, 5)))
    persistent = ["shuffled", *STREAMS] if world == 1 else ["shuffled", "stateful stream"]
    found += [Case(kind, persistent=True, workers=(2, 2), stop=(1, 5)) for kind in persistent]
    found = list(dict.fromkeys(found))
    if world > 2:  # these two share them
        found = found[world % 2 :: 2]
    return [*found, Case(model="large", stop=(1, 3), optimizer="SGD")]


def cases_on_gpu():
    """Only what a GPU has to do with: the data come to be where they are on the CPU."""
    found = learners(False, "bf16", "fp16")
    found += [Case("in batches", workers=(2, 1), split=True), Case("stateful stream", workers=(2, 2), stop=(1, 5))]
    return [*found, Case(model="large", stop=(1, 3), optimizer="SGD")]


def learners(*amps):
    """Models, accumulation and optimizers, in each precision."""
    product = itertools.product(["dropout", "norm"], [1, 3], amps, ["AdamW", "SGD"])
    stops = itertools.cycle([(1, 4), (2, 3), (2, 5)])
    return [
        Case(model=model, accumulate=accumulate, amp=amp, optimizer=optimizer, stop=stop)
        for (model, accumulate, amp, optimizer), stop in zip(product, stops, strict=False)
    ]


class SmallBuckets(DistributedDataParallel):
    """Puts the gradients of even a small model into several buckets."""

    def __init__(self, module, **options):
        large = sum(p.numel() for p in module.parameters()) > 1e5
        super().__init__(module, **{"bucket_cap_mb": 0.5 if large else 0.0005} | options)


def make_model(case):
    if case.model == "large":
        return nn.Sequential(nn.Linear(6, 500), nn.Tanh(), nn.Linear(500, 600), nn.Tanh(), nn.Linear(600, 1))
    layers = [nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1)]
    if case.model == "norm":
        layers[1] = nn.BatchNorm1d(16)
    return nn.Sequential(*layers)


def make_optimizer(case, model):
    rate = {"lr": 0.01}
    if case.optimizer == "SGD":
        optimizer = torch.optim.SGD(model.parameters(), momentum=0.9, nesterov=True, **rate)
        return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9)
    optimizer = torch.optim.AdamW(model.parameters(), amsgrad=True, **rate)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=100)


def loss_func(trainer, data):
    _, inputs, targets = data
    outputs = trainer.model(inputs.reshape(-1, 6)).squeeze(1)
    return nn.functional.mse_loss(outputs, targets.reshape(-1).to(outputs.dtype))


class Diary:
    """A plugin with a state: every sample that this rank's Trainer has seen, and its loss."""

    def __init__(self):
        self.lines = []

    def after_train_iteration_end(self, trainer, data, loss):
        random.random()  # hooks draw, too
        seen = ",".join(map(str, data[0].reshape(-1).tolist() if torch.is_tensor(data[0]) else [data[0]]))
        self.lines.append(f"{trainer.current_epoch} {trainer.progress.iteration} {seen} {float(loss).hex()}")
        trainer.drawer.scalar(float(loss), "each", x=trainer.progress.samples)

    def state_dict(self):
        return {"lines": list(self.lines)}

    def load_state_dict(self, state):
        self.lines = list(state["lines"])


class StoppedHereError(Exception):
    pass


def train(case, folder, workers, stop=None):
    """Train until the end, or until the stop. Returns all that there is at the end."""
    torch.manual_seed(0)
    model = make_model(case)
    optimizer, scheduler = make_optimizer(case, model)

    def fail(trainer, index):
        if (index + 1) % case.accumulate == 0:
            scheduler.step()
        if stop == (trainer.current_epoch, index):
            raise StoppedHereError

    # The last batch is partial, and with three or more workers there is not a sample for each of them; with one sample
    # there is no variance to normalize by.
    world = int(os.environ.get("WORLD_SIZE", "1"))
    batch = 4 if case.split else 4 * world
    length = 8 * batch + (2 * world if case.model == "norm" else 2)
    how = {"num_workers": workers}
    if workers and case.persistent:
        how |= {"persistent_workers": True, "prefetch_factor": 3}
    diary = Diary()
    trainer = minetorch.Trainer(
        folder,
        model,
        optimizer,
        KINDS[case.kind](length, **how),
        loss_func,
        DataLoader(Augmented(10), batch_size=4),
        statable={"scheduler": scheduler},
        plugins=[diary],
        hooks={"after_train_iteration_end": fail, "after_init": lambda trainer: torch.rand(1)},
        max_epochs=EPOCHS,
        checkpoints=minetorch.Checkpoints(every_steps=3 if case.accumulate == 1 else 1),
        accumulated_iter=case.accumulate,
        amp=case.amp,
        split_batches=case.split,
        drawer=None,
    )
    try:
        trainer.train()
    except StoppedHereError:
        return None
    return end_of(trainer, diary, scheduler)


def end_of(trainer, diary, scheduler):
    """Everything at a run's end on this rank, by name, as text."""
    state = trainer.strategy.state_dict()
    return {
        "weights": {name: digest(value) for name, value in state["state_dict"].items()},
        "optimizer": digest_all(state["optimizer"]),
        "scheduler": digest_all(scheduler.state_dict()),
        "progress": trainer.progress.state_dict(),
        "metrics": trainer.metrics,
        "lowest": [trainer.lowest_train_loss, trainer.lowest_val_loss],
        "curves": sorted(trainer.drawer.curves.points()) if trainer.is_main else [],
        "generators": [
            digest(torch.get_rng_state()),
            random.random(),
            np.random.random(),
            torch.rand(1, device=DEVICE).item(),
        ],
        "seen": diary.lines if trainer.is_main else [],
    }


def digest(tensor):
    return hashlib.sha256(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()[
        :16
    ]


def digest_all(value):
    if isinstance(value, torch.Tensor):
        return digest(value)
    if isinstance(value, dict):
        return {str(key): digest_all(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [digest_all(inner) for inner in value]
    return repr(value)


def differences(case, folder, whole):
    """What differs between the run that was stopped and the other, and why the comparison would be void."""
    assert train(case, folder, case.workers[0], case.stop) is None, "not stopped"
    resumed = train(case, folder, case.workers[1])
    if int(os.environ.get("RANK", "0")) == 0:
        log = MemoryFileSystem().cat(f"{folder}/default/log.txt").decode()
        assert re.search(r"Resumed from .*, step [1-9]", log), log
    return {name: [str(whole[name])[:300], str(resumed[name])[:300]] for name in whole if whole[name] != resumed[name]}


def main():
    out, world = Path(sys.argv[1]), int(os.environ.get("WORLD_SIZE", "1"))
    torch.distributed._DEFAULT_FIRST_BUCKET_BYTES = 256
    nn.parallel.DistributedDataParallel = SmallBuckets
    found, wholes = {}, {}
    for number, case in enumerate(FEW if sys.argv[2:] == ["few"] else cases(world, DEVICE)):
        alone = replace(case, workers=case.workers[:1], stop=())
        try:
            if alone not in wholes:
                wholes[alone] = train(case, f"memory://whole/{number}", case.workers[0])
            found[str(case)] = differences(case, f"memory://stopped/{number}", wholes[alone])
        except Exception as error:
            found[str(case)] = {"error": f"{type(error).__name__}: {error}"}
            if world > 1:
                break
    (out / f"found_{os.environ.get('RANK', 0)}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
