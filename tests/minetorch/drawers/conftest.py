"""A PostgreSQL server of the tests' own, and what waits for drawers that work beside the training."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from pathlib import Path
from types import SimpleNamespace

import pytest
import sqlalchemy
from sqlalchemy.pool import NullPool

PASSWORD = "s3cret/pass:w@rd%"


@pytest.fixture(scope="session")
def eventually():
    """Waits until a condition holds, and fails with what it last came to if that takes too long."""

    def eventually(condition, wanted=True, timeout=60):
        deadline = time.monotonic() + timeout
        while (found := condition()) != wanted and time.monotonic() < deadline:
            time.sleep(0.02)
        assert found == wanted

    return eventually


@pytest.fixture(scope="session")
def postgres():
    """A server that listens on a socket of its own: a function that makes a new database and returns its URL."""
    folder = Path(tempfile.mkdtemp(prefix="minetorch-pg-"))
    try:
        server = _Server(folder)
        try:
            server.start()
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Server:
    def __init__(self, folder):
        self.folder = folder
        self.process = None
        # The server refuses to run as root. Debian's package makes this user.
        self.user = {}
        if os.geteuid() == 0:
            account = pwd.getpwnam("postgres")
            self.user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
            os.chown(folder, account.pw_uid, account.pw_gid)

    def start(self):
        password, data = self.folder / "password", self.folder / "data"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        made = self.command(
            "initdb", "-D", data, "-U", "tester", "--auth=scram-sha-256", f"--pwfile={password}",
            "--no-sync", "--encoding=UTF8", "--locale=C",
        )  # fmt: skip
        assert made.wait(60) == 0, self.said()
        options = {"listen_addresses": "", "unix_socket_directories": self.folder, "fsync": "off"}
        settings = [f"--{name}={value}" for name, value in options.items()]
        self.process = self.command("postgres", "-D", data, *settings)
        deadline = time.monotonic() + 60
        while "ready to accept connections" not in self.said():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.02)

    def command(self, name, *arguments):
        found = [*Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), shutil.which(name)]
        if found == [None]:
            # scripts/test installs it where it can, and then there is no excuse.
            (pytest.fail if os.geteuid() == 0 else pytest.skip)("no PostgreSQL here: scripts/setup-postgres")
        with (self.folder / "log").open("a") as log:
            return subprocess.Popen(
                [str(found[0]), *map(str, arguments)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder, **self.user,
            )  # fmt: skip

    def said(self):
        return (self.folder / "log").read_text()

    def stop(self):
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown
            self.process.wait(60)

    def url(self, database, password=PASSWORD):
        return sqlalchemy.URL.create(
            "postgresql+psycopg", "tester", password, database=database, query={"host": str(self.folder)}
        )

    def execute(self, statement, database="postgres"):
        engine = sqlalchemy.create_engine(self.url(database), poolclass=NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text(statement))

    def __call__(self):
        name = f"test_{uuid.uuid4().hex}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url(name)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database(request, tmp_path):
    """The URL of an empty database as text, and `rows(query)`."""
    if request.param == "sqlite":
        url = sqlalchemy.URL.create("sqlite", database=str(tmp_path / "ünï curves.db"))
    else:
        url = request.getfixturevalue("postgres")()

    def rows(query):
        engine = sqlalchemy.create_engine(url, poolclass=NullPool)
        with engine.connect() as connection:
            return [tuple(row) for row in connection.execute(sqlalchemy.text(query))]

    return SimpleNamespace(url=url.render_as_string(hide_password=False), rows=rows, kind=request.param)
