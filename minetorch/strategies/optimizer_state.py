"""An optimizer's state by the names of its parameters, and the options that the script has given.

torch's own state numbers the parameters and groups. With names, a checkpoint also fits an optimizer that has them in
another order, and restores the groups that a hook has added.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from minetorch.checkpoint.model_names import ModelNames
from minetorch.errors import CheckpointMismatchError

Options = dict[str, Any]

_SCHEDULED = frozenset({"lr", "momentum", "betas"})
"""Options that a scheduler changes while a run trains."""

_MOST_NAMES = 4
"""Groups, and parameters of each, that a message names."""

_WEIGHTS_ALONE = (
    "or start from the checkpoint's weights alone, in a run with another `code` or with resume=False: "
    'model.load_state_dict(minetorch.load("path/of/the/run", "latest")["state_dict"])'
)


class OptimizerState:
    """Saves and restores an optimizer, and knows which of its options the script has given."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Remember the options as they are now."""
        self._model = model
        self._optimizer = optimizer
        self._given: list[Options | None] = [_plain_options(group) for group in optimizer.param_groups]
        self._rebased: dict[int, tuple[Any, Any]] = {}

    @property
    def options(self) -> Options:
        """The options of the first group: the script's or, after a resume, those that the run continues with."""
        return self._given[0] or {}

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's own state, its class and, if the state has groups, a description of each group."""
        state = self._optimizer.state_dict()
        saved = {"optimizer": state, "optimizer_class": type(self._optimizer).__name__}
        groups = self._optimizer.param_groups
        if not _is_by_group(state, groups):
            return saved
        given = [*self._given, *[None] * len(groups)]
        described = [
            {
                "parameters": names,
                "requires_grad": [parameter.requires_grad for parameter in group["params"]],
                "given": options,
            }
            for group, names, options in zip(groups, self._group_names(), given, strict=False)
        ]
        return saved | {"optimizer_groups": described}

    def load(self, state: Mapping[str, Any], *, prefer_script: bool = False) -> list[str]:
        """Restore what `state_dict` returned, or the state in an old checkpoint, which has no names.

        Args:
            state: the checkpoint's state.
            prefer_script: use the script's value of an option that has changed since the run was given it.

        Returns:
            Each changed option in words: the value that is used, and the other one.

        Raises:
            CheckpointMismatchError: the state is of another class of optimizer, or of other parameters.
        """
        optimizer, saved = self._optimizer, state["optimizer"]
        self._check_class(state.get("optimizer_class"), saved)
        if not _is_by_group(saved):
            optimizer.load_state_dict(saved)
            return []
        described = state.get("optimizer_groups")
        if described is None:
            if not _is_by_group(saved, optimizer.param_groups):
                optimizer.load_state_dict(saved)  # it says what does not fit
            described = [{"parameters": names, "given": None} for names in self._group_names()]
        script, self._given = self._arrange(described), []
        groups = [dict(group) for group in saved["param_groups"]]
        differences = []
        for index, (group, one) in enumerate(zip(groups, described, strict=True)):
            differences += self._settle(index, group, one["given"], script[index], prefer_script=prefer_script)
        optimizer.load_state_dict({**saved, "param_groups": groups})
        return differences

    def _check_class(self, before: str | None, saved: Mapping[str, Any]) -> None:
        now = type(self._optimizer).__name__
        if before is not None and before != now:
            raise CheckpointMismatchError(
                f"The checkpoint was made with the optimizer {before}, and the script has {now}: neither can use the "
                f"other's state. Give the Trainer {before} again, {_WEIGHTS_ALONE}."
            )
        if before is None and _is_by_group(saved):
            lacking = [name for name in self._optimizer.defaults if any(name not in g for g in saved["param_groups"])]
            if lacking:
                raise CheckpointMismatchError(
                    f"The checkpoint was made with another optimizer than {now}: it has no {', '.join(lacking)}. "
                    f"Give the Trainer the optimizer that the run had, {_WEIGHTS_ALONE}."
                )

    def _group_names(self) -> list[list[str]]:
        """The names of each group's parameters. A parameter outside the model has a number instead of a name."""
        names = {id(parameter): name for name, parameter in reversed(ModelNames(self._model).parameters().items())}
        groups = [group["params"] for group in self._optimizer.param_groups]
        outside = (parameter for group in groups for parameter in group if id(parameter) not in names)
        names |= {id(parameter): f"parameter {number} outside the model" for number, parameter in enumerate(outside)}
        return [[names[id(parameter)] for parameter in group] for group in groups]

    def _arrange(self, described: Sequence[Mapping[str, Any]]) -> list[Options | None]:
        """Give the optimizer the checkpoint's groups, in the checkpoint's order.

        Returns:
            The script's options for each group; None for a group that the script's optimizer did not have.
        """
        optimizer, current = self._optimizer, self._group_names()
        wanted = [group["parameters"] for group in described]
        if wanted == current:
            return [*self._given]
        places = {frozenset(names): index for index, names in enumerate(current)}
        matches = [places.get(frozenset(names)) for names in wanted]
        parameters: dict[str, torch.Tensor] = {**ModelNames(self._model).parameters()}
        for names, group in zip(current, optimizer.param_groups, strict=True):
            parameters.update(zip(names, group["params"], strict=True))
        self._check_groups(current, wanted, matches, parameters)
        before, given = [*optimizer.param_groups], self._given
        has_names = any("param_names" in group for group in before)
        optimizer.param_groups.clear()
        for one, match in zip(described, matches, strict=True):
            members = [parameters[name] for name in one["parameters"]]
            if match is None:
                for parameter, requires_grad in zip(members, one["requires_grad"], strict=True):
                    parameter.requires_grad_(requires_grad)
            options: Options = {} if match is None else before[match]
            named = list(zip(one["parameters"], members, strict=True)) if has_names else members
            optimizer.add_param_group({**options, "params": named})
        return [None if match is None else given[match] for match in matches]

    def _check_groups(
        self,
        current: list[list[str]],
        wanted: list[list[str]],
        matches: list[int | None],
        parameters: Mapping[str, torch.Tensor],
    ) -> None:
        """Check that the checkpoint has each group of the script, and that its other groups are new to the optimizer.

        Raises:
            CheckpointMismatchError: a group fits nowhere.
        """
        taken = {name for names in current for name in names}
        new = [names for names, match in zip(wanted, matches, strict=True) if match is None]
        missing = [names for index, names in enumerate(current) if index not in matches]
        unfit = [names for names in new if not parameters.keys() >= {*names} or not taken.isdisjoint(names)]
        if unfit or missing:
            raise CheckpointMismatchError(
                "The checkpoint's optimizer has other groups of parameters than the script's. Groups only in the "
                f"checkpoint: {_listed(unfit)}; only in the script: {_listed(missing)}. Give the optimizer the groups "
                f"that it had, {_WEIGHTS_ALONE}."
            )

    def _settle(
        self, index: int, saved: Options, given: Options | None, script: Options | None, *, prefer_script: bool
    ) -> list[str]:
        """Complete a group's saved options, and remember the options that the run was given. Returns as `load`."""
        group = self._optimizer.param_groups[index]
        if "param_names" not in group:
            saved.pop("param_names", None)
        for name, value in group.items():
            saved.setdefault(name, value)
        if script is None:
            self._given.append(given)
            return []
        given = _given_before(saved, script) if given is None else given
        differ = [name for name, value in script.items() if name in given and given[name] != value]
        if "lr" in differ and "initial_lr" in given and "initial_lr" in script:
            differ.remove("lr")  # a scheduler derives it
        if prefer_script:
            self._given.append({**given, **script})
            self._override(index, saved, differ, given)
        else:
            self._given.append({**script, **given})
        where = f" of group {index}" if len(self._optimizer.param_groups) > 1 else ""
        used, other = (script, given) if prefer_script else (given, script)
        return [f"{name}{where} {used[name]} instead of {other[name]}" for name in differ]

    def _override(self, index: int, saved: Options, names: Iterable[str], given: Options) -> None:
        """Replace options of a saved group with the script's. A learning rate keeps its decay so far."""
        group = self._optimizer.param_groups[index]
        for name in names:
            if name == "lr":
                saved["lr"] = _rebased(saved["lr"], given["lr"], group["lr"])
                continue
            if name == "initial_lr":
                self._rebased[index] = given["initial_lr"], group["initial_lr"]
                saved["lr"] = _rebased(saved["lr"], *self._rebased[index])
            saved[name] = group[name]

    def rebase_schedulers(self, members: Iterable[object]) -> None:
        """Set the script's initial rates, if `load` used them, in all schedulers that these objects are or hold."""
        for scheduler in {id(found): found for member in members for found in _schedulers(member)}.values():
            rates = getattr(scheduler, "base_lrs", None)
            if scheduler.optimizer is self._optimizer and rates is not None:
                scheduler.base_lrs = [
                    _rebased(rate, *self._rebased[index]) if index in self._rebased else rate
                    for index, rate in enumerate(rates)
                ]


def _is_by_group(state: Any, groups: Sequence[Options] | None = None) -> bool:
    """Whether a state has torch's layout, not the optimizer's own. With `groups`, also whether it fits them."""
    saved = state.get("param_groups") if isinstance(state, Mapping) else None
    if not isinstance(saved, list) or not all(isinstance(group, Mapping) and "params" in group for group in saved):
        return False
    return groups is None or [len(group["params"]) for group in saved] == [len(group["params"]) for group in groups]


def _plain_options(group: Options) -> Options:
    """The options of a group that are plain values, which a checkpoint and a manifest can hold."""
    plain = {}
    for name, value in group.items():
        if isinstance(value, torch.Tensor) and value.numel() == 1:
            value = value.item()  # a learning rate for CUDA graphs
        elif isinstance(value, list):
            value = tuple(value)
        if name not in ("params", "param_names") and _is_plain(value):
            plain[name] = value
    return plain


def _is_plain(value: Any) -> bool:
    values = value if isinstance(value, tuple) else (value,)
    return all(one is None or isinstance(one, bool | int | float | str) for one in values)


def _given_before(saved: Options, script: Options) -> Options:
    """The options that the script probably gave, for a checkpoint that does not record them."""
    scheduled = _SCHEDULED if "initial_lr" in saved else ()
    return {name: script.get(name) if name in scheduled else value for name, value in _plain_options(saved).items()}


def _rebased(rate: Any, before: Any, now: Any) -> Any:
    """Scale a learning rate with the initial rate `before` to the initial rate `now`."""
    exact = float(before) == 0 or float(rate) == float(before)
    value = float(now) if exact else float(rate) * float(now) / float(before)
    return torch.full_like(rate, value) if isinstance(rate, torch.Tensor) else value


def _schedulers(holder: object, seen: frozenset[int] = frozenset()) -> Iterator[LRScheduler]:
    """The schedulers that this object is or holds, with those inside other schedulers."""
    if id(holder) in seen:
        return
    if isinstance(holder, LRScheduler):
        yield holder
    elif seen:
        return
    for value in getattr(holder, "__dict__", {}).values():
        for held in value if isinstance(value, list | tuple) else [value]:
            yield from _schedulers(held, seen | {id(holder)})


def _listed(groups: list[list[str]]) -> str:
    listed = [f"({_shortened(names)})" for names in groups]
    return _shortened(listed) if listed else "none"


def _shortened(words: list[str]) -> str:
    more = f" and {len(words) - _MOST_NAMES} more" if len(words) > _MOST_NAMES else ""
    return ", ".join(words[:_MOST_NAMES]) + more
