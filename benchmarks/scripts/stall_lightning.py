"""usage: stall_lightning.py MEGABYTES FOLDER: for each line on stdin, say how long AsyncCheckpointIO made us wait."""

import os
import sys
import time

import torch
from lightning.pytorch.plugins.io import AsyncCheckpointIO, TorchCheckpointIO

megabytes, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
tensors = 16
state = {f"layer{number}": torch.randn(megabytes * 2**20 // 4 // tensors) for number in range(tensors)}
path = os.path.join(folder, "lightning.ckpt")  # noqa: PTH118 - as a user would
print("ready", flush=True)
for _ in sys.stdin:
    plugin = AsyncCheckpointIO(TorchCheckpointIO())
    start = time.perf_counter()
    plugin.save_checkpoint(state, path)
    stalled = time.perf_counter() - start
    plugin.teardown()  # waits until it is written
    os.unlink(path)  # noqa: PTH108
    print(stalled, flush=True)
