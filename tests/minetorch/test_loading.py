"""`minetorch.load`: any run's checkpoint, without its Trainer."""

import subprocess
import sys

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

import minetorch
from minetorch import CheckpointCorruptError, CheckpointNotFoundError, ConfigurationError, StorageError
from minetorch.checkpoint import Store


@pytest.fixture
def run(trained, tmp_path):
    """A run of two epochs."""
    made = trained(code="digits/plan-a")
    return tmp_path / "runs/digits/plan-a", made


KEYS = {
    "state_dict", "optimizer", "optimizer_class", "optimizer_groups", "statable", "plugins", "epoch", "progress",
    "metrics", "lowest_train_loss", "lowest_val_loss", "drawer", "random", "history",
}  # fmt: skip


def test_gives_what_was_saved(run):
    folder, made = run
    state = minetorch.load(folder)
    assert set(state) == KEYS
    assert all(f"`{key}`" in minetorch.load.__doc__ for key in KEYS)
    model = torch.nn.Linear(1, 1)
    model.load_state_dict(minetorch.load(folder, "latest")["state_dict"])
    assert all(torch.equal(made.weights[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("name", "epoch"), [("epoch_1", 1), (1, 1), ("2", 2), ("latest", 2), ("latest.pth.tar", 2)])
def test_by_any_name(run, name, epoch):
    assert minetorch.load(run[0], name)["epoch"] == epoch


def test_from_any_place(run, bucket, memory_copy, monkeypatch, tmp_path):
    folder, made = run
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    places = [str(folder), "runs/digits/plan-a", "~/runs/digits/plan-a", f"file://{folder}", folder / "models"]
    places.append(memory_copy(folder))
    for place in places:
        assert torch.equal(minetorch.load(place, "latest")["state_dict"]["weight"], made.weights["weight"])
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            key = f"runs/plan [1] ünï/{path.relative_to(folder)}"
            bucket.client.put_object(Bucket=bucket.name, Key=key, Body=path.read_bytes())
    state = minetorch.load(f"{bucket.url}/runs/plan [1] ünï", "latest", storage_options=bucket.options)
    assert torch.equal(state["state_dict"]["weight"], made.weights["weight"])


@pytest.fixture
def memory_copy():
    """Copies a folder to fsspec's memory, and forgets it afterwards."""

    def copy(folder):
        MemoryFileSystem().put(str(folder), "/loaded", recursive=True)
        return "memory://loaded"

    yield copy
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def test_puts_tensors_where_it_is_told(run):
    assert minetorch.load(run[0], map_location="meta")["state_dict"]["weight"].device.type == "meta"
    assert minetorch.load(run[0], map_location=torch.device("cpu"))["state_dict"]["weight"].device.type == "cpu"
    if not torch.cuda.is_available():
        with pytest.raises((RuntimeError, AssertionError), match=r"(?i)cuda"):
            minetorch.load(run[0], map_location="cuda")


def test_what_is_not_there(run, tmp_path):
    folder, _ = run
    with pytest.raises(CheckpointNotFoundError, match=r"'bst' in .*; there are: names best, latest; epochs 2, 1;"):
        minetorch.load(folder, "bst")
    with pytest.raises(CheckpointNotFoundError, match=r"There is no run 'plan-b'\. Did you mean 'plan-a'\?"):
        minetorch.load(folder.parent / "plan-b")
    with pytest.raises(CheckpointNotFoundError, match="there are these below it: digits/plan-a"):
        minetorch.load(tmp_path / "runs")
    with pytest.raises(CheckpointNotFoundError, match="there is no run at memory://nowhere/at/all"):
        minetorch.load("memory://nowhere/at/all")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot list"):
        minetorch.load(tmp_path / "file")
    for name in (True, "a/b", 2.5):
        with pytest.raises(ConfigurationError):
            minetorch.load(folder, name)


def test_what_is_damaged(run):
    folder, _ = run
    payload = (folder / "models/latest.pth.tar").resolve()
    payload.write_bytes(payload.read_bytes()[:-1])
    with pytest.raises(CheckpointCorruptError, match="is truncated"):
        minetorch.load(folder, "latest")
    assert minetorch.load(folder, "epoch_1")["epoch"] == 1
    payload.unlink()
    with pytest.raises(CheckpointCorruptError, match="is missing"):
        minetorch.load(folder, "latest", map_location="meta")


def test_a_run_that_drops_the_checkpoint_while_it_is_read(run, monkeypatch):
    """As one that keeps a single checkpoint and saves often: what the name means by then is read."""
    models = run[0] / "models"
    newest, read = max(models.glob("g*.json")), Store.read_large

    def drop_and_read(*arguments):
        for file in (newest, newest.with_suffix(".pth.tar")):
            file.unlink(missing_ok=True)
        return read(*arguments)

    monkeypatch.setattr(Store, "read_large", drop_and_read)
    assert minetorch.load(run[0], "latest")["epoch"] == 1


def test_importing_minetorch_imports_torch_only_when_it_is_used():
    script = (
        "import sys, minetorch; assert 'torch' not in sys.modules; minetorch.Trainer; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_every_public_name_is_there_and_no_other():
    for name in minetorch.__all__:
        assert getattr(minetorch, name) is getattr(minetorch, name)
        assert name in dir(minetorch)
    with pytest.raises(AttributeError, match="has no attribute 'Trianer'"):
        minetorch.Trianer  # noqa: B018
