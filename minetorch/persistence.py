"""What a checkpoint holds of a run, and how all ranks save and restore it together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minetorch.checkpoint import Checkpoint, Checkpointer, decode
from minetorch.checkpoint.names import LATEST, epoch_alias
from minetorch.data.order import derive_seed
from minetorch.errors import CheckpointMismatchError, ConfigurationError
from minetorch.randomness import generator_states, restore_generators, seed_generators
from minetorch.state import TrainerState
from minetorch.stateful import Stateful

REQUIRED_KEYS = frozenset({"state_dict", "optimizer", "progress"})
"""What a payload must hold to be a Trainer's checkpoint."""


class Persistence:
    """Saves a run to its checkpoints and restores it, on all ranks at once.

    Rank 0 alone has a checkpointer and touches the storage; what it reads it hands to the others, and an
    error it meets is raised on every rank.
    """

    def __init__(
        self,
        trainer: TrainerState,
        checkpointer: Checkpointer | None,
        statable: Mapping[str, Stateful],
        plugins: Mapping[str, Stateful],
    ) -> None:
        self._trainer = trainer
        self._checkpointer = checkpointer
        self._groups = {"statable": statable, "plugins": plugins}

    def is_best(self) -> bool:
        """Whether the newest metrics are the best so far; every rank gets rank 0's answer.

        Raises:
            ConfigurationError: `monitor` is no metric of this run.
        """
        return self._trainer.world.on_main(self._is_best)

    def _is_best(self) -> bool:
        trainer = self._trainer
        monitor, metrics = trainer.settings.monitor, trainer.metrics
        if monitor not in metrics:
            # Without validation (in this epoch, or at all) there is no val_loss, and no best.
            if monitor == "val_loss" or "val_loss" not in metrics:
                return False
            raise ConfigurationError(
                f"monitor={monitor!r} is not among this epoch's metrics: {', '.join(map(repr, metrics))}. "
                f"Let a hook at 'after_epoch_end' set trainer.metrics[{monitor!r}], or monitor another."
            )
        assert self._checkpointer is not None
        return self._checkpointer.would_be_best(metrics)

    def save(self, names: Sequence[str] = ()) -> str:
        """Save a checkpoint. Every rank calls it.

        Returns:
            The checkpoint's path or URL.
        """
        world, progress = self._trainer.world, self._trainer.progress
        random = world.gather(generator_states())

        def write() -> str:
            assert self._checkpointer is not None
            manifest = self._checkpointer.save(
                self._state() | {"random": random},
                step=progress.step,
                epoch=progress.epoch,
                epoch_complete=progress.epoch_complete,
                position=progress.iteration,
                world_size=world.size,
                metrics=self._trainer.metrics,
                names=names,
            )
            where = epoch_alias(progress.epoch)
            if not progress.epoch_complete:
                where = f"epoch {progress.epoch}, iteration {progress.iteration}"
            also = sorted(
                alias for alias, name in manifest.aliases.items() if name == manifest.name and alias != LATEST
            )
            self._trainer.logger.info("Saved models/%s (%s)", manifest.payload, ", ".join([where, *also]))
            return self._checkpointer.path_of(manifest)

        return world.on_main(write)

    def _state(self) -> dict[str, Any]:
        trainer = self._trainer
        groups = {
            group: {name: member.state_dict() for name, member in members.items()}
            for group, members in self._groups.items()
        }
        return {
            **trainer.backend.state_dict(),
            **groups,
            "epoch": trainer.progress.epoch,
            "progress": trainer.progress.state_dict(),
            "drawer": trainer.drawer.state_dict(),
            "metrics": dict(trainer.metrics),
            "lowest_train_loss": trainer.lowest_train_loss,
            "lowest_val_loss": trainer.lowest_val_loss,
        }

    def restore(self, resume: bool | str | int) -> None:
        """Find the checkpoint that `resume` names, read it once, and take its state over on every rank.

        Raises:
            CheckpointNotFoundError: there is no such checkpoint.
            CheckpointCorruptError: there are checkpoints, but none that is whole.
            CheckpointMismatchError: it is another model's.
            StorageError: the storage could not be listed or read.
        """
        world = self._trainer.world
        found: Checkpoint | None = None

        def read() -> str | None:
            nonlocal found
            assert self._checkpointer is not None
            found = self._checkpointer.open(resume)
            return found.path if found is not None else None

        path = world.on_main(read)
        if path is None:
            if resume is True:
                self._trainer.logger.info("No checkpoint found: training from scratch.")
            return
        payload = world.broadcast_bytes(found.payload if found is not None else None)
        self._load(found.state if found is not None else decode(payload, path), path)

    def _load(self, state: dict[str, Any], path: str) -> None:
        trainer = self._trainer
        missing = REQUIRED_KEYS - state.keys()
        if missing:
            raise CheckpointMismatchError(
                f"{path} is no checkpoint of a Trainer: it lacks {', '.join(sorted(missing))}. "
                f"To start from its weights, load them into the model yourself and pass resume=False."
            )
        trainer.backend.load_state_dict(state)
        trainer.progress.load_state_dict(state["progress"])
        trainer.drawer.load_state_dict(state.get("drawer", {}))
        trainer.metrics.update(state.get("metrics", {}))
        trainer.lowest_train_loss = state.get("lowest_train_loss", trainer.lowest_train_loss)
        trainer.lowest_val_loss = state.get("lowest_val_loss", trainer.lowest_val_loss)
        for group, members in self._groups.items():
            self._load_group(group, members, state.get(group, {}))
        self._load_generators(state.get("random", []))
        progress = trainer.progress
        where = "" if progress.epoch_complete else f", iteration {progress.iteration} of it"
        trainer.logger.info("Resumed from %s: epoch %d%s, step %d.", path, progress.epoch, where, progress.step)

    def _load_group(self, group: str, members: Mapping[str, Stateful], states: Mapping[str, Any]) -> None:
        for name, member in members.items():
            if name in states:
                member.load_state_dict(states[name])
            else:
                self._trainer.logger.warning("The checkpoint has no state of %s %r: it starts afresh.", group, name)
        for name in states.keys() - members.keys():
            self._trainer.logger.warning("The checkpoint's state of %s %r is not used: there is none now.", group, name)

    def _load_generators(self, states: Sequence[dict[str, Any]]) -> None:
        """Each rank's own generators; where the world's size has changed, fresh ones for this point of the run."""
        trainer = self._trainer
        if len(states) == trainer.world_size:
            restore_generators(states[trainer.rank])
        else:
            seed_generators(derive_seed(trainer.settings.seed, "resumed", trainer.progress.step, trainer.rank))
