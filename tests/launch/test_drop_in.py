"""What runs under torchrun runs here, unchanged, and comes to the same figures."""

import json
import re
import sys

import pytest
import torch.distributed.run

from minetorch_launch.arguments import read
from minetorch_launch.target import Module

ELASTIC = re.compile(r"^(TORCHELASTIC|MASTER|GROUP|ROLE)_|RANK$|WORLD_SIZE$")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
OURS = (sys.executable, "-m", "minetorch_launch", "--device", "cpu", "--nproc")

# Each script waits a moment at its end: an interpreter that ends within milliseconds of its last collective is aborted
# by gloo's thread in one case of fifteen, which torchrun reports as a failure.

DDP = """
    import time

    import torch
    import torch.distributed as dist
    from torch.distributed.elastic.multiprocessing.errors import record
    from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


    @record
    def main():
        dist.init_process_group()
        torch.manual_seed(0)
        data = TensorDataset(torch.randn(64, 4), torch.randn(64, 1))
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        model = torch.nn.parallel.DistributedDataParallel(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sampler = DistributedSampler(data)
        for epoch in range(2):
            sampler.set_epoch(epoch)
            for inputs, targets in DataLoader(data, batch_size=8, sampler=sampler, num_workers=1):
                optimizer.zero_grad()
                loss = torch.nn.functional.mse_loss(model(inputs), targets)
                loss.backward()
                optimizer.step()
                dist.all_reduce(loss)
                if dist.get_rank() == 0:
                    print("loss", repr(loss.item()))
        time.sleep(0.2)  # torchrun's workers may hang where gloo's thread is not done yet
        dist.destroy_process_group()


    if __name__ == "__main__":
        main()
"""

ACCELERATE = """
    import time

    import torch
    from accelerate import Accelerator
    from accelerate.utils import set_seed
    from torch.utils.data import DataLoader, TensorDataset

    accelerator = Accelerator(cpu=True)
    set_seed(0)
    data = TensorDataset(torch.randn(64, 4), torch.randn(64, 1))
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(data, batch_size=8, shuffle=True))
    assert accelerator.num_processes == 2
    for epoch in range(2):
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(model(inputs), targets)
            accelerator.backward(loss)
            optimizer.step()
            accelerator.print("loss", repr(accelerator.reduce(loss.detach(), "mean").item()))
    accelerator.end_training()
    time.sleep(0.2)
"""

LIGHTNING = """
    import time

    import lightning
    import torch
    from torch.utils.data import DataLoader, TensorDataset


    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(4, 1)

        def training_step(self, batch, index):
            loss = torch.nn.functional.mse_loss(self.net(batch[0]), batch[1])
            mean = self.trainer.strategy.reduce(loss.detach(), reduce_op="mean")
            if self.global_rank == 0:
                print("loss", repr(mean.item()))
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)


    if __name__ == "__main__":
        lightning.seed_everything(0, verbose=False)
        data = TensorDataset(torch.randn(64, 4), torch.randn(64, 1))
        trainer = lightning.Trainer(
            accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )
        trainer.fit(Module(), DataLoader(data, batch_size=8, shuffle=True))
        assert trainer.world_size == 2
        time.sleep(0.2)
"""

ENVIRONMENT = """
    import json, os, sys

    with open(f"{sys.argv[1]}.{os.environ['RANK']}", "w") as file:
        json.dump({"argv": sys.argv[2:], "environ": dict(os.environ)}, file)
"""


@pytest.fixture
def both(launches):
    """Runs a command line with two workers under torchrun and under the launcher."""

    def both(script, *args, expect=0, env=None):
        results = []
        for command in (TORCHRUN, OURS):
            result = launches.run("2", script, *args, command=command, env=env, timeout=150)
            assert result.returncode == expect, result.stdout + result.stderr
            results.append(result)
        return results

    return both


def losses(result):
    return re.findall(r"loss ([-+.e\d]+)$", result.stdout, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "steps"), [(DDP, 8), (ACCELERATE, 8), (LIGHTNING, 8)], ids=["ddp", "accelerate", "lightning"]
)
def test_a_script_comes_to_the_same_losses(launches, both, script, steps):
    # Threads change the order of sums.
    theirs, ours = both(launches.script(script), env={"OMP_NUM_THREADS": "1"})
    assert len(losses(theirs)) == steps
    assert losses(ours) == losses(theirs)


def test_a_worker_finds_the_variables_and_arguments_that_torchrun_gives(launches):
    script, rest = launches.script(ENVIRONMENT), ["--nproc", "3", "--", "-x", "a b", "", "--"]
    for name, command in (("torchrun", TORCHRUN), ("ours", OURS)):
        result = launches.run("2", "--", script, name, *rest, command=command)
        assert result.returncode == 0, result.stderr
    for rank in "01":
        theirs, ours = (json.loads((launches.folder / f"{name}.{rank}").read_text()) for name in ("torchrun", "ours"))
        assert ours["argv"] == theirs["argv"] == rest
        environ = {name: value for name, value in theirs["environ"].items() if ELASTIC.search(name)}
        assert {"TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "LOCAL_RANK"} <= environ.keys()
        assert environ.keys() <= ours["environ"].keys()
        same = {name: value for name, value in environ.items() if re.search(r"RANK$|WORLD_SIZE$|RESTART", name)}
        assert {name: ours["environ"][name] for name in same} == same


@pytest.mark.parametrize(
    "line",
    [
        "train.py",
        "train.py --threads 3 -m x",
        "train.py a -- b --",
        "train.py -- -a",
        "train.py -- -- a",
        "-- train.py -- a",
        "-- train.py a",
        "-- -odd.py a",
        "-m package.tool",
        "-m package.tool -- --depth=20",
        "-m package.tool x -- -m x --threads 3",
    ],
)
def test_a_command_line_is_parted_as_torchrun_parts_it(line):
    theirs = torch.distributed.run.get_args_parser().parse_args(line.split())
    ours = read(line.split(), {}).target
    assert isinstance(ours, Module) is theirs.module
    assert (ours.name if theirs.module else ours.path) == theirs.training_script
    assert list(ours.args) == theirs.training_script_args


@pytest.mark.slow
def test_a_recorded_error_is_reported(launches, both):
    script = launches.script("""
        import os
        from torch.distributed.elastic.multiprocessing.errors import record

        @record
        def main():
            if os.environ["RANK"] == "1":
                raise KeyError("the real reason")

        main()
    """)
    theirs, ours = both(script, expect=1)
    assert "the real reason" in theirs.stderr
    assert "rank 1 of 2 failed first: KeyError: 'the real reason'" in ours.stderr
    assert ours.stderr.rstrip().endswith("KeyError: 'the real reason'")
