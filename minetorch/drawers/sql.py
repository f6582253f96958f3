"""Draws into a database: the curves of many runs, for whatever can read SQL.

The tables are described in docs/drawers.md. SQLAlchemy is imported when a drawer is made.
"""

from __future__ import annotations

import importlib.util
import time
import uuid
from datetime import datetime, timezone
from itertools import islice
from typing import TYPE_CHECKING, Any

from minetorch.drawers.background import BackgroundDrawer
from minetorch.drawers.drawer import generation
from minetorch.errors import ConfigurationError, SupersededError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sqlalchemy import Connection
    from sqlalchemy.engine import URL

    from minetorch.drawers.background import News
    from minetorch.drawers.curves import Curves
    from minetorch.drawers.database import Database
    from minetorch.drawers.drawer import RunStore

DATABASE = "curves.db"
"""The SQLite file in the run's directory, where no URL is given."""

RUN_ID = "run.id"
"""The file in the run's directory with the run's key in databases: it stays the run's wherever the directory goes."""

_CHUNK = 5000

_Key = tuple[str, str]
"""A graph and a curve, as the database has them."""


class SqlDrawer(BackgroundDrawer):
    """The run's points, graphs and marks as rows of a database.

    Every writing is one transaction. It begins by raising the generation in the run's row to this start's, which
    locks the row, or is refused where a later start was there: that one's rows are never touched by an older one.
    After `restore`, the rows are compared with the record, and what differs is replaced, in one transaction.

    Images, figures and histograms are not kept.
    """

    def __init__(
        self,
        url: str | URL | None = None,
        *,
        interval_s: float = 2.0,
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        """Make a drawer for one run. Nothing is connected to before the first point.

        Args:
            url: of SQLAlchemy, such as `postgresql+psycopg://user:password@host/database`; by default an SQLite file
                `curves.db` in the run's directory, which must then be on this machine. Passwords in it are never
                shown.
            interval_s: seconds from one writing to the next, at least; in a remote run 10 at least.
            cpu_clock: the seconds that the calling thread has computed.

        Raises:
            ConfigurationError: SQLAlchemy or the database's driver is not installed, or it is no URL.
        """
        if importlib.util.find_spec("sqlalchemy") is None:
            raise ConfigurationError("drawer='sql' needs SQLAlchemy: pip install 'minetorch[sql]'")
        super().__init__(interval_s, cpu_clock)
        self._database: Database | None = None if url is None else _open(url)
        # The thread's own.
        self._run_id = ""
        self._written: Curves | None = None  # the record that the rows are of
        self._counts: dict[tuple[str, str], int] = {}  # points of each curve that are in the database
        self._described: tuple[dict[str, str], int] | None = None  # names of x by graph, and how many marks

    def __repr__(self) -> str:
        return f"SqlDrawer({'' if self._database is None else repr(self._database.shown)})"

    def check(self, store: RunStore) -> None:
        """Look whether the points of this run could be kept.

        Raises:
            ConfigurationError: the run is remote, and no database was named.
        """
        if self._database is None and not store.is_local:
            raise ConfigurationError(
                f"drawer='sql' keeps an SQLite file in the run's directory, which {store.url} cannot hold. Name a "
                "database: drawer=minetorch.SqlDrawer('postgresql+psycopg://user@host/database'), or a file on this "
                "machine: drawer=minetorch.SqlDrawer('sqlite:////data/curves.db')"
            )

    def bind(self, store: RunStore, code: str) -> None:
        """Draw for this run.

        Raises:
            ConfigurationError: the run is remote, and no database was named.
        """
        self.check(store)
        super().bind(store, code)
        if self._database is None:
            self._database = _open(f"sqlite:///{store.local_path(DATABASE)}")

    def _draw(self) -> None:
        with self._lock:
            record = self._record
            names = {graph: record.x_name(graph) for graph in record}
            marks = list(record.marks)
        news = list(self._news(record, self._counts if record is self._written else {}))
        assert self._database is not None, "bind comes before anything else"
        if not self._run_id:
            self._prepare(self._database)
        described = names, len(marks)
        with self._database.transaction() as connection:
            self._claim(connection)
            if record is not self._written:
                news = list(self._reconcile(connection, news))
            for rows in _chunks(self._rows(news)):
                connection.execute(_tables().POINTS.insert(), rows)
            if record is not self._written or described != self._described:
                self._describe(connection, names, marks)
        if record is not self._written:
            self._counts.clear()
        for one in news:
            self._counts[one.graph, one.curve] = one.first + one.points.shape[1]
        self._written, self._described = record, described

    def _prepare(self, database: Database) -> None:
        """Know the run's key, and have the tables."""
        assert self._store is not None
        try:
            run_id = self._store.read(RUN_ID).decode("ascii", "replace").strip()
        except FileNotFoundError:
            run_id = ""
        if len(run_id) != 32:
            run_id = uuid.uuid4().hex
            self._store.write(RUN_ID, f"{run_id}\n".encode())  # which makes the run's directory, for SQLite, too
        database.create(_tables().METADATA)
        self._run_id = run_id

    def _claim(self, connection: Connection) -> None:
        """Lock the run's row for this transaction, as the run's newest start.

        Raises:
            SupersededError: a later start has written here.
        """
        from sqlalchemy import select

        assert self._store is not None
        runs, fit = _tables().RUNS, _tables().fit
        mine, now = generation(self._store), _now()
        row = {"code": fit(self._code), "place": self._store.url[:2000], "generation": mine, "updated_at": now}
        update = runs.update().where(runs.c.run_id == self._run_id, runs.c.generation <= mine).values(row)
        if connection.execute(update).rowcount:
            return
        found = connection.execute(select(runs.c.generation).where(runs.c.run_id == self._run_id)).scalar()
        if found is not None:
            raise SupersededError(
                f"the database has rows of this run's start number {found}, and this one's is {mine}: it writes nothing"
            )
        connection.execute(runs.insert().values(run_id=self._run_id, started_at=now, **row))

    def _reconcile(self, connection: Connection, news: list[News]) -> Iterator[News]:
        """Delete the rows that are not of the record, and return the points that have no row."""
        wanted = {self._key(one): one for one in news}
        kept = self._kept(connection, wanted)
        points = _tables().POINTS
        for (graph, curve), count in kept.items():
            connection.execute(
                points.delete().where(
                    points.c.run_id == self._run_id,
                    points.c.graph == graph,
                    points.c.curve == curve,
                    points.c.number >= count,
                )
            )
        for key, one in wanted.items():
            count = kept.get(key, 0)
            yield one._replace(first=count, points=one.points[:, count:])

    def _kept(self, connection: Connection, wanted: dict[_Key, News]) -> dict[_Key, int]:
        """How many rows of each curve in the database agree with its first points."""
        from sqlalchemy import select

        points, split = _tables().POINTS, _tables().split
        columns = points.c.graph, points.c.curve, points.c.number, points.c.x, points.c.y, points.c.special
        query = select(*columns).where(points.c.run_id == self._run_id)
        query = query.order_by(points.c.graph, points.c.curve, points.c.number)
        kept: dict[_Key, int] = {}
        for graph, curve, number, x, y, special in connection.execute(query.execution_options(yield_per=_CHUNK)):
            key = graph, curve
            count = kept.setdefault(key, 0)
            if key in wanted and number == count < wanted[key].points.shape[1]:
                x_wanted, y_wanted = wanted[key].points[:, count].tolist()
                if (x, y, special) == (x_wanted, *split(y_wanted)):
                    kept[key] += 1
        return kept

    def _rows(self, news: Iterable[News]) -> Iterator[dict[str, Any]]:
        now, split = _now(), _tables().split
        for one in news:
            graph, curve = self._key(one)
            for number, (x, y) in enumerate(zip(*one.points.tolist(), strict=True), start=one.first):
                value, special = split(y)
                yield {
                    "run_id": self._run_id,
                    "graph": graph,
                    "curve": curve,
                    "number": number,
                    "x": x,
                    "y": value,
                    "special": special,
                    "drawn_at": now,
                }

    def _describe(self, connection: Connection, names: dict[str, str], marks: list[Any]) -> None:
        """Write the rows that are few anew."""
        tables = _tables()
        for table in tables.GRAPHS, tables.MARKS:
            connection.execute(table.delete().where(table.c.run_id == self._run_id))
        run = {"run_id": self._run_id}
        if names:
            graphs = [run | {"graph": tables.fit(graph), "x_name": name} for graph, name in names.items()]
            connection.execute(tables.GRAPHS.insert(), graphs)
        if marks:
            rows = [
                run
                | {"number": number, "kind": mark.kind, "epoch": mark.epoch, "step": mark.step}
                | {"marked_at": datetime.fromtimestamp(mark.time, timezone.utc)}
                for number, mark in enumerate(marks)
            ]
            connection.execute(tables.MARKS.insert(), rows)

    def _key(self, one: News) -> _Key:
        fit = _tables().fit
        return fit(one.graph), fit(one.curve)


def _open(url: str | URL) -> Database:
    # With all that the thread will need: one that is amid an import harms processes that are forked meanwhile.
    import minetorch.drawers.tables  # noqa: F401
    from minetorch.drawers.database import Database

    return Database(url)


def _tables() -> Any:
    from minetorch.drawers import tables

    return tables


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _chunks(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while chunk := list(islice(rows, _CHUNK)):
        yield chunk
