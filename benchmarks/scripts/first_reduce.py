"""usage: first_reduce.py DEVICE REPORT [GATE]: do one all-reduce, say in REPORT when it was done, wait at GATE.

A line of REPORT: the second of `time.monotonic`, and the process id.
"""

import os
import sys
import time

import torch
import torch.distributed as dist

device, report, *gate = sys.argv[1:]
if device == "cuda":
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
dist.init_process_group("nccl" if device == "cuda" else "gloo")
ones = torch.ones(1, device=device)
dist.all_reduce(ones)
assert ones.item() == dist.get_world_size()
now = time.monotonic()
descriptor = os.open(report, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
os.write(descriptor, f"{now} {os.getpid()}\n".encode())
os.close(descriptor)
for path in gate:
    with open(path):
        pass
dist.destroy_process_group()
