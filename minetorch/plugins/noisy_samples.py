"""Finds training samples that stay hard, as those with a wrong label do."""

from __future__ import annotations

import csv
import io
import operator
from collections.abc import Callable, Sequence, Sized
from typing import Any, NamedTuple

import torch

from minetorch.context import TrainerState
from minetorch.errors import CheckpointMismatchError, ConfigurationError
from minetorch.plugins.monitoring import check_count
from minetorch.plugins.outputs import Outputs

GRAPH = "sample_losses"
FILE = "noisy_samples.csv"

_FETCH_EVERY = 256
"""Iterations after which the losses are fetched from the device."""


class Suspect(NamedTuple):
    """A sample, and why it is suspicious."""

    sample: int
    """Its index in the training dataset."""
    suspicion: float
    """Mean over the epochs of the share of samples that had a lower loss: 1 for what always had the highest."""
    mean_loss: float
    """Mean over the epochs."""
    last_loss: float
    """In the newest epoch that had the sample."""
    epochs: int
    """Epochs that had the sample."""


class NoisySamples:
    """Follows the loss of every training sample over the epochs, and lists those that stay among the highest.

    ```python
    def losses(output, data):
        return torch.nn.functional.cross_entropy(output, data[1], reduction="none")


    Trainer(..., plugins=[NoisySamples(losses, top=50)])
    ```

    A network learns mislabelled samples last: their loss stays high for many epochs while that of others falls. Within
    an epoch samples are compared by rank, so that no epoch outweighs another. After every epoch the `top` samples are
    in `noisy_samples.csv` in the run's directory, and the graph `sample_losses` shows their mean loss beside the median
    and the 95th percentile of all.

    With `negative_margin` for the losses, the order is about that of the area under the margin (Pleiss et al.,
    "Identifying Mislabeled Data using the Area Under the Margin Ranking", 2020).

    The losses of all ranks are put together by the sample's index in the dataset; they are in the checkpoint, 48 bytes
    a sample. The dataset must have a length, and its sampler must give whole numbers.
    """

    def __init__(
        self, sample_losses: Callable[[Any, Any], torch.Tensor], *, top: int = 100, from_epoch: int = 1
    ) -> None:
        """Follow these losses.

        Args:
            sample_losses: `sample_losses(output, data)` returns the loss of each sample of a batch, of shape (N,), of
                which N is the number of samples; `output` is what the model returned in loss_func, detached.
            top: how many samples to list.
            from_epoch: the first epoch that counts.

        Raises:
            ConfigurationError: an argument is wrong.
        """
        if not callable(sample_losses):
            raise ConfigurationError(
                f"NoisySamples: sample_losses must be a function of (output, data); {sample_losses!r} was given."
            )
        check_count("NoisySamples", "top", top)
        check_count("NoisySamples", "from_epoch", from_epoch)
        self._sample_losses = sample_losses
        self.top = top
        self.from_epoch = from_epoch
        self._outputs = Outputs("NoisySamples")
        self._waiting: list[tuple[Sequence[int], torch.Tensor]] = []
        self._own = self._world = EpochLosses(0)
        self._history: History | None = None

    def after_init(self, trainer: TrainerState) -> None:
        """Make room for every sample, and watch the model."""
        dataset = trainer.train_dataloader.dataset
        if not isinstance(dataset, Sized):
            raise ConfigurationError(
                f"NoisySamples tells samples apart by their index, but {type(dataset).__name__} has no length."
            )
        length = len(dataset)
        self._own, self._world, self._history = EpochLosses(length), EpochLosses(length), History(length)
        self._outputs.watch(trainer.unwrapped_model)

    def after_train_iteration_end(self, trainer: TrainerState, data: Any) -> None:
        """Take the losses of a batch, without waiting for the device."""
        batch = trainer.batch
        assert batch is not None
        output = self._outputs.take()
        if trainer.current_epoch < self.from_epoch or not batch.counted:
            return
        if batch.stream is not None:
            raise ConfigurationError("NoisySamples tells samples apart by their index, which a stream does not have.")
        with torch.no_grad():
            losses = self._sample_losses(output, data).detach()
        if losses.shape != (len(batch.indices),):
            raise ConfigurationError(
                f"NoisySamples: sample_losses returned shape {tuple(losses.shape)} for {len(batch.indices)} samples; "
                f"needed is one loss a sample, as with reduction='none'."
            )
        self._waiting.append((batch.indices, losses))
        if len(self._waiting) >= _FETCH_EVERY:
            self._fetch()

    def before_checkpoint_persisted(self, trainer: TrainerState) -> None:
        """Put the losses of all ranks together, for the checkpoint to have them."""
        self._put_together(trainer)

    def after_epoch_end(self, trainer: TrainerState) -> None:
        """Compare the epoch's losses, list the suspects and draw."""
        assert self._history is not None
        self._put_together(trainer)
        losses = self._world.take()
        seen = ~losses.isnan()
        if not seen.any():
            return
        self._history.add(losses)
        if not trainer.is_main:
            return
        suspects = self.suspects()
        trainer.files.write(FILE, to_csv(suspects).encode())
        values = losses[seen]
        curves = {"median": values.quantile(0.5), "95%": values.quantile(0.95)} if len(values) < 2**24 else {}
        mine = losses[[suspect.sample for suspect in suspects]]
        trainer.drawer.scalars({**curves, f"top {self.top}": mine.nanmean()}, GRAPH)

    def before_quit(self, trainer: TrainerState) -> None:
        """Watch no more."""
        self._outputs.ignore()

    def suspects(self) -> list[Suspect]:
        """The `top` most suspicious samples, the most suspicious first."""
        return [] if self._history is None else self._history.top(self.top)

    def _fetch(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting:
            losses = torch.cat([losses for _, losses in waiting]).to("cpu", torch.float64)
            self._own.add([index for indices, _ in waiting for index in indices], losses)

    def _put_together(self, trainer: TrainerState) -> None:
        self._fetch()
        self._world.add_all(trainer.reduce(self._own.table, "sum"))
        self._own.table.zero_()

    def state_dict(self) -> dict[str, Any]:
        """What there is of every sample: of the epoch under way, and of those before it."""
        assert self._history is not None
        return {"epoch": self._world.table, "history": self._history.table}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state that `state_dict` returned.

        Raises:
            CheckpointMismatchError: it is of another number of samples.
        """
        assert self._history is not None
        before, length = state_dict["epoch"].shape[1], self._history.table.shape[1]
        if before != length:
            raise CheckpointMismatchError(
                f"The checkpoint's NoisySamples are of a dataset of {before} samples, and this one has {length}: it is "
                "not known which is which. Leave the plugin out, or use another `code`."
            )
        self._world.table.copy_(state_dict["epoch"])
        self._history.table.copy_(state_dict["history"])


class EpochLosses:
    """The losses of one epoch by sample, of which a sampler may give one several times: their sum and number."""

    def __init__(self, length: int) -> None:
        self.table = torch.zeros(2, length, dtype=torch.float64)

    def add(self, indices: Sequence[int], losses: torch.Tensor) -> None:
        """Add losses of samples.

        Raises:
            ConfigurationError: an index is none of the dataset's.
        """
        length = self.table.shape[1]
        try:
            places = torch.tensor([operator.index(index) for index in indices])
        except TypeError as error:
            raise ConfigurationError(f"NoisySamples: the sampler must give indices of the dataset; {error}.") from None
        strange = places[(places < 0) | (places >= length)]
        if len(strange):
            raise ConfigurationError(
                f"NoisySamples: the sampler gave {int(strange[0])}, which is no index of a dataset of {length} samples."
            )
        self.table.index_add_(1, places, torch.stack([losses, torch.ones_like(losses)]))

    def add_all(self, table: torch.Tensor) -> None:
        """Add another table."""
        self.table += table

    def take(self) -> torch.Tensor:
        """The mean loss of each sample, NaN for those that did not come, and begin anew."""
        losses = self.table[0] / self.table[1]
        self.table.zero_()
        return losses


class History:
    """What the epochs were to each sample: sum of shares, sum of losses, last loss, number of epochs."""

    def __init__(self, length: int) -> None:
        self.table = torch.zeros(4, length, dtype=torch.float64)

    def add(self, losses: torch.Tensor) -> None:
        """Add an epoch's losses; those of samples that did not come are NaN."""
        seen = ~losses.isnan()
        values = losses[seen]
        shares = lower_shares(values)
        rows = torch.stack([shares, values, values, torch.ones_like(values)])
        self.table[2, seen] = 0.0
        self.table[:, seen] += rows

    def top(self, count: int) -> list[Suspect]:
        """The samples with the highest mean share."""
        shares, losses, last, epochs = self.table
        suspicion = torch.where(epochs > 0, shares / epochs.clamp(min=1), -1.0)
        order = suspicion.argsort(descending=True, stable=True)[:count]
        order = order[epochs[order] > 0]
        means = losses / epochs
        rows = zip(*(column[order].tolist() for column in (suspicion, means, last, epochs)), strict=True)
        return [
            Suspect(sample, share, mean, newest, int(count))
            for sample, (share, mean, newest, count) in zip(order.tolist(), rows, strict=True)
        ]


def lower_shares(values: torch.Tensor) -> torch.Tensor:
    """For each value the share of the others that are lower, from 0 to 1; equal values get the same. Pure."""
    ordered = values.sort().values
    return torch.searchsorted(ordered, values).to(torch.float64) / max(1, len(values) - 1)


def negative_margin(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """How far the highest other score is above that of the given class: a loss for `NoisySamples`.

    Args:
        scores: logits of shape (N, C).
        targets: the given classes, of shape (N,).

    Returns:
        Of shape (N,), above 0 where the model would rather have another class.
    """
    given = scores.gather(1, targets[:, None])
    others = scores.scatter(1, targets[:, None], float("-inf"))
    return others.amax(dim=1) - given[:, 0]


def to_csv(suspects: Sequence[Suspect]) -> str:
    """A table with one row a suspect."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Suspect._fields)
    writer.writerows([one.sample, *(f"{value:.6g}" for value in one[1:4]), one.epochs] for one in suspects)
    return text.getvalue()
