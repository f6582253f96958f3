"""Registering hooks and plugins, and what they are called with."""

from types import SimpleNamespace

import pytest

from minetorch import ConfigurationError, main_only
from minetorch.hooks import Hooks


def hooks(rank=0):
    return Hooks(SimpleNamespace(is_main=rank == 0, world_size=1, rank=rank))


def test_a_hook_gets_what_it_declares():
    seen = []
    registry = hooks()
    registry.add("after_epoch_end", lambda trainer: seen.append(()))
    registry.add("after_epoch_end", lambda trainer, val_loss: seen.append((val_loss,)))
    registry.add("after_epoch_end", lambda t, val_loss, epoch=0, mine=7: seen.append((val_loss, epoch, mine)))
    registry.add("after_epoch_end", lambda trainer, **rest: seen.append(tuple(rest.values())))
    registry.call("after_epoch_end", epoch=3, train_loss=0.5, val_loss=0.25)
    assert seen == [(), (0.25,), (0.25, 3, 7), (3, 0.5, 0.25)]


def test_hooks_of_a_point_are_called_in_order():
    seen = []
    registry = hooks()
    registry.add_all({"before_quit": [lambda trainer: seen.append(1), lambda trainer: seen.append(2)]})
    registry.call("before_quit")
    assert seen == [1, 2]


def test_main_only_functions_and_methods_run_on_rank_0_only():
    class Plugin:
        def __init__(self):
            self.seen = []

        @main_only
        def before_quit(self, trainer):
            self.seen.append(trainer.rank)

        def after_init(self, trainer):
            self.seen.append("all")

    plugins = [Plugin(), Plugin()]
    for rank, plugin in enumerate(plugins):
        registry = hooks(rank)
        registry.add_plugin(plugin)
        registry.call("after_init")
        registry.call("before_quit")
    assert [plugin.seen for plugin in plugins] == [["all", 0], ["all"]]


def test_a_callable_without_a_signature_gets_the_trainer():
    seen = []
    registry = hooks()
    registry.add("before_quit", seen.append)
    registry.call("before_quit")
    assert len(seen) == 1


def test_a_method_that_looks_like_a_hook_but_is_none_is_refused():
    class Plugin:
        def after_validation(self, trainer): ...

    with pytest.raises(ConfigurationError, match="Plugin Plugin: There is no hook point 'after_validation'"):
        hooks().add_plugin(Plugin())


@pytest.mark.parametrize(
    ("point", "function"),
    [
        ("before_quit", lambda: None),
        ("before_quit", lambda *, trainer: None),
        ("after_epoch_end", lambda epoch: None),
        ("after_epoch_end", lambda val_loss, trainer: None),
    ],
)
def test_a_hook_without_the_trainer_first_is_refused(point, function):
    with pytest.raises(ConfigurationError, match="must take `trainer` as its first parameter"):
        hooks().add(point, function)


def test_two_stateful_plugins_of_one_name_are_refused():
    from minetorch.options.checks import stateful_plugins

    class Plugin:
        def state_dict(self):
            return {}

        def load_state_dict(self, state): ...

    with pytest.raises(ConfigurationError, match="Two plugins keep their state as 'Plugin'"):
        stateful_plugins([Plugin(), Plugin()])
    second = Plugin()
    second.name = "second"
    assert list(stateful_plugins([Plugin(), second])) == ["Plugin", "second"]
