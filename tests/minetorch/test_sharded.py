"""A sharded model is refused before anything is written: rank 0 alone has a part of it, and would save that as all."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Shard, distribute_tensor

from minetorch.checkpoint.plain import plain_state
from minetorch.checkpoint.reader import decode
from minetorch.errors import CheckpointMismatchError, ConfigurationError


@pytest.fixture
def mesh(tmp_path):
    """Of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.fixture
def sharded(mesh):
    """A tensor in parts."""
    return distribute_tensor(torch.arange(8.0), mesh, [Shard(0)])


def refused(make_trainer, tmp_path, **changes):
    with pytest.raises(ConfigurationError, match="Sharded models are not supported yet") as caught:
        make_trainer(**changes)
    assert not (tmp_path / "runs").exists()
    return str(caught.value)


def test_a_model_of_fully_shard(make_trainer, tmp_path, mesh):
    model = fully_shard(nn.Linear(1, 1), mesh=mesh)
    assert "parameter weight is a DTensor" in refused(make_trainer, tmp_path, model=model)


@pytest.mark.filterwarnings("ignore:FSDP is switching")
def test_a_model_in_fsdp_with_plain_parameters(make_trainer, tmp_path, mesh):
    part = FullyShardedDataParallel(nn.Linear(1, 1), use_orig_params=True, device_id=torch.device("cpu"))
    model = nn.Sequential(part)
    assert "module '0' is a FullyShardedDataParallel" in refused(make_trainer, tmp_path, model=model)


def test_a_sharded_buffer(make_trainer, tmp_path, sharded):
    model = nn.Linear(1, 1)
    model.register_buffer("bank", sharded)
    assert "buffer bank is a DTensor" in refused(make_trainer, tmp_path, model=model)


def test_a_sharded_parameter_of_the_optimizer_alone(make_trainer, tmp_path, sharded):
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD([*model.parameters(), nn.Parameter(sharded)], lr=0.1)
    assert "The optimizer holds a DTensor" in refused(make_trainer, tmp_path, model=model, optimizer=optimizer)


def test_a_state_with_a_sharded_tensor_is_not_saved(sharded):
    with pytest.raises(ConfigurationError, match=r"cannot hold statable.bank: it is a DTensor.*full_tensor"):
        plain_state({"statable": {"bank": sharded}})


def test_a_file_with_a_sharded_tensor_is_not_loaded(tmp_path, sharded):
    torch.save({"state_dict": {"weight": sharded}}, tmp_path / "part.pth")
    with pytest.raises(CheckpointMismatchError, match=r"part of a sharded model \(state_dict.weight\)"):
        decode((tmp_path / "part.pth").read_bytes())


def test_a_file_with_a_sharded_tensor_is_not_loaded_where_torch_does_not_know_its_class(tmp_path, sharded):
    torch.save({"state_dict": {"weight": sharded}}, tmp_path / "part.pth")
    known = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        with pytest.raises(CheckpointMismatchError, match=r"part of a sharded model \(DTensor\)"):
            decode((tmp_path / "part.pth").read_bytes())
    finally:
        torch.serialization.add_safe_globals(known)
