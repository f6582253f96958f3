"""usage: resume_accelerate.py MEGABYTES PLACE [REPORT]: the same with accelerate, which reads local disks alone."""

import sys

from accelerate import Accelerator
from training import loss_of, parts, tell_and_wait

megabytes, place, *report = sys.argv[1:]
accelerator = Accelerator(cpu=True)
model, optimizer, loader = accelerator.prepare(*parts(int(megabytes)))
if report:
    accelerator.load_state(place)
for data in loader:
    optimizer.zero_grad()
    accelerator.backward(loss_of(model, data))
    optimizer.step()
    if report:
        tell_and_wait(report[0])
accelerator.save_state(place)
accelerator.end_training()
