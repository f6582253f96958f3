"""A PostgreSQL server of the tests' own, and what waits for drawers that work beside the training."""

import os
import pwd
import shutil
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
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Server:
    def __init__(self, folder):
        self.folder = folder
        # The server refuses to run as root. Debian's package makes this user.
        self.user = {}
        if os.geteuid() == 0:
            account = pwd.getpwnam("postgres")
            self.user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
            os.chown(folder, account.pw_uid, account.pw_gid)

    def run(self, command, *arguments):
        found = [*Path("/usr/lib/postgresql").glob(f"*/bin/{command}"), shutil.which(command)]
        if found == [None]:
            # scripts/test installs it where it can, and then there is no excuse.
            (pytest.fail if os.geteuid() == 0 else pytest.skip)("no PostgreSQL here: scripts/setup-postgres")
        log = self.folder / f"{command}.log"
        with log.open("w") as output:
            code = subprocess.call(
                [str(found[0]), *map(str, arguments)],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=self.folder, **self.user,
            )  # fmt: skip
        assert code == 0, log.read_text()

    def start(self):
        password = self.folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        self.run(
            "initdb", "-D", self.folder / "data", "-U", "tester", "--auth=scram-sha-256", f"--pwfile={password}",
            "--no-sync", "--encoding=UTF8", "--locale=C",
        )  # fmt: skip
        options = f"-c listen_addresses='' -c unix_socket_directories='{self.folder}' -c fsync=off"
        self.run(
            "pg_ctl", "start", "-w", "-t", 60, "-D", self.folder / "data", "-o", options, "-l", self.folder / "log"
        )

    def stop(self):
        self.run("pg_ctl", "stop", "-w", "-m", "immediate", "-D", self.folder / "data")

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


@pytest.fixture(params=["sqlite", "postgresql"])
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
