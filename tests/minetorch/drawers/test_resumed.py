"""The closed loop: a run that is killed and goes on draws as one that was never stopped."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy
from PIL import Image
from sqlalchemy.pool import NullPool
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

import minetorch
from minetorch.checkpoint import Store
from minetorch.drawers import Curves
from minetorch.drawers.picture import render

SCRIPT = Path(__file__).parents[1] / "worlds/drawing.py"
STEPS = list(range(1, 31))  # 5 of each of 6 epochs
EPOCHS = list(range(1, 7))


def tensorboards_points(logdir):
    """Steps by tag, by the loader of TensorBoard's own server."""
    board = EventMultiplexer(size_guidance={"scalars": 0}).AddRunsFromDirectory(logdir)
    board.Reload()
    assert list(board.Runs()) == ["run"]
    tags = board.Runs()["run"]["scalars"]
    return {tag: [event.step for event in board.Scalars("run", tag)] for tag in tags}


def databases_points(url):
    engine = sqlalchemy.create_engine(url, poolclass=NullPool)
    query = "SELECT graph, x FROM minetorch_points ORDER BY graph, number"
    points = {}
    with engine.connect() as connection:
        for graph, x in connection.execute(sqlalchemy.text(query)):
            points.setdefault(graph, []).append(x)
        marks = connection.execute(sqlalchemy.text("SELECT kind, epoch, step FROM minetorch_marks ORDER BY number"))
        return points, [tuple(mark) for mark in marks]


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


@pytest.mark.timeout(400)
def test_killed_twice_every_drawer_has_every_point_once(bucket, postgres, run_command, tools, monkeypatch):
    for name, value in (bucket.environ | {"S3_ENDPOINT": bucket.client.meta.endpoint_url}).items():
        monkeypatch.setenv(name, value)
    directory = f"{bucket.url}/runs"
    url = postgres()
    command = sys.executable, SCRIPT, directory, url.render_as_string(hide_password=False)
    environ = tools | bucket.environ
    for last_step in (13, 23):
        run_command(*command, last_step, expect=-9, env=environ)
        killed, _ = databases_points(url)
        assert killed["loss per step"] == STEPS[:last_step]  # there was something to take back
    run_command(*command, 0, env=environ)

    points, marks = databases_points(url)
    assert points == {"loss": EPOCHS, "loss per step": STEPS}
    assert marks == [("resume", 2, 10), ("resume", 4, 20)]
    assert tensorboards_points(directory) == {"loss/train": EPOCHS, "loss per step": STEPS}
    run = Store.open(directory).child("run")
    curves = Curves()
    curves.load_state_dict(minetorch.load(f"{directory}/run", "latest")["drawer"])
    for graph, expected, resumes in (("loss", EPOCHS, [2, 4]), ("loss per step", STEPS, [10, 20])):
        drawn = {name: curve.to_numpy() for name, curve in curves[graph].items()}
        assert [list(curve[0]) for curve in drawn.values()] == [expected]
        picture = render(graph, drawn, x_name=curves.x_name(graph), code="run", resumes=resumes)
        assert np.array_equal(pixels(run.read(f"graph/{graph}.png")), pixels(picture))
    assert "failed" not in run.read("log.txt").decode()
