"""The arguments and hooks of other trainers get an answer that says what to give here."""

import inspect
import re

import pytest

import minetorch
from minetorch import HOOK_POINTS, ConfigurationError, Trainer
from minetorch.options.other_trainers import ARGUMENT_ANSWERS, ARGUMENTS, HOOK_ANSWERS, HOOKS

PARAMETERS = {*inspect.signature(Trainer).parameters} - {"unknown"}


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("epochs", "The Trainer has no argument 'epochs'; Minetorch calls it 'max_epochs'."),
        ("num_epochs", "calls it 'max_epochs'"),
        ("accumulate_grad_batches", "calls it 'accumulated_iter'"),
        ("gradient_accumulation_steps", "calls it 'accumulated_iter'"),
        ("gradient_clip_val", "calls it 'clip_grad_norm'"),
        ("precision", "calls it 'amp'"),
        ("callbacks", "calls it 'plugins'"),
        ("save_steps", "no argument 'save_steps': give `checkpoints=Checkpoints(every_steps=…)`."),
        ("save_total_limit", "give `checkpoints=Checkpoints(keep_last=…)`"),
        ("trivial", "calls it 'trival'"),
        ("persist_policy", "give `checkpoints=Checkpoints(when_busy=…)`"),
        ("monitor", "give `checkpoints=Checkpoints(monitor=…)`"),
        ("elastic", "give `strategy='exact'`"),
        ("virtual_shards", "give `strategy=Exact(virtual_shards=…)`"),
        ("find_unused_parameters", "give `strategy=DDP(find_unused_parameters=True)`"),
        ("train_dataset", "calls it 'train_dataloader'"),
        ("max_steps", "counts in epochs: give `max_epochs`. For an epoch of N steps"),
        ("max_iters", "RandomSampler"),
        ("eval_steps", "`eval_stride` epochs"),
        ("devices", "`minetorch-launch --nproc N train.py`"),
        ("logger", "logging.getLogger('minetorch')"),
        ("args", "each option by its name"),
        ("persist_stirde", "no argument 'persist_stirde'. Did you mean 'persist_stride'? Known are 'alch"),
        ("quux", "no argument 'quux'. Known are 'alchemistic_directory', "),
    ],
)
def test_an_argument_of_another_trainer(parts, tmp_path, name, answer):
    with pytest.raises(ConfigurationError) as refused:
        Trainer(**parts(**{name: 1}))
    assert answer in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_all_that_are_unknown_are_answered_at_once(parts):
    with pytest.raises(ConfigurationError, match=r"no argument 'epochs'; .* no argument 'precision' either; "):
        Trainer(**parts(epochs=3, precision=16))


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("after_step", "There is no hook point 'after_step'; Minetorch calls it 'after_train_iteration_end'."),
        ("on_step_end", "calls it 'after_train_iteration_end'"),
        ("on_train_batch_end", "calls it 'after_train_iteration_end'"),
        ("on_epoch_end", "calls it 'after_epoch_end'"),
        ("on_train_epoch_end", "calls it 'after_epoch_end'"),
        ("training_step", "`loss_func(trainer, data)`"),
        ("on_before_optimizer_step", "`clip_grad_norm`"),
        ("before_epoch_strat", "Did you mean 'before_epoch_start'?"),
        ("whenever", "There is no hook point 'whenever'. Known are 'after_init', "),
    ],
)
def test_a_hook_of_another_trainer(parts, tmp_path, name, answer):
    with pytest.raises(ConfigurationError) as refused:
        Trainer(**parts(hooks={name: print}))
    assert answer in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_callback_of_another_trainer_as_a_plugin(parts):
    class Callback:
        def on_train_epoch_end(self, trainer, module):
            pass

    with pytest.raises(ConfigurationError, match="rename on_train_epoch_end to after_epoch_end"):
        Trainer(**parts(plugins=[Callback()]))


def test_every_answer_names_what_there_is():
    assert ARGUMENTS.keys() <= PARAMETERS
    assert HOOKS.keys() <= {*HOOK_POINTS}
    for answer in (*ARGUMENT_ANSWERS, *HOOK_ANSWERS):
        quoted = re.findall(r"`(\w+)`", answer)
        assert {*quoted} <= PARAMETERS, answer
        for argument, kind, option in re.findall(r"`(\w+)=(\w+)\((\w+)=", answer):
            assert argument in PARAMETERS, answer
            assert option in inspect.signature(getattr(minetorch, kind)).parameters, answer
    for kind, tables in (("argument", (ARGUMENTS, ARGUMENT_ANSWERS)), ("hook", (HOOKS, HOOK_ANSWERS))):
        names = [name for table in tables for names in table.values() for name in names.split()]
        assert len(names) == len({*names}), kind
        assert not {*names} & (PARAMETERS if kind == "argument" else {*HOOK_POINTS})
