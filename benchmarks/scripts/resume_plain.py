"""usage: resume_plain.py MEGABYTES PLACE [REPORT]: the same by hand, in one process, on a local disk."""

import sys
from pathlib import Path

import torch
from training import loss_of, parts, tell_and_wait

megabytes, place, *report = sys.argv[1:]
file = Path(place) / "checkpoint.pth"
model, optimizer, loader = parts(int(megabytes))
if report:
    state = torch.load(file, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
for data in loader:
    optimizer.zero_grad()
    loss_of(model, data).backward()
    optimizer.step()
    if report:
        tell_and_wait(report[0])
file.parent.mkdir(parents=True, exist_ok=True)
torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
