"""Reads batches while every process of the group gets signal after signal. Arguments: a way to end."""

import ctypes
import os
import signal
import sys
import warnings

from torch.utils.data import DataLoader, Dataset

from minetorch.data import share_out
from minetorch.distributed.world import World

SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
END = sys.argv[1]


class Numbers(Dataset):
    def __init__(self, length=60):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if index == 1000:
            ctypes.PyDLL(None).sleep(1000)  # in C, with Python's lock: deaf to all that Python handles
        return index


def shared(length, method, **options):
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than the machine has cores
    loader = DataLoader(Numbers(length), batch_size=4, multiprocessing_context=method, **options)
    return share_out(loader, World(), training=False)


def read(loader):
    for epoch in (1, 2):
        seen = []
        for number, batch in enumerate(loader.epoch(epoch).batches):
            seen += batch.data.tolist()
            os.killpg(0, SIGNALS[number % 3])  # the first one comes while other workers may still be starting
        assert seen == list(range(60)), seen


if __name__ == "__main__":
    for signum in SIGNALS:
        signal.signal(signum, lambda signum, frame: None)
    if END == "well":
        read(shared(60, "fork", num_workers=1))
        loaders = [
            shared(60, "fork", num_workers=4, persistent_workers=True),
            shared(60, "spawn", num_workers=2, persistent_workers=True),
            shared(60, "forkserver", num_workers=1),
        ]
        for loader in loaders:
            read(loader)
    else:
        # No tensors: a thread of the worker hands their memory over, which cannot once Python's lock is held for good.
        loader = shared(1001, "fork", num_workers=2, persistent_workers=True, collate_fn=list)
        for batch in loader.epoch(1).batches:
            if 990 in batch.data:
                break
        if END == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
