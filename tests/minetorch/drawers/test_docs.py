"""What docs/drawers.md promises: the drawer of your own, the queries, the tables and the options."""

import inspect
import re
import textwrap
from pathlib import Path

import sqlalchemy

import minetorch
from minetorch.drawers import Drawer, Drawers, MatplotlibDrawer, SqlDrawer, TensorboardDrawer
from minetorch.drawers.tables import METADATA

TEXT = (Path(__file__).parents[3] / "docs/drawers.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_the_drawer_of_your_own_draws_a_resumed_run(make_trainer, tmp_path):
    names = {"minetorch": minetorch}
    exec(next(block for block in PYTHON if "CsvDrawer" in block), names)
    make_trainer(max_epochs=2, drawer=names["CsvDrawer"](), val_dataloader=None).train()
    with (tmp_path / "runs/default/points.csv").open("a") as file:
        file.write("loss,train,3.0,7\n")  # of a process that was killed before it saved
    make_trainer(max_epochs=4, drawer=names["CsvDrawer"](), val_dataloader=None).train()
    lines = (tmp_path / "runs/default/points.csv").read_text().splitlines()
    assert [line.split(",")[:3] for line in lines] == [["loss", "train", f"{epoch}.0"] for epoch in (1, 2, 3, 4)]
    assert not any(line.endswith(",7") for line in lines)


def test_the_queries_work_on_the_file_of_a_trained_run(make_trainer, tmp_path):
    make_trainer(code="plan-a", drawer="sql").train()
    make_trainer(code="plan-a", drawer="sql", max_epochs=3).train()
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'runs/plan-a/curves.db'}")
    grafana = re.search(r"```sql\n(.*?)```", TEXT, re.DOTALL)[1]
    pandas = next(re.search(r'"(SELECT.*?)"', block)[1] for block in PYTHON if "read_sql" in block)
    with engine.connect() as connection:
        rows = connection.execute(sqlalchemy.text(grafana)).mappings().all()
        assert sorted(row["metric"] for row in rows) == ["train"] * 3 + ["val"] * 3
        points = connection.execute(sqlalchemy.text(pandas)).mappings().all()
        assert [point["x"] for point in points if point["curve"] == "val"] == [1, 2, 3]
        marks = connection.execute(sqlalchemy.text("SELECT kind, epoch, step FROM minetorch_marks")).all()
        assert marks == [("resume", 2, 10)]
        assert connection.execute(sqlalchemy.text("SELECT generation FROM minetorch_runs")).all() == [(2,)]
    engine.dispose()


def test_every_table_and_column_is_described():
    described = TEXT.split("| table | column | |")[1].split("\n\n")[0]
    for table in METADATA.tables.values():
        assert f"`{table.name}`" in described
        for column in table.columns:
            assert f"`{column.name}`" in described


def test_options_calls_and_methods_are_described():
    for kind in (MatplotlibDrawer, TensorboardDrawer, SqlDrawer):
        options = [
            f"{name}={parameter.default!r}"
            for name, parameter in inspect.signature(kind).parameters.items()
            if name != "cpu_clock"
        ]
        assert f"`{kind.__name__}({', '.join(options)})`" in TEXT
    for name in ("scalar", "scalars", "image", "figure", "histogram"):
        assert re.search(rf"`{name}\(", TEXT)
        assert hasattr(Drawers, name)
    methods = TEXT.split("| method | called |")[1]
    for name in vars(Drawer):
        if not name.startswith("_"):
            assert re.search(rf"`{name}\(", methods), name


def test_every_block_of_python_compiles():
    for block in PYTHON:
        compile(textwrap.dedent(block), "docs/drawers.md", "exec")
