"""Accuracy, F1, confusion matrix and a report by class, over the validation data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from minetorch.context import TrainerState
from minetorch.errors import ConfigurationError
from minetorch.plugins.confusion import Counts, accuracy, macro_f1, picture, report
from minetorch.plugins.outputs import Outputs

_PICTURE_EVERY_S = 10.0
"""Seconds from one picture to the next, at least: it holds up the training for some tenths of a second."""


class Classification:
    """Counts a classifier's predictions in each validation, exactly, over all ranks.

    ```python
    Trainer(..., plugins=[Classification(["cat", "dog"])], monitor="accuracy", mode="max")
    ```

    `accuracy` and `macro_f1` are among the epoch's metrics and drawn; `graph/confusion_matrix.png` is a picture, and
    `classification.csv` a table with precision, recall and F1 of every class. Every sample counts once at any number of
    ranks. The predictions are those of loss_func's own forward: there is no second one.
    """

    def __init__(
        self,
        labels: int | Sequence[str],
        *,
        scores: Callable[[Any, Any], torch.Tensor] | None = None,
        targets: Callable[[Any], torch.Tensor] | None = None,
        ignore_index: int = -100,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Count predictions of some classes.

        Args:
            labels: the classes' names, or how many there are.
            scores: `scores(output, data)` returns the scores by class, of shape (N, C) or (N, C, ...), or with two
                classes the logit of the second, of shape (N,) or (N, 1). `output` is what the model returned, detached:
                that itself by default.
            targets: `targets(data)` returns the classes as integers, of shape (N,) or (N, ...); `data[1]` by default.
            ignore_index: a class that is not counted, as in `torch.nn.functional.cross_entropy`.
            clock: in seconds, for how often a picture is drawn.

        Raises:
            ConfigurationError: there are fewer than two classes, or two of one name.
        """
        names = list(map(str, range(labels))) if isinstance(labels, int) else list(map(str, labels))
        if len(names) < 2 or len(set(names)) < len(names):
            raise ConfigurationError(
                f"Classification: labels must be the number of classes, from 2, or their names, each once; {labels!r} "
                "was given."
            )
        self.labels = names
        self._scores = scores or (lambda output, data: output)
        self._targets = targets or (lambda data: data[1])
        self._ignore_index = ignore_index
        self._clock = clock
        self._drawn_at: float | None = None
        self._unwritten: tuple[Counts, int] | None = None
        self._outputs = Outputs("Classification")
        self._cells: torch.Tensor | None = None

    def after_init(self, trainer: TrainerState) -> None:
        """Watch validations."""
        trainer.around_validation.append(lambda: self._validating(trainer))

    def after_val_iteration_end(self, trainer: TrainerState, data: Any) -> None:
        """Count a batch, without waiting for the device."""
        assert self._cells is not None
        predicted = self._predict(self._scores(self._outputs.take(), data))
        target = self._targets(data)
        if target.shape != predicted.shape:
            raise ConfigurationError(
                f"Classification: there are targets of shape {tuple(target.shape)} for predictions of shape "
                f"{tuple(predicted.shape)}. Let targets(data) and scores(output, data) return what fits."
            )
        target = target.to(predicted.device, torch.int64)
        count = len(self.labels)
        cell = target * count + predicted
        outside = torch.where(target == self._ignore_index, count * count + 1, count * count)
        cell = torch.where((target >= 0) & (target < count), cell, outside).flatten()
        self._cells.scatter_add_(0, cell, torch.ones_like(cell))

    def after_epoch_end(self, trainer: TrainerState) -> None:
        """Combine over the ranks, and show."""
        if self._cells is None:
            return
        *cells, outside, _ = trainer.reduce(self._cells, "sum").cpu().numpy()
        self._cells = None
        if outside:
            raise ConfigurationError(
                f"Classification: {outside} targets are not among the classes 0 to {len(self.labels) - 1}. Give all "
                f"classes as labels, or ignore_index= the one that is none."
            )
        counts = _matrix(cells, len(self.labels))
        figures = {"accuracy": accuracy(counts), "macro_f1": macro_f1(counts)}
        trainer.metrics.update(figures)
        trainer.drawer.scalars(figures, "classification")
        self._unwritten = counts, trainer.current_epoch
        if self._drawn_at is None or self._clock() - self._drawn_at >= _PICTURE_EVERY_S:
            self._write(trainer)

    def before_quit(self, trainer: TrainerState) -> None:
        """Show the last state."""
        self._write(trainer)

    def _write(self, trainer: TrainerState) -> None:
        if self._unwritten is None or not trainer.is_main:
            return
        (counts, epoch), self._unwritten = self._unwritten, None
        title = f"{trainer.code}, epoch {epoch}"
        trainer.files.write("graph/confusion_matrix.png", picture(counts, self.labels, title))
        trainer.files.write("classification.csv", report(counts, self.labels).encode())
        self._drawn_at = self._clock()

    def _predict(self, scores: Any) -> torch.Tensor:
        if not isinstance(scores, torch.Tensor):
            raise ConfigurationError(
                f"Classification: the model returned {type(scores).__name__}, no tensor of scores. Pass "
                "scores=lambda output, data: … to take the scores out of it."
            )
        count = len(self.labels)
        if count == 2 and (scores.ndim == 1 or scores.shape[1] == 1):
            return (scores.reshape(len(scores)) > 0).long()
        if scores.ndim < 2 or scores.shape[1] != count:
            raise ConfigurationError(
                f"Classification: there are {count} classes, but scores of shape {tuple(scores.shape)}; needed is "
                f"(N, {count}) or (N, {count}, ...)."
            )
        return scores.argmax(dim=1)

    @contextmanager
    def _validating(self, trainer: TrainerState) -> Iterator[None]:
        # Beside the matrix, a cell for targets that are no class, and one for those that are to be ignored.
        self._cells = torch.zeros(len(self.labels) ** 2 + 2, dtype=torch.int64, device=trainer.device)
        self._outputs.watch(trainer.unwrapped_model)
        try:
            yield
        finally:
            self._outputs.ignore()


def _matrix(cells: list[Any], classes: int) -> Counts:
    import numpy as np

    return np.array(cells, dtype=np.int64).reshape(classes, classes)
