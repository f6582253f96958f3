"""usage: resume_minetorch.py MEGABYTES PLACE [REPORT]: train an epoch and save; with REPORT, go on with the next."""

import sys

from training import EPOCH_1, EPOCH_2, loss_of, parts, tell_and_wait

from minetorch import Trainer

megabytes, place, *report = sys.argv[1:]
model, optimizer, loader = parts(int(megabytes))
Trainer(
    place,
    model,
    optimizer,
    loader,
    lambda trainer, data: loss_of(trainer.model, data),
    hooks={"after_train_iteration_end": lambda trainer: tell_and_wait(report[0])} if report else {},
    max_epochs=EPOCH_2 if report else EPOCH_1,
    drawer=None,
).train()
