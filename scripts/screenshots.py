"""Trains the digits, kills it twice, and takes pictures of whatever shows it. `scripts/screenshots` runs it."""

from __future__ import annotations

import html
import io
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import pyte
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[1]
MOST_BYTES = 150_000
COLUMNS, LINES = 150, 50

TRAIN = """
import os, signal, sys, time
sys.path.insert(0, {examples!r})
import torch
from digits import datasets, draw_accuracy, loss_func, network
from torch.utils.data import DataLoader
from minetorch import Checkpoints, Trainer
from minetorch.plugins import Throughput

code, (lr, epochs, last_epoch, pause_s) = sys.argv[1], map(float, sys.argv[2:])

def draw_step(trainer, loss):
    trainer.drawer.scalar(loss, "loss per step", x=trainer.progress.step)
    time.sleep(pause_s)
    if trainer.current_epoch == last_epoch and trainer.progress.iteration == 12:
        os.kill(os.getpid(), signal.SIGKILL)

torch.manual_seed(0)
model = network()
train, val = datasets()
Trainer(
    "runs", model, torch.optim.Adam(model.parameters(), lr=lr), DataLoader(train, batch_size=64, shuffle=True),
    loss_func, DataLoader(val, batch_size=128), code=code, max_epochs=int(epochs), drawer=["matplotlib", "tensorboard"],
    hooks={{"after_epoch_end": draw_accuracy, "after_train_iteration_end": draw_step}}, plugins=[Throughput()],
    checkpoints=Checkpoints(every_steps=10, keep_last=8), split_batches=True,
).train()
"""


def main(out: Path) -> None:
    """Make every picture."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="digits-") as folder, chromium() as browser:
        place = Path(folder)
        (place / "train.py").write_text(TRAIN.format(examples=str(ROOT / "examples")))
        os.chdir(place)
        for last_epoch, code in ((5, -signal.SIGKILL), (10, -signal.SIGKILL), (0, 0)):
            train("plan-a", "0.002", "15", str(last_epoch), "0.01", expect=code)
        train("plan-b", "0.01", "15", "0", "0")
        for graph in ("loss", "accuracy"):
            save(out / f"{graph}.png", (place / f"runs/plan-a/graph/{graph}.png").read_bytes())
        minetorch("compare", "runs/plan-a", "runs/plan-b", "--graph", "accuracy", "-o", "compare.png")
        save(out / "compare.png", Path("compare.png").read_bytes())
        minetorch("report", "runs/plan-a", "-o", "report.html")
        take_report(browser, (place / "report.html").as_uri(), out)
        take_tensorboard(browser, out)
        take_watch(browser, out)
        take_terminal(browser, out)
        take_notebook(browser, out)


def take_report(browser: Any, url: str, out: Path) -> None:
    """In light and dark, and on a phone."""
    size(browser, 1180, 1120)
    browser.get(url)
    ActionChains(browser).move_to_element(browser.find_elements(By.CSS_SELECTOR, ".plot")[0]).perform()
    save(out / "report.png", browser.get_screenshot_as_png())
    scheme(browser, "dark")
    browser.get(url)
    save(out / "report-dark.png", browser.get_screenshot_as_png())
    size(browser, 390, 1000)
    browser.get(url)
    save(out / "report-phone.png", browser.get_screenshot_as_png())
    scheme(browser, "light")


def take_tensorboard(browser: Any, out: Path) -> None:
    """Its own page, of the run that was killed twice."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", "runs", "--port", "0", "--host", "127.0.0.1"]
    with serving(command, r"at (http://\S+?/?) ") as url:
        size(browser, 1180, 760)
        browser.get(f"{url}?darkMode=false&tagFilter=loss#timeseries")
        wait(lambda: len(browser.find_elements(By.CSS_SELECTOR, "scalar-card line-chart")) >= 2, browser)
        buttons = browser.find_elements(By.TAG_NAME, "button")
        next(button for button in buttons if "Settings" in button.text).click()
        time.sleep(3)  # its curves are drawn in a canvas, of which nothing tells when
        save(out / "tensorboard.png", browser.get_screenshot_as_png())


def take_watch(browser: Any, out: Path) -> None:
    """With a run that is under way."""
    command = [sys.executable, "-u", "train.py", "plan-c", "0.005", "1000", "0", "0.02"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        try:
            script = "from minetorch.cli import main; raise SystemExit(main())"
            with serving([sys.executable, "-c", script, "watch", "runs"], r"at (http://\S+)") as url:
                size(browser, 1180, 420)
                browser.get(url)
                told = "return document.querySelector('main').innerText"  # in one go: the page may change itself
                wait(lambda: re.search(r"plan-c\s+running\s+\d", browser.execute_script(told)), browser)
                save(out / "watch.png", browser.get_screenshot_as_png())
        finally:
            running.kill()


def take_terminal(browser: Any, out: Path) -> None:
    """The run that was killed, going on on two workers, as a terminal shows it."""
    words = ["--nproc", "2", "--device", "cpu", "train.py", "plan-c", "0.005", "4", "0", "0.02"]
    shown = terminal([str(Path(sys.executable).parent / "minetorch-launch"), *words])
    page = Path("terminal.html")
    page.write_text(as_page(" ".join(["$", "minetorch-launch", *words]), shown), encoding="utf-8")
    size(browser, 1160, 420)
    browser.get(page.absolute().as_uri())
    height = browser.execute_script("return document.querySelector('pre').offsetHeight")
    size(browser, 1160, height + 32)
    save(out / "terminal.png", browser.get_screenshot_as_png())


def take_notebook(browser: Any, out: Path) -> None:
    """The example, run by a kernel: its first training, on two workers."""
    notebook = nbformat.read(ROOT / "examples/train.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(Path.cwd())}}).execute()
    page = Path("notebook.html")
    page.write_text(HTMLExporter(exclude_input_prompt=True).from_notebook_node(notebook)[0], encoding="utf-8")
    size(browser, 1000, 1000)
    browser.get(page.absolute().as_uri())
    top = "document.querySelector('.jp-OutputArea-output img').closest('.jp-Cell').getBoundingClientRect().top"
    browser.execute_script(f"window.scrollTo(0, {top} + window.scrollY)")
    save(out / "notebook.png", browser.get_screenshot_as_png())


def terminal(command: list[str]) -> pyte.Screen:
    """What a command leaves on a terminal of its own."""
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(screen)
    pid, fd = pty.fork()
    if pid == 0:
        os.environ.update(COLUMNS=str(COLUMNS), LINES=str(LINES), TERM="xterm-256color")
        os.execv(command[0], command)
    with os.fdopen(fd, "rb", buffering=0) as output:
        try:
            while data := output.read(65536):
                stream.feed(data)
        except OSError:
            pass  # so Linux says that the other side has closed it
    os.waitpid(pid, 0)
    return screen


def as_page(prompt: str, screen: pyte.Screen) -> str:
    """A screen as HTML, its empty lines at the end left out."""
    lines = []
    for row in range(screen.lines):
        cells = [screen.buffer[row][column] for column in range(screen.columns)]
        lines.append("".join(_cell(cell) for cell in cells).rstrip())
    while lines and not lines[-1].strip():
        lines.pop()
    style = (
        "body{margin:0;background:#e9ecf1}i{font-style:normal}"
        "pre{margin:16px;padding:16px 18px;border-radius:10px;background:#12161d;color:#dfe5ee;overflow:hidden;"
        "font:12px/1.6 'DejaVu Sans Mono',monospace;white-space:pre}"
    )
    body = "\n".join([f'<i style="color:#7fd88f">{html.escape(prompt)}</i>', *lines])
    return f"<!doctype html><meta charset=utf-8><style>{style}</style><pre>{body}</pre>"


_COLOURS = {"red": "#ff8f86", "green": "#7fd88f", "brown": "#f0c24b", "blue": "#7cb8f5", "cyan": "#5fd3d3"}


def _cell(cell: Any) -> str:
    text, colour = html.escape(cell.data), _COLOURS.get(cell.fg)
    return f'<i style="color:{colour}">{text}</i>' if colour else text


def train(*words: str, expect: int = 0) -> None:
    """Run the script to its end."""
    done = subprocess.run(
        [sys.executable, "train.py", *words], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == expect, done.stdout + done.stderr


def minetorch(*words: str) -> None:
    """Run the command."""
    subprocess.run([str(Path(sys.executable).parent / "minetorch"), *words], check=True, timeout=120)


@contextmanager
def serving(command: list[str], pattern: str) -> Iterator[str]:
    """The address that a server tells of itself; it is ended after."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(pattern, line):
                yield found[1]
                return
        raise RuntimeError(f"{command} told no address")
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser without a window."""
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        sys.exit("screenshots need Chromium: scripts/setup-chromium installs it")
    options = webdriver.ChromeOptions()
    options.binary_location = str(programs[0])
    for word in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "no-proxy-server", "hide-scrollbars"):
        options.add_argument(f"--{word}")
    os.environ["NO_PROXY"] = "localhost,127.0.0.1"
    browser = webdriver.Chrome(options, Service(programs[1]))
    try:
        yield browser
    finally:
        browser.quit()


def size(browser: Any, width: int, height: int) -> None:
    """Of what a picture shows, in CSS pixels."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1.25, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def scheme(browser: Any, name: str) -> None:
    """Light or dark."""
    features = [{"name": "prefers-color-scheme", "value": name}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def wait(condition: Callable[[], object], browser: Any) -> None:
    """Until it is so, a minute at most."""
    deadline = time.monotonic() + 60
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(browser.page_source[:2000])
        time.sleep(0.1)


def save(path: Path, png: bytes) -> None:
    """Write a picture with as many colours as keep it small."""
    for colours in (256, 128, 64, 32):
        data = io.BytesIO()
        with Image.open(io.BytesIO(png)) as picture:
            picture.convert("RGB").quantize(colours, dither=Image.Dither.NONE).save(data, "png", optimize=True)
        if data.tell() < MOST_BYTES:
            path.write_bytes(data.getvalue())
            print(f"{path}: {data.tell() / 1000:.0f} kB")
            return
    raise ValueError(f"{path} takes {data.tell()} bytes; show less of it")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
