"""The contents of a checkpoint: collected from the parts of a run, and restored to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from minetorch.checkpoint.curves_file import CurvesSnapshot
from minetorch.checkpoint.model_names import ModelNames
from minetorch.checkpoint.plain import plain_state
from minetorch.checkpoint.stateful import Stateful
from minetorch.context import TrainerState
from minetorch.data.order import derive_seed
from minetorch.data.randomness import generator_states, restore_generators, seed_generators
from minetorch.errors import CheckpointMismatchError, MinetorchError
from minetorch.resumption.history import History

REQUIRED_KEYS = frozenset({"state_dict", "optimizer", "progress"})
"""The keys that the payload of a Trainer's checkpoint must have."""


class Contents:
    """The parts of a run that a checkpoint holds. This class touches no storage."""

    def __init__(
        self, trainer: TrainerState, statable: Mapping[str, Stateful], plugins: Mapping[str, Stateful]
    ) -> None:
        self.history = History()
        """This start of the run, and the earlier ones."""
        self._trainer = trainer
        self._groups = {"statable": statable, "plugins": plugins}
        self._generators: dict[str, Any] | None = None
        self._of_plugins: tuple[Mapping[str, Any], str] | None = None
        """The checkpoint's state and path, until the plugins are restored."""

    def gather(self) -> dict[str, Any]:
        """Rank 0's state of every part that all ranks share."""
        trainer = self._trainer
        groups = {
            group: {name: _state_of(member) for name, member in members.items()}
            for group, members in self._groups.items()
        }
        return {
            **trainer.strategy.state_dict(),
            **groups,
            "epoch": trainer.progress.epoch,
            "progress": trainer.progress.state_dict(),
            "metrics": dict(trainer.metrics),
            "lowest_train_loss": trainer.lowest_train_loss,
            "lowest_val_loss": trainer.lowest_val_loss,
            "history": self.history.state_dict(),
        }

    def curves(self) -> CurvesSnapshot:
        """Rank 0's points of all curves, with the run's starts for readers of the curves file alone."""
        return self._trainer.drawer.curves.snapshot().with_facts(history=self.history.state_dict())

    def check(self) -> None:
        """Check that a checkpoint can hold the state.

        Raises:
            ConfigurationError: a checkpoint cannot hold it.
        """
        plain_state(self._trainer.strategy.state_dict())
        for group, members in self._groups.items():
            for name, member in members.items():
                try:
                    state = _state_of(member)
                except Exception:  # some objects have no state before their first epoch
                    continue
                plain_state({group: {name: state}})

    def take_over(self, state: dict[str, Any], path: str) -> None:
        """Restore every part of the run except the plugins.

        Args:
            state: the state from `gather`, with the random generators of every rank.
            path: the path of the checkpoint, for messages.

        Raises:
            CheckpointMismatchError: the checkpoint is of another model, or not of a Trainer.
        """
        trainer = self._trainer
        missing = REQUIRED_KEYS - state.keys()
        if missing:
            raise CheckpointMismatchError(
                f"{path} is no checkpoint of a Trainer: it lacks {', '.join(sorted(missing))}. "
                f"To start from its weights, load them into the model yourself and pass resume=False."
            )
        trainer.strategy.check_state(state, path, trainer.logger)
        self._load_model_and_optimizer(state)
        with _taken_over("counters", path):
            trainer.progress.load_state_dict(state["progress"])
            trainer.metrics.update(state.get("metrics", {}))
            trainer.lowest_train_loss = float(state.get("lowest_train_loss", trainer.lowest_train_loss))
            trainer.lowest_val_loss = float(state.get("lowest_val_loss", trainer.lowest_val_loss))
            self.history.load_state_dict(state.get("history", []))
        with _taken_over("curves", path):
            trainer.drawer.load_state_dict(state.get("drawer", {}))
        self._load_group("statable", state, path)
        self._of_plugins = state, path
        with _taken_over("random generators", path):
            self._generators = self._own_generators(state.get("random", []))
            self.put_back_generators()
        progress = trainer.progress
        trainer.drawer.mark("resume", progress.epoch - 0.5 * (not progress.epoch_complete), progress.step)

    def take_over_plugins(self) -> None:
        """Restore the plugins. Their `after_init` has run by now.

        Raises:
            CheckpointMismatchError: a plugin cannot load its state.
        """
        if self._of_plugins is not None:
            self._load_group("plugins", *self._of_plugins)
            self._of_plugins = None

    def _load_model_and_optimizer(self, state: dict[str, Any]) -> None:
        trainer = self._trainer
        prefer_script = trainer.settings.checkpoints.optimizer_options == "script"
        differences = ", ".join(trainer.strategy.load_state_dict(state, prefer_script=prefer_script))
        if not differences or not trainer.is_main:
            return
        if prefer_script:
            trainer.logger.info("The optimizer continues with options of the script: %s.", differences)
        else:
            trainer.logger.warning(
                "The optimizer continues with the checkpoint's options, not with those of the script: %s. "
                'To use those of the script, give the Trainer Checkpoints(optimizer_options="script").',
                differences,
            )

    def _load_group(self, group: str, state: Mapping[str, Any], path: str) -> None:
        members, states = self._groups[group], state.get(group, {})
        for name, member in members.items():
            if name in states:
                with _taken_over(f"state of {group} {name!r}", path):
                    _load_state_into(member, states[name])
            else:
                self._trainer.logger.warning("The checkpoint has no state of %s %r: it starts afresh.", group, name)
        for name in states.keys() - members.keys():
            self._trainer.logger.warning("The checkpoint's state of %s %r is not used: there is none now.", group, name)
        self._trainer.strategy.optimizer_state.rebase_schedulers(members.values())

    def put_back_generators(self) -> None:
        """Restore the random generators to the checkpoint's states."""
        if self._generators is not None:
            restore_generators(self._generators)

    def let_generators_go(self) -> None:
        """Restore the random generators for the last time. From here on, the run itself draws from them."""
        self.put_back_generators()
        self._generators = None

    def _own_generators(self, states: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """This rank's generator states. If the world size has changed, new ones for this step of the run."""
        trainer = self._trainer
        if states and trainer.strategy.shares_generators:
            # Between iterations, all ranks have the same states.
            return states[0]
        if len(states) == trainer.world_size:
            return states[trainer.rank]
        seed_generators(derive_seed(trainer.settings.seed, "resumed", trainer.progress.step, trainer.rank))
        return generator_states()


def _state_of(member: Stateful) -> dict[str, Any]:
    return ModelNames(member).state_dict() if isinstance(member, nn.Module) else member.state_dict()


def _load_state_into(member: Stateful, state: dict[str, Any]) -> None:
    if isinstance(member, nn.Module):
        ModelNames(member).load_state_dict(state)
    else:
        member.load_state_dict(state)


@contextmanager
def _taken_over(what: str, path: str) -> Iterator[None]:
    """Raise an error of the block as a CheckpointMismatchError that names the part of the checkpoint."""
    try:
        yield
    except MinetorchError:
        raise
    except Exception as error:
        raise CheckpointMismatchError(
            f"The {what} in {path} cannot be taken over ({type(error).__name__}: {error}). Use what the checkpoint was "
            "made with, another `code`, or resume=False to start afresh."
        ) from error
