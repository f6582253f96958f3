import io
import logging
import math
import sqlite3
import subprocess
import sys
import threading

import pytest
import sqlalchemy
import torch

from minetorch.checkpoint import Store
from minetorch.drawers import Drawers, SqlDrawer, make_drawers
from minetorch.drawers.database import Database
from minetorch.errors import ConfigurationError, StorageError, SupersededError

from .conftest import PASSWORD

POINTS = "SELECT graph, curve, number, x, y, special FROM minetorch_points ORDER BY graph, curve, number"


class Start:
    """One start of a run; `generation` as the store of a Trainer has it."""

    def __init__(self, path, url, generation=0, interval_s=0):
        store = Store.open(path)
        store.generation = generation
        self.epoch = 0
        self.said = io.StringIO()
        logger = logging.Logger("test")
        logger.addHandler(logging.StreamHandler(self.said))
        self.sql = SqlDrawer(url, interval_s=interval_s)
        self.sql._worker._error_rest_s = 0.05
        self.drawer = Drawers([self.sql], store=store, code="plan a", current_x=lambda: self.epoch, logger=logger)

    def epochs(self, *epochs, factor=1.0):
        for self.epoch in epochs:
            self.drawer.scalars({"train": self.epoch * factor, "val": self.epoch / 4}, "loss")
            self.drawer.flush()

    def save(self):
        file = io.BytesIO()
        torch.save(self.drawer.state_dict(), file)
        return file.getvalue()

    def resume(self, saved, step=0):
        self.drawer.load_state_dict(torch.load(io.BytesIO(saved), weights_only=True))
        self.drawer.mark("resume", self.epoch, step)


def train(rows):
    return [(x, y) for graph, curve, _, x, y, _ in rows(POINTS) if (graph, curve) == ("loss", "train")]


def test_points_graphs_marks_and_the_run_can_be_read(tmp_path, database):
    start = Start(tmp_path / "run", database.url, generation=3)
    start.epochs(1)
    start.drawer.scalar(math.nan, "loss per step", x=10)
    start.drawer.scalar(-math.inf, "loss per step", x=20)
    start.drawer.scalar(1e300, "loss per step", x=30)
    start.drawer.mark("resume", 1, 40)
    start.drawer.close()
    assert database.rows(POINTS) == [
        ("loss", "train", 0, 1, 1, None),
        ("loss", "val", 0, 1, 0.25, None),
        ("loss per step", "loss per step", 0, 10, None, "nan"),
        ("loss per step", "loss per step", 1, 20, None, "-inf"),
        ("loss per step", "loss per step", 2, 30, 1e300, None),
    ]
    assert database.rows("SELECT graph, x_name FROM minetorch_graphs ORDER BY graph") == [
        ("loss", "epoch"),
        ("loss per step", "step"),
    ]
    assert database.rows("SELECT number, kind, epoch, step FROM minetorch_marks") == [(0, "resume", 1, 40)]
    run = database.rows("SELECT code, place, generation, run_id FROM minetorch_runs")
    assert run == [("plan a", str(tmp_path / "run"), 3, (tmp_path / "run/run.id").read_text().strip())]
    assert start.said.getvalue() == ""


def test_points_come_in_while_the_run_goes_on(tmp_path, database, eventually):
    start = Start(tmp_path / "run", database.url)
    start.epochs(1)
    start.drawer.close()
    start.epochs(2)
    eventually(lambda: train(database.rows), [(1, 1), (2, 2)])
    start.epochs(3)
    eventually(lambda: train(database.rows), [(1, 1), (2, 2), (3, 3)])
    start.drawer.close()


def test_a_resumed_run_has_no_point_from_after_its_checkpoint(tmp_path, database):
    first = Start(tmp_path / "run", database.url, generation=1)
    first.epochs(1, 2)
    saved = first.save()
    first.epochs(3, 4)
    first.drawer.scalar(1, "gone")
    first.drawer.close()
    times = database.rows("SELECT drawn_at FROM minetorch_points WHERE x <= 2 ORDER BY curve, number")

    second = Start(tmp_path / "run", database.url, generation=2)
    second.resume(saved)
    second.drawer.close()
    assert train(database.rows) == [(1, 1), (2, 2)]
    assert database.rows("SELECT graph FROM minetorch_graphs") == [("loss",)]
    second.epochs(3, 4, factor=10)
    second.drawer.close()
    assert train(database.rows) == [(1, 1), (2, 2), (3, 30), (4, 40)]
    assert database.rows("SELECT drawn_at FROM minetorch_points WHERE x <= 2 ORDER BY curve, number") == times
    assert len(database.rows("SELECT * FROM minetorch_runs")) == 1
    assert database.rows("SELECT count(*) FROM minetorch_marks") == [(1,)]


def test_what_differs_from_the_record_is_replaced_and_what_is_missing_comes_back(tmp_path, database):
    first = Start(tmp_path / "run", database.url)
    first.epochs(1, 2, 3, 4, factor=7)  # another history, as of a run whose database was away when it was resumed
    first.drawer.close()
    with Database(database.url).transaction() as connection:
        connection.execute(sqlalchemy.text("DELETE FROM minetorch_points WHERE curve = 'val' AND number = 1"))
    second = Start(tmp_path / "elsewhere", None)
    second.epochs(1, 2, 3)
    third = Start(tmp_path / "run", database.url)
    third.resume(second.save())
    third.drawer.close()
    second.drawer.close()
    assert database.rows(POINTS) == [
        ("loss", curve, number, number + 1, (number + 1) * factor, None)
        for curve, factor in (("train", 1), ("val", 0.25))
        for number in range(3)
    ]


def test_a_start_from_scratch_begins_anew(tmp_path, database):
    first = Start(tmp_path / "run", database.url, generation=1)
    first.epochs(1, 2, 3)
    first.drawer.close()
    second = Start(tmp_path / "run", database.url, generation=2)
    second.epochs(1)
    second.drawer.close()
    assert train(database.rows) == [(1, 1)]


def test_an_older_start_writes_nothing_after_its_successor(tmp_path, database, eventually):
    zombie = Start(tmp_path / "run", database.url, generation=1)
    zombie.epochs(1, 2)
    saved = zombie.save()
    zombie.drawer.close()
    heir = Start(tmp_path / "run", database.url, generation=2)
    heir.resume(saved)
    heir.drawer.close()
    before = database.rows(POINTS)
    zombie.epochs(3, 4)
    with pytest.raises(SupersededError, match="start number 2, and this one's is 1"):
        zombie.sql.close()
    zombie.drawer.restore(zombie.drawer.curves)
    zombie.drawer.close()
    assert database.rows(POINTS) == before
    assert zombie.said.getvalue() == ""  # the training itself says so, and stops
    heir.epochs(3)
    heir.drawer.close()
    assert train(database.rows) == [(1, 1), (2, 2), (3, 3)]


def test_a_transaction_of_an_older_start_cannot_end_after_its_successors(tmp_path, postgres):
    url = postgres().render_as_string(hide_password=False)
    zombie, heir = Start(tmp_path / "run", url, generation=1), Start(tmp_path / "run", url, generation=2)
    zombie.epochs(1)
    zombie.drawer.close()
    heir.sql._prepare(heir.sql._database)
    with heir.sql._database.transaction() as connection:
        heir.sql._claim(connection)
        zombie.epochs(2)
        # It waits for the row, which the heir has locked.
        closing = threading.Thread(target=zombie.drawer.close)
        closing.start()
        closing.join(0.5)
        assert closing.is_alive()
    closing.join(60)
    assert not closing.is_alive()
    with Database(url).transaction() as connection:
        assert connection.execute(sqlalchemy.text("SELECT count(*) FROM minetorch_points")).scalar() == 2
        assert connection.execute(sqlalchemy.text("SELECT generation FROM minetorch_runs")).scalar() == 2


@pytest.mark.slow
def test_several_runs_write_at_once(tmp_path, database):
    script = """
import sys, logging
from minetorch.checkpoint import Store
from minetorch.drawers import Drawers, SqlDrawer
folder, url = sys.argv[1:]
drawer = Drawers([SqlDrawer(url, interval_s=0)], store=Store.open(folder), code="run", current_x=lambda: 0,
                 logger=logging.getLogger())
sys.stdin.readline()
for x in range(400):
    drawer.scalar(x, "loss", x=x)
    drawer.flush()
drawer.close()
"""
    command = [sys.executable, "-c", script]
    runs = [
        subprocess.Popen(
            [*command, tmp_path / f"run{number}", database.url],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for number in range(3)
    ]  # fmt: skip
    try:
        said = []
        for run in runs:
            run.stdin.write("go\n")
            run.stdin.flush()
        said = [run.communicate(timeout=150)[0] for run in runs]
    finally:
        for run in runs:
            run.kill()
            run.wait()
    assert said == ["", "", ""]
    assert [run.returncode for run in runs] == [0, 0, 0]
    counts = database.rows("SELECT count(*), count(DISTINCT x), sum(y) FROM minetorch_points GROUP BY run_id")
    assert counts == [(400, 400, sum(range(400)))] * 3


def test_a_database_that_is_away_is_reported_once_and_caught_up_with(tmp_path, postgres, eventually):
    url = postgres()
    start = Start(tmp_path / "run", url.render_as_string(hide_password=False))
    start.epochs(1)
    start.drawer.close()
    postgres.execute(f"ALTER DATABASE {url.database} ALLOW_CONNECTIONS false")
    start.epochs(2)

    def flush_until_said():
        start.drawer.flush()
        return "not currently accepting connections" in start.said.getvalue()

    eventually(flush_until_said)
    start.epochs(3)
    start.drawer.close()
    postgres.execute(f"ALTER DATABASE {url.database} ALLOW_CONNECTIONS true")
    start.epochs(4)
    start.drawer.close()
    with Database(url).transaction() as connection:
        found = connection.execute(sqlalchemy.text("SELECT x FROM minetorch_points WHERE curve = 'val' ORDER BY x"))
        assert [x for (x,) in found] == [1, 2, 3, 4]
    assert start.said.getvalue().count("\n") == 1
    assert "SqlDrawer.flush failed: StorageError: postgresql+psycopg://tester:***@" in start.said.getvalue()


def test_no_error_and_no_text_shows_a_password(tmp_path, postgres):
    wrong = "wr0ng/p@ss word"
    url = postgres.url("postgres", wrong)
    text = url.render_as_string(hide_password=False)
    start = Start(tmp_path / "run", text)
    start.epochs(1)
    start.drawer.close()
    said = start.said.getvalue()
    assert "password authentication failed" in said
    shown = [said, repr(start.sql), repr(start.sql._database), start.sql._database.shown, str(start.save())]
    unparsable = f"://tester:{wrong}@host"
    for bad in (unparsable, text.replace("postgresql+psycopg", "nosuch"), text.replace("psycopg", "pg8000")):
        with pytest.raises(ConfigurationError) as caught:
            SqlDrawer(bad)
        shown.append(str(caught.value))
    token = Database("postgresql+psycopg://host/x?sslpassword=t0ken&passfile=f1le")
    shown.append(token.hide("t0ken of f1le"))
    for each in shown:
        for secret in (wrong, "wr0ng%2Fp%40ss", "wr0ng", PASSWORD, "t0ken", "f1le"):
            assert secret not in each


def test_a_remote_run_needs_the_name_of_a_database(tmp_path):
    for silent in (False, True):
        with pytest.raises(ConfigurationError, match=r"memory://runs/a cannot hold.*postgresql\+psycopg://"):
            make_drawers(
                "sql", store=Store.open("memory://runs/a"), code="a", current_x=lambda: 1,
                logger=logging.getLogger("test"), silent=silent,
            )  # fmt: skip
    remote = Start("memory://runs/b", f"sqlite:///{tmp_path / 'curves.db'}")
    remote.epochs(1)
    remote.drawer.close()
    with sqlite3.connect(tmp_path / "curves.db") as connection:
        assert connection.execute("SELECT place FROM minetorch_runs").fetchall() == [("memory://runs/b",)]
    connection.close()


def test_by_name_it_is_a_file_in_the_runs_folder(tmp_path):
    drawers = make_drawers(
        "sql", store=Store.open(tmp_path / "my run"), code="a", current_x=lambda: 1, logger=logging.getLogger("test")
    )
    drawers.scalar(0.5, "loss")
    drawers.close()
    connection = sqlite3.connect(tmp_path / "my run/curves.db")
    assert connection.execute("SELECT x, y FROM minetorch_points").fetchall() == [(1, 0.5)]
    connection.close()


def test_names_that_databases_do_not_take(tmp_path, database):
    start = Start(tmp_path / "run", database.url)
    long = "n" * 1000
    start.drawer.scalars({"a\0b": 1, "\ud800": 2, long: 3, long + "x": 4, "训练 😀": 5}, "loss")
    start.drawer.close()
    start.drawer.scalars({"a\0b": 1, "\ud800": 2, long: 3, long + "x": 4, "训练 😀": 5}, "loss")
    start.drawer.close()
    assert start.said.getvalue() == ""
    counts = database.rows("SELECT curve, count(*) FROM minetorch_points GROUP BY curve")
    assert len(counts) == 5
    assert {count for _, count in counts} == {2}
    assert all(len(name) <= 200 for name, _ in counts)


def test_a_file_that_cannot_be_written(tmp_path):
    (tmp_path / "curves.db").mkdir()
    with (
        pytest.raises(StorageError, match="unable to open database file"),
        Database(f"sqlite:///{tmp_path / 'curves.db'}").transaction(),
    ):
        pass


def test_sqlalchemy_missing_says_what_to_install(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'minetorch\[sql\]'"):
        SqlDrawer()
