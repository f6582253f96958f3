"""usage: resume_lightning.py MEGABYTES PLACE RANKS [REPORT]: the same with Lightning, which starts its ranks itself."""

import sys

from lightning.pytorch import LightningModule, Trainer
from training import EPOCH_1, EPOCH_2, loss_of, parts, tell_and_wait

megabytes, place, ranks, *report = sys.argv[1:]
model, optimizer, loader = parts(int(megabytes))


class Module(LightningModule):
    """The training."""

    def __init__(self):
        super().__init__()
        self.model = model

    def training_step(self, batch):
        """The loss."""
        return loss_of(self.model, batch)

    def configure_optimizers(self):
        """The optimizer."""
        return optimizer

    def on_train_batch_end(self, *_):
        """The first step is done."""
        if report:
            tell_and_wait(report[0])


trainer = Trainer(
    accelerator="cpu",
    devices=int(ranks),
    strategy="ddp" if int(ranks) > 1 else "auto",
    max_epochs=EPOCH_2 if report else EPOCH_1,
    logger=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    enable_checkpointing=False,
    use_distributed_sampler=True,
)
file = f"{place}/checkpoint.ckpt"
trainer.fit(Module(), loader, ckpt_path=file if report else None)
trainer.save_checkpoint(file)
