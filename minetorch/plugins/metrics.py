"""Metrics of torchmetrics, or of the same kind, over the validation data."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from minetorch.context import TrainerState
from minetorch.errors import ConfigurationError
from minetorch.plugins.outputs import Outputs


class Metrics:
    """Feeds metrics on validation, combines them over the ranks and puts them among the epoch's metrics.

    ```python
    from torchmetrics.classification import MulticlassAUROC, MulticlassF1Score

    metrics = {"f1": MulticlassF1Score(10, average="macro"), "auroc": MulticlassAUROC(10)}
    Trainer(..., plugins=[Metrics(metrics)], monitor="f1", mode="max")
    ```

    Each is given `(output, target)` of every validation batch, once for each sample: what the model returned, and
    `data[1]`, unless `inputs` says what else. What `compute()` returns is the whole world's, as torchmetrics combines
    it: a number goes to `trainer.metrics` and is drawn; of several numbers each is drawn as a curve.
    """

    def __init__(self, metrics: Mapping[str, Any], inputs: Callable[[Any, Any], tuple[Any, ...]] | None = None) -> None:
        """Feed these metrics.

        Args:
            metrics: by name; each with `update`, `compute`, `reset` and `to`, as a `torchmetrics.Metric` has them.
            inputs: `inputs(output, data)` returns the arguments for `update`; `output` is what the model returned in
                the loss function, detached. By default `(output, data[1])`.

        Raises:
            ConfigurationError: one of them is no metric.
        """
        for name, metric in metrics.items():
            if not all(callable(getattr(metric, method, None)) for method in ("update", "compute", "reset", "to")):
                raise ConfigurationError(
                    f"Metrics: {name!r} must be a torchmetrics.Metric; {type(metric).__name__} was given. Make one of "
                    "its classes, such as torchmetrics.classification.MulticlassF1Score(10)."
                )
        self.metrics = dict(metrics)
        self._inputs = inputs or (lambda output, data: (output, data[1]))
        self._outputs = Outputs("Metrics")
        self._validated = False

    def after_init(self, trainer: TrainerState) -> None:
        """Bring the metrics to the device, and watch validations."""
        self.metrics = {name: metric.to(trainer.device) for name, metric in self.metrics.items()}
        trainer.around_validation.append(lambda: self._validating(trainer))

    def after_val_iteration_end(self, trainer: TrainerState, data: Any) -> None:
        """Feed a batch."""
        inputs = self._inputs(self._outputs.take(), data)
        for metric in self.metrics.values():
            metric.update(*inputs)

    def after_epoch_end(self, trainer: TrainerState) -> None:
        """Combine over the ranks."""
        if not self._validated:
            return
        self._validated = False
        for name, metric in self.metrics.items():
            self._fill_empty_lists(trainer, metric)
            with warnings.catch_warnings():
                # A rank that had no share of a small validation has nothing to add.
                warnings.filterwarnings("ignore", ".*was called before the ``update`` method")
                self._show(trainer, name, metric.compute())

    @contextmanager
    def _validating(self, trainer: TrainerState) -> Iterator[None]:
        for metric in self.metrics.values():
            metric.reset()
        self._outputs.watch(trainer.unwrapped_model)
        try:
            yield
        finally:
            self._outputs.ignore()
        self._validated = True

    def _fill_empty_lists(self, trainer: TrainerState, metric: Any) -> None:
        """Give a rank that had no sample an empty tensor like the others' in each list of a metric's state.

        torchmetrics gathers such lists by the ranks' dtypes and dimensions, which an empty list does not have.
        """
        parts = [part for part in getattr(metric, "modules", list)() if hasattr(part, "metric_state")]
        lists = [
            (part, name, value)
            for part in parts
            for name, value in part.metric_state.items()
            if isinstance(value, list)
        ]
        mine = [(value[0].dtype, value[0].shape[1:]) if value else None for _, _, value in lists]
        of_ranks = trainer.world.gather(mine)
        for place, (part, name, value) in enumerate(lists):
            like = next((kinds[place] for kinds in of_ranks if kinds[place] is not None), None)
            if not value and like is not None:
                dtype, shape = like
                setattr(part, name, [torch.empty(0, *shape, dtype=dtype, device=trainer.device)])

    def _show(self, trainer: TrainerState, name: str, value: Any) -> None:
        values = value if isinstance(value, Mapping) else {name: value}
        for key, figure in values.items():
            numbers = torch.as_tensor(figure).detach().flatten().tolist()
            label = key if key == name else f"{name}_{key}"
            if len(numbers) == 1:
                trainer.metrics[label] = float(numbers[0])
                trainer.drawer.scalar(numbers[0], label)
            else:
                trainer.drawer.scalars({str(place): number for place, number in enumerate(numbers)}, label)
