"""Real runs to look at, some of them killed."""

import logging
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from minetorch import Trainer
from minetorch.checkpoint import Checkpointer, Store


def mean_squared_error(trainer, data):
    return nn.functional.mse_loss(trainer.model(data[0]), data[1])


def draw_steps(trainer, loss):
    trainer.drawer.scalar(loss, "loss per step", x=trainer.progress.step)


@pytest.fixture(scope="session")
def trained_plans(tmp_path_factory):
    """`plan-a`, and `plan-b` with another learning rate and more epochs."""
    folder = tmp_path_factory.mktemp("plans")
    inputs = torch.linspace(-1, 1, 24).reshape(8, 3)
    for code, lr, epochs in (("plan-a", 0.05, 3), ("plan-b", 0.2, 4)):
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        loader = DataLoader(TensorDataset(inputs, inputs.sum(dim=1, keepdim=True)), batch_size=4)
        Trainer(
            folder,
            model,
            torch.optim.Adam(model.parameters(), lr=lr),
            loader,
            mean_squared_error,
            loader,
            code=code,
            hooks={"after_train_iteration_end": draw_steps},
            drawer=None,
            max_epochs=epochs,
        ).train()
    return folder


@pytest.fixture
def plans(trained_plans, tmp_path):
    """A copy of these runs that a test may change."""
    return shutil.copytree(trained_plans, tmp_path / "plans", symlinks=True)


@pytest.fixture
def saved(tmp_path):
    """Writes a state as a checkpoint of the run `tmp_path / code`, with all that makes it a run."""

    def save(state, code="run", **facts):
        store = Store.open(tmp_path / code)
        run = Checkpointer(store.child("models"), logger=logging.getLogger("tests"), **facts.pop("options", {}))
        values = {"step": 1, "epoch": 1, "epoch_complete": True, "position": 0, "world_size": 1, "metrics": {}}
        manifest = run.save(state, **{**values, **facts})
        run.fence.release("finished")
        return store, manifest

    return save


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    """A real Chromium without a window, 1200 by 900."""
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        pytest.skip("no Chromium here: scripts/setup-chromium installs it")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    profile = tmp_path_factory.mktemp("chromium")
    for word in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "no-proxy-server", "window-size=1200,900"):
        options.add_argument(f"--{word}")
    options.add_argument(f"--user-data-dir={profile}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "localhost,127.0.0.1")
        driver = webdriver.Chrome(options, Service(programs[1]))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium):
    """The same with an empty page and no complaints. The page goes before the server that it asks again and again."""
    yield chromium
    chromium.get("about:blank")
    chromium.get_log("browser")


@pytest.fixture
def watching(tools):
    """Runs `minetorch watch` with these arguments; gives the address that it tells. Ended as by Ctrl-C."""
    started = []

    def watch(*words, environ=None):
        command = [
            sys.executable,
            "-c",
            "from minetorch.cli import main; raise SystemExit(main())",
            "watch",
            *map(str, words),
        ]
        started.append(
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=tools | (environ or {}),
            )
        )
        line = started[-1].stdout.readline()
        found = re.search(r"is shown at (http://\S+)", line)
        assert found, line
        return found[1]

    yield watch
    for process in started:
        process.send_signal(signal.SIGINT)
        try:
            output, _ = process.communicate(timeout=30)
        finally:
            process.kill()
        assert process.returncode == 0, output
        assert "Traceback" not in output


@pytest.fixture
def eventually():
    """Waits until something is true, at most a minute; returns it."""

    def wait(condition, *words):
        deadline = time.monotonic() + 60
        while not (value := condition(*words)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return value

    return wait
