"""Every view of a run that was killed twice shows one unbroken curve, with each point once."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy
from PIL import Image
from selenium.webdriver.common.by import By
from sqlalchemy.pool import NullPool
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

from minetorch.checkpoint import Store
from minetorch.drawers.picture import render

SCRIPT = Path(__file__).parents[1] / "worlds/drawing.py"
EXPECTED = {"loss": list(range(1, 7)), "loss per step": list(range(1, 31))}
RESUMES = {"loss": [2, 4], "loss per step": [10, 20]}


def pixels(png):
    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture.convert("RGB"))


def in_tensorboard(logdir):
    board = EventMultiplexer(size_guidance={"scalars": 0}).AddRunsFromDirectory(logdir)
    board.Reload()
    tags = {"loss": "loss/train", "loss per step": "loss per step"}
    return {graph: [event.step for event in board.Scalars("run", tag)] for graph, tag in tags.items()}


def in_the_database(url):
    engine = sqlalchemy.create_engine(url, poolclass=NullPool)
    found = {}
    with engine.connect() as connection:
        query = sqlalchemy.text("SELECT graph, x FROM minetorch_points ORDER BY graph, number")
        for graph, x in connection.execute(query):
            found.setdefault(graph, []).append(x)
    engine.dispose()
    return found


def on_a_page(browser, url):
    """By graph, how many points its one line has in how many pieces, and how many resumptions are marked."""
    browser.get(url)
    script = (
        "return [...document.querySelectorAll('.chart')].map(c => [c.querySelector('h3').textContent,"
        " ...[/[ML]/g, /M/g].map(p => c.querySelector('path.line').getAttribute('d').match(p).length),"
        " c.querySelectorAll('.resume').length])"
    )
    found = {name: (points, pieces, resumes) for name, points, pieces, resumes in browser.execute_script(script)}
    ends = [cell.text for cell in browser.find_elements(By.CSS_SELECTOR, "section td:last-child .state")]
    return found, ends


@pytest.mark.timeout(300)
def test_every_view_of_a_run_killed_twice_has_every_point_once(
    aws, browser, command, run_command, tools, watching, tmp_path, monkeypatch
):
    monkeypatch.setenv("S3_ENDPOINT", aws.options["endpoint_url"])  # TensorBoard's own name for it
    directory, database = f"{aws.url}/runs", f"sqlite:///{tmp_path}/points.db"
    for last_step, code in ((13, -9), (23, -9), (0, 0)):
        run_command(sys.executable, SCRIPT, directory, database, last_step, expect=code, env=tools | aws.environ)

    facts = command("compare", f"{directory}/run", f"{directory}/run", "--graph", "loss per step", "--json")
    for run in facts["runs"]:
        (points,) = run["curves"].values()
        assert [x for x, _ in points] == EXPECTED["loss per step"]
        assert run["resumes"] == RESUMES["loss per step"]
    assert facts["differences"] == {}
    for graph, expected in EXPECTED.items():
        facts = command("compare", f"{directory}/run", f"{directory}/run", "--graph", graph, "--json")
        curves = {name: np.array(points).T for name, points in facts["runs"][0]["curves"].items()}
        assert [list(curve[0]) for curve in curves.values()] == [expected]
        drawn = Store.open(directory).child("run").read(f"graph/{graph}.png")
        picture = render(graph, curves, x_name=facts["runs"][0]["x"], code="run", resumes=RESUMES[graph])
        assert np.array_equal(pixels(drawn), pixels(picture))

    assert in_tensorboard(directory) == EXPECTED
    assert in_the_database(database) == EXPECTED
    command("report", f"{directory}/run", "-o", tmp_path / "report.html")
    lines = {"loss": (6, 1, 2), "loss per step": (30, 1, 2)}
    starts = ["killed", "killed", "finished"]
    assert on_a_page(browser, (tmp_path / "report.html").as_uri()) == (lines, starts)
    url = watching(directory, environ=aws.environ)
    assert on_a_page(browser, f"{url}run/run") == (lines, starts)
