"""The line of an epoch, by a clock of the test's own."""

import logging
from types import SimpleNamespace

from minetorch.plugins.epoch_log import EpochLog


def test_the_rate_is_that_of_training_alone(caplog):
    now = [0.0]
    log = EpochLog(clock=lambda: now[0])
    logger = logging.getLogger("epoch log")
    trainer = SimpleNamespace(
        progress=SimpleNamespace(samples=100), metrics={"train_loss": 0.5}, max_epochs=None, logger=logger
    )
    log.before_epoch_start(trainer)
    trainer.progress.samples += 400
    now[0] = 2.0
    log.before_val_iteration_start(trainer, 0)
    now[0] = 3.0
    log.before_val_iteration_start(trainer, 1)
    with caplog.at_level(logging.INFO, logger="epoch log"):
        log.after_epoch_end(trainer, 7)
    assert caplog.messages == ["Epoch 7: train_loss 0.5 (3.0 s, 200 samples/s)"]


def test_without_validation_the_epoch_is_training(caplog):
    now = [0.0]
    log = EpochLog(clock=lambda: now[0])
    trainer = SimpleNamespace(
        progress=SimpleNamespace(samples=0), metrics={}, max_epochs=9, logger=logging.getLogger("epoch log")
    )
    log.before_epoch_start(trainer)
    trainer.progress.samples, now[0] = 50, 10.0
    with caplog.at_level(logging.INFO, logger="epoch log"):
        log.after_epoch_end(trainer, 1)
    assert caplog.messages == ["Epoch 1/9:  (10.0 s, 5 samples/s)"]
