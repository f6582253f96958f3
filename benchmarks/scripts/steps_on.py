"""usage: steps_on.py REPORT STOP: step together until the file STOP is there; say in REPORT when the first was done.

A line of REPORT: rank, process id, when the script began, when its first step was done, in seconds of `time.monotonic`.
"""

import time

began = time.monotonic()

import os  # noqa: E402
import sys  # noqa: E402

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402

report, stop = sys.argv[1:]
dist.init_process_group("gloo")
told, going_on = False, torch.ones(1)
while going_on:
    going_on.fill_(not os.path.exists(stop))  # noqa: PTH110 - as cheap as can be
    dist.all_reduce(going_on, op=dist.ReduceOp.MIN)
    if not told:
        line = f"{dist.get_rank()} {os.getpid()} {began} {time.monotonic()}\n"
        descriptor = os.open(report, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, line.encode())
        os.close(descriptor)
        told = True
    time.sleep(0.01)
dist.destroy_process_group()
