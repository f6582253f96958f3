"""Losses, hooks, states, foreign checkpoints and environments that cannot be: one clear error, and nothing lost."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from minetorch import CheckpointCorruptError, CheckpointMismatchError, ConfigurationError, Trainer
from minetorch.data.stream import StreamPosition
from minetorch.distributed.deadline import JobEnd
from minetorch.distributed.world import World
from minetorch.progress import Progress
from minetorch_launch.heartbeat import HeartbeatWriter

HUGE = "9" * 5000


def own_loss(trainer, data):
    return nn.functional.mse_loss(trainer.model(data[0]), data[1])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda loss: loss.to("meta"), "it returned one on meta, and this worker computes on cpu"),
        (lambda loss: torch.complex(loss, loss), r"it returned a complex one \(torch.complex64\)"),
        (lambda loss: None, r"it returned NoneType \(None\)"),
        (lambda loss: (loss, 3), r"it returned tuple \("),
        (lambda loss: {"loss": loss}, r"it returned dict \("),
        (lambda loss: loss.expand(2), r"a tensor of shape \(2,\)"),
        (lambda loss: loss[None][:0], r"a tensor of shape \(0,\)"),
        (lambda loss: loss > 0, "a loss without a gradient"),
    ],
)
def test_what_a_loss_cannot_be(make_trainer, spoil, said):
    with pytest.raises(ConfigurationError, match=said):
        make_trainer(loss_func=lambda trainer, data: spoil(own_loss(trainer, data))).train()


def test_a_validation_loss_may_be_a_count_but_not_complex(trained, make_trainer, tmp_path):
    def count(trainer, data):
        loss = own_loss(trainer, data)
        return loss if trainer.model.training else (loss > 0).long()

    assert trained(loss_func=count).metrics["val_loss"] == 1.0

    def complex_in_validation(trainer, data):
        loss = own_loss(trainer, data)
        return loss if trainer.model.training else torch.complex(loss, loss)

    with pytest.raises(ConfigurationError, match="a complex one"):
        make_trainer(loss_func=complex_in_validation, alchemistic_directory=tmp_path / "other").train()


def test_a_stream_that_says_it_is_empty_is_refused_and_one_that_does_not_ends_with_an_error(parts):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(())

    class Sized(Stream):
        def __len__(self):
            return 0

    with pytest.raises(ConfigurationError, match="train_dataloader has no batch"):
        Trainer(**parts(train_dataloader=DataLoader(Sized(), batch_size=4)))
    with pytest.raises(ConfigurationError, match="train_dataloader gave no batch in a whole epoch"):
        Trainer(**parts(train_dataloader=DataLoader(Stream(), batch_size=4))).train()


@pytest.mark.parametrize("size", [2, 7])
def test_data_that_is_smaller_than_the_world_is_shared_out_unless_it_is_dropped(size):
    from minetorch.data import share_out
    from minetorch.options.checks import check_length

    data = TensorDataset(torch.zeros(1, 1))
    for rank in range(size):
        check_length("it", share_out(DataLoader(data, batch_size=1), World(rank, size)))
        with pytest.raises(ConfigurationError, match="it has no batch"):
            check_length("it", share_out(DataLoader(data, batch_size=1, drop_last=True), World(rank, size)))


def test_a_parameter_without_a_shape_is_refused_with_one_worker_too(parts):
    model = nn.LazyLinear(1)
    with pytest.raises(ConfigurationError, match=r"The model's parameter weight has no shape before the first batch"):
        Trainer(**parts(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1)))


class Keeps:
    def __init__(self, state):
        self.state = state

    def state_dict(self):
        return {"kept": self.state}

    def load_state_dict(self, state):
        self.state = state["kept"]


@pytest.mark.parametrize("state", [lambda: 0, object(), nn.Linear(1, 1), torch.Generator(), {"a": {1: print}}])
def test_a_state_that_no_checkpoint_can_hold_is_said_before_the_training(make_trainer, parts, tmp_path, state):
    began = []
    with pytest.raises(ConfigurationError, match=r"the checkpoint cannot hold statable\.mine\.kept"):
        Trainer(**parts(statable={"mine": Keeps(state)}, hooks={"before_epoch_start": began.append})).train()
    assert not began
    assert not list(tmp_path.rglob("*.pth.tar"))
    assert make_trainer().current_epoch == 0  # the run was let go


def test_a_hook_that_raises_ends_the_run_with_its_own_error_and_loses_nothing(make_trainer):
    def fail(trainer, epoch):
        if epoch == 2:
            raise LookupError("the hook's own")

    with pytest.raises(LookupError, match="the hook's own"):
        make_trainer(hooks={"after_epoch_end": fail}).train()
    again = make_trainer()
    assert again.current_epoch == 1
    again.train()
    assert again.progress.step == 10


@pytest.fixture
def foreign(trained, tmp_path):
    """Makes a file of a run's state with other values in it."""
    trained(max_epochs=1, statable={"mine": Keeps(3)})
    (file,) = (tmp_path / "runs/default/models").glob("g*.pth.tar")
    state = torch.load(file, weights_only=True)

    def make(changes, without=()):
        path = tmp_path / "foreign.pth.tar"
        torch.save({key: value for key, value in state.items() if key not in without} | changes, path)
        return path

    return make


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"progress": {"loss_sums": 3}}, r"progress\.loss_sums is 3, not a list"),
        ({"history": 5}, "history is 5, not a list"),
        ({"metrics": [1]}, "metrics is a list, not a dict"),
        ({"lowest_val_loss": "low"}, "lowest_val_loss is 'low', not a number"),
        ({"state_dict": 5}, "state_dict is 5, not a dict"),
        ({"optimizer": 5}, "optimizer is 5, not a dict"),
        (
            {"optimizer_groups": [{"given": {"lr": {}}}]},
            r"optimizer_groups\[0\].given\['lr'\] is a dict, not a plain v",
        ),
        ({"statable": [1]}, "statable is a list, not a dict"),
        ({"random": [{"python": 5}]}, r"random\[0\]\.python is 5, not a list"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_with_its_place(parts, foreign, changes, said):
    file = foreign(changes)
    with pytest.raises(CheckpointCorruptError, match=rf"foreign.pth.tar cannot be read as a checkpoint: {said}"):
        Trainer(**parts(resume=str(file), code="other", statable={"mine": Keeps(4)}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"state_dict": {}}, "does not fit this model"),
        ({"optimizer": {"state": 3, "param_groups": [3]}}, "does not fit this SGD"),
        ({"optimizer_groups": [{}]}, "does not fit this SGD"),
        ({"statable": {"mine": 5}}, r"The state of statable 'mine' in .*TypeError"),
        ({"random": [{"python": [3]}]}, "The random generators in "),
    ],
)
def test_a_foreign_state_is_refused_by_its_part_and_stays_as_it_is(make_trainer, parts, foreign, changes, said):
    file = foreign(changes)
    before = file.read_bytes()
    with pytest.raises(CheckpointMismatchError, match=said):
        Trainer(**parts(resume=str(file), code="other", statable={"mine": Keeps(4)}))
    assert file.read_bytes() == before
    assert make_trainer(statable={"mine": Keeps(4)}).current_epoch == 1


def test_a_file_of_another_program_may_have_anything_in_it(parts, foreign):
    file = foreign({"history": {"loss": [0.5]}, "metrics": [1], "epoch": "7"}, without=["progress"])
    with pytest.raises(CheckpointMismatchError, match="is not a checkpoint of Minetorch: it lacks progress"):
        Trainer(**parts(resume=str(file), code="other"))


def test_counters_of_every_kind_come_back():
    progress = Progress()
    progress.start_epoch()
    progress.count(SimpleNamespace(units=4, total=4, stream=StreamPosition((4,))))
    progress.loss_sums, progress.loss_sum = [1.5], 1.5
    other = Progress()
    other.load_state_dict(progress.state_dict())
    assert other == progress


fuzzed = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))
VARIABLES = [
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_ID",
    "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_JOB_ID", "SLURM_PROCID",
    "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE", "SLURM_JOB_END_TIME", "SLURM_JOB_START_TIME", "MINETORCH_DEVICE",
    "MINETORCH_HEARTBEAT_FD", "MINETORCH_ATTEMPT",
]  # fmt: skip
values = st.one_of(
    st.integers(-2, 70_000).map(str),
    st.text("0123456789n[],-()x² ", max_size=12),
    st.sampled_from(["", "cpu", "cuda", "auto", "localhost", "n[1-2]", "2(x2)", "nan", HUGE]),
)
SIZED = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
STEP = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_STEP_NODELIST": "n[1-2]"}


@fuzzed
@given(st.sampled_from([{}, SIZED, STEP]), st.dictionaries(st.sampled_from(VARIABLES), values, max_size=6))
@example(SIZED, {"MASTER_PORT": "http"})
@example(SIZED, {"MASTER_PORT": "65536"})
@example(SIZED, {"WORLD_SIZE": HUGE})
@example(SIZED, {"LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "2"})
@example(STEP, {"SLURM_STEP_TASKS_PER_NODE": "(x2)"})
@example(STEP, {"SLURM_JOB_ID": "", "SLURM_LOCALID": ""})
@example({}, {"SLURM_JOB_END_TIME": HUGE, "SLURM_JOB_START_TIME": HUGE})
@example({}, {"MINETORCH_HEARTBEAT_FD": HUGE})
def test_whatever_is_in_the_environment_is_a_place_in_a_world_or_refused(base, changes):
    environ = {"MINETORCH_DEVICE": "cpu", **base, **changes}
    end = JobEnd.from_environ(environ)
    assert end.is_near in (True, False)
    HeartbeatWriter.from_environ(environ).begin()
    try:
        world = World.from_environ(environ)
    except ConfigurationError as error:
        refused = str(error)
        assert len(refused) < 1000
        return
    assert 0 <= world.rank < world.size
    assert world.local_rank < world.local_size or not {"LOCAL_RANK", "LOCAL_WORLD_SIZE"} <= environ.keys()
    port = {**environ, **world.rendezvous}.get("MASTER_PORT", "1")
    assert world.size == 1 or 0 < int(port) < 65536
