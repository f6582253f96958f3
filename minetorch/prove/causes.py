"""The likely cause of a difference, in words that say what to do. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from minetorch.prove.comparing import Difference


@dataclass(frozen=True)
class Evidence:
    """What is known beside the difference itself."""

    deterministic: bool
    """Whether a second uninterrupted run was equal to the first, as far as that step."""
    device: str = "cpu"
    """What was computed on."""
    world_size: int = 1
    parted: str | None = None
    """A parameter that was not the same on all ranks, though nothing interrupted the run."""
    unsaved_schedulers: Sequence[str] = field(default=())
    """Classes of LR schedulers that no checkpoint holds."""
    unsaved_buffers: Sequence[str] = field(default=())
    """The model's buffers that no checkpoint holds."""


def cause_of(difference: Difference, evidence: Evidence) -> tuple[str, str]:
    """What has most likely made the difference: the kind of it in a few words, and what to do about it."""
    return _lost(difference, evidence) if evidence.deterministic else _chance(difference, evidence)


def _chance(difference: Difference, evidence: Evidence) -> tuple[str, str]:
    """The script is not deterministic, killed or not."""
    if difference.at_start:
        return "unseeded weights", "Call torch.manual_seed(…) before the model is made."
    if difference.what == "samples":
        return (
            "a sampler that is not seeded",
            "It draws from the clock, os.urandom or a generator that is made without a seed. Let it draw from the "
            "global generators of torch, NumPy or Python, which are seeded for it in each epoch.",
        )
    if difference.what == "data":
        return (
            "unseeded randomness in the data",
            "The samples are the same, but not what was made of them: the dataset, an augmentation or collate_fn draws "
            "from os.urandom, the clock, or a generator that is made without a seed, perhaps in DataLoader workers. "
            "Let it draw from the global generators, or seed it from the sample's index and the epoch.",
        )
    if difference.generators:
        return (
            "random numbers drawn by chance",
            f"Code that does not always run the same draws from {_generators(difference)}.",
        )
    if difference.what == "loss" and evidence.device == "cpu":
        return (
            "time-dependent code",
            "Model, data and the global generators are the same, but not the loss: the loss function, the model or a "
            "hook uses the clock, os.urandom, a generator of its own without a seed, or the order of a set.",
        )
    if difference.what == "settings":
        return (
            "a time-dependent setting",
            f"Something sets the optimizer's {difference.name} by the clock or by chance.",
        )
    if difference.what in ("loss", "gradients"):
        return (
            "a non-deterministic kernel",
            "The same input gives other bits: call torch.use_deterministic_algorithms(True), which names the "
            "operation, and set CUBLAS_WORKSPACE_CONFIG=:4096:8 on a GPU. Else the loss depends on the clock.",
        )
    return (
        "a step that is not deterministic",
        "The gradients are the same, but not what was made of them: the optimizer or a hook at "
        "'after_train_iteration_end' uses the clock, chance, or a non-deterministic kernel.",
    )


def _lost(difference: Difference, evidence: Evidence) -> tuple[str, str]:
    """The script is deterministic, and going on from a checkpoint loses something."""
    if evidence.parted is not None:
        return (
            "ranks that train apart",
            f"Without a kill, too, {evidence.parted} is not the same on all ranks. A checkpoint holds the weights of "
            "rank 0, and after a restart all ranks have these. Look for an optimizer that is stepped by hand with "
            "gradients that DDP has not averaged, for code that changes weights on some ranks only, and for ranks on "
            "different hardware.",
        )
    statable = (
        "Give it state_dict and load_state_dict, and pass it in statable={…}, or derive it from trainer.progress."
    )
    if difference.at_start:
        return _not_in_checkpoint(difference, evidence)
    if difference.what == "samples":
        return (
            "a sampler with a state of its own",
            "After the restart it gives other samples than it would have: let what it yields depend on the epoch.",
        )
    if difference.what == "data":
        return (
            "state outside `statable`, in the data",
            "The samples are the same, but not what was made of them: the dataset, an augmentation or collate_fn has a "
            "generator, a counter or a cache of its own, which the restart began anew. Let it depend on the sample's "
            "index and the epoch alone, or draw from the global generators.",
        )
    if difference.what == "settings":
        if evidence.unsaved_schedulers:
            names = " and ".join(evidence.unsaved_schedulers)
            return (
                "a scheduler outside `statable`",
                f"No checkpoint holds the script's {names}: pass it in statable={{'scheduler': scheduler}}.",
            )
        return (
            "state outside `statable`",
            f"What sets the optimizer's {difference.name} began anew after the restart. {statable}",
        )
    if difference.generators:
        return (
            "random numbers that a restart draws again, or does not",
            f"After the restart, code outside the training's steps has drawn from {_generators(difference)} another "
            "number of times: in a hook at 'after_init' or 'before_epoch_start', or where an iterator is made.",
        )
    if difference.what == "loss":
        return (
            "state outside `statable`",
            "Model, data and the global generators are the same, but not the loss: the loss function, the model or a "
            f"hook keeps a counter, a running mean, a cache or a generator that the restart began anew. {statable}",
        )
    if difference.what == "gradients":
        return (
            "another order of sums",
            "The loss is the same, but not the gradients: with several workers, another order in which they are "
            "summed, or a hook of autograd with a state of its own."
            if evidence.world_size > 1
            else "The loss is the same, but not the gradients: an autograd function or hook has a state of its own.",
        )
    return (
        "state outside `statable`",
        "The gradients are the same, but not what was made of them: the optimizer keeps something that is not in its "
        f"state_dict, or a hook that changes the model keeps a state of its own. {statable}",
    )


def _not_in_checkpoint(difference: Difference, evidence: Evidence) -> tuple[str, str]:
    if difference.name in evidence.unsaved_buffers:
        return (
            "a buffer outside the checkpoint",
            f"{difference.name} is registered with persistent=False, and so is in no checkpoint: make it persistent, "
            "or pass the object that computes it in statable={…}.",
        )
    return (
        "a checkpoint that does not give all back",
        f"As soon as the checkpoint was loaded, {difference.name} was another than when it was saved: something "
        "changes it beside the optimizer's step, or a state_dict or load_state_dict leaves it out.",
    )


def _generators(difference: Difference) -> str:
    return f"{' and '.join(difference.generators)} global generator"
